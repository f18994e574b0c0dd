"""The embedded broker: the `mosquitto` binary as a child process, with generated files in a folder of its own."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final

from edgeserve import atomic
from edgeserve.contracts.errors import DeviceError, InputError
from edgeserve.contracts.names import device_id
from edgeserve.link import mosquitto_files as files

_FOLDERS: Final = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")
_VARIABLE: Final = "EDGESERVE_MOSQUITTO"
_INSTALL: Final = "install it (apt install mosquitto, brew install mosquitto), or name the binary in " + _VARIABLE
_START_S: Final = 10.0
_STOP_S: Final = 10.0  # it writes its database before it ends
_RELOAD_S: Final = 10.0
_PORT_ATTEMPTS: Final = 10
_MAX_LOG_BYTES: Final = 8 << 20  # kept from earlier runs; then one old log stays beside the new one
_RUNNING: Final = re.compile(rb"mosquitto version \S+ running")
_RELOADED: Final = re.compile(rb"Reloading config")
_PORT_TAKEN: Final = b"Address already in use"


def find_mosquitto() -> Path:
    """The broker's binary: `EDGESERVE_MOSQUITTO`, then PATH, then the `sbin` folders, which PATH often lacks.

    Raises:
        DeviceError: There is none.
    """
    named = os.environ.get(_VARIABLE)
    if named:
        if not os.access(named, os.X_OK) or Path(named).is_dir():
            raise DeviceError(f"{_VARIABLE} names {named}, which cannot be executed", hint=_INSTALL)
        return Path(named)
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *_FOLDERS))
    found = shutil.which("mosquitto", path=path)
    if found is None:
        raise DeviceError("the MQTT broker mosquitto is not installed", hint=_INSTALL)
    return Path(found)


def mosquitto_version(binary: Path) -> str:
    """Version that a binary names, such as `2.0.11`; empty when it does not say.

    Raises:
        DeviceError: It cannot be run.
    """
    try:
        shown = subprocess.run([binary, "-h"], capture_output=True, timeout=_START_S, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        raise DeviceError(f"cannot run {binary}: {error}", hint=_INSTALL) from error
    match = re.search(rb"mosquitto version (\S+)", shown.stdout + shown.stderr)
    return match.group(1).decode("ascii", "replace") if match else ""


class Mosquitto:
    """A real broker on one address; users are device ids and the manager.

    Users and retained documents live in `folder` and outlast this object. `start` ends a broker that an earlier owner
    of the folder left running (it was killed before it could).

    Args:
        folder: For configuration, passwords, database and log; made if missing, readable by its owner only.
        port: 0 = pick a free one at the first start, and keep it.
        host: Address to listen on.
        manager_user: The user who reads and writes everything below `es1/`.

    Raises:
        DeviceError: The folder cannot be made or read.
    """

    def __init__(self, folder: Path, *, port: int = 0, host: str = "127.0.0.1", manager_user: str = "fm") -> None:
        self.port = port
        self.host = host
        self._folder = folder.resolve()
        self._manager_user = manager_user
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self._folder / "data").mkdir(mode=0o700, exist_ok=True)
            self._passwords = (
                files.read_passwords(self._password_file.read_text()) if self._password_file.exists() else {}
            )
        except OSError as error:
            raise DeviceError(f"cannot use {folder} for the broker: {error}") from error

    @property
    def url(self) -> str:
        """Where clients connect; the port is known after `start`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"mqtt://{host}:{self.port}"

    @property
    def log_path(self) -> Path:
        """The broker's log."""
        return self._folder / "mosquitto.log"

    @property
    def running(self) -> bool:
        """Whether the child process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """Process id of the child while it runs."""
        return self._process.pid if self._process is not None and self.running else None

    def start(self) -> None:
        """Start the broker and return when it accepts connections. Starting a running one is no error.

        Raises:
            DeviceError: It is not installed, the port is taken, or it ended; with the end of its log.
        """
        with self._lock:
            if self.running:
                return
            binary = find_mosquitto()
            self._end_orphan()
            self._turn_log()
            self._write_passwords()
            atomic.write_bytes(self._folder / "acl", files.access_rules(self._manager_user).encode(), mode=0o600)
            for attempt in range(_PORT_ATTEMPTS):
                port = self.port or _free_port(self.host)
                failure = self._try_start(binary, port)
                if failure is None:
                    self.port = port
                    return
                if self.port or _PORT_TAKEN not in failure or attempt == _PORT_ATTEMPTS - 1:
                    raise self._start_error(port, failure)

    def add_user(self, username: str, password: str) -> None:
        """Let a user in, or change the password; in force when it returns if the broker runs. See `add_users`."""
        self.add_users({username: password})

    def add_users(self, passwords: Mapping[str, str]) -> None:
        """Let users in, in one step. A running broker drops clients whose password changed, and nobody else.

        Raises:
            InputError: A name is neither a device id nor the manager's, or a password is empty.
            DeviceError: The file cannot be written, or the broker does not read it.
        """
        for username, password in passwords.items():
            if username != self._manager_user:
                device_id(username)
            if not password:
                raise InputError(f"the password of broker user {username} is empty")
        with self._lock:
            for username, password in passwords.items():
                self._passwords[username] = files.password_line(username, password, secrets.token_bytes(12))
            self._write_passwords()
            self._reload()

    def remove_user(self, username: str) -> None:
        """Shut a user out; a running broker drops its connection. Removing an unknown one is no error.

        Raises:
            DeviceError: The file cannot be written, or the broker does not read it.
        """
        with self._lock:
            if self._passwords.pop(username, None) is not None:
                self._write_passwords()
                self._reload()

    def stop(self) -> None:
        """End the broker; it saves sessions and retained documents first. Stopping a stopped one is no error."""
        with self._lock:
            if self._process is not None:
                self._process.terminate()
                try:
                    self._process.wait(_STOP_S)
                except subprocess.TimeoutExpired:
                    self._process.kill()
                    self._process.wait()
            self._forget()

    def kill(self) -> None:
        """End the broker as a power cut would: with SIGKILL, nothing saved."""
        with self._lock:
            if self._process is not None:
                self._process.kill()
                self._process.wait()
            self._forget()

    def __enter__(self) -> Mosquitto:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def _password_file(self) -> Path:
        return self._folder / "passwords"

    @property
    def _config_file(self) -> Path:
        return self._folder / "mosquitto.conf"

    @property
    def _pid_file(self) -> Path:
        return self._folder / "mosquitto.pid"

    def _write_passwords(self) -> None:
        text = "".join(f"{line}\n" for _user, line in sorted(self._passwords.items()))
        atomic.write_bytes(self._password_file, text.encode(), mode=0o600)

    def _try_start(self, binary: Path, port: int) -> bytes | None:
        """Start on `port`; what it said when it ended instead."""
        text = files.configuration(folder=self._folder, host=self.host, port=port, as_root=os.geteuid() == 0)
        atomic.write_bytes(self._config_file, text.encode(), mode=0o600)
        log_from = self._log_size()
        try:
            with self.log_path.open("ab") as log:
                # In a session of its own: Ctrl-C reaches its owner, who stops it after those who need it.
                self._process = subprocess.Popen(
                    [binary, "-c", self._config_file],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        except OSError as error:
            raise DeviceError(f"cannot start {binary}: {error}", hint=_INSTALL) from error
        atomic.write_bytes(self._pid_file, f"{self._process.pid}\n".encode())
        if _poll(lambda: not self.running or self._logged(_RUNNING, log_from), _START_S) and self.running:
            return None
        self._process.kill()
        self._process.wait()
        self._forget()
        return self._log_since(log_from)

    def _start_error(self, port: int, failure: bytes) -> DeviceError:
        if _PORT_TAKEN in failure:
            return DeviceError(
                f"port {port} of {self.host} is taken, the broker cannot listen on it",
                hint="stop what listens there, or choose another port",
            )
        tail = failure[-2000:].decode("utf-8", "replace").strip() or "nothing"
        return DeviceError(f"mosquitto did not start; it said: {tail}", hint=f"see {self.log_path}")

    def _reload(self) -> None:
        if self._process is None or not self.running:
            return
        log_from = self._log_size()
        self._process.send_signal(signal.SIGHUP)
        # It is single-threaded and announces the reload first: whoever connects after that line meets the new file.
        if not _poll(lambda: not self.running or self._logged(_RELOADED, log_from), _RELOAD_S) or not self.running:
            raise DeviceError("mosquitto does not read its password file again", hint=f"see {self.log_path}")

    def _end_orphan(self) -> None:
        """End the broker of an earlier owner, recognised by its command line (which needs /proc)."""
        try:
            pid = int(self._pid_file.read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return
        if os.fsencode(self._config_file) not in command:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            if _poll(lambda: not _alive(pid), _STOP_S):
                return

    def _forget(self) -> None:
        self._process = None
        with contextlib.suppress(OSError):
            self._pid_file.unlink()

    def _turn_log(self) -> None:
        if self._log_size() > _MAX_LOG_BYTES:
            atomic.move(self.log_path, self.log_path.with_suffix(".log.1"))

    def _log_size(self) -> int:
        try:
            return self.log_path.stat().st_size
        except FileNotFoundError:
            return 0

    def _log_since(self, start: int) -> bytes:
        try:
            with self.log_path.open("rb") as log:
                log.seek(start)
                return log.read()
        except FileNotFoundError:
            return b""

    def _logged(self, pattern: re.Pattern[bytes], start: int) -> bool:
        return pattern.search(self._log_since(start)) is not None


def _free_port(host: str) -> int:
    """A port that is free now. mosquitto cannot bind port 0 and say which it got, so another may take it first."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((host, 0))
        except OSError as error:
            raise DeviceError(f"cannot listen on {host}: {error}", hint="use an address of this machine") from error
        return int(probe.getsockname()[1])


def _alive(pid: int) -> bool:
    """Whether a process runs: it exists and is no zombie that its own parent has yet to collect."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def _poll(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
