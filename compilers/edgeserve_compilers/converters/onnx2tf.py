"""ONNX to TFLite by onnx2tf, in an environment of its own: its exact pins (numpy, protobuf, onnx) clash with ours.

`prepare` makes the environment, `convert` uses it. Nothing that the converter says is believed: callers run the file.
https://github.com/PINTO0309/onnx2tf
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from edgeserve import atomic
from edgeserve.contracts.errors import DeviceError, InputError, UnsupportedError
from edgeserve.contracts.limits import CONVERTER_INSTALL_S, CONVERTER_S
from edgeserve_compilers.cache import default_folder

VERSION: Final = "2.6.9"
OLDEST_PYTHON: Final = (3, 12)
PYTHON_VARIABLE: Final = "EDGESERVE_ONNX2TF_PYTHON"
"""Python of a ready environment."""
_INSTALL: Final = (
    f"--install-converters makes it once (about 600 MB); or name the Python of a ready one in {PYTHON_VARIABLE}"
)
"""Ends in the report of a release, so it names no folder of this machine."""
_WORKER: Final = Path(__file__).with_name("onnx2tf_worker.py")
_NEWEST_PYTHON: Final = (3, 14)
_PROBE: Final = "import sys, venv, ensurepip; print(*sys.version_info[:2])"


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the worker answers."""

    ok: bool
    error: str
    seconds: float
    file: str = ""
    version: str = ""


def environment() -> Path:
    """Folder of the environment that `prepare` makes; it need not exist."""
    return default_folder(os.environ, Path.home()) / "converters" / f"onnx2tf-{VERSION}"


def find() -> Path | None:
    """Python of an environment with onnx2tf, or None when there is none yet.

    Raises:
        DeviceError: EDGESERVE_ONNX2TF_PYTHON names something that cannot be run.
    """
    named = os.environ.get(PYTHON_VARIABLE)
    if named:
        if not os.access(named, os.X_OK):
            raise DeviceError(
                f"{PYTHON_VARIABLE} names {named}, which cannot be run",
                hint=f"name the python of an environment with onnx2tf=={VERSION}, or unset it",
            )
        return Path(named)
    python = environment() / "bin/python"
    return python if os.access(python, os.X_OK) else None


def is_there() -> bool:
    """Whether `find` would find one."""
    try:
        return find() is not None
    except DeviceError:
        return False


