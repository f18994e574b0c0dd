"""A float .tflite graph to ONNX, held against LiteRT itself on random inputs."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Final

import onnx

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.tensors import Signature
from edgeserve.runtimes.base import LoadedModel, RuntimeOptions
from edgeserve.runtimes.checks import first_line
from edgeserve.runtimes.litert import LiteRtRuntime
from edgeserve_compilers.sources.agreement import SEEDS, require_agreement, trial_inputs
from edgeserve_compilers.sources.litert_builder import EXPORT_HINT, Builder
from edgeserve_compilers.sources.litert_graph import LiteRtGraph, check_float, read_graph
from edgeserve_compilers.sources.litert_operators import CONVERTERS
from edgeserve_compilers.sources.litert_weights import float_weights
from edgeserve_compilers.sources.session import Session

_MALFORMED: Final = (IndexError, KeyError, ValueError, TypeError, AttributeError, OverflowError)


def convert(data: bytes, path: Path) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Return the model as ONNX, its images NHWC and its names as LiteRT serves them, and its metadata.

    Raises:
        InputError: Not a float .tflite model, damaged, an operator has no counterpart, or the result differs.
    """
    LiteRtRuntime().load(path, RuntimeOptions()).close()  # says what is wrong with a damaged file
    data, stored = float_weights(data)
    graph = read_graph(data, path)
    check_float(graph, path)
    with tempfile.TemporaryDirectory(prefix="edgeserve-") as folder:
        whole = Path(folder) / "float.tflite"
        whole.write_bytes(data)
        reference = LiteRtRuntime().load(whole, RuntimeOptions())
        try:
            model = _checked(graph, reference, path)
        finally:
            reference.close()
    metadata = {"description": graph.description} if graph.description else {}
    return model, {**metadata, "weights_stored_as_integers": str(stored)} if stored else metadata


def _checked(graph: LiteRtGraph, reference: LoadedModel, path: Path) -> onnx.ModelProto:
    try:
        model = _build(_named(graph, reference.signature))
    except InputError as error:
        raise InputError(f"{path}: {error.message}", hint=error.hint) from error
    except _MALFORMED as error:
        raise InputError(f"{path} is damaged: {type(error).__name__}: {first_line(error)}") from error
    require_agreement(
        lambda rows: list(reference.run(rows).values()),
        Session(model.SerializeToString(), str(path)).run,
        [trial_inputs(reference.signature, seed) for seed in SEEDS],
        where=str(path),
    )
    return model


def _named(graph: LiteRtGraph, signature: Signature) -> LiteRtGraph:
    """The graph with inputs and outputs as LiteRT found them: a file may promise a batch that it cannot run."""
    tensors = list(graph.tensors)
    if all(spec.shape[0] > 0 for spec in signature.inputs):
        tensors = [replace(t, shape=(abs(t.shape[0]), *t.shape[1:]) if t.shape else ()) for t in tensors]
    for indices, specs in ((graph.inputs, signature.inputs), (graph.outputs, signature.outputs)):
        for index, spec in zip(indices, specs, strict=True):
            tensors[index] = replace(tensors[index], name=spec.name, shape=spec.shape)
    return replace(graph, tensors=tuple(tensors))


def _build(graph: LiteRtGraph) -> onnx.ModelProto:
    builder = Builder(graph)
    for number, operator in enumerate(graph.operators):
        convert_operator = CONVERTERS.get(operator.kind)
        if convert_operator is None:
            raise InputError(f"the TFLite operator {operator.kind} cannot be converted to ONNX", hint=EXPORT_HINT)
        builder.begin(f"{operator.kind.lower()}_{number}")
        convert_operator(builder, operator)
    return builder.model()
