"""Area `fp16`: FP16 and BF16, which have a binary form only."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from edgeserve.conformance.check import Body, Level, add, check
from edgeserve.conformance.checks.binary import EXTENSION
from edgeserve.conformance.infer import outputs_of, same, show
from edgeserve.conformance.target import Target, samples
from edgeserve.contracts.tensors import Datatype

_SOURCE: Final = "OIP REST, Tensor Data Types; KServe's TestV2Endpoints: fp16"


def _exact(datatype: Datatype) -> Body:
    def body(target: Target) -> None:
        model = target.identity(datatype)
        spec = model.inputs[0]
        array = samples(datatype, spec.concrete(4 if spec.dynamic else 1))
        given = replace(model.givens()[0], array=array, binary=True)
        answer = target.infer(model, [given], parameters={"binary_data_output": True})
        found = outputs_of(answer)[model.outputs[0].name]
        answer.must(found.datatype is datatype, f"datatype {datatype.value}", found.datatype.value)
        answer.must(same(found.array, array), f"output of {show(array)}", show(found.array))

    return body


def _json_is_defined(datatype: Datatype) -> Body:
    def body(target: Target) -> None:
        model = target.identity(datatype)
        spec = model.inputs[0]
        given = replace(model.givens()[0], array=samples(datatype, spec.concrete()), binary=True)
        answer = target.infer(model, [given])
        if answer.status == 200:
            outputs_of(answer)
        else:
            answer.refused(most=499)

    return body


for _datatype in (Datatype.FP16, Datatype.BF16):
    _name = _datatype.value.lower()
    add(
        f"fp16.{_name}-binary",
        title=f"{_datatype.value} data as bytes come back bit for bit",
        level=Level.EXTENSION,
        source=_SOURCE,
        extension=EXTENSION,
        body=_exact(_datatype),
    )
    add(
        f"fp16.{_name}-json-output",
        title=f"A {_datatype.value} output asked for as JSON comes as numbers, as bytes, or is refused, never a 5xx",
        level=Level.SHOULD,
        source=_SOURCE,
        extension=EXTENSION,
        body=_json_is_defined(_datatype),
    )


@check("fp16.fp16-json-input", level=Level.SHOULD, source="OIP REST, Tensor Data: fp16 is problematic in JSON")
def json_input(target: Target) -> None:
    """FP16 data in JSON are taken as numbers, or refused; never a 5xx."""
    model = target.identity(Datatype.FP16)
    answer = target.infer(model, [replace(model.givens()[0], binary=False)])
    if answer.status != 200:
        answer.refused(most=499)


@check("fp16.fp16-odd-size", level=Level.EXTENSION, source=_SOURCE, extension=EXTENSION)
def odd_size(target: Target) -> None:
    """FP16 data of one byte too few are refused."""
    model = target.identity(Datatype.FP16)
    given = replace(model.givens()[0], binary=True)
    size = given.array.nbytes - 1
    answer = target.infer(
        model, [replace(given, changes={"parameters": {"binary_data_size": size}})], encode=lambda body: body[:-1]
    )
    answer.refused()
