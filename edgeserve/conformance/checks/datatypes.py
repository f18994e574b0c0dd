"""Area `core`: every datatype that JSON can hold, through an identity model."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from edgeserve.conformance.check import Body, Level, add, check
from edgeserve.conformance.http import model_path
from edgeserve.conformance.infer import outputs_of, same, show
from edgeserve.conformance.target import NO_JSON, Target, samples
from edgeserve.contracts.tensors import Datatype

_JSON: Final = [datatype for datatype in Datatype if datatype not in NO_JSON and datatype is not Datatype.BYTES]


def _exact(datatype: Datatype) -> Body:
    def body(target: Target) -> None:
        model = target.identity(datatype)
        spec = model.inputs[0]
        array = samples(datatype, spec.concrete(3 if spec.dynamic else 1))
        answer = target.infer(model, [replace(model.givens()[0], array=array)])
        found = outputs_of(answer)[model.outputs[0].name]
        answer.must(found.datatype is datatype, f"datatype {datatype.value}", found.datatype.value)
        answer.must(same(found.array, array), f"output of {show(array)}", show(found.array))

    return body


for _datatype in _JSON:
    add(
        f"core.json-{_datatype.value.lower()}",
        title=f"{_datatype.value} data in JSON, with the datatype's extremes, come back exactly",
        level=Level.MUST,
        source="OIP REST, Tensor Data Types",
        extension="",
        body=_exact(_datatype),
    )


@check("core.json-float-forms", level=Level.MUST, source="RFC 8259, 6; OIP REST, Tensor Data")
def json_float_forms(target: Target) -> None:
    """Floating-point data may be written 1, 1.0, 1e0 or -0.5E+1."""
    model = target.identity(Datatype.FP32)
    spec, given = model.inputs[0], model.givens()[0]
    size = given.array.size
    values = [("1", 1.0), ("1.0", 1.0), ("1e0", 1.0), ("-0.5E+1", -5.0), ("2.5e-1", 0.25)]
    for text, value in values:
        data = ",".join([text] * size)
        body = (
            f'{{"inputs":[{{"name":"{spec.name}","datatype":"FP32",'
            f'"shape":{list(given.array.shape)},"data":[{data}]}}]}}'
        )
        answer = target.http.post(
            f"{model_path(model.name)}/infer", body=body.encode(), headers={"Content-Type": "application/json"}
        )
        found = outputs_of(answer)[model.outputs[0].name].array
        answer.must(bool(np.all(found == np.float32(value))), f"{value}", show(found))


@check("core.json-int64-exact", level=Level.MUST, source="OIP REST, Tensor Data Types; RFC 8259, 6")
def json_int64_exact(target: Target) -> None:
    """INT64 beyond 2^53 comes back to the last digit: it never passes through a double."""
    model = target.identity(Datatype.INT64)
    array = np.full(model.inputs[0].concrete(), 2**53 + 1, dtype=np.int64)
    answer = target.infer(model, [replace(model.givens()[0], array=array)])
    found = outputs_of(answer)[model.outputs[0].name].array
    answer.must(same(found, array), f"{2**53 + 1}", show(found))


@check("core.json-fp32-exact", level=Level.SHOULD, source="OIP REST, Tensor Data")
def json_fp32_exact(target: Target) -> None:
    """FP32 values are written with enough digits to be read back bit for bit."""
    model = target.identity(Datatype.FP32)
    array = np.full(model.inputs[0].concrete(), np.float32(0.1) + np.float32(1e-8), dtype=np.float32)
    answer = target.infer(model, [replace(model.givens()[0], array=array)])
    found = outputs_of(answer)[model.outputs[0].name].array
    answer.must(same(found, array), f"{float(array.flat[0])!r}", show(found))


@check("core.nan-output", level=Level.SHOULD, source="Triton's L0_nan_inf: the body of such an answer is read as JSON")
def nan_output(target: Target) -> None:
    """A model's NaN and infinities are answered with a body that JSON readers take, or with an error, never a 5xx."""
    model = target.named("nan_inf")
    answer = target.infer(model)
    if answer.status == 200:
        answer.json()
    else:
        answer.refused(most=499)
