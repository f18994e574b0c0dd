"""Area `binary`: raw requests, whose body is nothing but the bytes of the one input (`extension_binary_data.md`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from edgeserve.client.blobs import Tensor
from edgeserve.conformance.check import Level, Skip, check
from edgeserve.conformance.checks.binary import EXTENSION
from edgeserve.conformance.http import Answer, model_path
from edgeserve.conformance.infer import HEAD_LENGTH, outputs_of, same, show
from edgeserve.conformance.target import Model, Target
from edgeserve.contracts.tensors import Datatype

_DOCUMENT: Final = "Triton, extension_binary_data: Raw Binary Request; L0_http: raw_binary"


@check("binary.raw", level=Level.EXTENSION, source=_DOCUMENT, extension=EXTENSION)
def raw(target: Target) -> None:
    """With a header length of 0 the body is the one input; the outputs come as bytes."""
    _identity(target, np.arange(8, dtype=np.float32))


@check("binary.raw-longer", level=Level.EXTENSION, source=_DOCUMENT, extension=EXTENSION)
def raw_longer(target: Target) -> None:
    """The size of the one dimension that varies follows from the length of the body."""
    for size in (1, 8, 32):
        _identity(target, np.arange(size, dtype=np.float32))


@check(
    "binary.raw-chunked", level=Level.EXTENSION, source=f"{_DOCUMENT}; content_encoding_chunked", extension=EXTENSION
)
def raw_chunked(target: Target) -> None:
    """A raw request may come in chunks."""
    _identity(target, np.arange(8, dtype=np.float32), chunked=True)


@check("binary.raw-uneven", level=Level.EXTENSION, source=_DOCUMENT, extension=EXTENSION)
def raw_uneven(target: Target) -> None:
    """A raw body that is no whole number of elements is refused."""
    _send(target, _one_dimension(target), b"\0" * 7).refused()


@check("binary.raw-text", level=Level.EXTENSION, source="Triton's L0_http: byte", extension=EXTENSION)
def raw_text(target: Target) -> None:
    """A raw body for a BYTES input of shape [1] is its one element, without a length before it."""
    model = target.named("identity_bytes_1")
    answer = _send(target, model, b"427")
    found = outputs_of(answer)[model.outputs[0].name].array
    answer.must(found.ravel().tolist() == [b"427"], "[b'427']", show(found))


@check(
    "binary.raw-many-texts",
    level=Level.SHOULD,
    source="Triton's L0_http: byte_too_many_elements",
    extension=EXTENSION,
)
def raw_many_texts(target: Target) -> None:
    """A raw body for a BYTES input of another shape than [1] is refused."""
    model = target.named("identity_bytes")
    _send(target, model, b"427").refused()


@check(
    "binary.raw-two-dimensions",
    level=Level.SHOULD,
    source="Triton's L0_http: multi_variable_dimensions",
    extension=EXTENSION,
)
def raw_two_dimensions(target: Target) -> None:
    """A raw body for an input with two dimensions that vary is refused: its shape cannot be deduced."""
    model = target.named("identity_2d")
    _send(target, model, b"\0" * 16).refused()


@check("binary.raw-two-inputs", level=Level.EXTENSION, source="Triton's L0_http: multi_inputs", extension=EXTENSION)
def raw_two_inputs(target: Target) -> None:
    """A raw body for a model with two inputs is refused."""
    _send(target, target.add_sub(), b"\0" * 128).refused()


def _one_dimension(target: Target) -> Model:
    model = target.identity(Datatype.FP32, dynamic=1)
    if model.inputs[0].dynamic == 1 or (model.name.startswith("identity_fp32") and model.inputs[0].dynamic <= 2):
        return model
    raise Skip("needs an FP32 identity model in which one dimension varies")


def _identity(target: Target, array: Tensor, *, chunked: bool = False) -> None:
    model = _one_dimension(target)
    body = array.tobytes()
    answer = _send(target, model, iter((body[:5], body[5:])) if chunked else body)
    output = outputs_of(answer)[model.outputs[0].name]
    answer.must(output.binary, "the output as bytes")
    answer.must(same(output.array.ravel(), array), f"output of {show(array)}", show(output.array))


def _send(target: Target, model: Model, body: bytes | Iterable[bytes]) -> Answer:
    return target.http.post(f"{model_path(model.name)}/infer", body=body, headers={HEAD_LENGTH: "0"})
