"""Inputs that the user fixes become constants of the graph, and what follows from them is computed at once."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.tensors import Datatype
from edgeserve.runtimes.base import Tensor
from edgeserve_compilers.sources.opset import require_same
from edgeserve_compilers.sources.session import folded
from edgeserve_compilers.sources.signature import open_inputs, signature_of
from edgeserve_compilers.sources.walk import nodes


def fix_inputs(model: onnx.ModelProto, constants: Mapping[str, float], where: str) -> onnx.ModelProto:
    """Return `model` with the inputs named in `constants` as initializers of their own datatype and shape.

    A dimension that varies becomes 1. What can be folded then is folded, unless that would change an answer or leave
    the ONNX standard.

    Raises:
        InputError: There is no such input, it does not hold such a number, or no input is left.
    """
    if not constants:
        return model
    signature = signature_of(model, where)
    specs = {spec.name: spec for spec in signature.inputs}
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for name, value in constants.items():
        spec = specs.get(name)
        if spec is None:
            raise InputError(
                f"{where} has no input {name[:80]!r} that could be fixed", hint=f"its inputs are {', '.join(specs)}"
            )
        if spec.datatype is Datatype.BYTES:
            raise InputError(f"input {name!r} of {where} takes text and cannot be fixed to {value:g}")
        shape = [1 if size == -1 else size for size in spec.shape]
        fixed.graph.initializer.append(
            numpy_helper.from_array(_constant(value, spec.datatype, shape, f"input {name!r} of {where}"), name)
        )
    left = [value for value in fixed.graph.input if value.name not in constants]
    del fixed.graph.input[:]
    fixed.graph.input.extend(left)
    if not open_inputs(fixed):
        raise InputError(f"no input of {where} is left when {', '.join(constants)} are fixed")
    return _fold(fixed, where)


def _constant(value: float, datatype: Datatype, shape: list[int], what: str) -> Tensor:
    kind = np.dtype(datatype.numpy_name)
    if kind.kind in "iu":
        bounds = np.iinfo(kind)
        if not np.isfinite(value) or value != int(value) or not bounds.min <= value <= bounds.max:
            raise InputError(f"{what} holds {datatype.value}, which {value:g} is not")
        value = int(value)
    elif kind.kind == "b" and value not in (0, 1):
        raise InputError(f"{what} holds BOOL: fix it to 0 or 1, not to {value:g}")
    return np.full(shape, value, kind)


def _fold(model: onnx.ModelProto, where: str) -> onnx.ModelProto:
    try:
        result = onnx.load_model_from_string(folded(model.SerializeToString()))
        _drop_unused_domains(result)
        if {entry.domain for entry in result.opset_import} - {entry.domain for entry in model.opset_import}:
            return model
        result.graph.name = model.graph.name
        result.metadata_props.extend(entry for entry in model.metadata_props if entry not in result.metadata_props)
        onnx.checker.check_model(result)
        tried = require_same(model, result, where=where)
    except (InputError, ValueError, onnx.checker.ValidationError):
        return model
    return result if tried else model


def _drop_unused_domains(model: onnx.ModelProto) -> None:
    """ONNX Runtime writes every operator set that it knows of."""
    used = {node.domain or "" for node in nodes(model)} | {""}
    kept = [entry for entry in model.opset_import if (entry.domain if entry.domain != "ai.onnx" else "") in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
