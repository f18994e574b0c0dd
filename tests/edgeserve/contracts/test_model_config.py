"""Every number of a configuration has a range, and an error names the field."""

from __future__ import annotations

from typing import Any, Final

import msgspec
import pytest

from edgeserve.client.oip_proto import messages
from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import (
    MAX_BATCH_ROWS,
    MAX_INSTANCES,
    MAX_PRIORITY_LEVELS,
    MAX_QUEUE_DELAY_US,
    MAX_WAIT_US,
    MAX_WARMUP_RUNS,
)
from edgeserve.contracts.model_config import ModelConfig
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve_agent.serving.model_document import config_document

INT32: Final = (1 << 31) - 1
UINT32: Final = (1 << 32) - 1
INT64: Final = (1 << 63) - 1


def dynamic(**fields: Any) -> dict[str, Any]:
    return {"max_batch_size": MAX_BATCH_ROWS, "dynamic_batching": fields}


def queue(**fields: Any) -> dict[str, Any]:
    return dynamic(default_queue_policy=fields)


def sequences(**fields: Any) -> dict[str, Any]:
    return {"max_batch_size": MAX_BATCH_ROWS, "sequence_batching": fields}


def control(**fields: Any) -> dict[str, Any]:
    return sequences(control_input=[{"name": "start", "control": [fields]}])


def limiter(**fields: Any) -> dict[str, Any]:
    return {"instance_group": [{"rate_limiter": fields}]}


def warmup(**fields: Any) -> dict[str, Any]:
    return {"model_warmup": [{"name": "w", **fields}]}


NUMBERS: Final = {
    "max_batch_size": (lambda n: {"max_batch_size": n}, 0, MAX_BATCH_ROWS),
    "threads": (lambda n: {"threads": n}, 0, 1024),
    "version_labels": (lambda n: {"version_labels": {"canary": n}}, 1, INT64),
    "num_versions": (lambda n: {"version_policy": {"latest": {"num_versions": n}}}, 1, UINT32),
    "versions": (lambda n: {"version_policy": {"specific": {"versions": [n]}}}, 1, INT64),
    "instance_group": (lambda n: {"instance_group": [{"count": n}]}, 1, MAX_INSTANCES),
    "resource 'r'": (lambda n: limiter(resources=[{"name": "r", "count": n}]), 1, 1 << 20),
    "priority of a rate_limiter": (lambda n: limiter(priority=n), 0, UINT32),
    "dims of 'x'": (lambda n: {"input": [{"name": "x", "dims": [n]}]}, -1, INT64),
    "dims of 'y'": (lambda n: {"output": [{"name": "y", "dims": [n]}]}, -1, INT64),
    "model_warmup 'w': count": (lambda n: warmup(count=n), 0, MAX_WARMUP_RUNS),
    "model_warmup 'w': batch_size": (lambda n: warmup(batch_size=n), 1, MAX_BATCH_ROWS),
    "dims of a model_warmup": (
        lambda n: warmup(inputs={"x": {"data_type": "TYPE_FP32", "dims": [n]}}), -1, INT64,
    ),
    # Dynamic batching
    "max_queue_delay_microseconds": (lambda n: dynamic(max_queue_delay_microseconds=n), 0, MAX_QUEUE_DELAY_US),
    "preferred_batch_size": (lambda n: dynamic(preferred_batch_size=[1, n]), 1, MAX_BATCH_ROWS),
    "priority_levels": (lambda n: dynamic(priority_levels=n), 0, MAX_PRIORITY_LEVELS),
    "default_priority_level": (lambda n: dynamic(priority_levels=3, default_priority_level=n), 0, 3),
    "priority_queue_policy": (lambda n: dynamic(priority_levels=3, priority_queue_policy={n: {}}), 1, 3),
    "default_timeout_microseconds": (lambda n: queue(default_timeout_microseconds=n), 0, MAX_WAIT_US),
    "max_queue_size": (lambda n: queue(max_queue_size=n), 0, UINT32),
    # Sequences
    "max_sequence_idle_microseconds": (lambda n: sequences(max_sequence_idle_microseconds=n), 0, MAX_WAIT_US),
    "max_candidate_sequences": (lambda n: sequences(oldest={"max_candidate_sequences": n}), 0, INT32),
    "preferred_batch_size (oldest)": (
        lambda n: sequences(oldest={"preferred_batch_size": [n]}), 1, MAX_BATCH_ROWS,
    ),
    "max_queue_delay_microseconds (oldest)": (
        lambda n: sequences(oldest={"max_queue_delay_microseconds": n}), 0, MAX_QUEUE_DELAY_US,
    ),
    "max_queue_delay_microseconds (direct)": (
        lambda n: sequences(direct={"max_queue_delay_microseconds": n}), 0, MAX_QUEUE_DELAY_US,
    ),
    "minimum_slot_utilization": (lambda n: sequences(direct={"minimum_slot_utilization": n}), 0, 1),
    "dims of state 's'": (
        lambda n: sequences(state=[{"input_name": "s", "output_name": "t", "dims": [n]}]), -1, INT64,
    ),
    "int32_false_true": (lambda n: control(int32_false_true=[0, n]), -INT32 - 1, INT32),
    "fp32_false_true": (lambda n: control(fp32_false_true=[0, n]), -3.4028234e38, 3.4028234e38),
}  # fmt: skip
"""Field -> a configuration with a number in it, the least and the greatest that it may be."""

numbers = pytest.mark.parametrize(
    ("field", "config", "low", "high"), [pytest.param(field, *rest, id=field) for field, rest in NUMBERS.items()]
)


def read(document: dict[str, Any]) -> ModelConfig:
    return msgspec.json.decode(msgspec.json.encode(document), type=ModelConfig, strict=False)


@numbers
def test_a_number_beyond_its_range_is_refused_by_the_name_of_its_field(field: str, config, low, high):
    for value in (low * 1.0001 if isinstance(low, float) else low - 1, high * 1.0001 if high > 1e20 else high + 1):
        with pytest.raises(InputError) as caught:
            read(config(value))
        assert field.partition(" (")[0] in caught.value.message


@numbers
def test_whatever_a_configuration_may_say_can_be_answered_over_grpc(field: str, config, low, high):
    spec = TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1, 4))
    for value in (low, high):
        document = config_document(
            name="m", runtime="null", signature=Signature(inputs=(spec,), outputs=(spec,)), config=read(config(value))
        )
        messages().ModelConfigResponse(config=document).SerializeToString()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_in_no_range(value: float):
    with pytest.raises(InputError, match="minimum_slot_utilization"):
        msgspec.convert(sequences(direct={"minimum_slot_utilization": value}), ModelConfig)


@pytest.mark.parametrize(
    ("document", "says"),
    [
        pytest.param(sequences(direct={}, oldest={}), "both direct and oldest", id="two strategies"),
        pytest.param(
            {"max_batch_size": 4, "sequence_batching": {"oldest": {"preferred_batch_size": [5]}}},
            "preferred_batch_size 5 is above max_batch_size 4",
            id="more than a batch",
        ),
        pytest.param(
            {"instance_group": [{"count": MAX_INSTANCES}, {}]}, "count of all instance_groups together", id="threads"
        ),
        pytest.param(
            {"version_policy": {"all": {}, "latest": {}}}, "more than one of latest, all and specific", id="policies"
        ),
    ],
)
def test_what_contradicts_itself_is_refused(document: dict[str, Any], says: str):
    with pytest.raises(InputError, match=says):
        read(document)
