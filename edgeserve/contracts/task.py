"""What the tensors of a model mean. Thin for now: classification over tensors."""

from __future__ import annotations

import msgspec

from edgeserve.contracts.errors import InputError


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """Classification: `output` holds one score a class, along its last axis."""

    kind: str = "classification"
    output: str = ""
    """Name of the output with the scores; empty = the first output."""
    labels: tuple[str, ...] = ()
    metric: str = "top1"

    def __post_init__(self) -> None:
        if self.kind != "classification":
            raise InputError(f"task kind {self.kind!r} is not known", hint="this version knows: classification")
        if self.metric not in ("top1", "agreement"):
            raise InputError(f"metric {self.metric!r} is not known", hint="this version knows: top1, agreement")
