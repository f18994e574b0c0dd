"""Bodies of TensorFlow Serving's REST API ("RESTful API": Predict, Classify and Regress). Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.tensors import Signature
from edgeserve.runtimes.base import Tensor, Tensors
from edgeserve_agent.serving.codec import columns

SIGNATURE: Final = "serving_default"
"""The one signature of a model."""
_JSON_NAMES: Final = (b'""', b'"%s"' % SIGNATURE.encode())


@dataclass(frozen=True, slots=True)
class Predict:
    """A predict request."""

    inputs: Tensors
    by_rows: bool
    """It gave `instances`, and wants `predictions`."""


def read_predict(signature: Signature, body: bytes | memoryview) -> Predict:
    """Read `{"instances": [...]}` or `{"inputs": ...}`.

    Raises:
        InputError: It is neither, or both.
    """
    found = _request(body)
    rows, cols = found.get("instances"), found.get("inputs")
    if (rows is None) == (cols is None):
        raise InputError('the body must have either "instances" (rows) or "inputs" (columns)')
    if rows is not None:
        return Predict(columns.from_rows(signature.inputs, rows), by_rows=True)
    assert cols is not None
    return Predict(columns.from_columns(signature.inputs, cols), by_rows=False)


def read_examples(signature: Signature, body: bytes | memoryview) -> Tensors:
    """Read `{"examples": [{...}], "context": {...}}`: features by input, those of the context for every example.

    Raises:
        InputError: It is not that.
    """
    found = _request(body)
    examples = found.get("examples")
    if examples is None:
        raise InputError('the body must have "examples", a list of objects with a value for each input')
    context = columns.fields(found.get("context", b"{}"), "context")
    return columns.from_rows(signature.inputs, examples, context)


def classify_answer(signature: Signature, labels: Sequence[str], outputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """`{"result": [[[label, score], ...], ...]}`: every class of each example, the best first.

    Raises:
        InputError: The model has no output with a score for each class.
    """
    scores = _scores(signature, outputs)
    result = []
    for row in scores:
        order = np.argsort(-row, kind="stable")
        result.append([[labels[index] if index < len(labels) else str(index), float(row[index])] for index in order])
    return {"result": result}


def regress_answer(signature: Signature, outputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """`{"result": [value, ...]}`: one number for each example.

    Raises:
        InputError: The model has not one number for each example.
    """
    values = outputs[signature.outputs[0].name]
    if values.dtype.kind not in "fiu" or values.ndim == 0 or values.size != len(values):
        raise InputError("the model does not answer with one number for each example", hint="use :predict")
    return {"result": values.reshape(-1).tolist()}


def _request(body: bytes | memoryview) -> dict[str, bytes]:
    found = columns.fields(body)
    name = found.get("signature_name", _JSON_NAMES[0])
    if name not in _JSON_NAMES:
        raise InputError(f"signature_name {name[:80]!a} is not known", hint=f'there is "{SIGNATURE}" only')
    return found


def _scores(signature: Signature, outputs: Mapping[str, Tensor]) -> Tensor:
    for spec in signature.outputs:
        array = outputs[spec.name]
        if array.ndim == 2 and array.dtype.kind == "f":
            return array.astype(np.float64)
    raise InputError("the model has no output with a score for each class", hint="use :predict")
