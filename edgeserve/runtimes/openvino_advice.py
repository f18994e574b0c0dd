"""What to do when OpenVINO cannot use a device. Pure: from the library's words to ours."""

from __future__ import annotations

from typing import Final

CHOOSERS: Final = ("AUTO", "BATCH", "HETERO", "MULTI")
"""Devices that are none: OpenVINO chooses one of a list, and was seen to fall back to the CPU without a word."""

_DRIVER: Final = (
    "install Intel's NPU driver with its compiler (https://github.com/intel/linux-npu-driver/releases), then check that"
    " /dev/accel/accel0 is there and that this user is in the group render"
)
_GPU: Final = (
    "install Intel's compute runtime (the packages intel-opencl-icd and ocl-icd-libopencl1), then check that"
    " /dev/dri/renderD128 is there and that this user is in the group render"
)
_NO_COMPILER: Final = (
    "OpenVINO's wheel has no NPU compiler, and no compile_tool either: compile on a device with an NPU, with the"
    f" driver's compiler. There, {_DRIVER}"
)
_SETTINGS: Final = "correct the settings: they are properties of OpenVINO for this device, by its own names"
_BY_WORDS: Final = (
    ("VCL compiler loading failed", _NO_COMPILER),
    ("Could not find an NPU device", f"the driver's compiler needs the NPU itself: {_DRIVER}"),
    (
        "is not a valid COMPILER_TYPE",
        "NPU_COMPILER_TYPE is DRIVER (the driver's) or PLUGIN (a library beside OpenVINO)",
    ),
    (
        "ELF version",
        "the blob was made by another compiler version: remove it, it is made again from the IR by this driver",
    ),
    (
        "Unsupported operation",
        "the NPU's compiler does not know an operation: update the driver, or compile for intel-gpu",
    ),
    ("libOpenCL", _GPU),
    ("Unsupported property", _SETTINGS),
    ("Unsupported configuration key", _SETTINGS),
    ("Wrong value for property", _SETTINGS),
)
_BY_DEVICE: Final = {"NPU": _DRIVER, "GPU": _GPU}


def advice(device: str, error: str = "") -> str:
    """What to do about a failed compilation, or about a device that is not there.

    Args:
        device: As asked for, such as `NPU` or `GPU.1`.
        error: The library's whole error text; empty when the device is not listed.
    """
    for words, what in _BY_WORDS:
        if words in error:
            return what
    return _BY_DEVICE.get(base(device), "check the driver") if not error else ""


def base(device: str) -> str:
    """Kind of a device: `GPU` of `GPU.1`; devices that OpenVINO chose itself come in parentheses."""
    return device.strip("()").partition(".")[0]


def is_chooser(device: str) -> bool:
    """Whether `device` leaves the choice to OpenVINO, as `AUTO:NPU,CPU` does."""
    return device.partition(":")[0].partition(".")[0] in CHOOSERS
