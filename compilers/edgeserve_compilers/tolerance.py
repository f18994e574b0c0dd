"""The golden set of a release, and how closely a device must reproduce it."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from edgeserve.contracts.limits import GOLDEN_ROWS, MAX_GOLDEN_BYTES
from edgeserve.contracts.variant import Tolerance
from edgeserve.golden import Golden, compare
from edgeserve.runtimes.base import Tensors
from edgeserve_compilers.verify import Reference

_ATOL_MARGIN: Final = 3.0
"""Over many rows the largest difference from float is at least half a step of the int8 grid of the scores; kernels of
another CPU may round to the next step, twice that much further off."""
_FLOAT_NOISE: Final = 1e-3
"""Of a value, and of the largest score: what summing in another order changes in float32, with room."""
_AGREEMENT_ROWS: Final = 2
"""Rows near a tie that another CPU may decide differently."""
_LEAST_AGREEMENT: Final = 0.51
"""A tolerance below one half would pass a model that is wrong more often than right."""


def golden_rows(reference: Reference) -> npt.NDArray[np.int64]:
    """Which rows make the golden set: evenly spread over the data, so that sorted classes are all met."""
    arrays = [*reference.data.inputs.values(), *reference.outputs.values()]
    row_bytes = sum(array.nbytes for array in arrays) // reference.data.rows
    count = min(GOLDEN_ROWS, reference.data.rows, max(1, (MAX_GOLDEN_BYTES // 2) // max(row_bytes, 1)))
    return np.linspace(0, reference.data.rows - 1, count).astype(np.int64)


def golden_set(reference: Reference) -> Golden:
    """Some of the rows with the float model's answers."""
    rows = golden_rows(reference)
    return Golden(
        inputs=reference.data.take(rows), outputs={name: array[rows] for name, array in reference.outputs.items()}
    )


def tolerance(outputs: Tensors, reference: Reference, *, native: bool) -> Tolerance:
    """What a device must reach on the golden set, from how far this product is from the float model there.

    Args:
        outputs: The product's answers on the reference's rows.
        reference: The float model's answers.
        native: Whether this machine ran the product as devices will. What did not is held to the task's agreement only.
    """
    rows = golden_rows(reference)
    expected = {name: array[rows] for name, array in reference.outputs.items()}
    apart = compare(expected, {name: array[rows] for name, array in outputs.items()}, reference.task)
    agreement = max(apart.agreement - _AGREEMENT_ROWS / len(rows), _LEAST_AGREEMENT)
    if not native:
        return Tolerance(agreement=agreement)
    finite = (np.abs(array[np.isfinite(array)].astype(np.float64)) for array in expected.values())
    largest = max((float(values.max()) for values in finite if values.size), default=0.0)
    atol = max(_ATOL_MARGIN * apart.max_abs_difference, _FLOAT_NOISE * largest, _FLOAT_NOISE * _FLOAT_NOISE)
    return Tolerance(rtol=_FLOAT_NOISE, atol=atol, agreement=agreement)
