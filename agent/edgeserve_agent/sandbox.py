"""Runs the trial of a candidate in a child process and reads its answer."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
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


class TrialAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What the child process prints."""

    passed: bool
    reason: str = ""
    executing_device: str = ""
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
    golden: Path,
    *,
    simulate: bool,
    threads: int,
    stop: threading.Event,
    timeout_s: float = TRIAL_TIMEOUT_S,
    command: tuple[str, ...] = TRIAL_COMMAND,
) -> TrialAnswer:
    """Load the variant in `folder` in a child process and let it reproduce the golden set.

    Raises:
        TrialError: It crashed, took longer than `timeout_s`, cannot be loaded or computes something else.
        StoppedError: `stop` was set; the child process is gone.
    """
    arguments = ["--folder", str(folder), "--golden", str(golden), "--threads", str(threads)]
    arguments += ["--simulate"] if simulate else []
    deadline = time.monotonic() + timeout_s
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
                if time.monotonic() > deadline:
                    raise TrialError(f"the trial took longer than {timeout_s:g} s")
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
        raise TrialError(f"the trial failed: {answer.reason[:_MOST_REASON_CHARS]}")
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


def _answer(output: bytes) -> TrialAnswer | None:
    try:
        return msgspec.json.decode(output, type=TrialAnswer)
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
