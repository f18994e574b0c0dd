"""The float TFLite form of a model: the author's own file or onnx2tf's, made to answer as the ONNX model does."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from edgeserve.contracts.errors import EdgeServeError, InputError
from edgeserve.contracts.tensors import TensorSpec
from edgeserve.runtimes.base import Runtime, RuntimeOptions, Tensor, Tensors
from edgeserve.runtimes.litert import LiteRtRuntime
from edgeserve.runtimes.onnx import OnnxRuntime
from edgeserve_compilers.converters import onnx2tf
from edgeserve_compilers.targets.base import Job
from edgeserve_compilers.targets.litert_graph import Graph
from edgeserve_compilers.targets.onnx_plain import plain

_SEEDED: Final = 2
_FROM_CALIBRATION: Final = 2
"""Rows on which the two must agree: random ones, and real ones where there are some."""
_CLOSE: Final = 1e-3
"""Largest difference, as a share of the largest value of an output: float kernels add in another order, no more."""
_MOST_AXES: Final = 5


def float_graph(job: Job) -> Graph:
    """The float model with the names, shapes and answers of the ONNX model.

    A varying batch stays so when three rows at once give what they give one by one, else a batch of 1 is built in.

    Raises:
        DeviceError: onnx2tf is needed and not there.
        InputError: The conversion failed, or the result answers otherwise than the model.
    """
    graph = _source(job)
    graph.matrices_as_layers()
    signature = job.model.signature
    inputs, outputs = ([spec.name for spec in side] for side in (signature.inputs, signature.outputs))
    graph.order(inputs, outputs)
    graph.sign(inputs, outputs)
    rows = list(_trial_rows(job))
    expected = _answers(OnnxRuntime(), job.float_file, rows)
    found = _run(graph, rows)
    for place, name in enumerate(outputs):
        axes = _axes([row[name] for row in expected], [row[name] for row in found])
        if axes is None:
            raise InputError(f"the TFLite form of the model gives other values for {name!r} than the model")
        if axes != tuple(range(len(axes))):  # onnx2tf drops a transposition at the end
            graph.transpose_output(place, axes)
    graph.sign(inputs, outputs)
    if not _keeps_batch(graph, job, rows, expected):
        graph.fix_batch()
    return graph


def one_row(job: Job, row: Callable[[TensorSpec, tuple[int, ...]], Tensor]) -> Tensors:
    """Inputs of one call in the order of the signature; `row` makes an array of the full shape for an input."""
    return {spec.name: row(spec, full_shape(job, spec)) for spec in job.model.signature.inputs}


def full_shape(job: Job, spec: TensorSpec) -> tuple[int, ...]:
    """Shape of an input for a call with one row, or with as many as are built in."""
    row = job.row_shapes[spec.name]
    if len(row) == len(spec.shape):  # state whose batch is not the first axis
        return row
    return (max(spec.shape[0], 1), *row)


def calibration_rows(job: Job, most: int | None = None) -> Iterator[Tensors]:
    """Calibration rows, one call each.

    Raises:
        ValueError: There are none.
    """
    data = job.calibration
    if not data:
        raise ValueError("a quantized candidate needs calibration rows")
    count = len(next(iter(data.values())))
    first = job.model.signature.inputs[0]
    step = full_shape(job, first)[0] if len(job.row_shapes[first.name]) < len(first.shape) else 1
    for start in range(0, count - step + 1, step)[:most]:
        yield one_row(
            job,
            lambda spec, shape, start=start: np.ascontiguousarray(  # type: ignore[misc]
                data[spec.name][start : start + step].reshape(shape)
            ),
        )


def _source(job: Job) -> Graph:
    original = job.originals.get("litert")
    if original is not None:
        graph = Graph(original.read_bytes())
        graph.store_weights_as_float()
        if graph.placement().keys() <= {"float"}:
            return graph
    shapes = {spec.name: full_shape(job, spec) for spec in job.model.signature.inputs}
    if not job.state:
        for spec in job.model.signature.inputs:
            if spec.shape[0] == -1:
                shapes[spec.name] = (-1, *shapes[spec.name][1:])
    with tempfile.TemporaryDirectory(dir=job.folder) as folder:
        plain(job.float_file, shapes, Path(folder) / "plain.onnx")
        (converted := Path(folder) / "converted").mkdir()
        return Graph(onnx2tf.convert(Path(folder) / "plain.onnx", converted).read_bytes())


def _trial_rows(job: Job) -> Iterator[Tensors]:
    random = np.random.default_rng(0)

    def seeded(spec: TensorSpec, shape: tuple[int, ...]) -> Tensor:
        dtype = np.dtype(spec.datatype.numpy_name)
        # What an integer or truth value means is not known: a zero is always in range.
        return random.standard_normal(shape).astype(dtype) if dtype.kind == "f" else np.zeros(shape, dtype)

    for _ in range(_SEEDED):
        yield one_row(job, seeded)
    if job.calibration:
        yield from calibration_rows(job, _FROM_CALIBRATION)


def _run(graph: Graph, rows: Sequence[Tensors]) -> list[Tensors]:
    with tempfile.TemporaryDirectory(prefix="edgeserve-litert-") as folder:
        path = Path(folder) / "model.tflite"
        path.write_bytes(graph.write())
        return _answers(LiteRtRuntime(), path, rows)


def _answers(runtime: Runtime, path: Path, rows: Sequence[Tensors]) -> list[Tensors]:
    model = runtime.load(path, RuntimeOptions())
    try:
        return [model.run(row) for row in rows]
    finally:
        model.close()


def _axes(expected: Sequence[Tensor], found: Sequence[Tensor]) -> tuple[int, ...] | None:
    """The order of axes in which all that was found is what was expected; the first axis counts rows and stays."""
    rank = expected[0].ndim
    if found[0].ndim != rank or rank > _MOST_AXES:
        return None
    for axes in itertools.permutations(range(rank)):  # as they are, first
        if axes[:1] in ((), (0,)) and all(
            _close(want, np.transpose(have, axes)) for want, have in zip(expected, found, strict=True)
        ):
            return axes
    return None


def _close(want: Tensor, have: Tensor) -> bool:
    if want.shape != have.shape or want.dtype != have.dtype:
        return False
    if want.dtype.kind != "f":
        return bool(np.array_equal(want, have))
    reach = float(np.abs(want).max(initial=0.0))
    difference = np.abs(want.astype(np.float64) - have.astype(np.float64))
    return bool(np.isfinite(have).all()) and float(difference.max(initial=0.0)) <= _CLOSE * reach + 1e-6


def _keeps_batch(graph: Graph, job: Job, rows: Sequence[Tensors], expected: Sequence[Tensors]) -> bool:
    signature = job.model.signature
    if job.state or any(spec.shape[:1] != (-1,) for spec in (*signature.inputs, *signature.outputs)):
        return False
    many = {name: np.concatenate([row[name] for row in (*rows, rows[0])]) for name in rows[0]}
    want = {name: np.concatenate([row[name] for row in (*expected, expected[0])]) for name in expected[0]}
    try:
        (found,) = _run(graph, [many])
    except EdgeServeError:  # it does not take them
        return False
    return all(_close(want[name], found[name]) for name in want)
