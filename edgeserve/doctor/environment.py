"""Reads what `findings` judges. Nothing heavy is imported here: libraries are tried in a child process."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import edgeserve
from edgeserve import atomic, plugins
from edgeserve.contracts.errors import DeviceError
from edgeserve.doctor.findings import Environment, Requirement
from edgeserve.link.mosquitto import find_mosquitto, mosquitto_version
from edgeserve.runtimes.advice import this_machine

_SETS: Final = ("all", "demo", "dev", "train")
"""Extras that only gather others, or are for the development of edgeserve."""
_MODULES: Final = {
    "ai-edge-litert": "ai_edge_litert.interpreter",
    "ai-edge-quantizer": "ai_edge_quantizer.quantizer",
    "httptools": "httptools",
    "jinja2": "jinja2",
    "numpy": "numpy",
    "onnx": "onnx",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "paho-mqtt": "paho.mqtt.client",
    "pillow": "PIL.Image",
    "sqlalchemy": "sqlalchemy",
    "starlette": "starlette",
    "tensorrt": "tensorrt",
    "uvicorn": "uvicorn",
    "uvloop": "uvloop",
}
"""Distribution to the module that proves that it works. What takes seconds (nncf, torch, sklearn) is not."""
_RUNTIMES: Final = {
    "litert": "ai_edge_litert",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
}
"""Runtime to the module that it needs."""
_NVIDIA: Final = ("/proc/driver/nvidia/version", "/etc/nv_tegra_release")
_TRY_S: Final = 120.0
_TRY: Final = """
import importlib, json, sys
sys.modules["openvino_telemetry"] = None
for package, module in json.loads(sys.argv[1]).items():
    print(json.dumps([package, None]), flush=True)
    try:
        importlib.import_module(module)
        print(json.dumps([package, ""]), flush=True)
    except BaseException as error:
        print(json.dumps([package, f"{type(error).__name__}: {error}"]), flush=True)
"""
_REQUIREMENT: Final = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(?:\[[^]]*\])?(?P<bounds>[^;]*)(?:;(?P<marker>.*))?")


def read_environment(folder: Path) -> Environment:
    """Read this machine; `folder` is where free disk space is asked for."""
    packages = installed_packages()
    binary, version, error = _broker()
    converter, converter_error, base_python = _converter() if "ai-edge-quantizer" in packages else ("", "", "")
    accel = Path("/sys/class/accel")
    return Environment(
        python=(sys.version_info.major, sys.version_info.minor, sys.version_info.micro),
        pointer_bits=8 * struct.calcsize("P"),
        edgeserve=f"{edgeserve.__version__} on {platform.system()} {platform.machine()}",
        packages=packages,
        extras=extras_of(importlib.metadata.requires("edgeserve") or []),
        import_errors=try_imports({name: module for name, module in _MODULES.items() if name in packages}),
        mosquitto=version,
        mosquitto_path=binary,
        mosquitto_error=error,
        npu_driver=any("DRIVER=intel_vpu" in _text(node / "device/uevent") for node in accel.glob("accel*")),
        npu_accessible=os.access("/dev/accel/accel0", os.R_OK | os.W_OK),
        npu_compiler=_beside("openvino", "libs/libopenvino_intel_npu_compiler_loader.so"),
        onnx2tf=converter,
        onnx2tf_error=converter_error,
        onnx2tf_python=base_python,
        runtimes={name: _has_module(_RUNTIMES.get(name, "edgeserve")) for name in plugins.names(plugins.RUNTIMES)},
        machine=this_machine(),
        providers=_providers(),
        nvidia_driver=any(Path(name).exists() for name in _NVIDIA),
        jetson="jetson" in _text(Path("/proc/device-tree/model")).lower(),
        tensorrt_provider=_beside("onnxruntime", "capi/libonnxruntime_providers_tensorrt.so"),
        folder=str(folder),
        free_bytes=atomic.free_bytes(folder),
        now=time.time(),
        installed_at=Path(edgeserve.__file__).stat().st_mtime,
    )


def installed_packages() -> dict[str, str]:
    """Version of every installed distribution, by normalised name (PEP 503)."""
    found = (
        (distribution.metadata["Name"], distribution.version) for distribution in importlib.metadata.distributions()
    )
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found if name}


def extras_of(requirements: list[str]) -> dict[str, tuple[Requirement, ...]]:
    """Requirements of each extra from the `Requires-Dist` lines of edgeserve's own metadata."""
    extras: dict[str, list[Requirement]] = {}
    for line in requirements:
        match = _REQUIREMENT.match(line)
        marker = (match.group("marker") or "") if match else ""
        extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", marker)
        if match is None or extra is None or extra.group(1) in _SETS:
            continue
        minimum = re.search(r">=\s*([0-9][0-9A-Za-z.]*)", match.group("bounds"))
        extras.setdefault(extra.group(1), []).append(
            Requirement(
                package=re.sub(r"[-_.]+", "-", match.group("name")).lower(),
                minimum=minimum.group(1) if minimum else "",
                conditional=marker.replace(extra.group(0), "").strip(" ()") != "",
            )
        )
    return {name: tuple(wanted) for name, wanted in extras.items()}


def try_imports(modules: Mapping[str, str]) -> dict[str, str]:
    """Import modules in a child process; the errors by distribution, also of a library that takes the process down."""
    settings = {"ORT_DISABLE_TELEMETRY": "1", "OPENBLAS_NUM_THREADS": "1"}
    try:
        child = subprocess.run(
            [sys.executable, "-c", _TRY, json.dumps(dict(modules))],
            env={**os.environ, **settings},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_TRY_S,
            check=False,
        )
        output, ending = child.stdout, f"the process ended with code {child.returncode}"
    except subprocess.TimeoutExpired as error:
        output, ending = error.stdout or b"", f"it did not finish within {_TRY_S:.0f} s"
    errors: dict[str, str] = {}
    for line in output.decode("utf-8", "replace").splitlines():
        try:
            package, error_text = json.loads(line)
        except ValueError:  # something that a library printed
            continue
        errors[package] = ending if error_text is None else error_text
    return {package: text for package, text in errors.items() if text}


def _broker() -> tuple[str, str, str]:
    """Path and version of mosquitto, or why there is none."""
    try:
        binary = find_mosquitto()
        return str(binary), mosquitto_version(binary), ""
    except DeviceError as error:
        return "", "", error.message


def _converter() -> tuple[str, str, str]:
    """Version of onnx2tf in its own environment, or why it does not work, or the Python to make one from."""
    from edgeserve_compilers.converters import onnx2tf

    try:
        python = onnx2tf.find()
        if python is None:
            return "", "", str(onnx2tf.base_python() or "")
        return onnx2tf.version_in(python), "", ""
    except DeviceError as error:
        return "", error.message, ""


def _has_module(name: str) -> bool:
    """Whether a top-level module can be found; it is not imported."""
    return importlib.util.find_spec(name) is not None


def _providers() -> tuple[str, ...]:
    """Providers of onnxruntime that are libraries of their own, by the names of their files."""
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        return ()
    found = (Path(spec.origin).parent / "capi").glob("libonnxruntime_providers_*.so")
    return tuple(sorted(path.stem.rpartition("_")[2] for path in found if not path.stem.endswith("shared")))


def _beside(package: str, file: str) -> bool:
    """Whether a file lies in an installed package; the package is not imported."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None and (Path(spec.origin).parent / file).exists()


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
