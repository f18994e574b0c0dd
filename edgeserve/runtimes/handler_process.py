"""A handler's process as the server sees it: start it, ask it, end it, log what it prints. Linux only."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Final

import msgspec

from edgeserve.contracts.errors import DeviceError, EdgeServeError, InputError, MissingLibraryError
from edgeserve.contracts.limits import (
    HANDLER_CLOSE_S,
    HANDLER_COPY_BYTES,
    HANDLER_LOG_BYTES,
    HANDLER_LOG_LINE_CHARS,
    HANDLER_LOG_WINDOW_S,
    HANDLER_START_S,
    MIB,
)
from edgeserve.contracts.tensors import TensorSpec
from edgeserve.release.blobs import open_regular
from edgeserve.runtimes.base import Tensor, Tensors
from edgeserve.runtimes.handler_frames import Answer, BrokenFrameError, Call, Failed, Ready, Start, Wire, pack

_LOG: Final = logging.getLogger("edgeserve.runtimes.handler")
_PROGRAM: Final = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from edgeserve.runtimes.handler_worker import main; sys.exit(main(int(sys.argv[2])))"
)
"""Not `-m`, which would look in the handler's folder first, before any privilege is dropped."""
_KEPT: Final = ("LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "PATH")
"""Of the environment; tokens and addresses of the server are in none of them."""
_NOBODY: Final = 65534
_READ_BYTES: Final = 64 * 1024


class HandlerGoneError(DeviceError):
    """The process ended, hangs or does not keep to the protocol; it is of no more use."""


class HandlerProcess:
    """A running handler that has loaded; one call at a time.

    Args:
        name: Of the handler, for errors and the log.
        folder: Its files.
        start: What it is to load; folder and user are filled in here.
        leave_out: Files that it does not read: those of the model that it is chained to.
        start_s: Seconds for the start of Python and `load`.

    Raises:
        InputError: The file is no handler.
        DeviceError: The process could not be started, failed or took too long.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        start: Start,
        *,
        leave_out: frozenset[str] = frozenset(),
        threads: int = 1,
        start_s: float = HANDLER_START_S,
    ) -> None:
        self._name = name
        self._call_s = start.call_s
        self._copy: Path | None = None
        user = _user_of_handlers()
        if user is not None:
            self._copy = folder = _copied(folder, leave_out)
        ours, theirs = socket.socketpair()
        self._wire = Wire(ours)
        try:
            with theirs:
                self._child = _popen(theirs.fileno(), threads)
        except OSError as error:
            self._remove()
            raise DeviceError(f"cannot start the process of {name}: {error.strerror}") from error
        assert self._child.stdout is not None
        self._log = _Log(name, self._child.stdout)
        order = msgspec.structs.replace(start, folder=str(folder.resolve()), user=user)
        try:
            ready = self._exchange("its start", order, (), start_s, Ready)
        except BaseException:
            self.close()
            raise
        assert isinstance(ready, Ready)
        self.applied = ready.applied
        self.missing = ready.missing

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._child.pid

    def call(self, step: str, inputs: Mapping[str, Tensor], specs: Sequence[TensorSpec]) -> Tensors:
        """Let the handler compute.

        Args:
            step: `run`, `preprocess` or `postprocess`.
            inputs: Given to it.
            specs: What it must return.

        Raises:
            InputError: It says that the client is to blame, or the inputs are too large.
            HandlerGoneError: The process is of no more use.
            DeviceError: It failed, or returned something else.
        """
        parts, blobs = pack(inputs)
        answer = self._exchange(step, Call(step=step, parts=parts), blobs, self._call_s, Answer)
        assert isinstance(answer, Answer)
        try:
            return self._wire.receive_tensors(answer.parts, specs, f"{step} of {self._name}")
        except (BrokenFrameError, OSError, EOFError) as error:
            raise self._gone(step, error) from error

    def close(self) -> None:
        """End the process and remove what was copied for it. May be called twice, and during a call."""
        self._kill()
        self._wire.close()
        self._log.join(HANDLER_CLOSE_S)
        self._remove()

    def _exchange(
        self, step: str, head: Start | Call, blobs: Sequence[bytes | memoryview], seconds: float, kind: type
    ) -> object:
        self._wire.set_deadline(seconds)
        try:
            with contextlib.suppress(BrokenPipeError):  # it may have said why before it ended
                self._wire.send(head, blobs)
            answer = self._wire.receive(kind | Failed)
        except (BrokenFrameError, OSError, EOFError) as error:
            raise self._gone(step, error) from error
        if isinstance(answer, Failed):
            raise self._failure(answer)
        return answer

    def _failure(self, failed: Failed) -> EdgeServeError:
        if failed.kind == "input":
            return InputError(failed.message or "the handler refuses this input")
        message = f"{self._name}: {failed.message}"
        if failed.kind == "file":
            return InputError(f"{message} (it is no handler model)", hint="docs/handler.md shows one")
        if failed.kind == "library":
            return MissingLibraryError(message, hint="install it in the environment of the server on this device")
        return DeviceError(message, hint="the log has what it printed, and where it failed")

    def _gone(self, step: str, error: Exception) -> HandlerGoneError:
        if isinstance(error, TimeoutError):
            self._kill()
            limit = f"call_s = {self._call_s:g} in [limits] of handler.toml"
            return HandlerGoneError(f"{step} of {self._name} took too long and was ended", hint=limit)
        if isinstance(error, BrokenFrameError):
            self._kill()
            return HandlerGoneError(f"{step} of {self._name}: {error.message}")
        with contextlib.suppress(subprocess.TimeoutExpired):  # it closed the connection: it is about to end
            self._child.wait(HANDLER_CLOSE_S)
        ended = _ended(self._child.poll())
        self._kill()
        return HandlerGoneError(f"the process of {self._name} {ended} in {step}", hint="the log has what it printed")

    def _kill(self) -> None:
        # Its session, too: where seccomp is missing it may have children.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._child.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(HANDLER_CLOSE_S)

    def _remove(self) -> None:
        if self._copy is not None:
            shutil.rmtree(self._copy, ignore_errors=True)


def _popen(descriptor: int, threads: int) -> subprocess.Popen[bytes]:
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
    environment |= {"HOME": "/nonexistent", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": str(max(threads, 1))}
    # `python -m` puts the working directory there, where the server's configuration may lie.
    ours = Path(__file__).resolve().parents[2]
    folders = (Path(entry).resolve() for entry in sys.path if entry)
    path = [str(folder) for folder in folders if folder == ours or folder != Path.cwd()]
    return subprocess.Popen(
        [sys.executable, "-I", "-B", "-u", "-c", _PROGRAM, json.dumps(path), str(descriptor)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        cwd="/",
        pass_fds=(descriptor,),
        start_new_session=True,
    )


def _user_of_handlers() -> tuple[int, int] | None:
    """Whom a handler becomes: nobody where this process is root, else it stays who it is."""
    if os.geteuid() != 0:
        return None
    import pwd

    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        return _NOBODY, _NOBODY
    return entry.pw_uid, entry.pw_gid


def _copied(folder: Path, leave_out: frozenset[str]) -> Path:
    """Copy the files of `folder` to one that every user may read; root's own folders often are closed to others."""
    copy = Path(tempfile.mkdtemp(prefix="edgeserve-handler-"))
    total = 0
    try:
        for path in sorted(folder.iterdir()):
            if path.name in leave_out or not path.is_file() or path.is_symlink():
                continue
            with open_regular(path) as source, (copy / path.name).open("xb") as target:
                total += os.fstat(source.fileno()).st_size
                if total > HANDLER_COPY_BYTES:
                    raise InputError(
                        f"the files of the handler in {folder} have more than {HANDLER_COPY_BYTES // MIB} MiB",
                        hint="run the server as a user of its own instead of as root: then they are read in place",
                    )
                shutil.copyfileobj(source, target)
                os.fchmod(target.fileno(), 0o444)
        copy.chmod(0o755)
    except OSError as error:
        shutil.rmtree(copy, ignore_errors=True)
        raise DeviceError(f"cannot copy the files of the handler to {copy}: {error.strerror}") from error
    except BaseException:
        shutil.rmtree(copy, ignore_errors=True)
        raise
    return copy


class _Log(threading.Thread):
    """Logs what a handler prints, line by line, however much that is."""

    def __init__(self, name: str, stream: IO[bytes]) -> None:
        super().__init__(name="handler-log", daemon=True)
        self._handler = name
        self._stream = stream
        self._window = time.monotonic()
        self._logged = 0
        self._dropped = 0
        self.start()

    def run(self) -> None:
        """Read to the end of the stream."""
        rest = b""
        with self._stream:
            while chunk := os.read(self._stream.fileno(), _READ_BYTES):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._line(line)
                if len(rest) > HANDLER_LOG_LINE_CHARS * 4:
                    self._line(rest)
                    rest = b""
        if rest:
            self._line(rest)
        self._tell_dropped()

    def _line(self, line: bytes) -> None:
        now = time.monotonic()
        if now - self._window > HANDLER_LOG_WINDOW_S:
            self._tell_dropped()
            self._window, self._logged = now, 0
        if self._logged + len(line) > HANDLER_LOG_BYTES:
            self._dropped += len(line) + 1
            return
        self._logged += len(line) + 1
        text = line.decode("utf-8", "backslashreplace").rstrip()[:HANDLER_LOG_LINE_CHARS]
        # What it prints must not look like a line of our own, nor move the reader's cursor.
        shown = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)
        _LOG.info("%s says: %s", self._handler, shown)

    def _tell_dropped(self) -> None:
        if self._dropped:
            _LOG.warning("%s printed %d bytes more than are logged", self._handler, self._dropped)
            self._dropped = 0


def _ended(code: int | None) -> str:
    if code is None:
        return "closed its connection"
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    why = {"SIGXCPU": ", for it took more processor time than it may", "SIGKILL": ", perhaps for want of memory"}
    return f"was ended by {name}{why.get(name, '')}"
