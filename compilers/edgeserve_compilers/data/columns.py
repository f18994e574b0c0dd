"""The arrays of an npz file by name, taken out one by one; what is left at the end was not understood."""

from __future__ import annotations

import difflib

from edgeserve.contracts.errors import InputError
from edgeserve.runtimes.base import Tensor, Tensors

TEXT = "US"
"""Kinds of dtypes that are text."""


class Columns:
    """Arrays of a file.

    Args:
        arrays: By name.
        where: Name of the file for errors.
    """

    def __init__(self, arrays: Tensors, where: str) -> None:
        self.left = dict(arrays)
        self.names = tuple(arrays)
        self.where = where

    def take(self, name: str) -> Tensor:
        """An array, which is then no longer among those left."""
        return self.left.pop(name)

    def texts(self, name: str, count: int | None = None) -> list[str]:
        """Take an array of text with one axis (of length `count`).

        Raises:
            InputError: It is something else.
        """
        array = self.take(name)
        if array.dtype.kind not in TEXT or array.ndim != 1 or count not in (None, len(array)):
            expected = "text [names]" if count is None else f"text [{count}]"
            raise InputError(f"{self.where}: array {name!r} has {described(array)}, expected {expected}")
        return strings(array, f"{self.where}: array {name!r}")

    def refuse_rest(self, known: list[str]) -> None:
        """Make sure that nothing is left.

        Raises:
            InputError: Something is; the hint says which of the `known` names it may have been meant to have.
        """
        for name in self.left:
            close = difflib.get_close_matches(name, known, n=1)
            guess = f"did you mean {close[0]!r}? " if close else ""
            raise InputError(
                f"{self.where} holds an array {name[:80]!r} that means nothing here",
                hint=f"{guess}expected {', '.join(known)}; or name the array with the truth: {self.where}#NAME",
            )


def strings(array: Tensor, where: str) -> list[str]:
    """Elements of an array of text, in order.

    Raises:
        InputError: Its bytes are not UTF-8.
    """
    try:
        return [value.decode() if isinstance(value, bytes) else str(value) for value in array.reshape(-1).tolist()]
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8: {error.reason}") from error


def described(array: Tensor) -> str:
    """Datatype and shape in words."""
    return f"dtype {array.dtype} and shape {list(array.shape)}"
