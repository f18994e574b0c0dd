"""Which of ONNX Runtime's execution providers run a model, and with which options. Pure: from words to words.

ONNX Runtime leaves out a provider that it cannot make (no driver, a library that is missing) without an error, and runs
the model on the CPU. So a plan says which provider must come out, and a second one is tried only where that is allowed.
https://onnxruntime.ai/docs/execution-providers/
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

from edgeserve.contracts.errors import DeviceError
from edgeserve.runtimes.advice import Machine, package_for
from edgeserve.runtimes.base import RuntimeOptions
from edgeserve.runtimes.openvino_advice import is_chooser

CPU: Final = "CPUExecutionProvider"
PROVIDERS: Final = {
    "CPU": CPU,
    "CUDA": "CUDAExecutionProvider",
    "TENSORRT": "TensorrtExecutionProvider",
    "OPENVINO": "OpenVINOExecutionProvider",
    "XNNPACK": "XnnpackExecutionProvider",
    "ACL": "ACLExecutionProvider",
    "COREML": "CoreMLExecutionProvider",
    "DML": "DmlExecutionProvider",
}
"""Kind of device to its provider. Run for real by the project: CPU and OPENVINO:CPU; the others are unverified."""
_CHAIN: Final = {"TENSORRT": ("CUDA", "CPU")}
"""What may take over, best first; for all others it is the CPU."""
_NUMBERED: Final = ("CUDA", "TENSORRT", "DML")
_UNITS: Final = re.compile(r"(CPU|NPU|GPU)(\.\d{1,2})?")
"""Devices of the OpenVINO provider."""
_KEEPS_CPU_TENSORS: Final = frozenset({CPU, "OpenVINOExecutionProvider"})
"""Providers that were seen to read what is bound in every call; CUDA copies it when it is bound, and never again."""

_RECORD_PLACEMENT: Final = "session.record_ep_graph_assignment_info"
_NO_CPU_NODES: Final = "session.disable_cpu_ep_fallback"

_TENSORRT_WORDS: Final = {
    "fp16": "trt_fp16_enable",
    "int8": "trt_int8_enable",
    "builder_optimization_level": "trt_builder_optimization_level",
}
"""Settings of TensorRT's own builder that the provider has by another name."""
_TENSORRT_IMPLIED: Final = ("typing", "timing_cache", "profile")
"""Settings of that builder that this provider decides: it keeps timings, and takes shapes from `trt_profile_*`."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One way to make a session."""

    kind: str
    """Of device, such as `TENSORRT`."""
    unit: str = ""
    """Which of them: a number, or OpenVINO's word."""
    provider: str
    """The one that must come out first."""
    providers: tuple[tuple[str, dict[str, str]], ...]
    """All, first choice first, with their options."""
    session: Mapping[str, str] = field(default_factory=dict)
    """Entries of the session's configuration."""
    cache_option: str = ""
    """Option of the first provider that names the folder where it keeps what it builds; empty = it builds nothing."""

    @property
    def device(self) -> str:
        """As a user writes it, such as `TENSORRT:0`."""
        return f"{self.kind}:{self.unit}" if self.unit else self.kind

    @property
    def takes_bound_memory(self) -> bool:
        """Whether memory of the CPU that is bound once is read anew in every call."""
        return all(name in _KEEPS_CPU_TENSORS for name, _options in self.providers)

    def with_cache(self, folder: str) -> tuple[tuple[str, dict[str, str]], ...]:
        """The providers, the first of which keeps what it builds in `folder`; empty = nowhere."""
        if not (folder and self.cache_option):
            return self.providers
        (name, options), *others = self.providers
        more = {self.cache_option: folder}
        if self.cache_option == "trt_engine_cache_path":
            more |= {"trt_engine_cache_enable": "1", "trt_timing_cache_enable": "1", "trt_timing_cache_path": folder}
        return ((name, options | more), *others)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to try, in this order; `passed_over` says for each device that was left out why."""

    attempts: tuple[Attempt, ...]
    passed_over: tuple[str, ...] = ()


def plan(options: RuntimeOptions, available: Collection[str], machine: Machine) -> Plan:
    """Decide what to try.

    Args:
        options: `device` is `CPU`, `CUDA[:n]`, `TENSORRT[:n]`, `OPENVINO:CPU|GPU|NPU`, `XNNPACK`, `ACL`, `COREML` or
            `DML[:n]`, in any case; `settings` are options of its provider by the provider's names.
        available: Providers of the ONNX Runtime that is installed.
        machine: Where packages must run.

    Raises:
        DeviceError: There is no such device, or its provider is not installed and no other may take over.
    """
    if options.simulate:
        # Another device's answers are stood in for by operations as they are defined, which only the CPU computes so.
        return Plan(attempts=(_attempt("CPU", "", options, own=False),))
    kind, unit = _parse(options.device, available)
    chain = [(kind, unit)]
    if options.fallback and kind != "CPU":
        chain += [(other, unit if other in _NUMBERED else "") for other in _CHAIN.get(kind, ("CPU",))]
    tried: list[Attempt] = []
    passed_over: list[str] = []
    for index, (other, its_unit) in enumerate(chain):
        if PROVIDERS[other] in available:
            tried.append(_attempt(other, its_unit, options, own=index == 0))
        else:
            passed_over.append(f"this ONNX Runtime has no {PROVIDERS[other]}")
    if not tried:
        raise DeviceError(
            f"ONNX Runtime has no device {options.device[:40]!r} here: it was built without {PROVIDERS[kind]}",
            hint=f"it has {_listed(available)}; {package_for('onnxruntime', kind, machine)}",
        )
    return Plan(attempts=tuple(tried), passed_over=tuple(passed_over))


def device_of(provider: str) -> str:
    """Kind of device of a provider, such as `CUDA`."""
    return next((kind for kind, name in PROVIDERS.items() if name == provider), provider)


def fallback(asked: str, device: str, reasons: Collection[str]) -> str:
    """One sentence for `LoadedModel.fallback`; empty when nothing was passed over."""
    return f"{asked} was asked for, {device} runs it: {'; '.join(reasons)}" if reasons else ""


def _parse(device: str, available: Collection[str]) -> tuple[str, str]:
    kind, _, unit = device.upper().partition(":")
    unit = unit or {"OPENVINO": "CPU"}.get(kind, "0" if kind in _NUMBERED else "")
    if kind == "OPENVINO" and is_chooser(unit):
        raise DeviceError(
            f"the device {device[:40]!r} leaves the choice to OpenVINO, which takes the CPU without a word",
            hint="name the device itself, such as OPENVINO:GPU",
        )
    fits = (
        bool(_UNITS.fullmatch(unit))
        if kind == "OPENVINO"
        else re.fullmatch(r"\d{1,2}", unit) is not None
        if kind in _NUMBERED
        else not unit
    )
    if kind not in PROVIDERS or not fits:
        raise DeviceError(f"ONNX Runtime has no device {device[:40]!r} here", hint=f"it has {_listed(available)}")
    return kind, unit


def _listed(available: Collection[str]) -> str:
    return ", ".join(kind for kind, name in PROVIDERS.items() if name in available)


def _attempt(kind: str, unit: str, options: RuntimeOptions, *, own: bool) -> Attempt:
    settings = options.settings if own else {}
    first = (PROVIDERS[kind], _OPTIONS[kind](unit, options.threads, settings) if kind in _OPTIONS else dict(settings))
    others = []
    if kind == "TENSORRT":  # what TensorRT cannot do stays on the GPU
        others.append((PROVIDERS["CUDA"], _cuda(unit, 0, {})))
    session = {} if kind == "CPU" else {_RECORD_PLACEMENT: "1"}
    if kind == "OPENVINO" and unit.startswith("NPU"):
        # Else this provider compiles for its own CPU what the NPU does not take, and tells only the log. ONNX Runtime
        # refuses the entry beside a CPU provider that was named.
        session[_NO_CPU_NODES] = "1"
    elif kind != "CPU":
        others.append((CPU, {}))
    return Attempt(
        kind=kind,
        unit=unit,
        provider=PROVIDERS[kind],
        providers=(first, *others),
        session=session,
        cache_option={"TENSORRT": "trt_engine_cache_path", "OPENVINO": "cache_dir"}.get(kind, ""),
    )


def _cuda(unit: str, _threads: int, settings: Mapping[str, str]) -> dict[str, str]:
    return {
        "device_id": unit,
        "arena_extend_strategy": "kSameAsRequested",  # a board shares its memory with the CPU: take no power of two
        "cudnn_conv_algo_search": "HEURISTIC",  # EXHAUSTIVE times every algorithm for each new shape, in a request
        "cudnn_conv_use_max_workspace": "0",
        "use_tf32": "0",  # 10 bits of mantissa are not the answers that were measured
        **settings,
    }


def _tensorrt(unit: str, _threads: int, settings: Mapping[str, str]) -> dict[str, str]:
    given = {_TENSORRT_WORDS.get(name, name): value for name, value in settings.items()}
    mib = given.pop("workspace_mib", "")
    if mib.isdigit():
        given["trt_max_workspace_size"] = str(int(mib) << 20)
    return {"device_id": unit} | {name: value for name, value in given.items() if name not in _TENSORRT_IMPLIED}


def _openvino(unit: str, threads: int, settings: Mapping[str, str]) -> dict[str, str]:
    defaults = {"device_type": unit}
    if unit == "CPU":
        # Otherwise newer CPUs compute in bfloat16, and answers differ from machine to machine.
        defaults |= {"precision": "FP32"} | ({"num_of_threads": str(threads)} if threads else {})
    return defaults | dict(settings)


def _xnnpack(_unit: str, threads: int, settings: Mapping[str, str]) -> dict[str, str]:
    return ({"intra_op_num_threads": str(threads)} if threads else {}) | dict(settings)


def _dml(unit: str, _threads: int, settings: Mapping[str, str]) -> dict[str, str]:
    return {"device_id": unit, **settings}


_OPTIONS: Final = {"CUDA": _cuda, "TENSORRT": _tensorrt, "OPENVINO": _openvino, "XNNPACK": _xnnpack, "DML": _dml}
