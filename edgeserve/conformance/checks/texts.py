"""Area `bytes`: BYTES tensors, as JSON texts and as bytes with their lengths before them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np

from edgeserve.client.blobs import Tensor
from edgeserve.conformance.check import Level, check
from edgeserve.conformance.checks.binary import EXTENSION
from edgeserve.conformance.http import Answer, model_path
from edgeserve.conformance.infer import HEAD_LENGTH, Given, outputs_of, same, show
from edgeserve.conformance.target import Target
from edgeserve.contracts.tensors import Datatype

_STRINGS: Final = "Triton's L0_string_io"
_BINARY: Final = "Triton, extension_binary_data: BYTES elements have a 4-byte length before them"


@check("bytes.json", level=Level.MUST, source=f"OIP REST, Tensor Data; {_STRINGS}")
def json_texts(target: Target) -> None:
    """Texts in JSON come back: empty, other than ASCII, with quotes and line breaks."""
    _pass(target, [b"427", b"", "grün ✓ 推論 🙂".encode(), b'quote " and \\ slash', b"a\n\tb"])


@check("bytes.json-null-character", level=Level.MUST, source="Triton's L0_nullchar_string; RFC 8259, 7")
def null_character(target: Target) -> None:
    r"""A text with \u0000 in it is not cut there."""
    _pass(target, [b"a\0b", b"\0"])


@check("bytes.json-long", level=Level.SHOULD, source=_STRINGS)
def long(target: Target) -> None:
    """A text of 100 000 characters comes back."""
    _pass(target, [b"x" * 100_000])


@check("bytes.json-numbers", level=Level.SHOULD, source="OIP REST, Tensor Data: coerce or return an error")
def numbers(target: Target) -> None:
    """A number among BYTES is coerced or refused, never a 5xx."""
    model = target.identity(Datatype.BYTES, dynamic=1)
    answer = target.infer(model, [_given(target, [b"1"], changes={"data": [1]})])
    if answer.status != 200:
        answer.refused(most=499)


@check("bytes.json-too-few", level=Level.MUST, source="Triton's L0_input_validation: string_shape_validation")
def too_few(target: Target) -> None:
    """Fewer texts than the shape says are refused."""
    model = target.identity(Datatype.BYTES, dynamic=1)
    target.infer(model, [_given(target, [b"a", b"b"], changes={"data": ["a"]})]).refused()


@check("bytes.binary", level=Level.EXTENSION, source=_BINARY, extension=EXTENSION)
def binary(target: Target) -> None:
    """BYTES as bytes hold zeros, empty elements and elements of many lengths."""
    _pass(target, [b"427", b"", b"\x00\x01\x00", bytes(range(128)), b"x" * 5000], binary=True)


@check("bytes.binary-not-utf8", level=Level.SHOULD, source=_BINARY, extension=EXTENSION)
def not_utf8(target: Target) -> None:
    """BYTES as bytes hold what is not UTF-8, where the model's runtime does."""
    _pass(target, [b"\x00\xff\xfe", bytes(range(256))], binary=True)


@check("bytes.binary-to-json", level=Level.EXTENSION, source=_BINARY, extension=EXTENSION)
def binary_to_json(target: Target) -> None:
    """Texts that come in as bytes can go out as JSON."""
    model = target.identity(Datatype.BYTES, dynamic=1)
    given = _given(target, ["grün".encode(), b""], binary=True)
    answer = target.infer(model, [given])
    found = outputs_of(answer)[model.outputs[0].name]
    answer.must(same(found.array, given.array) and not found.binary, f"{show(given.array)} as JSON", show(found.array))


@check("bytes.json-to-binary", level=Level.EXTENSION, source=_BINARY, extension=EXTENSION)
def json_to_binary(target: Target) -> None:
    """Texts that come in as JSON can go out as bytes."""
    model = target.identity(Datatype.BYTES, dynamic=1)
    given = _given(target, ["grün".encode(), b""])
    answer = target.infer(model, [given], parameters={"binary_data_output": True})
    found = outputs_of(answer)[model.outputs[0].name]
    answer.must(same(found.array, given.array) and found.binary, f"{show(given.array)} as bytes", show(found.array))


@check("bytes.binary-length-beyond", level=Level.EXTENSION, source=_BINARY, extension=EXTENSION)
def length_beyond(target: Target) -> None:
    """An element whose length goes beyond the data is refused."""
    for blob in (b"\x05\0\0\0abc", b"\xff\xff\xff\xffabc", b"\xff\xff\xff\x7f"):
        _send(target, blob, count=1).refused()


@check("bytes.binary-cut-length", level=Level.EXTENSION, source=_BINARY, extension=EXTENSION)
def cut_length(target: Target) -> None:
    """Data that end within an element's length are refused."""
    _send(target, b"\x01\0\0\0a\x01\0", count=2).refused()


@check(
    "bytes.binary-too-few",
    level=Level.EXTENSION,
    source="Triton's L0_input_validation: string_shape_validation",
    extension=EXTENSION,
)
def binary_too_few(target: Target) -> None:
    """Fewer elements than the shape says are refused."""
    _send(target, b"\x01\0\0\0a", count=2).refused()


@check(
    "bytes.binary-too-many",
    level=Level.EXTENSION,
    source="Triton's L0_input_validation: string_shape_validation",
    extension=EXTENSION,
)
def binary_too_many(target: Target) -> None:
    """More elements than the shape says are refused."""
    _send(target, b"\x01\0\0\0a\x01\0\0\0b", count=1).refused()


def _given(
    target: Target, texts: list[bytes], *, binary: bool = False, changes: Mapping[str, Any] | None = None
) -> Given:
    model = target.identity(Datatype.BYTES, dynamic=1)
    return replace(model.givens()[0], array=_array(target, texts), binary=binary, changes=changes or {})


def _array(target: Target, texts: list[bytes]) -> Tensor:
    shape = target.identity(Datatype.BYTES, dynamic=1).inputs[0].shape
    array = np.empty(len(texts), dtype=object)
    array[:] = texts
    varying = len(shape) - 1 - shape[::-1].index(-1)
    return array.reshape([len(texts) if axis == varying else 1 for axis in range(len(shape))])


def _pass(target: Target, texts: list[bytes], *, binary: bool = False) -> None:
    model = target.identity(Datatype.BYTES, dynamic=1)
    given = _given(target, texts, binary=binary)
    answer = target.infer(model, [given], parameters={"binary_data_output": True} if binary else None)
    found = outputs_of(answer)[model.outputs[0].name]
    answer.must(found.datatype is Datatype.BYTES, "datatype BYTES", found.datatype.value)
    answer.must(same(found.array, given.array), f"output of {show(given.array)}", show(found.array))


def _send(target: Target, blob: bytes, *, count: int) -> Answer:
    model = target.identity(Datatype.BYTES, dynamic=1)
    entry = {
        "name": model.inputs[0].name,
        "datatype": "BYTES",
        "shape": list(_array(target, [b""] * count).shape),
        "parameters": {"binary_data_size": len(blob)},
    }
    head = json.dumps({"inputs": [entry]}).encode()
    return target.http.post(f"{model_path(model.name)}/infer", body=head + blob, headers={HEAD_LENGTH: str(len(head))})
