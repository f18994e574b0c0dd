"""Board, operating system, libraries, container and storage."""

from __future__ import annotations

import os
import platform
import re
import struct
from collections.abc import Iterator
from typing import Final

import msgspec

from edgeserve_devices.probes.tree import Tree, pairs, printable

_ARCHITECTURES: Final = {
    "x86_64": "amd64",
    "amd64": "amd64",
    "aarch64": "arm64",
    "arm64": "arm64",
    "armv7l": "arm",
    "armv6l": "arm",
}
_CONTAINERS: Final = ("kubepods", "docker", "libpod", "containerd", "lxc", "buildah")
"""Words in the path of the control group; with namespaces of control groups there is none."""
_LOCAL: Final = ("ext2", "ext3", "ext4", "btrfs", "xfs", "f2fs", "vfat", "overlay", "zfs", "bcachefs", "erofs", "ubifs")
"""File systems that answer at once; a network's may not."""
_MOST_MOUNTS: Final = 16
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")


class Storage(msgspec.Struct, frozen=True, kw_only=True):
    """One local file system. Sizes in bytes; None = a record does not tell."""

    path: str
    type: str
    read_only: bool
    total_bytes: int | None
    free_bytes: int | None
    """For programs without privileges."""


class System(msgspec.Struct, frozen=True, kw_only=True):
    """Empty and None = unknown."""

    architecture: str
    """Machine in OCI words: `amd64`, `arm64`, `arm`."""
    board: str
    """Model from the device tree, or vendor and product from the firmware."""
    compatible: tuple[str, ...]
    """The device tree's names for board and SoC, the most exact one first."""
    soc: str
    """The SoC as its driver names it."""
    os: str
    os_id: str
    """`ID` and `VERSION_ID` of os-release, such as `debian 12`."""
    kernel: str
    libc: str
    """`glibc 2.36`, `musl`."""
    python: str
    container: str
    """What sign of a container there is: `docker`, `podman`, `kubepods`; empty = none."""
    virtual_machine: bool | None
    """Only x86 tells."""
    uptime_s: float | None
    load: tuple[float, ...]
    """Tasks that run or wait, means over 1, 5 and 15 minutes."""
    storage: tuple[Storage, ...]


def system(tree: Tree, *, machine: str = "", flags: frozenset[str] = frozenset()) -> System:
    """All of it.

    Args:
        tree: Of the machine.
        machine: As in `architecture`.
        flags: Of the CPU.
    """
    release = _os_release(tree)
    uptime = re.match(r"[0-9]{1,12}\.[0-9]{1,2}", tree.line("proc/uptime"))
    return System(
        architecture=architecture(tree, machine),
        board=board(tree) or _firmware_name(tree),
        compatible=_compatible(tree),
        soc=" ".join(filter(None, (tree.line(f"sys/devices/soc0/{file}") for file in ("family", "soc_id")))),
        os=os_name(tree),
        os_id=printable(f"{release.get('ID', '')} {release.get('VERSION_ID', '')}"),
        kernel=kernel(tree),
        libc=libc(tree),
        python=python(tree),
        container=container(tree),
        virtual_machine="hypervisor" in flags if "fpu" in flags else None,
        uptime_s=float(uptime[0]) if uptime else None,
        load=_load(tree),
        storage=tuple(_storage(tree)),
    )


def architecture(tree: Tree, machine: str = "") -> str:
    """Machine in OCI words; empty = unknown. A 32-bit Python on a 64-bit kernel is `arm`: its wheels decide.

    Args:
        tree: Of the machine.
        machine: `uname -m` of a record; empty = ask this machine, or the record (Linux 6.1 and later).
    """
    if machine:
        return _ARCHITECTURES.get(machine.lower(), "")
    if not tree.is_this_machine:
        return _ARCHITECTURES.get(tree.line("proc/sys/kernel/arch").lower(), "")
    known = _ARCHITECTURES.get(platform.machine().lower(), "")
    return {"arm64": "arm", "amd64": ""}.get(known, known) if struct.calcsize("P") == 4 else known


def board(tree: Tree) -> str:
    """Model from the device tree; empty on a PC."""
    return tree.line("proc/device-tree/model")


def os_name(tree: Tree) -> str:
    """Name of the operating system with its version."""
    return printable(_os_release(tree).get("PRETTY_NAME", ""))


def kernel(tree: Tree) -> str:
    """Release of the kernel, as `uname -r`."""
    return tree.line("proc/sys/kernel/osrelease")


def libc(tree: Tree) -> str:
    """C library of this process; of a record only whether it is musl."""
    if tree.is_this_machine and hasattr(os, "confstr"):
        try:
            told = os.confstr("CS_GNU_LIBC_VERSION")
        except (OSError, ValueError):
            told = ""
        if told:
            return printable(told)
    return "musl" if tree.names("lib", "ld-musl-") else ""


def container(tree: Tree) -> str:
    """What sign of a container there is; empty = none."""
    if tree.exists("run/.containerenv"):
        return "podman"
    groups = tree.text("proc/self/cgroup")
    named = next((word for word in _CONTAINERS if word in groups), "")
    return named or tree.line("run/systemd/container") or ("docker" if tree.exists(".dockerenv") else "")


def python(tree: Tree) -> str:
    """Version of the Python that runs; empty for a record."""
    return platform.python_version() if tree.is_this_machine else ""


def _os_release(tree: Tree) -> dict[str, str]:
    text = tree.text("etc/os-release") or tree.text("usr/lib/os-release")
    return {key: value.strip("\"'") for key, value in pairs(text, "=").items()}


def _firmware_name(tree: Tree) -> str:
    return " ".join(filter(None, (tree.line(f"sys/class/dmi/id/{file}") for file in ("sys_vendor", "product_name"))))


def _compatible(tree: Tree) -> tuple[str, ...]:
    words = tree.text("proc/device-tree/compatible").split("\0")
    return tuple(word for each in words[:16] if (word := printable(each)))


def _load(tree: Tree) -> tuple[float, ...]:
    found = re.match(
        r"([0-9]{1,6}\.[0-9]{2}) ([0-9]{1,6}\.[0-9]{2}) ([0-9]{1,6}\.[0-9]{2}) ", tree.line("proc/loadavg")
    )
    return tuple(float(each) for each in found.groups()) if found else ()


def _storage(tree: Tree) -> Iterator[Storage]:
    """Local file systems, each device once."""
    seen: set[str] = set()
    for line in tree.text("proc/self/mounts").splitlines():
        words = line.split(" ")
        if len(words) < 4 or words[2] not in _LOCAL or words[0] in seen or len(seen) >= _MOST_MOUNTS:
            continue
        seen.add(words[0])
        path = _ESCAPE.sub(lambda match: chr(int(match[1], 8)), words[1])
        total, free = _sizes(path) if tree.is_this_machine else (None, None)
        yield Storage(
            path=printable(path), type=words[2], read_only="ro" in words[3].split(","), total_bytes=total,
            free_bytes=free,
        )  # fmt: skip


def _sizes(path: str) -> tuple[int | None, int | None]:
    try:
        told = os.statvfs(path)
    except (OSError, ValueError):
        return None, None
    return told.f_blocks * told.f_frsize, told.f_bavail * told.f_frsize
