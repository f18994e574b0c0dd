"""Area `zero-size`: tensors without elements."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from edgeserve.conformance.check import Level, Skip, check
from edgeserve.conformance.checks.binary import EXTENSION
from edgeserve.conformance.infer import Given, outputs_of
from edgeserve.conformance.target import Model, Target
from edgeserve.contracts.tensors import Datatype

_SOURCE: Final = "Triton's L0_infer_zero; OIP REST, Request Input: dimensions are unsigned integers"


@check("zero-size.json", level=Level.MUST, source=_SOURCE)
def json_data(target: Target) -> None:
    """An input with a dimension of 0 and the data [] is answered with an output without elements."""
    model, given = _empty(target)
    answer = target.infer(model, [given])
    found = outputs_of(answer)[model.outputs[0].name]
    answer.must(found.shape == given.array.shape, f"shape {list(given.array.shape)}", f"{list(found.shape)}")


@check("zero-size.binary", level=Level.EXTENSION, source=_SOURCE, extension=EXTENSION)
def binary_data(target: Target) -> None:
    """A binary_data_size of 0 is right for a tensor without elements, in and out."""
    model, given = _empty(target)
    answer = target.infer(model, [replace(given, binary=True)], parameters={"binary_data_output": True})
    found = outputs_of(answer)[model.outputs[0].name]
    answer.must(found.shape == given.array.shape, f"shape {list(given.array.shape)}", f"{list(found.shape)}")
    answer.must(found.binary, "the output as (no) bytes")


@check("zero-size.data-for-nothing", level=Level.SHOULD, source=_SOURCE)
def data_for_nothing(target: Target) -> None:
    """Data for a tensor without elements are refused."""
    model, given = _empty(target)
    target.infer(model, [replace(given, changes={"data": [1.0]})]).refused()


@check("zero-size.nothing-for-data", level=Level.EXTENSION, source=_SOURCE, extension=EXTENSION)
def nothing_for_data(target: Target) -> None:
    """A binary_data_size of 0 for a tensor with elements is refused."""
    model, given = _empty(target)
    shape = [size or 1 for size in given.array.shape]
    target.infer(model, [replace(given, binary=True, changes={"shape": shape})]).refused()


@check("zero-size.texts", level=Level.SHOULD, source=_SOURCE)
def texts(target: Target) -> None:
    """A BYTES tensor without elements passes."""
    model = target.named("identity_bytes")
    spec = model.inputs[0]
    shape = tuple(0 if axis == len(spec.shape) - 1 else 1 for axis in range(len(spec.shape)))
    answer = target.infer(model, [replace(model.givens()[0], array=np.empty(shape, dtype=object))])
    found = outputs_of(answer)[model.outputs[0].name]
    answer.must(found.shape == shape, f"shape {list(shape)}", f"{list(found.shape)}")


def _empty(target: Target) -> tuple[Model, Given]:
    try:
        model = target.named("zero_size")
    except Skip:
        model = target.identity(Datatype.FP32, dynamic=1)
    spec = model.inputs[0]
    varying = len(spec.shape) - 1 - spec.shape[::-1].index(-1)
    shape = tuple(0 if axis == varying else size for axis, size in enumerate(spec.concrete()))
    return model, replace(model.givens()[0], array=np.empty(shape, dtype=np.float32))
