"""The end of every source: an ONNX model is checked, brought into form and described."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import onnx
import onnx.inliner
from google.protobuf.message import DecodeError

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import MAX_GRAPH_NODES, MAX_MODEL_FILE_BYTES
from edgeserve.runtimes.checks import first_line
from edgeserve_compilers.sources.base import Model, SourceOptions
from edgeserve_compilers.sources.constants import fix_inputs
from edgeserve_compilers.sources.external import embed_weights
from edgeserve_compilers.sources.opset import opset_of, upgraded
from edgeserve_compilers.sources.order import sort_nodes
from edgeserve_compilers.sources.signature import complete_outputs, signature_of
from edgeserve_compilers.sources.walk import nodes
from edgeserve_compilers.spec import ModelSpec

_KNOWN_DOMAINS: Final = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
_INTEGER_OPERATORS: Final = frozenset({
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger",
    "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulIntegerToFloat", "MatMulNBits", "MatMulBnb4",
    "GatherBlockQuantized", "QGemm", "QAttention", "QEmbedLayerNormalization", "QMoE",
})  # fmt: skip
"""Besides all that begin with `QLinear`."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where an ONNX model comes from."""

    path: Path
    format: str
    """Name of the source."""
    digest: str
    """`sha256:...` of what the user gave."""
    given: bytes | None = None
    """The user's own ONNX file: it is kept byte for byte when nothing needs to change."""
    originals: Mapping[str, Path] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)


def parse(data: bytes, path: Path) -> onnx.ModelProto:
    """Read an ONNX file.

    Raises:
        InputError: It is none, is truncated, or has no graph.
    """
    try:
        model = onnx.load_model_from_string(data)
    except (DecodeError, ValueError) as error:
        raise InputError(
            f"{path} is not an ONNX model, or is truncated",
            hint="export it again, or compare its size with the original",
        ) from error
    if not model.HasField("graph") or not model.graph.node:
        raise InputError(f"{path} holds no ONNX graph", hint="export it again as ONNX")
    return model


def checked(model: onnx.ModelProto, origin: Origin, options: SourceOptions) -> Model:
    """Check `model`, fix inputs, upgrade its operator set, take its functions apart and describe it.

    Raises:
        NotFoundError: Weights that it names are missing.
        InputError: Not valid, too large, already quantized, with operators that no runtime has, without fixed rank.
    """
    where = str(origin.path)
    _check_nodes(model, where)
    changed = embed_weights(model, origin.path)
    changed |= sort_nodes(model.graph)
    changed |= complete_outputs(model)
    signature_of(model, where)  # says more about a missing rank than the checker
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise InputError(
            f"{where} is not a valid ONNX model, or is truncated: {first_line(error)}", hint="export it again"
        ) from error
    final = fix_inputs(upgraded(_without_functions(model, where), where), options.constants, where)
    content = origin.given
    if content is None or changed or final is not model:
        if final.ByteSize() > MAX_MODEL_FILE_BYTES:
            raise InputError(f"{where} becomes {final.ByteSize()} bytes, at most {MAX_MODEL_FILE_BYTES} are allowed")
        content = final.SerializeToString(deterministic=True)
    return Model(
        spec=ModelSpec(
            file=origin.path.name,
            format=origin.format,
            digest=origin.digest,
            size_bytes=len(content),
            opset=opset_of(final),
            nodes=len(final.graph.node),
            signature=signature_of(final, where),
        ),
        content=content,
        originals=origin.originals,
        metadata={**origin.metadata, **{entry.key: entry.value for entry in model.metadata_props}},
    )


def digest_of(data: bytes) -> str:
    """`sha256:` and the hash in hex."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _check_nodes(model: onnx.ModelProto, where: str) -> None:
    own = {function.domain for function in model.functions}
    count, integer = 0, set()
    for node in nodes(model):
        count += 1
        if node.op_type in _INTEGER_OPERATORS or node.op_type.startswith("QLinear"):
            integer.add(node.op_type)
        if node.domain not in _KNOWN_DOMAINS and node.domain not in own:
            raise InputError(
                f"{where} uses the operator {node.domain}:{node.op_type}, which is not of the ONNX standard",
                hint="export it without custom operators; what surrounds the network belongs into the task",
            )
    if count > MAX_GRAPH_NODES:
        raise InputError(f"{where} has {count} nodes, at most {MAX_GRAPH_NODES} are allowed")
    if integer:
        raise InputError(
            f"{where} is already quantized ({', '.join(sorted(integer)[:4])})",
            hint="give the float model that it was made from: every target needs a quantized form of its own",
        )


def _without_functions(model: onnx.ModelProto, where: str) -> onnx.ModelProto:
    """Quantizers and converters look at the graph alone: functions of the model are put in the place of their calls."""
    if not model.functions:
        return model
    try:
        return onnx.inliner.inline_local_functions(model, convert_version=True)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"the functions of {where} cannot be put in their places: {first_line(error)}",
            hint="export it again with opset 17 and without functions",
        ) from error
