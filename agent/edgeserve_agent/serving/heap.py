"""What the process does with memory: glibc keeps large blocks, and the collector leaves loaded models alone."""

from __future__ import annotations

import ctypes
import gc
import sys
from typing import Final

from edgeserve.contracts.limits import MALLOC_KEPT_BYTES, MALLOC_MMAP_BYTES

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
"""Names of glibc's malloc.h."""


def keep_large_blocks() -> None:
    """Let malloc reuse blocks of the size of a picture.

    By default glibc maps each of them anew, and the kernel clears every page of it at the first touch: receiving a body
    of 600 KB takes three times the CPU. Does nothing where the C library is another.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(_M_MMAP_THRESHOLD, MALLOC_MMAP_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, MALLOC_KEPT_BYTES)


def settle() -> None:
    """Collect garbage once, and do not look at what is left again: modules and models live long.

    A full collection of them takes milliseconds in which no request is answered. Called after every load and unload.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
