"""Triton's "System Shared Memory" extension: POSIX shared memory that clients register by name.

Whoever may send requests names objects that the server then opens, so it is switched off unless asked for, and opens
only what its own user, or everyone, may use. A client that shrinks an object gets an error, as long as it does not do
so within a request: then the kernel ends the server (SIGBUS). The local protocol (`local_server`) has neither weakness.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import stat
import sys
from dataclasses import dataclass
from typing import Final

from edgeserve.contracts import limits
from edgeserve.contracts.errors import ConflictError, DeviceError, InputError, NotFoundError, UnsupportedError
from edgeserve_agent.serving.regions import RegionRef, RegionStatus

_LOG: Final = logging.getLogger(__name__)
_FOLDER: Final = "/dev/shm"  # noqa: S108 - where shm_open of Linux's C libraries looks, shm_overview(7)
_RESERVED: Final = ("triton_python_backend_shm_region_", "sem.")
"""Triton's own, and those of named semaphores, sem_overview(7)."""


class _Region:
    """A mapped object. Views keep the mapping alive; the descriptor is for looking at the object's size."""

    __slots__ = ("_descriptor", "_end", "memory", "status")

    def __init__(self, status: RegionStatus, descriptor: int, memory: memoryview) -> None:
        self.status = status
        self.memory = memory
        self._descriptor = descriptor
        self._end = status.offset + status.byte_size

    def is_whole(self) -> bool:
        """Whether the object is still as large as it was; a third of what `fstat` takes."""
        return os.lseek(self._descriptor, 0, os.SEEK_END) >= self._end

    def close(self) -> None:
        """Let go of the object."""
        os.close(self._descriptor)


@dataclass(frozen=True, kw_only=True)
class SharedMemoryLimits:
    """Bounds; the reasons stand in `edgeserve.contracts.limits`."""

    regions: int = limits.MAX_SHARED_REGIONS
    total_bytes: int = limits.MAX_SHARED_BYTES


class SharedMemory:
    """The regions of one server (see `edgeserve_agent.serving.regions.Regions`)."""

    def __init__(self, bounds: SharedMemoryLimits | None = None) -> None:
        self.generation = 0
        self._limits = bounds or SharedMemoryLimits()
        self._regions: dict[str, _Region] = {}

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Map a part of an object.

        Args:
            name: What requests call it.
            key: What `shm_open` calls it, such as `/input`.
            offset: Where the part begins, bytes.
            byte_size: Its length.

        Raises:
            ConflictError: The name is in use.
            NotFoundError: There is no such object.
            InputError: The object is smaller, the server's user may not use it, or a name is not allowed.
            DeviceError: There is no address space, or there are too many open files.
            UnsupportedError: The system is not Linux.
        """
        if not sys.platform.startswith("linux"):
            raise UnsupportedError("shared memory needs Linux")
        if not 0 < len(name) <= limits.MAX_REGION_NAME_CHARS:
            raise InputError(f"the name of a region has 1 to {limits.MAX_REGION_NAME_CHARS} characters")
        path = _path(name, key)
        if name in self._regions:
            raise ConflictError(
                f"shared memory region '{name}' already in manager", hint="unregister it first, or choose another name"
            )
        if len(self._regions) >= self._limits.regions:
            raise InputError(
                f"{self._limits.regions} regions are registered, no more are taken", hint="unregister some"
            )
        total = byte_size + sum(region.status.byte_size for region in self._regions.values())
        if total > self._limits.total_bytes:
            raise InputError(
                f"failed to register shared memory region '{name}': all together would have {total} bytes, "
                f"at most {self._limits.total_bytes} are allowed",
                hint="unregister some",
            )
        status = RegionStatus(name=name, key=key, offset=offset, byte_size=byte_size)
        self._regions[name] = _open(status, path)
        self.generation += 1
        _LOG.info("shared memory region %r: %d bytes of %r", name, byte_size, key)

    def unregister(self, name: str = "") -> None:
        """Forget a region, or all; what is not there is no error. Requests in flight keep its memory."""
        for gone in [name] if name else list(self._regions):
            region = self._regions.pop(gone, None)
            if region is not None:
                region.close()
                self.generation += 1

    def status(self, name: str = "") -> list[RegionStatus]:
        """One region, or all, by name.

        Raises:
            NotFoundError: There is none of that name.
        """
        if not name:
            return [region.status for _, region in sorted(self._regions.items())]
        region = self._regions.get(name)
        if region is None:
            raise NotFoundError(f"Unable to find system shared memory region: '{name}'")
        return [region.status]

    def view(self, ref: RegionRef) -> memoryview:
        """See `edgeserve_agent.serving.regions.Regions.view`; the messages are Triton's."""
        region = self._regions.get(ref.region)
        if region is None:
            raise NotFoundError(f"Unable to find shared memory region: '{ref.region}'", hint="register it first")
        size = region.status.byte_size
        if not 0 <= ref.offset < size:
            raise InputError(f"Invalid offset for shared memory region: '{ref.region}'", hint=f"it has {size} bytes")
        end = ref.offset + ref.byte_size
        if not ref.offset <= end <= size:
            raise InputError(
                f"Invalid offset + byte size for shared memory region: '{ref.region}'", hint=f"it has {size} bytes"
            )
        if not region.is_whole():
            raise InputError(
                f"shared memory region '{ref.region}' has become smaller than it was registered",
                hint="unregister a region before its object is shrunk",
            )
        return region.memory[ref.offset : end]


