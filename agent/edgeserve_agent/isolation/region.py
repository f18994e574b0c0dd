"""Memory that two processes share: a memfd, mapped by both, that grows by need."""

from __future__ import annotations

import mmap
import os
import sys
from typing import Final

import numpy as np
import numpy.typing as npt

from edgeserve.contracts.errors import DeviceError, InputError
from edgeserve.contracts.limits import ISOLATION_REGION_BYTES, KIB, MIB
from edgeserve.runtimes.base import Tensor

_STEP: Final = 64 * KIB
_NAME: Final = "edgeserve-tensors"


class Region:
    """One end of it. Not thread-safe, and only one of the two processes may use it at a time: they take turns.

    Args:
        descriptor: Of the memfd; it is closed with the region.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._map: mmap.mmap | None = None
        self._size = 0

    @classmethod
    def create(cls) -> Region:
        """A region without memory. It can grow but never shrink: under a mapping, that would be a SIGBUS.

        Raises:
            DeviceError: The process has too many open files.
        """
        assert sys.platform == "linux"
        import fcntl

        try:
            descriptor = os.memfd_create(_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError as error:
            raise DeviceError(f"cannot make shared memory: {error.strerror}", hint="raise LimitNOFILE") from error
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        return cls(descriptor)

    def reserve(self, size: int) -> None:
        """Let the region have at least `size` bytes.

        Raises:
            InputError: That is beyond ISOLATION_REGION_BYTES.
            DeviceError: There is not so much memory.
        """
        if size <= self._size:
            return
        if size > ISOLATION_REGION_BYTES:
            raise InputError(
                f"the tensors of this call take {size / MIB:.0f} MiB, "
                f"a worker process shares at most {ISOLATION_REGION_BYTES // MIB} MiB",
                hint="send fewer rows at once",
            )
        there = os.fstat(self.descriptor).st_size
        if there < size:
            # A little more than needed, so that inputs that grow slowly do not map anew each time.
            there = min(-(-(size + size // 8) // _STEP) * _STEP, ISOLATION_REGION_BYTES)
            try:
                # Memory that is missing is an error here and not a SIGBUS when it is written.
                os.posix_fallocate(self.descriptor, 0, there)
            except OSError as error:
                message = f"no {there / MIB:.1f} MiB of shared memory for the tensors of a call: {error.strerror}"
                raise DeviceError(message, hint="send fewer rows at once, or give the device more memory") from error
        self._attach(there)

    def attach(self, size: int) -> None:
        """Map at least the `size` bytes that the other process has reserved.

        Raises:
            DeviceError: It has not.
        """
        if size > self._size:
            there = os.fstat(self.descriptor).st_size
            if size > there:
                raise DeviceError(f"the other process speaks of {size} shared bytes, there are {there}")
            self._attach(there)

    def array(self, shape: tuple[int, ...], dtype: npt.DTypeLike, offset: int) -> Tensor:
        """A view of the region, alive as long as the array is.

        Raises:
            TypeError, ValueError: It is not within what is mapped.
        """
        array: Tensor = np.ndarray(shape, dtype, buffer=self._map, offset=offset)
        return array

    def close(self) -> None:
        """Let go of the memory once no array refers to it. May be called twice."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor, self._map, self._size = -1, None, 0

    def _attach(self, size: int) -> None:
        # Arrays keep an older mapping alive, and both show the same memory.
        self._map = mmap.mmap(self.descriptor, size)
        self._size = size
