"""The variant contract: all that a device must know of one compiled form of a model before it loads it.

It is the config blob of the variant's OCI manifest (`VARIANT_CONFIG_TYPE`).
"""

from __future__ import annotations

from enum import Enum
from typing import Final

import msgspec

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.names import file_name, model_name, plugin_name
from edgeserve.contracts.task import Task
from edgeserve.contracts.tensors import Signature

VARIANT_CONFIG_TYPE: Final = "application/vnd.edgeserve.variant.v1+json"
VARIANT_FILE_TYPE: Final = "application/vnd.edgeserve.model.file.v1"


class Precision(str, Enum):
    """Numeric form of the weights and activations."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"
    INT4 = "int4"


class Selector(msgspec.Struct, frozen=True, kw_only=True):
    """Which devices can run a variant. An empty tuple asks for nothing."""

    architectures: tuple[str, ...] = ()
    """Machine names as in OCI: `amd64`, `arm64`, `arm`."""
    accelerator: str = "cpu"
    """`cpu`, `gpu` or `npu`."""
    accelerator_vendor: str = ""
    """`intel`, `nvidia` or empty for any."""
    cpu_features: tuple[str, ...] = ()
    """Flags that must all be there, in the kernel's words: `asimddp`; `avx512_vnni|avx_vnni` = one of them."""
    min_memory_bytes: int = 0


class Tolerance(msgspec.Struct, frozen=True, kw_only=True):
    """When a device has reproduced the golden set.

    Outputs must be close (`abs(a - b) <= atol + rtol * abs(b)`, all elements) when both are positive, and the
    mean agreement of the answers, as the task decodes and compares them (`edgeserve.task.agreement`), must be at least
    `agreement`. What cannot be run on the compiling host is held to `agreement` only.
    """

    rtol: float = 0.0
    atol: float = 0.0
    agreement: float = 1.0

    def __post_init__(self) -> None:
        if self.rtol < 0 or self.atol < 0:
            raise InputError("golden tolerance: rtol and atol must not be negative")
        if not 0.5 < self.agreement <= 1:
            raise InputError(f"golden tolerance: agreement {self.agreement} must be above 0.5 and at most 1")

    @property
    def element_wise(self) -> bool:
        """Whether outputs are compared number by number."""
        return self.rtol > 0 or self.atol > 0


class Finalize(msgspec.Struct, frozen=True, kw_only=True):
    """What a device does with a variant after it has verified it and before the first request: build an engine.

    The result is cached under a key of everything in `cache_key`, and built again when any of it has changed.
    """

    action: str
    """`tensorrt-engine` or `openvino-blob`."""
    steps: tuple[str, ...]
    """In words and commands, for the device's log and for people."""
    options: dict[str, str] = {}
    """Settings of the builder, by its own names."""
    cache_key: tuple[str, ...]
    """Names of what the result depends on: `model`, `tensorrt`, `cuda`, `driver`, `soc`, `openvino`."""
    seconds: float = 0.0
    """How long it was seen to take; 0 = not known."""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What the compiler measured, on the host named, with the variant's own runtime."""

    metric: str
    """Name of the metric, as in `edgeserve.contracts.task.Metric`, or `module:function`."""
    rows: int
    float_value: float
    value: float
    drop: float
    drop_low: float
    drop_high: float
    """Paired 95 % interval of `drop` (float minus variant)."""
    latency_ms: float
    """Median of one call with one row on the compiling host, one thread: a proxy on foreign targets."""
    float_latency_ms: float
    size_bytes: int
    float_size_bytes: int
    host: str
    """CPU of the compiling host."""
    host_architecture: str = ""
    """Its machine in OCI words, such as `amd64`; empty = unknown."""
    executing_device: str
    """What ran it, as the runtime says."""


class VariantContract(msgspec.Struct, frozen=True, kw_only=True):
    """One compiled form of a model for one target and precision."""

    schema: int = 1
    model: str
    target: str
    precision: Precision
    runtime: str
    """Name in the entry-point group `edgeserve.runtimes`."""
    runtime_device: str = "CPU"
    """Device in the runtime's own words: `CPU`, `NPU`, `GPU`."""
    entry: str
    """File to hand to the runtime; the others lie beside it."""
    signature: Signature
    task: Task | None = None
    selector: Selector
    tolerance: Tolerance
    finalize: Finalize | None = None
    measured: Measured | None = None
    memory_bytes: int = 0
    """Anonymous memory that loading and one call added on the compiling host; 0 = not measured."""
    minimum_agent: str = "0.1.0"

    def __post_init__(self) -> None:
        if self.schema != 1:
            raise InputError(
                f"variant contract has schema {self.schema}, this edgeserve reads 1", hint="update edgeserve"
            )
        model_name(self.model)
        file_name(self.entry)
        plugin_name(self.target, "target")
        plugin_name(self.runtime, "runtime")

    @property
    def latency_is_proxy(self) -> bool:
        """Whether `measured` is, or may be, from other hardware than the target's: its latency then only ranks."""
        if self.measured is None:
            return False
        wanted = self.selector.architectures
        device = self.measured.executing_device
        foreign = bool(wanted) and self.measured.host_architecture not in wanted
        elsewhere = self.selector.accelerator != "cpu" and device.upper().startswith("CPU")
        return foreign or elsewhere or device.endswith("(simulated)")