def prepare() -> Path:
    """Find the environment, or make it once: about 600 MB, a minute or two. Several processes may call it at once.

    Returns:
        Its Python.

    Raises:
        DeviceError: There is no Python that is new enough, or pip failed; the hint has the commands.
    """
    if (ready := find()) is not None:
        return ready
    folder = environment()
    with _locked(folder):
        if (ready := find()) is not None:
            return ready
        base = base_python()
        if base is None:
            raise _no_python()
        print(f"preparing onnx2tf {VERSION} in {folder} (once; about 600 MB)", file=sys.stderr, flush=True)
        unfinished = folder.with_name(folder.name + ".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            _command([str(base), "-m", "venv", str(unfinished)])
            _command([str(unfinished / "bin/python"), "-m", "pip", "install", "--quiet", f"onnx2tf=={VERSION}"])
            _command([str(unfinished / "bin/python"), "-c", "import onnx2tf"])
            atomic.move(unfinished, folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder / "bin/python"


def version_in(python: Path) -> str:
    """Version of onnx2tf in an environment.

    Raises:
        DeviceError: It is not there, is another one than `VERSION`, or its Python does not start.
    """
    ask = "import importlib.metadata; print(importlib.metadata.version('onnx2tf'))"
    try:
        done = subprocess.run(
            [str(python), "-I", "-c", ask], capture_output=True, text=True, timeout=20, check=False, env=_settings()
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DeviceError(f"{python} does not start: {error}", hint=how_to_get()) from error
    found = done.stdout.strip()
    if found != VERSION:
        raise DeviceError(f"{python} has {'onnx2tf ' + found if found else 'no onnx2tf'}, {VERSION} is needed")
    return found


def convert(onnx_file: Path, folder: Path) -> Path:
    """Convert a float ONNX model.

    Args:
        onnx_file: One file, without external data; only the first axis of its inputs may vary.
        folder: Empty folder for the result and what else the converter writes.

    Returns:
        The float .tflite. Inputs have their names and layout. Outputs have their names; **their axes may be in another
        order, and their values may be wrong**: run it.

    Raises:
        DeviceError: There is no environment, or the converter did not start, crashed or did not end.
        InputError: The converter refused the model.
    """
    python = find()
    if python is None:
        raise DeviceError(
            "ONNX to TFLite needs onnx2tf in an environment of its own, which is not there yet", hint=_INSTALL
        )
    answer = _ask(python, msgspec.json.encode({"onnx": str(onnx_file), "output": str(folder)}))
    if not answer.ok:
        raise InputError(
            f"onnx2tf {VERSION} cannot convert the model: {answer.error}",
            hint="another target or runtime (onnxruntime) takes it as it is",
        )
    result = folder / answer.file
    if not result.is_file():
        raise DeviceError(f"onnx2tf said that it wrote {answer.file}, which is not there")
    return result


def how_to_get() -> str:
    """The commands that make the environment by hand, for the person at this machine: they name its folders."""
    python = "python" + ".".join(map(str, OLDEST_PYTHON))
    place = environment()
    return (
        f"edgeserve compile MODEL ... --install-converters, or"
        f" {python} -m venv {place} && {place}/bin/python -m pip install onnx2tf=={VERSION}"
        f" (any Python from {python} on; or name such an environment's python in {PYTHON_VARIABLE})"
    )


def base_python() -> Path | None:
    """A Python that onnx2tf runs on: this one, on PATH, or one of pyenv's whose shims are not active."""
    return next((path for path in _pythons() if _is_new_enough(path)), None)


def _pythons() -> Iterator[Path]:
    if OLDEST_PYTHON <= sys.version_info[:2] <= _NEWEST_PYTHON:
        yield Path(sys.executable)
    names = [f"python3.{minor}" for minor in range(OLDEST_PYTHON[1], _NEWEST_PYTHON[1] + 1)]
    for name in (*names, "python3"):
        if found := shutil.which(name):
            yield Path(found)
    versions = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    for name in names:
        yield from sorted(versions.glob(f"*/bin/{name}"))


def _is_new_enough(python: Path) -> bool:
    """Whether it starts (shims of pyenv often do not), can make environments and has a version that onnx2tf takes."""
    try:
        done = subprocess.run(
            [str(python), "-c", _PROBE],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        version = tuple(int(part) for part in done.stdout.split())
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and OLDEST_PYTHON <= version <= _NEWEST_PYTHON


def _no_python() -> DeviceError:
    wanted = ".".join(map(str, OLDEST_PYTHON))
    return DeviceError(
        f"onnx2tf needs Python {wanted} or newer, and there is none on this machine",
        hint=f"install it with its venv module (apt install python{wanted}-venv, or pyenv install {wanted}), or name"
        f" the python of a ready environment in {PYTHON_VARIABLE}",
    )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        import fcntl
    except ImportError as error:
        raise UnsupportedError("ONNX becomes TFLite on Linux and macOS only", hint="compile there or in WSL") from error
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = folder.with_name(folder.name + ".lock").open("w")
    except OSError as error:
        raise DeviceError(
            f"cannot write to {folder.parent}: {error.strerror}", hint="name a folder in EDGESERVE_CACHE"
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _command(arguments: list[str]) -> None:
    try:
        done = subprocess.run(
            arguments, capture_output=True, text=True, timeout=CONVERTER_INSTALL_S, check=False, env=_settings()
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DeviceError(f"cannot prepare onnx2tf: {error}", hint=how_to_get()) from error
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        said = " / ".join(lines[-2:])[:500]
        raise DeviceError(f"cannot prepare onnx2tf: {' '.join(arguments[1:4])} failed: {said}", hint=how_to_get())


def _ask(python: Path, request: bytes) -> Answer:
    try:
        # In a folder of its own: onnx2tf leaves files where it runs.
        with tempfile.TemporaryDirectory(prefix="edgeserve-onnx2tf-") as here:
            done = subprocess.run(
                [str(python), "-I", str(_WORKER)],
                input=request,
                capture_output=True,
                timeout=CONVERTER_S,
                check=False,
                cwd=here,
                env=_settings(),
            )
    except subprocess.TimeoutExpired as error:
        raise DeviceError(f"onnx2tf did not finish within {CONVERTER_S:.0f} s") from error
    except OSError as error:
        raise DeviceError(f"cannot run the Python of onnx2tf's environment: {error.strerror}", hint=_INSTALL) from error
    try:
        return msgspec.json.decode(done.stdout, type=Answer)
    except msgspec.DecodeError as error:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise DeviceError(
            f"onnx2tf ended with code {done.returncode} and without an answer: {' '.join(said)[:300]}",
            hint=_INSTALL,
        ) from error


def _settings() -> dict[str, str]:
    """Environment variables without those that would bring our packages into the other Python."""
    ours = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
    return {name: value for name, value in os.environ.items() if name not in ours} | {"ORT_DISABLE_TELEMETRY": "1"}
