"""When a repository folder has changed and is at rest. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum


class Change(str, Enum):
    """What is to be done about a model."""

    LOAD = "load"
    UNLOAD = "unload"


def due(taken: Mapping[str, str], before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, Change]:
    """What is to be done: only where two looks in a row saw the same, since trees are copied file by file.

    Args:
        taken: Model -> fingerprint of the files that were loaded, or tried, last.
        before: Model -> fingerprint at the look before.
        now: Model -> fingerprint; models that are gone are missing.
    """
    changes = {
        name: Change.LOAD
        for name, fingerprint in now.items()
        if fingerprint != taken.get(name) and fingerprint == before.get(name)
    }
    return changes | {name: Change.UNLOAD for name in taken if name not in now and name not in before}
