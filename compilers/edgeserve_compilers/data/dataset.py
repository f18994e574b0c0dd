"""Rows for a model, and what is true of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeserve.runtimes.base import Tensors
from edgeserve.task.answers import Truth


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Rows for a model; every array has the same first axis, at least one long."""

    file: str
    """Name of what was read, with the split: `rows.npz#eval`. Its path stays private."""
    digest: str
    """SHA-256 over everything that was read: of a single file its own, else of file names and bytes in order."""
    inputs: Tensors
    """First axis = rows; of a stateful task [sequence, step, ...]."""
    truth: Truth | None
    """One a row; of a stateful task one a step, sequence by sequence. None = nothing is known."""
    names: tuple[str, ...] = ()
    """File of each row, for reports; empty = rows have no names."""

    @property
    def rows(self) -> int:
        """How many rows (sequences of a stateful task) there are."""
        return len(next(iter(self.inputs.values())))

    def take(self, rows: slice | npt.NDArray[np.int64]) -> Tensors:
        """The inputs of some rows."""
        return {name: array[rows] for name, array in self.inputs.items()}


def overlap(one: Dataset, other: Dataset) -> int:
    """How many rows of `one` are also in `other`, bit for bit."""
    known = set(_row_digests(other))
    return sum(row in known for row in _row_digests(one))


def _row_digests(data: Dataset) -> Iterator[bytes]:
    columns = [np.ascontiguousarray(data.inputs[name]) for name in sorted(data.inputs)]
    for row in range(data.rows):
        state = hashlib.sha256()
        for column in columns:
            state.update(column[row].tobytes())
        yield state.digest()
