"""CUDA as far as an engine needs it: memory, copies, a stream, and which GPU this is. The only module that calls CUDA.

Through the driver API (`libcuda.so.1`), by ctypes: it comes with the driver itself, on a Jetson as on a PC, has a
stable binary interface, and shares the primary context with the runtime API that TensorRT uses. JetPack has no Python
binding of CUDA, and no package has one for each version of it.
https://docs.nvidia.com/cuda/cuda-driver-api/

Tried against an imitation of the library only; on a real GPU: unverified.
"""

from __future__ import annotations

import ctypes
import math
import re
from pathlib import Path
from typing import Final

import numpy as np

from edgeserve.contracts.errors import DeviceError, MissingLibraryError
from edgeserve.runtimes.base import Tensor

LIBRARY: Final = "libcuda.so.1"
_CAPABILITY_MAJOR: Final = 75
_CAPABILITY_MINOR: Final = 76
_MULTIPROCESSORS: Final = 16
_PORTABLE: Final = 1
"""Pinned memory counts as such in every context."""
_NON_BLOCKING: Final = 1
_NAME_BYTES: Final = 128
_DRIVER_FILES: Final = ("proc/driver/nvidia/version", "etc/nv_tegra_release")


class Cuda:
    """One GPU of this machine. Every thread that uses it calls `enter` first.

    Args:
        ordinal: Which, from 0.
        library: Name or path of the driver's library.

    Raises:
        MissingLibraryError: There is no driver.
        DeviceError: There is no such GPU, or the driver does not start.
    """

    def __init__(self, ordinal: int = 0, *, library: str = LIBRARY) -> None:
        try:
            self._library = ctypes.CDLL(library)
        except OSError as error:
            raise MissingLibraryError(
                f"there is no CUDA driver on this machine: {error}",
                hint="on a Jetson it is part of JetPack; on a PC install NVIDIA's driver; in a container run it with "
                "NVIDIA's container runtime",
            ) from error
        self._call("cuInit", ctypes.c_uint(0))
        count = ctypes.c_int()
        self._call("cuDeviceGetCount", ctypes.byref(count))
        if not 0 <= ordinal < count.value:
            raise DeviceError(f"there is no GPU {ordinal} here, CUDA has {count.value}")
        device = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(ordinal))
        self._device = device
        context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._context = context
        name = ctypes.create_string_buffer(_NAME_BYTES)
        self._call("cuDeviceGetName", name, ctypes.c_int(_NAME_BYTES), device)
        self.name = name.value.decode("utf-8", "replace")
        self.sm = f"sm_{self._attribute(_CAPABILITY_MAJOR)}{self._attribute(_CAPABILITY_MINOR)}"
        """Compute capability, such as `sm_87`."""
        self.multiprocessors = self._attribute(_MULTIPROCESSORS)
        version = ctypes.c_int()
        self._call("cuDriverGetVersion", ctypes.byref(version))
        self.version = f"{version.value // 1000}.{version.value % 1000 // 10}"
        """Of CUDA, as far as the driver has it, such as `12.6`."""

    def enter(self) -> None:
        """Let this thread use the GPU."""
        self._call("cuCtxSetCurrent", self._context)

    def new_stream(self) -> int:
        """Handle of a new stream."""
        stream = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(stream), ctypes.c_uint(_NON_BLOCKING))
        return int(stream.value or 0)

    def free_stream(self, stream: int) -> None:
        """Destroy a stream."""
        self._call("cuStreamDestroy_v2", ctypes.c_void_p(stream))

    def wait(self, stream: int) -> None:
        """Wait until everything in a stream is done.

        Raises:
            DeviceError: Some of it failed.
        """
        self._call("cuStreamSynchronize", ctypes.c_void_p(stream))

    def buffer(self, size: int) -> Buffer:
        """Memory for a tensor of at most `size` bytes, here and on the GPU.

        Raises:
            DeviceError: There is not enough.
        """
        return Buffer(self, max(size, 1))

    def _attribute(self, which: int) -> int:
        value = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(which), self._device)
        return value.value

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            text = ctypes.c_char_p()
            self._library.cuGetErrorName(ctypes.c_int(code), ctypes.byref(text))
            said = text.value.decode() if text.value else f"error {code}"
            raise DeviceError(f"CUDA: {name} failed: {said}", hint=_HINTS.get(said, ""))


class Buffer:
    """Pinned memory of this process and memory of the GPU, of the same size.

    A copy between the two needs no copy of the driver's own in between, and runs beside other work.
    """

    def __init__(self, cuda: Cuda, size: int) -> None:
        self.size = size
        self._cuda = cuda
        host, device = ctypes.c_void_p(), ctypes.c_uint64()
        cuda._call("cuMemHostAlloc", ctypes.byref(host), ctypes.c_size_t(size), ctypes.c_uint(_PORTABLE))  # noqa: SLF001
        self._host = host
        try:
            cuda._call("cuMemAlloc_v2", ctypes.byref(device), ctypes.c_size_t(size))  # noqa: SLF001
        except DeviceError:
            cuda._call("cuMemFreeHost", host)  # noqa: SLF001
            raise
        self._device = device
        self._bytes = np.frombuffer(memoryview((ctypes.c_uint8 * size).from_address(int(host.value or 0))), np.uint8)

    @property
    def address(self) -> int:
        """On the GPU."""
        return self._device.value

    def write(self, array: Tensor, stream: int) -> None:
        """Copy an array to the GPU, in the order of `stream`; the array may change as soon as this returns."""
        self.array(array.shape, array.dtype)[...] = array
        if array.nbytes:
            size = ctypes.c_size_t(array.nbytes)
            self._cuda._call("cuMemcpyHtoDAsync_v2", self._device, self._host, size, ctypes.c_void_p(stream))  # noqa: SLF001

    def read_soon(self, size: int, stream: int) -> None:
        """Copy the first `size` bytes here, in the order of `stream`; `array` shows them once the stream is done."""
        if size:
            length = ctypes.c_size_t(size)
            self._cuda._call("cuMemcpyDtoHAsync_v2", self._host, self._device, length, ctypes.c_void_p(stream))  # noqa: SLF001

    def array(self, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Tensor:
        """The memory here as an array: it changes with the next call."""
        size = math.prod(shape) * dtype.itemsize
        view: Tensor = self._bytes[:size].view(dtype).reshape(shape)
        return view

    def free(self) -> None:
        """Give the memory back. Call it once."""
        self._bytes = np.empty(0, np.uint8)
        self._cuda._call("cuMemFreeHost", self._host)  # noqa: SLF001
        self._cuda._call("cuMemFree_v2", self._device)  # noqa: SLF001


def driver_version(root: Path = Path("/")) -> str:
    """Version of NVIDIA's kernel driver, or of the Jetson's Linux; empty = not known.

    Args:
        root: Of the file system.
    """
    for name in _DRIVER_FILES:
        try:
            line = (root / name).read_text("utf-8", "replace").partition("\n")[0]
        except OSError:
            continue
        jetson = re.search(r"R(\d+).*?REVISION: ([\d.]+)", line)
        found = re.search(r"\d+\.\d+(?:\.\d+)?", line)
        if jetson:
            return f"L4T {jetson[1]}.{jetson[2]}"
        if found:
            return found[0]
    return ""


_HINTS: Final = {
    "CUDA_ERROR_OUT_OF_MEMORY": "free memory of the GPU: fewer models, or fewer calls at once",
    "CUDA_ERROR_NO_DEVICE": "no GPU can be seen; in a container run it with NVIDIA's container runtime",
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": "the driver was updated: start the machine anew",
}
