"""The files that a kernel shows, read within bounds: `proc`, `sys`, `dev` and `etc` of this machine or of a record."""

from __future__ import annotations

import os
import re
import stat
from itertools import islice
from pathlib import Path
from typing import Final

from edgeserve.contracts.limits import (
    MAX_PROBE_CPUS,
    MAX_PROBE_FILE_BYTES,
    MAX_PROBE_FILES,
    MAX_PROBE_NAMES,
    MAX_PROBE_PROBLEMS,
    MAX_PROBE_TEXT_CHARS,
)

_ABSENT: Final = (FileNotFoundError, NotADirectoryError)
_NAME: Final = re.compile(r"[A-Za-z0-9._:@,+-]{1,255}\Z")
_INTEGER: Final = re.compile(r"-?[0-9]{1,18}\Z")
"""Fits 64 bits."""
_RANGE: Final = re.compile(r"([0-9]{1,6})(?:-([0-9]{1,6}))?\Z")


class Tree:
    """A folder that holds `proc`, `sys`, `dev` and `etc`.

    Whatever is in it, reading never raises, never blocks on a pipe, never follows a link out of the folder and stays
    within the bounds of `edgeserve.contracts.limits`. What is not there reads as empty, and so does what is there and
    cannot be read; the latter is named in `problems`.

    Args:
        root: `/` for this machine.
    """

    def __init__(self, root: Path) -> None:
        self._root = os.path.realpath(root)
        self.is_this_machine: Final = self._root == os.path.realpath("/")
        """Otherwise it is a record: nothing is asked of the system that runs."""
        self.problems: dict[str, str] = {}
        """What is there and could not be read: its path, and why."""
        self._left = MAX_PROBE_FILES

    def text(self, path: str) -> str:
        """Content of a file of the kernel, bytes that are no UTF-8 replaced."""
        place = self._place(path)
        try:
            if not place or not stat.S_ISREG(os.stat(place).st_mode):  # noqa: PTH116 - thousands of them: no Path objects
                return ""
            with open(place, "rb") as file:  # noqa: PTH123
                return file.read(MAX_PROBE_FILE_BYTES).decode("utf-8", "replace")
        except (OSError, ValueError) as error:
            self._note(path, error)
            return ""

    def line(self, path: str) -> str:
        """First line of a file, as `printable` has it; the nulls that end words of a device tree count as line ends."""
        return printable(self.text(path).replace("\0", "\n").lstrip("\n").partition("\n")[0])

    def integer(self, path: str) -> int | None:
        """The number that a file holds; None = there is none."""
        return integer(self.text(path))

    def names(self, folder: str, prefix: str = "") -> tuple[str, ...]:
        """Entries of a folder that begin with `prefix`, `cpu2` before `cpu10`; strange names are left out."""
        place = self._place(folder)
        if not place:
            return ()
        try:
            with os.scandir(place) as entries:
                found = [entry.name for entry in islice(entries, MAX_PROBE_NAMES)]
        except (OSError, ValueError) as error:
            self._note(folder, error)
            return ()
        return tuple(sorted((name for name in found if name.startswith(prefix) and _NAME.match(name)), key=_natural))

    def exists(self, path: str) -> bool:
        """Whether something is there."""
        place = self._place(path)
        try:
            return bool(place) and os.path.exists(place)  # noqa: PTH110
        except (OSError, ValueError):
            return False

    def link(self, path: str) -> str:
        """Last name of where a symbolic link leads, such as the driver's of `.../device/driver`; empty = no link."""
        place = self._place(path)
        try:
            name = os.path.basename(os.readlink(place)) if place else ""  # noqa: PTH115, PTH119
        except (OSError, ValueError):
            return ""
        return name if _NAME.match(name) else ""

    def check_access(self, node: str) -> None:
        """Note a device node that this process may not open for reading and writing; it is not opened."""
        place, effective = self._place(node), os.access in os.supports_effective_ids
        if place and self.exists(node) and not os.access(place, os.R_OK | os.W_OK, effective_ids=effective):
            self._note(node, PermissionError(13, "Permission denied"))

    def _place(self, path: str) -> str:
        """Where it is on disk; empty = outside of the folder, or too much was read already."""
        if self._left <= 0:
            if self._left == 0:
                self._note("", ValueError(f"more than {MAX_PROBE_FILES} files: the rest was not looked at"))
                self._left = -1
            return ""
        self._left -= 1
        if "\0" in path or ".." in path.split("/"):
            return ""
        place = os.path.join(self._root, path)  # noqa: PTH118
        if self.is_this_machine:
            return place
        real = os.path.realpath(place)
        if real == self._root or real.startswith(self._root.rstrip(os.sep) + os.sep):
            return real if not os.path.islink(place) else place  # noqa: PTH114 - `link` asks for the link itself
        self._note(path, ValueError("it leads out of the folder"))
        return ""

    def _note(self, path: str, error: Exception) -> None:
        if isinstance(error, _ABSENT) or len(self.problems) >= MAX_PROBE_PROBLEMS:
            return
        self.problems[printable(path)] = printable((error.strerror if isinstance(error, OSError) else "") or str(error))


def printable(text: str) -> str:
    """Text without what would move a terminal's cursor, of at most `MAX_PROBE_TEXT_CHARS`."""
    short = text[: 4 * MAX_PROBE_TEXT_CHARS]
    return "".join(letter if letter.isprintable() else " " for letter in short).strip()[:MAX_PROBE_TEXT_CHARS]


def integer(text: str) -> int | None:
    """The number that a text is; None = it is none, or does not fit 64 bits."""
    text = text[:40].strip().rstrip("\0")
    return int(text) if _INTEGER.match(text) else None


def scaled(number: int | None, divisor: float) -> float | None:
    """A number in a larger unit."""
    return None if number is None else number / divisor


def pairs(text: str, separator: str) -> dict[str, str]:
    """Lines `key separator value` as a mapping; the last one of a key counts."""
    split = (line.partition(separator) for line in text.splitlines() if separator in line)
    return {key.strip(): value.strip() for key, _separator, value in split}


def cpu_list(text: str) -> frozenset[int]:
    """Processors of the kernel's list format, such as `0-3,8`."""
    found: set[int] = set()
    for part in text.strip()[: 8 * MAX_PROBE_CPUS].replace(" ", ",").split(","):
        match = _RANGE.match(part)
        if match:
            first, last = int(match[1]), int(match[2] or match[1])
            found.update(range(first, min(last + 1, MAX_PROBE_CPUS)))
    return frozenset(found)


def _natural(name: str) -> list[tuple[bool, int, str]]:
    parts = re.split(r"([0-9]+)", name)
    return [(part.isdecimal(), int(part[:18]) if part.isdecimal() else 0, part) for part in parts]
