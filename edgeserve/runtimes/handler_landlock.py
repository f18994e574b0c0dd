"""Landlock: from now on this process and its children read some folders and write nothing. Needs no privileges.

Source: Linux, Documentation/userspace-api/landlock.rst; the structs are those of include/uapi/linux/landlock.h.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_CREATE_RULESET: Final = 444
"""System calls above 423 have one number on every architecture."""
_ADD_RULE: Final = 445
_RESTRICT_SELF: Final = 446
_ASK_VERSION: Final = 1
_RULE_PATH_BENEATH: Final = 1

_READ_FILE: Final = 1 << 2
_READ_FOLDER: Final = 1 << 3
_FILE_RIGHTS: Final = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
"""Version of Landlock -> what it can forbid in addition to earlier ones: all, REFER, TRUNCATE, IOCTL_DEV."""
_NET_RIGHTS: Final = 0b11
"""From version 4: bind and connect of TCP."""
_SCOPES: Final = 0b11
"""From version 6: abstract Unix sockets and signals of processes outside."""


def allow_reading(paths: Iterable[Path]) -> str:
    """Let this process read what is beneath `paths`, and nothing else; those that do not exist are passed over.

    Returns:
        Why it is not so; empty = it is.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _ASK_VERSION)
    if version < 1:
        return f"not in this kernel: {os.strerror(ctypes.get_errno())}"
    attributes = struct.pack(
        "=QQQ",
        sum(rights for since, rights in _FILE_RIGHTS.items() if version >= since),
        _NET_RIGHTS if version >= 4 else 0,
        _SCOPES if version >= 6 else 0,
    )[: 24 if version >= 6 else 16 if version >= 4 else 8]
    ruleset = libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0:
        return os.strerror(ctypes.get_errno())
    try:
        for path in paths:
            _allow(libc, ruleset, path)
        if libc.syscall(_RESTRICT_SELF, ruleset, 0) != 0:
            return os.strerror(ctypes.get_errno())
    finally:
        os.close(ruleset)
    return ""


def _allow(libc: ctypes.CDLL, ruleset: int, path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # what is not there, or not for us, needs no rule
        return
    try:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        rights = _READ_FILE | (_READ_FOLDER if is_folder else 0)
        libc.syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, struct.pack("=Qi", rights, descriptor), 0)
    finally:
        os.close(descriptor)
