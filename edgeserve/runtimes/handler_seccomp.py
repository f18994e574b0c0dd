"""seccomp: system calls that a handler has no use for fail from now on with EPERM. Needs no privileges.

Threads stay possible; further processes, programs, sockets, signals to others, shared memory by name and changes of
files' modes, owners and times do not. Source: Linux, Documentation/userspace-api/seccomp_filter.rst; numbers are those
of the kernel's syscall tables.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from typing import Final

_PR_SET_SECCOMP: Final = 22
_MODE_FILTER: Final = 2
_ALLOW: Final = 0x7FFF0000
_ERRNO: Final = 0x00050000
_KILL_PROCESS: Final = 0x80000000
_LOAD: Final = 0x20
_JUMP_EQUAL: Final = 0x15
_JUMP_AT_LEAST: Final = 0x35
_AND: Final = 0x54
_RETURN: Final = 0x06
_NUMBER_AT: Final = 0
_ARCHITECTURE_AT: Final = 4
_ARGUMENT_AT: Final = 16
"""Offsets in `struct seccomp_data`; of the first argument the lower half, which is all that is looked at."""
_CLONE_THREAD: Final = 0x00010000
_X32: Final = 0x40000000
"""Bit of the numbers of x86-64's second table."""

_SECOND_ARGUMENT_AT: Final = 24
_OWNER_OF_SIGNALS: Final = (8, 15)
"""F_SETOWN and F_SETOWN_EX of fcntl: the kernel would signal others in our name."""
_OWNER_OF_SOCKET: Final = (0x8901, 0x8902)
"""FIOSETOWN and SIOCSPGRP of ioctl: the same."""

_EVERYWHERE: Final = (
    *(452, 463, 466),  # fchmodat2, setxattrat, removexattrat
    *(425, 438, 424),  # io_uring_setup (would open sockets unseen), pidfd_getfd, pidfd_send_signal
    *(428, 429, 430, 431, 432, 442),  # open_tree, move_mount, fsopen, fsconfig, fsmount, mount_setattr
)
_CLONE3: Final = 435


class _Table:
    """Numbers of one architecture."""

    def __init__(
        self, audit: int, clone: int, fcntl: int, ioctl: int, own: tuple[int, ...], forbidden: tuple[int, ...]
    ) -> None:
        self.audit = audit
        self.clone = clone
        self.owners = ((fcntl, _OWNER_OF_SIGNALS), (ioctl, _OWNER_OF_SOCKET))
        """Calls whose second argument may not be one of these."""
        self.own = own
        """Of calls whose first argument may only be this process, or 0: tgkill, prlimit64, kill, sched_setaffinity,
        sched_setscheduler, sched_setparam, sched_setattr."""
        self.forbidden = (*forbidden, *_EVERYWHERE)


_TABLES: Final = {
    # socket, socketpair (sends to paths), connect, bind; truncate, chmod, fchmod, fchmodat, chown, fchown, lchown,
    # fchownat, utime, utimes, futimesat, utimensat, setxattr and its like, removexattr and its like, all of which
    # Landlock does not govern; setpriority, ioprio_set; fork, vfork, execve, execveat; ptrace, process_vm_readv,
    # process_vm_writev; tkill, rt_sigqueueinfo,
    # rt_tgsigqueueinfo; shmget, semget, msgget, mq_open; mount, umount2, pivot_root, chroot, unshare, setns; bpf,
    # perf_event_open, userfaultfd; add_key, request_key, keyctl; init_module, finit_module, kexec_load
    "x86_64": _Table(
        0xC000003E,
        56,
        72,
        16,
        (234, 302, 62, 203, 144, 142, 314),
        (
            *(53, 42, 49, 76, 90, 91, 268, 92, 93, 94, 260, 132, 235, 261, 280),
            *(188, 189, 190, 197, 198, 199, 141, 251),
            *(41, 57, 58, 59, 322, 101, 310, 311, 200, 129, 297, 29, 64, 68, 240),
            *(165, 166, 155, 161, 272, 308, 321, 298, 323, 248, 249, 250, 175, 313, 246),
        ),
    ),
    "aarch64": _Table(
        0xC00000B7,
        220,
        25,
        29,
        (131, 261, 129, 122, 119, 118, 274),
        (
            *(199, 203, 200, 45, 52, 53, 54, 55, 88, 5, 6, 7, 14, 15, 16, 140, 30),
            *(198, 221, 281, 117, 270, 271, 130, 138, 240, 194, 190, 186, 180),
            *(40, 39, 41, 51, 97, 268, 280, 241, 282, 217, 218, 219, 105, 273, 104),
        ),
    ),
}


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def forbid_calls() -> str:
    """Install the filter, for which the process must have no_new_privs and one thread.

    Returns:
        Why it is not installed; empty = it is.
    """
    machine = platform.machine()
    if machine not in _TABLES or ctypes.sizeof(ctypes.c_void_p) != 8:
        return f"no table for {machine}"
    code = program(_TABLES[machine], own_pid=os.getpid())
    installed = _Program(len(code) // 8, code)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(installed), 0, 0) != 0:
        return os.strerror(ctypes.get_errno())
    return ""


def program(table: _Table, *, own_pid: int) -> bytes:
    """The filter as BPF: pairs of a test and what follows, so that no jump is long.

    Args:
        table: Of this architecture.
        own_pid: The process that signals and limits may be for.
    """
    refuse = _op(_RETURN, _ERRNO | errno.EPERM)
    code = [
        _op(_LOAD, _ARCHITECTURE_AT),
        _op(_JUMP_EQUAL, table.audit, yes=1),
        _op(_RETURN, _KILL_PROCESS),
        _op(_LOAD, _NUMBER_AT),
        _op(_JUMP_AT_LEAST, _X32, no=1),
        refuse,
        _op(_JUMP_EQUAL, _CLONE3, no=1),
        _op(_RETURN, _ERRNO | errno.ENOSYS),  # its flags are out of reach; libraries then take `clone`
    ]
    for number in table.forbidden:
        code += [_op(_JUMP_EQUAL, number, no=1), refuse]
    for number, words in table.owners:
        code += [
            _op(_JUMP_EQUAL, number, no=5),
            _op(_LOAD, _SECOND_ARGUMENT_AT),
            _op(_JUMP_EQUAL, words[0], yes=2),
            _op(_JUMP_EQUAL, words[1], yes=1),
            _op(_RETURN, _ALLOW),
            refuse,
        ]
    for number in table.own:
        code += [
            _op(_JUMP_EQUAL, number, no=5),
            _op(_LOAD, _ARGUMENT_AT),
            _op(_JUMP_EQUAL, own_pid, yes=2),
            _op(_JUMP_EQUAL, 0, yes=1),
            refuse,
            _op(_RETURN, _ALLOW),
        ]
    code += [
        _op(_JUMP_EQUAL, table.clone, no=4),
        _op(_LOAD, _ARGUMENT_AT),
        _op(_AND, _CLONE_THREAD),
        _op(_JUMP_EQUAL, 0, no=1),
        refuse,
        _op(_RETURN, _ALLOW),
    ]
    return b"".join(code)


def _op(code: int, value: int, *, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("=HBBI", code, yes, no, value)
