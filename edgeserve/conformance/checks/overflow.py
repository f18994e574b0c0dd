"""Area `overflow`: shapes that are too large for any machine. Servers were seen to end here, so these run last."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from edgeserve.conformance.check import Body, Level, add
from edgeserve.conformance.grpc_client import request
from edgeserve.conformance.target import Target

_SOURCE: Final = "Triton's L0_http: buffer_size_overflow"
_SHAPES: Final = {
    "element-count": ("A shape whose element count overflows 64 bits", [2**4, 2**60 + 2]),
    "byte-count": ("A shape whose byte count overflows 64 bits", [2**2, 2**60 + 2]),
    "enormous": ("A shape of 2^40 elements with few data", [2**20, 2**20]),
}


def _json(shape: list[int]) -> Body:
    def body(target: Target) -> None:
        first, *rest = target.model.givens()
        target.infer(target.model, [replace(first, changes={"shape": shape}), *rest]).refused()
        target.still_answers(f"the shape {shape}")

    return body


def _binary(shape: list[int]) -> Body:
    def body(target: Target) -> None:
        first, *rest = target.model.givens(binary=True)
        target.infer(target.model, [replace(first, changes={"shape": shape}), *rest]).refused()
        target.still_answers(f"the shape {shape}")

    return body


def _grpc(shape: list[int], *, typed: bool) -> Body:
    def body(target: Target) -> None:
        message = request(target.model.name, target.model.givens(), typed=typed)
        message.inputs[0].shape[:] = shape
        target.grpc.refused("ModelInfer", message)
        target.grpc.call("ModelInfer", request(target.model.name, target.model.givens()))

    return body


for _name, (_title, _shape) in _SHAPES.items():
    add(
        f"overflow.json-{_name}",
        title=f"{_title} is refused, and the server goes on",
        level=Level.MUST,
        source=_SOURCE,
        extension="",
        body=_json(_shape),
    )
    add(
        f"overflow.binary-{_name}",
        title=f"{_title}, with binary data, is refused, and the server goes on",
        level=Level.EXTENSION,
        source=_SOURCE,
        extension="binary_tensor_data",
        body=_binary(_shape),
    )
    for _form in ("raw", "typed"):
        add(
            f"grpc-overflow.{_form}-{_name}",
            title=f"{_title}, with {_form} contents, is refused, and the server goes on",
            level=Level.MUST,
            source=_SOURCE,
            extension="",
            body=_grpc(_shape, typed=_form == "typed"),
        )
