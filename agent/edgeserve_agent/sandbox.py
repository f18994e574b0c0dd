"""Runs the trial of a candidate in a child process and reads its answer."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final

import msgspec

from edgeserve.contracts.errors import DeviceError
from edgeserve.contracts.limits import KIB, TRIAL_TIMEOUT_S
from edgeserve_agent.download import StoppedError

TRIAL_COMMAND: Final = (sys.executable, "-m", "edgeserve_agent.trial")
_LOOK_S: Final = 0.05
_MOST_REASON_CHARS: Final = 500
_MOST_OUTPUT_BYTES: Final = 64 * KIB


class TrialProgress(msgspec.Struct, frozen=True, kw_only=True):
    """What the child process prints while it builds."""

    progress: str


class TrialAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What the child process prints last."""

    passed: bool
    reason: str = ""
    blame: bool = True
    """It is not the device's fault that it did not pass."""
    executing_device: str = ""
    fallback: str = ""
    """Why that is not the device that the variant is for; empty = it is."""
    rows: int = 0
    agreement: float = 0.0
    load_s: float = 0.0
    run_s: float = 0.0
    latency_ms: float = 0.0
    """Median of one warm call with one row; 0 = not measured."""


class TrialError(DeviceError):
    """The candidate did not pass its trial on this device."""


def run_trial(
    folder: Path,
    golden: Path | None,
    *,
    simulate: bool,
    threads: int,
    stop: threading.Event,
    timeout_s: float = TRIAL_TIMEOUT_S,
    cache: Path | None = None,
    progress: Callable[[str], None] = lambda _text: None,
    command: tuple[str, ...] = TRIAL_COMMAND,
) -> TrialAnswer:
    """Load the variant in `folder` in a child process and let it reproduce the golden set.

    Args:
        folder: Holds the variant.
        golden: The golden set; None = the variant is only loaded, which builds what is not built yet.
        simulate: Run on the nearest device here when the contract's device is absent.
        threads: Inside one call.
        stop: Ends the child process when it is set.
        timeout_s: Of everything together.
        cache: Keeps what the child process builds; None = nothing is kept.
        progress: Told what the child process says of a build, and how long it has been at work.
        command: Program of the child process.

    Raises:
        TrialError: It crashed, took longer than `timeout_s`, cannot be loaded or computes something else.
        DeviceError: There is no space for what is built.
        StoppedError: `stop` was set; the child process is gone.
    """
    arguments = ["--folder", str(folder), "--threads", str(threads), "--timeout", str(timeout_s)]
    arguments += ["--golden", str(golden)] if golden is not None else []
    arguments += ["--cache", str(cache)] if cache is not None else []
    arguments += ["--simulate"] if simulate else []
    said = ""
    began = time.monotonic()
    with subprocess.Popen(
        [*command, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        output, errors = _Tail(child.stdout), _Tail(child.stderr)
        try:
            while child.poll() is None:
                if stop.wait(_LOOK_S):
                    raise StoppedError("the trial was stopped")
                if (latest := _progress(output.data)) not in ("", said):
                    said = latest
                    progress(f"{said} ({time.monotonic() - began:.0f} s)")
                if time.monotonic() - began > timeout_s:
                    raise TrialError(
                        f"the trial took longer than {timeout_s:g} s" + (f", last: {said}" if said else "")
                    )
        finally:
            # Not only the child: one of its own would keep the streams open, and outlive its trial.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            output.join()
            errors.join()
    answer = _answer(output.data)
    if answer is None:
        raise TrialError(f"the trial {_ended(child.returncode)}: {_last_line(errors.data)}")
    if not answer.passed:
        kind = TrialError if answer.blame else DeviceError
        raise kind(f"the trial failed: {answer.reason[:_MOST_REASON_CHARS]}")
    return answer


class _Tail(threading.Thread):
    """Reads a stream to its end and keeps only the last of it, however much a candidate prints."""

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(name="trial-output", daemon=True)
        self.data = b""
        self._stream = stream
        self.start()

    def run(self) -> None:
        while chunk := os.read(self._stream.fileno(), _MOST_OUTPUT_BYTES):
            self.data = (self.data + chunk)[-_MOST_OUTPUT_BYTES:]


def _progress(output: bytes) -> str:
    """The latest complete line, if it tells of progress."""
    line = output.rpartition(b"\n")[0].rpartition(b"\n")[2]
    try:
        return msgspec.json.decode(line, type=TrialProgress).progress if line else ""
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""


def _answer(output: bytes) -> TrialAnswer | None:
    try:
        return msgspec.json.decode(output.strip().rpartition(b"\n")[2], type=TrialAnswer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _ended(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code} and no answer"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def _last_line(errors: bytes) -> str:
    lines = errors.decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:_MOST_REASON_CHARS] if lines else "it said nothing"
