"""Judgement of an environment. Pure: the traps are a table that anyone can extend and test."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from edgeserve.contracts.limits import GIB, MIN_FREE_BYTES
from edgeserve.runtimes.advice import Machine, package_for

_LOW_DISK_BYTES: Final = 1 * GIB
_OLDEST_PYTHON: Final = (3, 10)
_OLDEST_MOSQUITTO: Final = (2, 0)


class Verdict(str, Enum):
    """How bad it is."""

    OK = "ok"
    ABSENT = "absent"
    """Not installed, which is nobody's mistake."""
    WARNING = "warning"
    BROKEN = "broken"
    """Installed, and will not work."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    verdict: Verdict
    detail: str
    hint: str = ""
    """What to do; empty when there is nothing to do."""


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """One package that an extra asks for."""

    package: str
    minimum: str = ""
    conditional: bool = False
    """Only wanted on some platforms: its absence means nothing."""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What was read from a machine."""

    python: tuple[int, int, int]
    pointer_bits: int
    edgeserve: str
    packages: Mapping[str, str] = field(default_factory=dict)
    """Version of each installed distribution, by lower-case name with dashes."""
    extras: Mapping[str, Sequence[Requirement]] = field(default_factory=dict)
    import_errors: Mapping[str, str] = field(default_factory=dict)
    """Why a package that is installed cannot be imported, by distribution."""
    mosquitto: str = ""
    """Version of the broker; empty when there is none."""
    mosquitto_path: str = ""
    mosquitto_error: str = ""
    npu_driver: bool = False
    """The kernel driver of an Intel NPU is bound."""
    npu_accessible: bool = False
    """This user may open the NPU's device node."""
    npu_compiler: bool = False
    """OpenVINO's compiler for the NPU lies beside its plugin."""
    onnx2tf: str = ""
    """Version of onnx2tf in its own environment; empty when there is none, or none is looked for."""
    onnx2tf_error: str = ""
    """Why the environment that is there does not work."""
    onnx2tf_python: str = ""
    """A Python from which its environment can be made."""
    runtimes: Mapping[str, bool] = field(default_factory=dict)
    """Whether the library of each registered runtime is installed, by name."""
    machine: Machine = field(default_factory=lambda: Machine(architecture="amd64"))
    """Whose packages run here."""
    providers: Sequence[str] = ()
    """Providers of the onnxruntime that is installed which are libraries of their own: `cuda`, `openvino`."""
    nvidia_driver: bool = False
    jetson: bool = False
    tensorrt_provider: bool = False
    """The onnxruntime that is installed has its TensorRT provider."""
    folder: str = ""
    free_bytes: int = 0
    now: float = 0.0
    """Unix seconds of this machine's clock."""
    installed_at: float = 0.0
    """Unix seconds at which edgeserve's files were written: no good clock is behind it."""


def examine(environment: Environment) -> tuple[Finding, ...]:
    """Judge everything, in the order in which a reader should see it."""
    return (
        *_python(environment),
        Finding(subject="edgeserve", verdict=Verdict.OK, detail=environment.edgeserve),
        *_extras(environment),
        *_runtimes(environment),
        *_mosquitto(environment),
        *_clashes(environment),
        *_converter(environment),
        *_npu(environment),
        *_nvidia(environment),
        *_disk(environment),
        *_clock(environment),
    )


def is_broken(findings: Sequence[Finding]) -> bool:
    """Whether something that is installed will not work."""
    return any(finding.verdict is Verdict.BROKEN for finding in findings)


def _python(environment: Environment) -> Iterator[Finding]:
    shown = ".".join(map(str, environment.python)) + f", {environment.pointer_bits} bits"
    if environment.python[:2] < _OLDEST_PYTHON:
        hint = "install Python 3.10 or newer"
        yield Finding(subject="python", verdict=Verdict.BROKEN, detail=shown, hint=hint)
    elif environment.pointer_bits < 64:
        hint = "onnxruntime and openvino have no 32-bit wheels: use a 64-bit system image"
        yield Finding(subject="python", verdict=Verdict.WARNING, detail=shown, hint=hint)
    else:
        yield Finding(subject="python", verdict=Verdict.OK, detail=shown)


