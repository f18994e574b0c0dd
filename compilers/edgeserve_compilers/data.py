"""Calibration and validation data: `.npz` with one array for each model input, first axis = rows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from edgeserve import npz
from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import MAX_DATASET_BYTES
from edgeserve.contracts.tensors import Signature, TensorSpec
from edgeserve.runtimes.base import Tensor, Tensors
from edgeserve.runtimes.checks import check_file

Labels = npt.NDArray[np.int64]

_LABELS: Final = ("labels", "y")
_ONLY_INPUT: Final = "x"


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Rows for a model; every array has the same first axis, at least one."""

    file: str
    digest: str
    inputs: Tensors
    labels: Labels | None
    """int64 [rows], or None."""

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(next(iter(self.inputs.values())))

    def take(self, rows: slice | npt.NDArray[np.int64]) -> Tensors:
        """The inputs of some rows."""
        return {name: array[rows] for name, array in self.inputs.items()}


def load(path: Path, signature: Signature) -> Dataset:
    """Read a data file for a model.

    Raises:
        NotFoundError: There is no such file.
        InputError: Not an npz, too large, holds objects; an array is missing or unknown, has another shape, datatype or
            number of rows than the model takes, or holds NaN; labels are not whole numbers from 0.
    """
    check_file(path, what="data")
    if path.suffix.lower() != ".npz":
        raise InputError(f"{path} is not an .npz file", hint="write the rows with numpy.savez")
    arrays = npz.load(path, what=str(path), limit=MAX_DATASET_BYTES)
    inputs = _inputs(arrays, signature, path)
    labels = _labels({name: arrays[name] for name in arrays if name not in inputs}, inputs, signature, path)
    if len(signature.inputs) == 1 and set(inputs) == {_ONLY_INPUT}:
        inputs = {signature.inputs[0].name: inputs[_ONLY_INPUT]}
    return Dataset(file=path.name, digest=_digest(path), inputs=inputs, labels=labels)


def overlap(one: Dataset, other: Dataset) -> int:
    """How many rows of `one` are also in `other`, bit for bit."""
    known = set(_row_digests(other))
    return sum(row in known for row in _row_digests(one))


def _inputs(arrays: Tensors, signature: Signature, path: Path) -> Tensors:
    inputs = {}
    for spec in signature.inputs:
        name = spec.name
        if name not in arrays and len(signature.inputs) == 1 and _ONLY_INPUT in arrays:
            name = _ONLY_INPUT
        if name not in arrays:
            raise InputError(
                f"{path} has no array {spec.name!r}, it has {', '.join(arrays) or 'none'}",
                hint=f"the model takes {_expected(spec)}",
            )
        _check_array(arrays[name], name, spec, path)
        inputs[name] = arrays[name]
    counts = {name: len(array) for name, array in inputs.items()}
    if len(set(counts.values())) != 1:
        raise InputError(f"{path}: arrays differ in rows: {', '.join(f'{n} {c}' for n, c in counts.items())}")
    return inputs


def _check_array(array: Tensor, name: str, spec: TensorSpec, path: Path) -> None:
    where = f"{path}: array {name!r}"
    if array.dtype.name != spec.datatype.numpy_name:
        raise InputError(
            f"{where} has dtype {array.dtype}, expected {spec.datatype.numpy_name}",
            hint=f"array.astype({spec.datatype.numpy_name!r}), if the values are what the model was trained on",
        )
    rest = TensorSpec(name=name, datatype=spec.datatype, shape=spec.shape[1:])
    if array.ndim == 0 or not rest.accepts(array.shape[1:]):
        raise InputError(
            f"{where} has shape {list(array.shape)}, expected [rows, {', '.join(map(str, spec.shape[1:]))}]",
            hint=f"the model takes {_expected(spec)}, -1 varies",
        )
    if len(array) == 0:
        raise InputError(f"{where} has no rows")
    if array.dtype.kind == "f":
        bad = int(np.count_nonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1)))
        if bad:
            raise InputError(f"{where} holds NaN or infinity in {bad} of {len(array)} rows", hint="drop these rows")


def _labels(rest: Tensors, inputs: Tensors, signature: Signature, path: Path) -> Labels | None:
    unknown = [name for name in rest if name not in _LABELS]
    if unknown:
        expected = [spec.name for spec in signature.inputs]
        raise InputError(
            f"{path} holds an array {unknown[0][:80]!r} that the model does not take",
            hint=f"expected {', '.join(expected)}, and optionally labels",
        )
    if not rest:
        return None
    if len(rest) > 1:
        raise InputError(f"{path} holds both 'labels' and 'y'", hint="keep one")
    name, array = next(iter(rest.items()))
    rows = len(next(iter(inputs.values())))
    if array.dtype.kind not in "iu" or array.shape != (rows,):
        raise InputError(
            f"{path}: array {name!r} has dtype {array.dtype} and shape {list(array.shape)}, expected int64 [{rows}]",
            hint="one class number for each row",
        )
    labels = array.astype(np.int64)
    if labels.min() < 0:
        raise InputError(f"{path}: array {name!r} holds a negative class number")
    return labels


def _expected(spec: TensorSpec) -> str:
    return f"{spec.name} {spec.datatype.numpy_name}{list(spec.shape)}"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        state = hashlib.sha256()
        while block := file.read(1 << 20):
            state.update(block)
    return "sha256:" + state.hexdigest()


def _row_digests(data: Dataset) -> list[bytes]:
    columns = [np.ascontiguousarray(data.inputs[name]) for name in sorted(data.inputs)]
    return [hashlib.sha256(b"".join(column[row].tobytes() for column in columns)).digest() for row in range(data.rows)]
