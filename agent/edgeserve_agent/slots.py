"""Which variant of each model is active: the one file (`slots.json`) that the serving process trusts at start.

Only the control part writes it; writing it is what "activate" means for a power cut.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from edgeserve import atomic
from edgeserve.contracts.documents import decode, encode
from edgeserve.contracts.errors import DeviceError, InputError
from edgeserve.contracts.limits import MAX_CONFIG_BYTES
from edgeserve.contracts.names import digest, model_name, version_name

FILE: Final = "slots.json"
VARIANTS: Final = "variants"
"""Folder of the state directory: unpacked variants of releases that were verified."""


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    """One unpacked variant on disk."""

    release: str
    version: str
    variant: str
    """Manifest digest; the files lie in `variants/<hex of it>/` of the state directory, with `contract.json`."""
    counter: int = 0
    """Of the release; 0 = not known: slots that an older agent wrote."""

    def __post_init__(self) -> None:
        digest(self.release)
        digest(self.variant)
        version_name(self.version)

    def folder(self, state_dir: Path) -> Path:
        """Where the variant's files lie."""
        return state_dir / VARIANTS / self.variant.removeprefix("sha256:")


class ModelSlots(msgspec.Struct, frozen=True, kw_only=True):
    """The slots of one model."""

    model: str
    active: Slot | None = None
    previous: Slot | None = None
    """Kept on disk: a return to it needs no download."""

    def __post_init__(self) -> None:
        model_name(self.model)


class Slots(msgspec.Struct, frozen=True, kw_only=True):
    """All models of a device."""

    models: tuple[ModelSlots, ...] = ()

    def of(self, model: str) -> ModelSlots:
        """The slots of `model`; empty ones when it was never there."""
        return next((slots for slots in self.models if slots.model == model), ModelSlots(model=model))

    def having(self, changed: ModelSlots) -> Slots:
        """A copy in which the slots of one model are `changed`."""
        others = tuple(slots for slots in self.models if slots.model != changed.model)
        return Slots(models=tuple(sorted((*others, changed), key=lambda slots: slots.model)))


def read(state_dir: Path) -> Slots:
    """Read `slots.json`; a device that never activated anything has none.

    Raises:
        DeviceError: The file is there but cannot be read or is damaged.
    """
    path = state_dir / FILE
    try:
        return decode(path.read_bytes(), Slots, what=str(path), limit=MAX_CONFIG_BYTES)
    except FileNotFoundError:
        return Slots()
    except (OSError, InputError) as error:
        hint = "restore it, or remove the state directory to start anew"
        raise DeviceError(f"cannot read {path}: {error}", hint=hint) from error


def write(state_dir: Path, slots: Slots) -> None:
    """Replace `slots.json`, durably.

    Raises:
        DeviceError: It could not be written; the old one stands.
    """
    atomic.write_bytes(state_dir / FILE, encode(slots))