def _extras(environment: Environment) -> Iterator[Finding]:
    for extra, requirements in sorted(environment.extras.items()):
        present = [wanted for wanted in requirements if wanted.package in environment.packages]
        missing = [
            wanted.package
            for wanted in requirements
            if wanted.package not in environment.packages and not wanted.conditional
        ]
        detail = ", ".join(f"{wanted.package} {environment.packages[wanted.package]}" for wanted in present)
        install = f"pip install 'edgeserve[{extra}]'"
        faults = list(_faults(present, environment))
        if missing:
            # Packages are shared between extras, so a part of one says nothing about what the user wanted.
            detail = f"lacks {', '.join(missing)}"
            yield Finding(subject=f"extra {extra}", verdict=Verdict.ABSENT, detail=detail, hint=install)
        elif faults:
            hint = f"{install} --upgrade --force-reinstall"
            yield Finding(subject=f"extra {extra}", verdict=Verdict.BROKEN, detail="; ".join(faults), hint=hint)
        else:
            yield Finding(subject=f"extra {extra}", verdict=Verdict.OK, detail=detail)


def _runtimes(environment: Environment) -> Iterator[Finding]:
    for name, installed in sorted(environment.runtimes.items()):
        package = package_for(name, "", environment.machine)
        if not installed and package:
            detail = "its library is not installed"
            yield Finding(subject=f"runtime {name}", verdict=Verdict.ABSENT, detail=detail, hint=package)
    if environment.nvidia_driver and environment.runtimes.get("onnxruntime") and "cuda" not in environment.providers:
        yield Finding(
            subject="runtime onnxruntime",
            verdict=Verdict.ABSENT,
            detail="there is a GPU of NVIDIA, and the onnxruntime that is installed cannot use it",
            hint=package_for("onnxruntime", "CUDA", environment.machine),
        )


def _faults(present: Sequence[Requirement], environment: Environment) -> Iterator[str]:
    for wanted in present:
        version = environment.packages[wanted.package]
        if wanted.minimum and version_key(version) < version_key(wanted.minimum):
            yield f"{wanted.package} is {version}, {wanted.minimum} is needed"
        if wanted.package in environment.import_errors:
            yield f"{wanted.package} {version} cannot be imported: {environment.import_errors[wanted.package]}"


def _mosquitto(environment: Environment) -> Iterator[Finding]:
    install = "apt install mosquitto, or brew install mosquitto, or name the binary in EDGESERVE_MOSQUITTO"
    subject = "mosquitto"
    shown = f"{environment.mosquitto} at {environment.mosquitto_path}"
    if environment.mosquitto_error:
        # Devices never need it; a manager may use a broker that runs elsewhere.
        yield Finding(subject=subject, verdict=Verdict.ABSENT, detail=environment.mosquitto_error, hint=install)
    elif version_key(environment.mosquitto) < _OLDEST_MOSQUITTO:
        hint = "install mosquitto 2.0 or newer: older ones do not know its password files"
        yield Finding(subject=subject, verdict=Verdict.BROKEN, detail=shown, hint=hint)
    else:
        yield Finding(subject=subject, verdict=Verdict.OK, detail=shown)


def _clashes(environment: Environment) -> Iterator[Finding]:
    packages = environment.packages
    for other in ("onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml"):
        if "onnxruntime" in packages and other in packages:
            yield Finding(
                subject=f"onnxruntime and {other}",
                verdict=Verdict.BROKEN,
                detail="both write into the same package folder and overwrite one another",
                hint=f"pip uninstall onnxruntime {other}, then install the one that you want",
            )
    if "tflite-runtime" in packages and version_key(packages.get("numpy", "0")) >= (2,):
        successor = packages.get("ai-edge-litert", "")
        used = f"; edgeserve uses ai-edge-litert {successor} in its place" if successor else ""
        yield Finding(
            subject="tflite-runtime",
            verdict=Verdict.WARNING if successor else Verdict.BROKEN,
            detail=f"it was built for numpy 1 and fails at the first model with numpy {packages['numpy']}{used}",
            hint="pip uninstall tflite-runtime" + ("" if successor else "; ai-edge-litert is its successor"),
        )
    if "onnx2tf" in packages:
        yield Finding(
            subject="onnx2tf here",
            verdict=Verdict.WARNING,
            detail=f"version {packages['onnx2tf']} pins numpy, protobuf and onnx exactly, against what edgeserve needs",
            hint="pip uninstall onnx2tf, then pip install --upgrade 'edgeserve[compile,litert]'; "
            "edgeserve runs it in an environment of its own",
        )


