from __future__ import annotations

import json

import msgspec
import pytest

from edgeserve.client.oip_proto import messages
from edgeserve.contracts.model_config import ModelConfig
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve_agent.serving.model_document import config_document, triton_datatype

SIGNATURE = Signature(
    inputs=(
        TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1, 4)),
        TensorSpec(name="word", datatype=Datatype.BYTES, shape=(-1,)),
    ),
    outputs=(TensorSpec(name="y", datatype=Datatype.BF16, shape=(-1, 3)),),
)
FULL = {
    "backend": "onnxruntime",
    "platform": "onnxruntime_onnx",
    "max_batch_size": 16,
    "default_model_filename": "net.onnx",
    "version_policy": {"specific": {"versions": [1, 3]}},
    "output": [{"name": "y", "label_filename": "labels.txt"}],
    "instance_group": [
        {"count": 2, "kind": "KIND_CPU", "rate_limiter": {"resources": [{"name": "r", "count": 2, "global": True}]}}
    ],
    "dynamic_batching": {
        "preferred_batch_size": [4, 8],
        "max_queue_delay_microseconds": 100,
        "priority_levels": 2,
        "default_queue_policy": {"timeout_action": "DELAY"},
        "priority_queue_policy": {"1": {"max_queue_size": 7}},
    },
    "parameters": {"colour": {"string_value": "red"}},
    "model_warmup": [{"name": "w", "inputs": {"x": {"data_type": "TYPE_FP32", "dims": [4], "zero_data": True}}}],
}
SEQUENCES = {
    "max_batch_size": 1,
    "sequence_batching": {
        "max_sequence_idle_microseconds": 5,
        "oldest": {"max_candidate_sequences": 4},
        "control_input": [
            {"name": "START", "control": [{"kind": "CONTROL_SEQUENCE_START", "fp32_false_true": [0, 1]}]},
            {"name": "ID", "control": [{"kind": "CONTROL_SEQUENCE_CORRID", "data_type": "TYPE_UINT64"}]},
        ],
        "state": [{"input_name": "h", "output_name": "h_out", "data_type": "TYPE_FP32", "dims": [8]}],
    },
}


def document(config, signature=SIGNATURE):
    read = msgspec.convert(config, ModelConfig, strict=False)
    return config_document(name="m", runtime="onnxruntime", signature=signature, config=read)


def test_without_a_configuration_the_signature_says_it_all():
    found = document({})
    assert found["max_batch_size"] == 0
    assert found["input"] == [
        {"name": "x", "data_type": "TYPE_FP32", "dims": [-1, 4]},
        {"name": "word", "data_type": "TYPE_STRING", "dims": [-1]},
    ]
    assert found["output"] == [{"name": "y", "data_type": "TYPE_BF16", "dims": [-1, 3]}]
    assert (found["platform"], found["backend"]) == ("onnxruntime", "onnxruntime")
    assert found["version_policy"] == {"latest": {"num_versions": 1}}
    assert found["instance_group"] == [{"name": "m_0", "kind": "KIND_CPU", "count": 1}]
    assert "dynamic_batching" not in found
    assert "sequence_batching" not in found


def test_with_batches_the_rows_are_not_among_the_dimensions():
    found = document({"max_batch_size": 8})
    assert found["input"][0]["dims"] == [4]
    assert (found["input"][1]["dims"], found["input"][1]["reshape"]) == ([1], {"shape": []})


def test_what_was_configured_comes_back():
    found = document(FULL)
    for name in ("backend", "platform", "default_model_filename", "parameters", "version_policy"):
        assert found[name] == FULL[name]
    assert found["dynamic_batching"]["priority_queue_policy"][1]["max_queue_size"] == 7
    assert found["output"][0]["label_filename"] == "labels.txt"
    assert found["instance_group"][0]["rate_limiter"]["resources"] == [{"name": "r", "count": 2, "global": True}]


@pytest.mark.parametrize("config", [{}, FULL, SEQUENCES, {"version_policy": {"all": {}}}], ids=range(4))
def test_it_is_json_and_protobuf_alike(config):
    found = document(config)
    assert json.loads(msgspec.json.encode(found))["name"] == "m"
    message = messages().ModelConfig(**found)
    assert message.name == "m"
    assert message.input[0].data_type == messages().DataType.Value("TYPE_FP32")
    for choice in ("dynamic_batching", "sequence_batching"):
        assert message.HasField(choice) == (choice in config)
    if config == FULL:
        assert message.dynamic_batching.default_queue_policy.timeout_action == 1
        assert message.model_warmup[0].inputs["x"].zero_data is True
    if config == SEQUENCES:
        assert message.sequence_batching.oldest.max_candidate_sequences == 4
        assert message.sequence_batching.control_input[0].control[0].fp32_false_true == [0, 1]
        assert message.sequence_batching.control_input[1].control[0].data_type == 5
        assert message.sequence_batching.state[0].dims == [8]
    if "version_policy" in config:
        (choice,) = config["version_policy"]
        assert message.version_policy.WhichOneof("policy_choice") == choice


@pytest.mark.parametrize("datatype", Datatype)
def test_every_datatype_has_its_name(datatype):
    pytest.importorskip("google.protobuf")
    number = messages().DataType.Value(triton_datatype(datatype))
    assert number > 0
