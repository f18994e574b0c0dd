from __future__ import annotations

import msgspec
import numpy as np
import pytest

from edgeserve.contracts.errors import DeviceError, InputError
from edgeserve.contracts.model_config import ModelConfig
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve_agent.serving.opened import Opened, configured, warm_up
from edgeserve_agent.serving.warmup import warmup_requests

ALL = Signature(
    inputs=tuple(TensorSpec(name=kind.value, datatype=kind, shape=(-1, 3)) for kind in Datatype),
    outputs=(TensorSpec(name="y", datatype=Datatype.FP32, shape=(-1, 3)),),
)
ONE = Signature(
    inputs=(TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1, 4)),),
    outputs=(TensorSpec(name="y", datatype=Datatype.FP32, shape=(-1, 3)),),
)


def config(*warmups: dict, **more: object) -> ModelConfig:
    return msgspec.convert({"model_warmup": warmups, **more}, ModelConfig)


def x(**entry: object) -> dict:
    return {"x": {"data_type": "TYPE_FP32", "dims": [4], **entry}}


@pytest.mark.parametrize("kind", ["zero_data", "random_data"])
def test_every_datatype_can_be_filled(kind: str):
    entries = {
        spec.name: {
            "data_type": "TYPE_STRING" if spec.name == "BYTES" else f"TYPE_{spec.name}",
            "dims": [3],
            kind: True,
        }
        for spec in ALL.inputs
    }
    (request,) = warmup_requests(config({"inputs": entries, "batch_size": 2}, max_batch_size=2), ALL, None)
    for spec in ALL.inputs:
        array = request.inputs[spec.name]
        assert array.dtype == np.dtype(spec.datatype.numpy_name)
        assert array.shape == (2, 3)
        is_zero = all(not element for element in array.ravel())
        assert is_zero is (kind == "zero_data") or spec.datatype is Datatype.BOOL


def test_files_hold_numbers_or_elements_with_their_lengths(tmp_path):
    (tmp_path / "warmup").mkdir()
    (tmp_path / "warmup" / "words").write_bytes(b"\2\0\0\0hi\0\0\0\0\3\0\0\0abc")
    signature = Signature(inputs=(TensorSpec(name="t", datatype=Datatype.BYTES, shape=(3,)),), outputs=ONE.outputs)
    entry = {"t": {"data_type": "TYPE_STRING", "dims": [3], "input_data_file": "words"}}
    (request,) = warmup_requests(config({"inputs": entry}), signature, tmp_path)
    assert request.inputs["t"].tolist() == [b"hi", b"", b"abc"]


@pytest.mark.parametrize(
    ("warmup", "says"),
    [
        pytest.param({"inputs": {}}, "does not say what input 'x' is", id="missing"),
        pytest.param({"inputs": {**x(zero_data=True), "z": x()["x"]}}, "no input 'z'", id="unknown"),
        pytest.param({"inputs": x()}, "none of zero_data", id="no data"),
        pytest.param({"inputs": x(zero_data=True, dims=[5])}, r"\[1, 5\]", id="shape"),
        pytest.param({"inputs": x(zero_data=True, dims=[-1])}, r"\[1, -1\]", id="open shape"),
        pytest.param({"inputs": x(zero_data=True, data_type="TYPE_FP64")}, "FP64", id="datatype"),
        pytest.param({"inputs": x(zero_data=True), "batch_size": 9}, "batch_size of 9", id="rows"),
        pytest.param({"inputs": x(zero_data=True), "count": 10**9}, "count of", id="count"),
        pytest.param({"inputs": x(input_data_file="f")}, "is missing", id="no file"),
        pytest.param({"inputs": x(input_data_file="short")}, "has 3 bytes, 16 are needed", id="short file"),
        pytest.param({"inputs": x(input_data_file="../f")}, "file name", id="file elsewhere"),
    ],
)
def test_a_request_that_does_not_fit_names_itself_and_the_input(tmp_path, warmup, says: str):
    (tmp_path / "warmup").mkdir()
    (tmp_path / "warmup" / "short").write_bytes(b"123")
    with pytest.raises(InputError, match=says):
        warmup_requests(config({"name": "w", **warmup}, max_batch_size=8), ONE, tmp_path)


def test_inputs_together_are_bounded():
    huge = Signature(inputs=(TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1, -1)),), outputs=ONE.outputs)
    with pytest.raises(InputError, match="bytes"):
        warmup_requests(config({"inputs": x(zero_data=True, dims=[1 << 40])}, max_batch_size=1), huge, None)
    many = [{"inputs": x(zero_data=True, dims=[1 << 24])}] * 5
    with pytest.raises(InputError, match="bytes of inputs"):
        warmup_requests(config(*many, max_batch_size=1), huge, None)


def test_what_a_sequence_gives_is_zeros():
    signature = Signature(
        inputs=(*ONE.inputs, TensorSpec(name="start", datatype=Datatype.INT32, shape=(-1, 1))), outputs=ONE.outputs
    )
    control = {"control_input": [{"name": "start", "control": [{"kind": "CONTROL_SEQUENCE_START"}]}]}
    asked = config({"inputs": x(zero_data=True), "batch_size": 2}, max_batch_size=2, sequence_batching=control)
    (request,) = warmup_requests(asked, signature, None)
    assert request.inputs["start"].tolist() == [[0], [0]]


def test_the_model_runs_as_often_as_asked_before_it_is_timed_ready(tools):
    seen = []

    def compute(inputs):
        seen.append(inputs["x"].shape)
        return {"y": np.zeros((len(inputs["x"]), 3), np.float32)}

    opened = Opened(model=tools.model(compute), runtime="simulator")
    asked = config({"inputs": x(random_data=True), "batch_size": 5, "count": 3}, max_batch_size=8)
    warm = warm_up(configured(opened, asked, folder=None))
    assert seen.count((5, 4)) == 3
    assert warm.elements == 4


def test_a_request_that_fails_names_itself_and_closes_the_model(tools):
    def compute(inputs):
        if len(inputs["x"]) == 5:
            raise RuntimeError("broken")
        return {"y": np.zeros((len(inputs["x"]), 3), np.float32)}

    model = tools.model(compute)
    asked = config({"name": "five", "inputs": x(zero_data=True), "batch_size": 5}, max_batch_size=8)
    with pytest.raises(DeviceError, match="warm-up request 'five': broken"):
        warm_up(configured(Opened(model=model, runtime="simulator"), asked, folder=None))
    assert model.closed.is_set()


def test_a_configuration_that_does_not_fit_closes_the_model(tools):
    model = tools.model()
    with pytest.raises(InputError):
        configured(Opened(model=model, runtime="simulator"), config({"inputs": {}}), folder=None)
    assert model.closed.is_set()