def _converter(environment: Environment) -> Iterator[Finding]:
    subject = "onnx2tf"
    if "ai-edge-quantizer" not in environment.packages:  # nothing is compiled for LiteRT here
        return
    if environment.onnx2tf:
        yield Finding(
            subject=subject, verdict=Verdict.OK, detail=f"{environment.onnx2tf}, in an environment of its own"
        )
    elif environment.onnx2tf_error:
        hint = "name another in EDGESERVE_ONNX2TF_PYTHON, or unset it and remove the folder: it is then made anew"
        yield Finding(subject=subject, verdict=Verdict.WARNING, detail=environment.onnx2tf_error, hint=hint)
    elif environment.onnx2tf_python:
        detail = "ONNX to TFLite needs it in an environment of its own, which is not there yet"
        hint = f"edgeserve compile MODEL ... --install-converters makes it with {environment.onnx2tf_python} (600 MB)"
        yield Finding(subject=subject, verdict=Verdict.ABSENT, detail=detail, hint=hint)
    else:
        detail = "ONNX to TFLite needs it, and it needs Python 3.12 or newer, which is not there"
        hint = "install python3.12 with its venv module; without it arm-cpu gets no LiteRT variant of ONNX models"
        yield Finding(subject=subject, verdict=Verdict.ABSENT, detail=detail, hint=hint)


def _npu(environment: Environment) -> Iterator[Finding]:
    if not environment.npu_driver:
        return
    if not environment.npu_accessible:
        yield Finding(
            subject="intel npu",
            verdict=Verdict.WARNING,
            detail="there is one, but this user may not open /dev/accel/accel0",
            hint="sudo usermod -aG render $USER, then log in again",
        )
    elif "openvino" in environment.packages and not environment.npu_compiler:
        yield Finding(
            subject="intel npu",
            verdict=Verdict.WARNING,
            detail="the openvino wheel lacks libopenvino_intel_npu_compiler_loader.so: only the driver can compile",
            hint="install Intel's NPU driver with its compiler: https://github.com/intel/linux-npu-driver/releases",
        )
    else:
        yield Finding(subject="intel npu", verdict=Verdict.OK, detail="driver and device node are there")


def _nvidia(environment: Environment) -> Iterator[Finding]:
    packages = environment.packages
    wheels = sorted(name for name in packages if re.fullmatch(r"tensorrt-cu\d+(-libs|-bindings)?", name))
    if environment.jetson and wheels:
        yield Finding(
            subject="tensorrt",
            verdict=Verdict.BROKEN,
            detail=f"{', '.join(wheels)} is for GPUs in PCs and hides the one that JetPack brings",
            hint=f"pip uninstall tensorrt {' '.join(wheels)}; then apt install python3-libnvinfer",
        )
    elif "tensorrt" in environment.import_errors:
        yield Finding(
            subject="tensorrt",
            verdict=Verdict.BROKEN,
            detail=f"{packages.get('tensorrt', '')} cannot be imported: {environment.import_errors['tensorrt']}",
            hint="the package on PyPI only points to NVIDIA's own index: pip uninstall tensorrt",
        )
    if environment.jetson and "onnxruntime-gpu" in packages and not environment.tensorrt_provider:
        yield Finding(
            subject="onnxruntime-gpu",
            verdict=Verdict.WARNING,
            detail=f"{packages['onnxruntime-gpu']} from PyPI is for ARM servers and has no TensorRT provider",
            hint="pip uninstall onnxruntime-gpu, then install the wheel that NVIDIA builds for this JetPack",
        )


def _disk(environment: Environment) -> Iterator[Finding]:
    free = f"{environment.free_bytes / GIB:.1f} GiB free at {environment.folder}"
    if environment.free_bytes < MIN_FREE_BYTES:
        hint = "free some: below 16 MiB a device downloads nothing"
        yield Finding(subject="disk", verdict=Verdict.BROKEN, detail=free, hint=hint)
    elif environment.free_bytes < _LOW_DISK_BYTES:
        hint = "a device keeps two releases of every model"
        yield Finding(subject="disk", verdict=Verdict.WARNING, detail=free, hint=hint)
    else:
        yield Finding(subject="disk", verdict=Verdict.OK, detail=free)


def _clock(environment: Environment) -> Iterator[Finding]:
    behind = environment.installed_at - environment.now
    if behind > 0:
        yield Finding(
            subject="clock",
            verdict=Verdict.WARNING,
            detail=f"it is {behind / 3600:.1f} h behind the moment at which edgeserve was installed",
            hint="set the clock (NTP): certificates and expiry of signed documents depend on it",
        )
    else:
        yield Finding(subject="clock", verdict=Verdict.OK, detail="not behind the installation of edgeserve")


def version_key(version: str) -> tuple[int, ...]:
    """Leading numbers of a version, for comparing releases: `2.0.11` is `(2, 0, 11)`, `2.1rc1` is `(2, 1)`."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in match.group(0).split(".")) if match else ()
