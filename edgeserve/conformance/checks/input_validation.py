"""Area `input-validation`: inputs that contradict themselves, the protocol or the model.

What contradicts itself or the protocol MUST be refused; what contradicts only the model's metadata SHOULD be, but a
missing input always MUST.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from edgeserve.conformance.check import Body, Level, Skip, add, check
from edgeserve.conformance.infer import Given
from edgeserve.conformance.target import Model, Target, zeros
from edgeserve.contracts.tensors import Datatype

_REQUEST = "OIP REST, Request Input"
_VALIDATION = "Triton's L0_input_validation"


def _first(target: Target, **changes: Any) -> list[Given]:  # noqa: ANN401 - any JSON
    """Right inputs but for some fields of the first; a field that is None is left out."""
    first, *rest = target.model.givens()
    return [replace(first, changes=changes), *rest]


def _changed(changes: Callable[[Target], Mapping[str, Any]]) -> Body:
    def body(target: Target) -> None:
        target.infer(target.model, _first(target, **changes(target))).refused()

    return body


_CHANGES: dict[str, tuple[str, Level, str, Callable[[Target], Mapping[str, Any]]]] = {
    "no-name": ("An input without a name is refused", Level.MUST, _REQUEST, lambda _: {"name": None}),
    "no-shape": ("An input without a shape is refused", Level.MUST, _REQUEST, lambda _: {"shape": None}),
    "no-datatype": ("An input without a datatype is refused", Level.MUST, _REQUEST, lambda _: {"datatype": None}),
    "no-data": ("An input without data is refused", Level.MUST, _REQUEST, lambda _: {"data": None}),
    "name-not-a-text": ("An input whose name is a number is refused", Level.MUST, _REQUEST, lambda _: {"name": 7}),
    "shape-not-a-list": ("A shape that is a number is refused", Level.MUST, _REQUEST, lambda _: {"shape": 1}),
    "shape-of-texts": ("A shape of texts is refused", Level.SHOULD, _REQUEST, lambda _: {"shape": ["a"]}),
    "shape-of-fractions": ("A shape of fractions is refused", Level.MUST, _REQUEST, lambda _: {"shape": [1.5]}),
    "data-not-a-list": (
        "Data that are an object are refused",
        Level.MUST,
        "OIP REST, Tensor Data",
        lambda _: {"data": {}},
    ),
    "unknown-datatype": (
        "A datatype that the protocol does not have is refused",
        Level.MUST,
        "OIP REST, Tensor Data Types",
        lambda _: {"datatype": "FP99"},
    ),
    "lower-case-datatype": (
        "A datatype in lower case is refused: the names are exact",
        Level.SHOULD,
        "OIP REST, Tensor Data Types",
        lambda target: {"datatype": target.model.inputs[0].datatype.value.lower()},
    ),
    "too-few-elements": (
        "Data with an element too few for the shape are refused",
        Level.MUST,
        "Triton's L0_http: shape does not match true shape",
        lambda target: {"data": _data(target)[:-1]},
    ),
    "too-many-elements": (
        "Data with an element too many for the shape are refused",
        Level.MUST,
        "Triton's L0_http: shape does not match true shape",
        lambda target: {"data": [*_data(target), _data(target)[0]]},
    ),
    "null-in-data": (
        "A null among the data is refused",
        Level.MUST,
        "OIP REST, Tensor Data: integer, floating-point number, string or boolean",
        lambda target: {"data": [None, *_data(target)[1:]]},
    ),
    "text-in-numbers": (
        "A text that is no number among numeric data is refused",
        Level.MUST,
        "OIP REST, Tensor Data: coerce or return an error",
        lambda target: {"data": ["abc", *_data(_numeric(target))[1:]]},
    ),
    "object-in-data": (
        "An object among the data is refused",
        Level.MUST,
        "OIP REST, Tensor Data",
        lambda target: {"data": [{}, *_data(target)[1:]]},
    ),
    "wrong-rank": (
        "A shape with a dimension more than the metadata has is refused",
        Level.SHOULD,
        _VALIDATION,
        lambda target: {"shape": [1, 1, *_shape(target)]},
    ),
    "wrong-datatype": (
        "A datatype other than the metadata's is refused",
        Level.SHOULD,
        _VALIDATION,
        lambda target: {"datatype": "INT16" if target.model.inputs[0].datatype is not Datatype.INT16 else "INT8"},
    ),
}

for _name, (_title, _level, _source, _make) in _CHANGES.items():
    add(f"input-validation.{_name}", title=_title, level=_level, source=_source, extension="", body=_changed(_make))


@check(
    "input-validation.negative-dimension", level=Level.MUST, source="OIP REST, Request Input: unsigned 64-bit integer"
)
def negative_dimension(target: Target) -> None:
    """A negative dimension is refused."""
    target.infer(target.model, _first(target, shape=[-size for size in _shape(target)] or [-1])).refused()


@check("input-validation.client-mistake", level=Level.SHOULD, source="RFC 9110, 15.5; OIP REST: typically 400")
def client_mistake(target: Target) -> None:
    """The status for inputs that contradict the protocol is a 4xx: a 5xx would blame, and alarm, the server."""
    for _, _, _, changes in _CHANGES.values():
        target.infer(target.model, _first(target, **changes(target))).refused(most=499)


@check(
    "input-validation.missing-input", level=Level.MUST, source="OIP REST, Model Metadata: inputs required by the model"
)
def missing_input(target: Target) -> None:
    """A request that lacks an input is refused."""
    model = _with_inputs(target, 2)
    target.infer(model, model.givens()[:-1]).refused()


@check("input-validation.no-input-at-all", level=Level.MUST, source=f"{_VALIDATION}: required_empty")
def no_input_at_all(target: Target) -> None:
    """An empty list of inputs is refused for a model that has inputs."""
    target.infer(target.model, []).refused()


@check(
    "input-validation.unknown-input", level=Level.SHOULD, source=f"{_VALIDATION}; Triton: unexpected inference input"
)
def unknown_input(target: Target) -> None:
    """An input that the model does not have is refused."""
    extra = replace(target.model.givens()[0], name="conformance_no_such_input")
    target.infer(target.model, [*target.model.givens(), extra]).refused()


@check("input-validation.unknown-output", level=Level.SHOULD, source="Triton: unexpected inference output")
def unknown_output(target: Target) -> None:
    """A requested output that the model does not have is refused."""
    target.infer(target.model, outputs=[{"name": "conformance_no_such_output"}]).refused()


@check("input-validation.duplicate-input", level=Level.SHOULD, source="Triton: input already exists in request")
def duplicate_input(target: Target) -> None:
    """The same input twice is refused."""
    givens = target.model.givens()
    target.infer(target.model, [*givens, givens[0]]).refused()


@check("input-validation.duplicate-output", level=Level.SHOULD, source="Triton's L0_http: duplicate_output_names")
def duplicate_output(target: Target) -> None:
    """The same requested output twice is refused."""
    if not target.model.outputs:
        raise Skip(f"the metadata of {target.model.name!r} lists no outputs")
    name = target.model.outputs[0].name
    target.infer(target.model, outputs=[{"name": name}, {"name": name}]).refused()


@check("input-validation.fixed-dimension", level=Level.SHOULD, source=_VALIDATION)
def fixed_dimension(target: Target) -> None:
    """A size other than the metadata's in a fixed dimension is refused, though shape and data agree."""
    for model in (target.model, *target.models):
        for index, spec in enumerate(model.inputs):
            fixed = [axis for axis, size in enumerate(spec.shape) if size > 0]
            if fixed and model.json_able:
                shape = list(spec.concrete())
                shape[fixed[-1]] += 1
                givens = model.givens()
                givens[index] = replace(givens[index], array=zeros(spec.datatype, shape))
                target.infer(model, givens).refused()
                return
    raise Skip("no model has an input with a fixed dimension")