def _path(name: str, key: str) -> str:
    """The file of a key: as in `shm_open`, one slash may come first, and none later."""
    bare = key[1:] if key[:1] == "/" else key
    if not bare or bare in (".", "..") or "/" in bare or "\0" in bare or len(bare) > limits.MAX_REGION_NAME_CHARS:
        raise InputError(
            f"cannot register shared memory region '{name}': {key[:80]!r} is not a key of shared memory",
            hint="a key is a slash and a name without one, such as /input",
        )
    for prefix in _RESERVED:
        if bare.startswith(prefix):
            raise InputError(
                f"cannot register shared memory region '{name}' with key '{key}' "
                f"as the key contains the reserved prefix '{prefix}'"
            )
    return f"{_FOLDER}/{bare}"


def _open(status: RegionStatus, path: str) -> _Region:
    name, key, offset, size = status.name, status.key, status.offset, status.byte_size
    try:
        # A FIFO must not hold the loop, and a link must not lead elsewhere.
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise NotFoundError(f"Unable to open shared memory region: '{key}'", hint="create the object first") from None
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise DeviceError(
                f"too many open files for shared memory region '{name}'", hint="raise LimitNOFILE"
            ) from None
        raise InputError(
            f"Unable to open shared memory region: '{key}': {error.strerror}",
            hint="it must be readable and writable by the server's user",
        ) from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"Invalid shared memory region: '{key}'", hint="it is not a shared memory object")
        if not _may_use(found):
            raise InputError(
                f"Unable to open shared memory region: '{key}': it belongs to another user",
                hint="run client and server as one user, or give the object mode 0666",
            )
        if offset < 0 or size <= 0 or offset + size > found.st_size:
            raise InputError(
                f"failed to register shared memory region '{name}': invalid args",
                hint=f"{size} bytes at {offset} are asked for, {key!r} has {found.st_size}",
            )
        start = offset - offset % mmap.ALLOCATIONGRANULARITY
        mapped = mmap.mmap(descriptor, offset + size - start, offset=start)
    except (OSError, ValueError, OverflowError) as error:
        os.close(descriptor)
        raise DeviceError(
            f"failed to register shared memory region '{name}': {error}", hint="register a smaller part"
        ) from error
    except BaseException:
        os.close(descriptor)
        raise
    return _Region(status, descriptor, memoryview(mapped)[offset - start :])


def _may_use(found: os.stat_result) -> bool:
    """Whether the server may use the object without the privileges of root: it is a client that asks for it."""
    if found.st_uid == os.geteuid():
        return True
    wanted = 0o060 if found.st_gid in {os.getegid(), *os.getgroups()} else 0o006
    return found.st_mode & wanted == wanted
