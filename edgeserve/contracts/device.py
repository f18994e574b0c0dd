"""What a device is: the facts that variants are matched against and that operators see."""

from __future__ import annotations

import msgspec


class Accelerator(msgspec.Struct, frozen=True, kw_only=True):
    """Something besides the CPU that can run a model."""

    kind: str
    """`gpu` or `npu`."""
    vendor: str
    """`intel`, `nvidia`, ..."""
    name: str = ""


class DeviceFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a device; an empty value means unknown, never a guess."""

    profile: str = ""
    """Name of the device profile, such as `raspberry-pi-5`."""
    architecture: str
    """Machine in OCI words: `amd64`, `arm64`, `arm`."""
    cpu: str = ""
    cpu_features: tuple[str, ...] = ()
    """Flags in the kernel's words."""
    cores: int = 0
    memory_bytes: int = 0
    accelerators: tuple[Accelerator, ...] = ()
    runtimes: tuple[str, ...] = ()
    """Names of the runtimes that can be imported: `onnxruntime`, `openvino`."""
    os: str = ""
    python: str = ""
    simulated: bool = False
    """The profile describes other hardware than the machine that runs: never reported as real."""
