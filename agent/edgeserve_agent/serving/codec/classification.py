"""Triton's "Classification" extension: the best classes of each row in words."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from edgeserve.contracts.errors import InputError
from edgeserve.runtimes.base import Tensor


def classify(name: str, array: Tensor, classes: int, labels: Sequence[str]) -> Tensor:
    """The best classes of each row, each as `value:index[:label]`.

    Args:
        name: Of the output, for the error.
        array: Scores: [rows, ...classes], or [classes].
        classes: How many of each row, at most.
        labels: Names by index; may be short or empty.

    Returns:
        BYTES, [rows, classes] or [classes], the best first; of equal scores the lower index.

    Raises:
        InputError: The output holds no numbers.
    """
    if array.dtype.kind not in "fiu":
        raise InputError(f"output {name!r} holds no scores that could be sorted into classes")
    rows = np.atleast_2d(array)
    rows = rows.reshape(len(rows), prod(rows.shape[1:]))  # not -1: of no rows, numpy cannot tell how long one is
    count = min(classes, rows.shape[1])
    # NaN sorts last: it is nobody's best class.
    keys = np.where(np.isnan(rows), -np.inf, rows) if rows.dtype.kind == "f" else rows.astype(np.float64)
    best = np.argsort(-keys, axis=1, kind="stable")[:, :count]
    words = [
        [_word(row[index], int(index), labels) for index in indices] for row, indices in zip(rows, best, strict=True)
    ]
    found = np.array(words, object).reshape(len(rows), count)
    return found if array.ndim > 1 else found.reshape(count)


def _word(value: np.generic, index: int, labels: Sequence[str]) -> bytes:
    number = f"{float(value):f}" if value.dtype.kind == "f" else str(int(value))
    label = f":{labels[index]}" if index < len(labels) else ""
    return f"{number}:{index}{label}".encode()
