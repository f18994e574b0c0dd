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
    cpu_level: str = ""
    """Level of the x86-64 psABI that it reaches: `x86-64-v2` to `x86-64-v4`."""
    cores: int = 0
    """Logical processors of the machine."""
    memory_bytes: int = 0
    """Of the machine, or what its control group may take where that is less, as in a container."""
    accelerators: tuple[Accelerator, ...] = ()
    runtimes: tuple[str, ...] = ()
    """Names of the runtimes that can be imported: `onnxruntime`, `openvino`."""
    os: str = ""
    kernel: str = ""
    """Its release, as `uname -r`."""
    libc: str = ""
    """C library, such as `glibc 2.36`: it decides which wheels install."""
    python: str = ""
    container: str = ""
    """What sign of a container there is: `docker`, `podman`, `kubepods`; empty = none."""
    l4t: str = ""
    """Version of Jetson Linux, such as `36.4.3`: engines are built for it."""
    simulated: bool = False
    """The profile describes other hardware than the machine that runs: never reported as real."""
