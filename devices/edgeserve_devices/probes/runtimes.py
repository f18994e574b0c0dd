"""What inference runtimes are installed, and what devices each of them sees.

Libraries are never imported here: one that meets a broken driver may crash or hang. Versions are read from the
packages; devices are asked for in a child process with a time limit.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from typing import IO, Final

import msgspec

from edgeserve import plugins
from edgeserve.contracts.limits import RUNTIME_PROBE_BYTES, RUNTIME_PROBE_S
from edgeserve_devices.probes.tree import printable

_CHILD: Final = "edgeserve_devices.probes.runtime_devices"
_DISTRIBUTIONS: Final = (
    "ai-edge-litert",
    "onnxruntime",
    "onnxruntime-directml",
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
    "openvino",
    "tensorrt",
    "tensorrt-cu12",
    "tensorrt-cu13",
    "tflite-runtime",
)
_PATIENCE_S: Final = 2.0
"""A killed process that waits for a driver stays; it is left behind."""
_LAST_WORDS: Final = 4096


class RuntimeDevices(msgspec.Struct, frozen=True, kw_only=True):
    """What a runtime says of itself in a process of its own."""

    name: str
    """As registered in `edgeserve.runtimes`."""
    version: str = ""
    devices: tuple[str, ...] = ()
    """In its own words: execution providers, `CPU`, `NPU`."""
    problem: str = ""
    """Why it says nothing; empty = it did."""


def package_versions() -> dict[str, str]:
    """Versions of the installed packages that bring a runtime, by their names; nothing is imported."""
    from importlib.metadata import distributions

    found: dict[str, str] = {}
    for distribution in distributions():
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
        if name in _DISTRIBUTIONS:
            found.setdefault(name, printable(distribution.version or ""))
    return dict(sorted(found.items()))


def ask_runtimes(
    names: tuple[str, ...] | None = None, *, timeout_s: float = RUNTIME_PROBE_S
) -> tuple[RuntimeDevices, ...]:
    """Ask runtimes for their devices, each in a child process, one after the other.

    Args:
        names: Registered runtimes; None = all.
        timeout_s: For each.
    """
    return tuple(_ask(name, timeout_s) for name in (plugins.names(plugins.RUNTIMES) if names is None else names))


def _ask(name: str, timeout_s: float) -> RuntimeDevices:
    # Files instead of pipes: a library that writes without end blocks nobody, and only their ends are read.
    with tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as words:
        try:
            child = subprocess.Popen(
                [sys.executable, "-m", _CHILD, name],
                stdin=subprocess.DEVNULL,
                stdout=answer,
                stderr=words,
                start_new_session=True,
            )
        except OSError as error:
            return RuntimeDevices(name=name, problem=f"no process could be started: {error.strerror}")
        try:
            status = child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            _end(child)
            return RuntimeDevices(
                name=name, problem=f"it did not answer within {timeout_s:g} s: a driver may hang, see dmesg"
            )
        if status == 0:
            answer.seek(0)
            try:
                return msgspec.json.decode(answer.read(RUNTIME_PROBE_BYTES), type=RuntimeDevices)
            except msgspec.DecodeError as error:
                return RuntimeDevices(name=name, problem=f"its answer cannot be read: {error}")
        return RuntimeDevices(name=name, problem=_cause(status, _end_of(words)))


def _cause(status: int, words: str) -> str:
    if status > 0:
        return f"it ended with status {status}: {words}" if words else f"it ended with status {status}"
    try:
        ended = signal.Signals(-status).name
    except ValueError:
        ended = f"signal {-status}"
    return f"it crashed ({ended}){f': {words}' if words else ''}"


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill it and all that it started."""
    with contextlib.suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(child.pid, signal.SIGKILL)
        else:
            child.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(_PATIENCE_S)


def _end_of(file: IO[bytes]) -> str:
    """Last line that was written."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _LAST_WORDS))
    lines = file.read(_LAST_WORDS).decode("utf-8", "replace").splitlines()
    return next((text for line in reversed(lines) if (text := printable(line))), "")
