"""Area `grpc-errors`: wrong requests over gRPC get a status with words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from edgeserve.conformance.check import Body, Level, Skip, Violation, add, check
from edgeserve.conformance.grpc_client import Failure, request
from edgeserve.conformance.target import Target
from edgeserve.contracts.tensors import Datatype

_TENSOR: Final = "OIP gRPC, Tensor Data"
_VALIDATION: Final = "Triton's L0_input_validation"
_ABSENT: Final = "conformance-no-such-model"


def _right(target: Target, *, typed: bool = False) -> Any:  # noqa: ANN401 - messages are made at run time
    return request(target.model.name, target.model.givens(), typed=typed)


def _refused(change: Callable[[Any], None], *, typed: bool = False) -> Body:
    def body(target: Target) -> None:
        if target.model.inputs[0].datatype is Datatype.BYTES:
            raise Skip("needs a model with numbers")
        message = _right(target, typed=typed)
        change(message)
        target.grpc.refused("ModelInfer", message)

    return body


def _cut_raw(message: Any) -> None:  # noqa: ANN401
    message.raw_input_contents[0] = message.raw_input_contents[0][:-1]


def _longer_raw(message: Any) -> None:  # noqa: ANN401
    message.raw_input_contents[0] += b"\0\0\0\0"


def _drop_raw(message: Any) -> None:  # noqa: ANN401
    del message.raw_input_contents[:]


def _more_raw(message: Any) -> None:  # noqa: ANN401
    message.raw_input_contents.append(b"\0\0\0\0")


def _both(message: Any) -> None:  # noqa: ANN401
    message.inputs[0].contents.fp32_contents.append(1.0)


def _negative(message: Any) -> None:  # noqa: ANN401
    message.inputs[0].shape[:] = [-abs(size) for size in message.inputs[0].shape] or [-1]


def _unknown_datatype(message: Any) -> None:  # noqa: ANN401
    message.inputs[0].datatype = "FP99"


def _no_datatype(message: Any) -> None:  # noqa: ANN401
    message.inputs[0].datatype = ""


def _no_inputs(message: Any) -> None:  # noqa: ANN401
    del message.inputs[:]
    del message.raw_input_contents[:]


def _fewer_typed(message: Any) -> None:  # noqa: ANN401
    for _, values in message.inputs[0].contents.ListFields():
        del values[0]


def _wrong_field(message: Any) -> None:  # noqa: ANN401
    contents = message.inputs[0].contents
    was_text = bool(contents.bytes_contents)
    contents.Clear()
    if was_text:
        contents.int_contents.append(1)
    else:
        contents.bytes_contents.append(b"1")


_WRONG: Final[dict[str, tuple[str, Level, str, Callable[[Any], None], bool]]] = {
    "raw-too-short": (
        "Raw contents a byte too short for the shape are refused",
        Level.MUST,
        _VALIDATION,
        _cut_raw,
        False,
    ),
    "raw-too-long": ("Raw contents longer than the shape are refused", Level.MUST, _VALIDATION, _longer_raw, False),
    "raw-missing": ("Inputs with neither raw nor typed contents are refused", Level.MUST, _TENSOR, _drop_raw, False),
    "raw-too-many": ("More raw contents than inputs are refused", Level.SHOULD, _TENSOR, _more_raw, False),
    "raw-and-typed": ("An input with both raw and typed contents is refused", Level.SHOULD, _TENSOR, _both, False),
    "typed-too-few": ("Fewer typed contents than the shape says are refused", Level.MUST, _TENSOR, _fewer_typed, True),
    "typed-other-field": (
        "Contents in the field of another datatype are refused",
        Level.MUST,
        _TENSOR,
        _wrong_field,
        True,
    ),
    "negative-dimension": ("A negative dimension is refused", Level.MUST, "OIP gRPC, ModelInfer", _negative, False),
    "unknown-datatype": (
        "A datatype that the protocol does not have is refused",
        Level.MUST,
        "OIP gRPC, Tensor Data Types",
        _unknown_datatype,
        False,
    ),
    "no-datatype": (
        "An input without a datatype is refused",
        Level.SHOULD,
        "OIP gRPC, ModelInfer",
        _no_datatype,
        False,
    ),
    "no-inputs": (
        "A request without inputs is refused",
        Level.MUST,
        f"{_VALIDATION}: required_empty",
        _no_inputs,
        False,
    ),
}

for _name, (_title, _level, _source, _change, _typed) in _WRONG.items():
    add(
        f"grpc-errors.{_name}",
        title=_title,
        level=_level,
        source=_source,
        extension="",
        body=_refused(_change, typed=_typed),
    )


@check("grpc-errors.unknown-model", level=Level.MUST, source="OIP gRPC, ModelInfer")
def unknown_model(target: Target) -> None:
    """Inference on a model that does not exist is an error with words."""
    target.grpc.refused("ModelInfer", request(_ABSENT, target.model.givens()))


@check("grpc-errors.unknown-model-not-found", level=Level.SHOULD, source="Triton, KServe and OVMS say NOT_FOUND")
def unknown_model_code(target: Target) -> None:
    """The status for a model that does not exist is NOT_FOUND."""
    failure = target.grpc.refused("ModelMetadata", target.grpc.messages.ModelMetadataRequest(name=_ABSENT))
    failure.must(failure.code == "NOT_FOUND", "NOT_FOUND")


@check("grpc-errors.unknown-version", level=Level.MUST, source="OIP gRPC, ModelInfer")
def unknown_version(target: Target) -> None:
    """Inference on a version that does not exist is an error."""
    if not target.model.versions:
        raise Skip(f"the metadata of {target.model.name!r} lists no versions")
    target.grpc.refused("ModelInfer", request(target.model.name, target.model.givens(), version="99999"))


@check("grpc-errors.code", level=Level.SHOULD, source="gRPC status codes: INVALID_ARGUMENT; Triton")
def code(target: Target) -> None:
    """Inputs that do not fit are INVALID_ARGUMENT."""
    message = _right(target)
    _cut_raw(message)
    failure = target.grpc.refused("ModelInfer", message)
    failure.must(failure.code == "INVALID_ARGUMENT", "INVALID_ARGUMENT")


@check("grpc-errors.unknown-input", level=Level.SHOULD, source="Triton: unexpected inference input")
def unknown_input(target: Target) -> None:
    """An input that the model does not have is refused."""
    givens = target.model.givens()
    extra = replace(givens[0], name="conformance_no_such_input")
    target.grpc.refused("ModelInfer", request(target.model.name, [*givens, extra]))


@check("grpc-errors.unknown-output", level=Level.SHOULD, source="Triton: unexpected inference output")
def unknown_output(target: Target) -> None:
    """A requested output that the model does not have is refused."""
    message = request(target.model.name, target.model.givens(), outputs=["conformance_no_such_output"])
    target.grpc.refused("ModelInfer", message)


@check("grpc-errors.not-a-message", level=Level.MUST, source="gRPC: a server must survive bytes that are no message")
def not_a_message(target: Target) -> None:
    """Bytes that are no message are an error, and the server goes on."""
    answer = target.grpc.attempt("ModelInfer", raw=b"\xff\xff\xff\xff\xff")
    if not isinstance(answer, Failure):
        raise Violation(sent="ModelInfer ff ff ff ff ff", expected="a status other than OK", got="OK")
    target.grpc.call("ModelInfer", _right(target))


@check("grpc-errors.recovery", level=Level.MUST, source="Triton's L0_grpc: the server is still working")
def recovery(target: Target) -> None:
    """After a row of wrong requests a right one is answered."""
    for _, _, _, change, typed in _WRONG.values():
        message = _right(target, typed=typed)
        change(message)
        target.grpc.attempt("ModelInfer", message)
    target.grpc.call("ModelInfer", _right(target))
