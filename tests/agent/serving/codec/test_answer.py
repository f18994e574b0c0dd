"""Answers as they were asked for."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve_agent.serving.codec.answer import encode_answer
from edgeserve_agent.serving.rest.rendering import Rendering
from edgeserve_agent.serving.served import Identity
from tests.agent.serving.codec.decoding import SHAPES, SIGNATURE, X, decoder

SPECS = Signature(
    inputs=(TensorSpec(name="x", datatype=Datatype.FP32, shape=(1,)),),
    outputs=(
        TensorSpec(name="a", datatype=Datatype.FP32, shape=(-1,)),
        TensorSpec(name="h", datatype=Datatype.FP16, shape=(-1,)),
        TensorSpec(name="t", datatype=Datatype.BYTES, shape=(-1,)),
    ),
)
OUTPUTS = {
    "a": np.array([1.5, np.nan], np.float32),
    "h": np.array([0.5], np.float16),
    "t": np.array([b"yes", b"no"], object),
}


def respond(**request) -> tuple[dict, bytes]:
    head = json.dumps({"inputs": [{**X, "data": [1, 2]}], "id": "r", **request}).encode()
    plan, request_id, _inputs = decoder(SPECS).decode(head, None)
    body = encode_answer(
        model="m", version="1", request_id=request_id, wishes=plan.wishes, outputs=OUTPUTS, labels=(), regions=None
    )
    return json.loads(body.json), b"".join(bytes(blob) for blob in body.blobs)


def test_the_default_of_the_request_makes_all_outputs_binary():
    document, blobs = respond(parameters={"binary_data_output": True})
    assert [output["parameters"]["binary_data_size"] for output in document["outputs"]] == [8, 2, 13]
    assert blobs == OUTPUTS["a"].tobytes() + OUTPUTS["h"].tobytes() + b"\3\0\0\0yes\2\0\0\0no"


def test_an_output_is_sent_as_it_was_asked_for_and_nothing_else():
    wanted = [{"name": "t"}, {"name": "a", "parameters": {"binary_data": True}}]
    document, blobs = respond(outputs=wanted)
    text, numbers = document["outputs"]
    assert (document["model_name"], document["model_version"], document["id"]) == ("m", "1", "r")
    assert text == {"name": "t", "datatype": "BYTES", "shape": [2], "data": ["yes", "no"]}
    assert numbers["parameters"] == {"binary_data_size": 8}
    assert blobs == OUTPUTS["a"].tobytes()


def test_a_number_that_json_lacks_becomes_null():
    document, _ = respond(outputs=[{"name": "a"}])
    assert document["outputs"][0]["data"] == [1.5, None]


@pytest.mark.parametrize(
    ("outputs", "says"),
    [
        pytest.param([{"name": "nope"}], "not one of the model's: a, h, t", id="unknown"),
        pytest.param([{"name": "h"}], "no JSON form", id="FP16 as JSON"),
        pytest.param([], "no JSON form", id="FP16 by default"),
    ],
)
def test_an_output_that_cannot_be_given_is_refused_before_the_model_runs(outputs: list, says: str):
    body = json.dumps({"inputs": [{**X, "data": [1, 2]}], "outputs": outputs}).encode()
    with pytest.raises(InputError) as caught:
        decoder(SPECS).decode(body, None)
    assert says in caught.value.message


@given(
    binary=st.booleans(),
    request_id=st.text(max_size=5),
    arrays=st.lists(hnp.arrays(np.float32, SHAPES), min_size=1, max_size=3),
)
def test_a_rendered_answer_is_the_one_that_is_encoded_anew(binary: bool, request_id: str, arrays):
    outputs = {f"o{n}": array for n, array in enumerate(arrays)}
    signature = Signature(
        inputs=SIGNATURE.inputs,
        outputs=tuple(
            TensorSpec(name=name, datatype=Datatype.FP32, shape=(-1,) * array.ndim) for name, array in outputs.items()
        ),
    )
    head = {"inputs": [{**X, "data": [1, 2]}], "id": request_id, "parameters": {"binary_data_output": binary}}
    plan = decoder(signature).decode(json.dumps(head).encode(), None).plan
    identity = Identity(model='m"', version="1", release="sha256:r", variant="")
    body = encode_answer(
        model='m"', version="1", request_id=request_id, wishes=plan.wishes, outputs=outputs, labels=(), regions=None
    )
    response = Rendering(identity, plan.wishes, arrays).response(request_id, arrays).opened()
    assert b"".join(bytes(chunk) for chunk in response.chunks) == body.json + b"".join(map(bytes, body.blobs))
    lengths = [line for line in response.headers.split(b"\r\n") if line.startswith(b"Inference-Header")]
    assert lengths == ([b"Inference-Header-Content-Length: %d" % len(body.json)] if binary else [])
