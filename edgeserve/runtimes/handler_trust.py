"""Whose handlers may run on this machine: those in folders that its owner has named, and below them; by default none.

In the environment, so that it holds in every process that this one starts. Light: the agent's control part imports it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from edgeserve.contracts.errors import InputError

TRUST_VARIABLE: Final = "EDGESERVE_TRUST_HANDLERS"
"""Environment: folders, separated as in PATH."""


def trusted_folders() -> list[Path]:
    """The folders."""
    return [Path(text) for text in os.environ.get(TRUST_VARIABLE, "").split(os.pathsep) if text]


def trust_handlers(*folders: Path) -> None:
    """Let handlers in and below `folders` run, too, in this process and those that it starts from now on."""
    trust_only(*trusted_folders(), *(folder.resolve() for folder in folders))


def trust_only(*folders: Path) -> None:
    """Let handlers in and below `folders` run, and no others; without any, none.

    Raises:
        InputError: A folder's name holds what separates folders.
    """
    known = _unique(folders)
    for name in known:
        if os.pathsep in name:
            raise InputError(f"handlers in {name!r} cannot be trusted: its name holds {os.pathsep!r}", hint="rename it")
    if known:
        os.environ[TRUST_VARIABLE] = os.pathsep.join(known)
    else:
        os.environ.pop(TRUST_VARIABLE, None)


def _unique(folders: Iterable[Path]) -> list[str]:
    return list(dict.fromkeys(str(folder) for folder in folders))