@check("input-validation.ragged", level=Level.SHOULD, source="OIP REST, Tensor Data: natural representation")
def ragged(target: Target) -> None:
    """Nested data whose rows differ in length are refused."""
    model = target.identity(Datatype.FP32, dynamic=2)
    given = replace(model.givens()[0], changes={"shape": [2, 2], "data": [[1.0, 2.0, 3.0], [4.0]]})
    target.infer(model, [given]).refused()


@check("input-validation.out-of-range", level=Level.SHOULD, source="OIP REST, Tensor Data: coerce or return an error")
def out_of_range(target: Target) -> None:
    """A number that the datatype cannot hold (300 in UINT8) is refused, never wrapped around."""
    model = target.identity(Datatype.UINT8)
    given = model.givens()[0]
    target.infer(model, [replace(given, changes={"data": [300] * given.array.size})]).refused()


@check(
    "input-validation.fraction-in-integers",
    level=Level.SHOULD,
    source="OIP REST, Tensor Data: coerce or return an error",
)
def fraction_in_integers(target: Target) -> None:
    """A fraction among integers is coerced or refused, never a 5xx."""
    model = target.identity(Datatype.INT32)
    given = model.givens()[0]
    answer = target.infer(model, [replace(given, changes={"data": [1.5] * given.array.size})])
    if answer.status != 200:
        answer.refused(most=499)


@check("input-validation.recovery", level=Level.MUST, source="Triton's L0_http: the server is still working")
def recovery(target: Target) -> None:
    """After requests that were refused for their inputs a right one is answered."""
    for changes in ({"shape": [7, 7, 7, 7]}, {"data": [None]}, {"shape": None}, {"datatype": "FP99"}):
        target.infer(target.model, _first(target, **changes))
    target.still_answers("inputs that were refused")


def _shape(target: Target) -> list[int]:
    return list(target.model.inputs[0].concrete())


def _data(target: Target) -> list[Any]:
    if not target.model.inputs or not np.prod(_shape(target)):
        raise Skip("the model has no input with elements")
    return target.model.givens()[0].data()


def _numeric(target: Target) -> Target:
    if target.model.inputs[0].datatype is Datatype.BYTES:
        raise Skip("the model's first input is BYTES")
    return target


def _with_inputs(target: Target, least: int) -> Model:
    for model in (target.model, *target.models):
        if len(model.inputs) >= least and model.json_able:
            return model
    raise Skip(f"needs a model with {least} inputs")
