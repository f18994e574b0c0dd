"""Dynamic batching in a real server. What is asserted follows Triton's `qa/L0_batcher` and `qa/L0_model_queue`."""

from __future__ import annotations

import json
import logging
import threading
import time

import numpy as np
import pytest

from edgeserve.contracts.errors import DeviceError, InputError, RejectedError, RequestCancelledError
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec


def batching(most: int = 8, **config):
    return {"max_batch_size": most, "dynamic_batching": config, "instance_group": [{"count": 1}]}


def column(*values: float) -> np.ndarray:
    return np.array(values, np.float32).reshape(-1, 1)


@pytest.mark.parametrize(
    ("config", "rows", "executions"),
    [
        pytest.param({}, [1, 1, 1], {1: 1, 3: 1}, id="together"),
        pytest.param({}, [3, 3, 3], {1: 1, 3: 1, 6: 1}, id="up to the largest batch"),
        pytest.param({}, [8], {1: 1, 8: 1}, id="one as large as a batch"),
        pytest.param({"preferred_batch_size": [2, 6]}, [4, 2, 1], {1: 2, 6: 1}, id="preferred"),
        pytest.param({"preferred_batch_size": [2, 6]}, [1] * 5, {1: 2, 2: 2}, id="preferred twice"),
        pytest.param(
            {"preferred_batch_size": [4], "max_queue_delay_microseconds": 1000}, [1] * 7, {1: 1, 7: 1}, id="overdue"
        ),
    ],
)
def test_what_waits_for_an_instance_runs_together(bench, tools, config, rows, executions):
    model = bench.model()
    served = bench.serve(model, batching(**config))
    blocker = bench.occupy(model)
    sent = [bench.send(np.full((count, 1), number)) for number, count in enumerate(rows)]
    if "max_queue_delay_microseconds" in config:
        last = sent[-1].call
        waited_ns = config["max_queue_delay_microseconds"] * 1000
        tools.until(lambda: time.perf_counter_ns() >= last.arrived_ns + waited_ns, "the delay is over")
    model.gate.set()
    blocker.result()
    for number, (one, count) in enumerate(zip(sent, rows, strict=True)):
        np.testing.assert_array_equal(one.result()["y"], np.full((count, 1), number))
    assert bench.executions() == executions
    assert served.counters.successes == len(rows) + 1
    assert served.counters.rows == sum(rows) + 1


def test_a_call_alone_runs_when_its_delay_is_over(bench):
    model = bench.model()
    bench.serve(model, batching(max_queue_delay_microseconds=3000))
    sent = bench.send(5)
    assert sent.result()["y"] == 5
    assert sent.call.queue_ns >= 3_000_000


def test_a_full_batch_does_not_wait_for_its_delay(bench):
    bench.serve(bench.model(), batching(2, max_queue_delay_microseconds=60_000_000))
    sent = [bench.send(number) for number in range(2)]
    assert [float(one.result()["y"][0, 0]) for one in sent] == [0, 1]
    assert bench.executions() == {2: 1}


def test_requests_of_different_shapes_do_not_run_together(bench):
    model = bench.model()
    bench.serve(model, batching())
    blocker = bench.occupy(model)
    narrow, wide, wide2 = bench.send(np.ones((2, 1))), bench.send(np.ones((1, 3))), bench.send(np.ones((2, 3)))
    model.gate.set()
    blocker.result()
    assert [one.result()["y"].shape for one in (narrow, wide, wide2)] == [(2, 1), (1, 3), (2, 3)]
    assert bench.executions() == {1: 1, 2: 1, 3: 1}


def test_a_wrong_request_is_refused_before_it_gets_among_others(bench):
    model = bench.model()
    served = bench.serve(model, batching())
    blocker = bench.occupy(model)
    good = bench.send(1)
    bad = [
        bench.send(inputs={"x": np.zeros((1, 1))}),
        bench.send(inputs={"x": np.zeros(1, np.float32)}),
        bench.send(inputs={}),
        bench.send(np.zeros((9, 1))),
    ]
    assert all(isinstance(one.error(), InputError) for one in bad)
    assert "batch-size must be <= 8" in str(bad[-1].error())
    model.gate.set()
    blocker.result()
    good.result()
    assert served.counters.rejected == 4


def test_a_poisonous_request_fails_alone(bench):
    def compute(inputs):
        if (inputs["x"] == 13).any():
            raise DeviceError("poison")
        return {"y": inputs["x"]}

    model = bench.model(compute)
    served = bench.serve(model, batching())
    blocker = bench.occupy(model)
    sent = [bench.send(number) for number in (1, 13, 2)]
    model.gate.set()
    blocker.result()
    assert [float(sent[index].result()["y"][0, 0]) for index in (0, 2)] == [1, 2]
    assert "poison" in str(sent[1].error())
    assert served.counters.failed.count == 1
    assert len(model.ran) == 5, "the blocker, the batch, and each of three once"
    assert bench.executions() == {1: 3}


@pytest.mark.parametrize("declared", [(-1, -1), (3,)], ids=["by its shape", "by its declaration"])
def test_a_model_whose_outputs_are_not_rows_runs_one_by_one_and_says_so_once(bench, caplog, declared):
    signature = Signature(
        inputs=bench.signature.inputs,
        outputs=(TensorSpec(name="y", datatype=Datatype.FP32, shape=declared),),
    )
    shape = (3,) if len(declared) == 1 else (7, 3)
    model = bench.model(lambda inputs: {"y": np.full(shape, inputs["x"].sum(), np.float32)}, signature=signature)
    with caplog.at_level(logging.WARNING):
        bench.serve(model, batching(max_queue_delay_microseconds=1000))
        for _ in range(2):
            blocker = bench.occupy(model)
            sent = [bench.send(number) for number in (1, 2)]
            model.gate.set()
            blocker.result()
            assert [float(one.result()["y"].flat[0]) for one in sent] == [1, 2]
    assert bench.executions() == {1: 6}
    assert sum("is not batched" in record.getMessage() for record in caplog.records) == 1


def test_a_model_with_a_fixed_batch_is_refused_when_it_is_loaded(bench):
    signature = Signature(
        inputs=(TensorSpec(name="x", datatype=Datatype.FP32, shape=(1, 4)),), outputs=bench.signature.outputs
    )
    with pytest.raises(InputError, match=r"input 'x' is \[1, 4\]"):
        bench.serve(bench.model(lambda inputs: {"y": inputs["x"]}, signature=signature), batching())


def test_several_inputs_and_texts_are_joined_and_split(bench):
    signature = Signature(
        inputs=(
            TensorSpec(name="a", datatype=Datatype.INT32, shape=(-1, 2)),
            TensorSpec(name="b", datatype=Datatype.BYTES, shape=(-1,)),
        ),
        outputs=(
            TensorSpec(name="c", datatype=Datatype.INT32, shape=(-1, 2)),
            TensorSpec(name="d", datatype=Datatype.BYTES, shape=(-1,)),
        ),
    )
    model = bench.model(lambda inputs: {"c": inputs["a"] * 2, "d": inputs["b"]}, signature=signature)
    bench.serve(model, batching())

    def inputs(number: int, rows: int):
        return {
            "a": np.full((rows, 2), number, np.int32),
            "b": np.array([b"%d" % number] * rows, object),
        }

    model.gate.clear()
    blocker = bench.send(inputs=inputs(0, 1))
    assert model.entered.acquire(timeout=10)
    sent = [bench.send(inputs=inputs(number, number)) for number in (1, 2)]
    uneven = bench.send(inputs={**inputs(1, 1), "b": np.array([b"", b""], object)})
    assert "different batch sizes" in str(uneven.error())
    model.gate.set()
    blocker.result()
    for number, one in enumerate(sent, 1):
        outputs = one.result()
        np.testing.assert_array_equal(outputs["c"], np.full((number, 2), 2 * number))
        assert outputs["c"].flags.c_contiguous
        assert list(outputs["d"]) == [b"%d" % number] * number
    assert bench.executions() == {1: 1, 3: 1}


@pytest.mark.parametrize("hands_through", [True, False])
def test_joined_inputs_are_used_again_unless_they_became_outputs(bench, hands_through):
    model = bench.model(lambda inputs: {"y": inputs["x"] if hands_through else inputs["x"] + 0})
    bench.serve(model, batching())
    answers = []
    for value in (1, 2):
        blocker = bench.occupy(model)
        sent = [bench.send(value), bench.send(10 * value)]
        model.gate.set()
        blocker.result()
        answers += [one.result()["y"] for one in sent]
    assert [float(array[0, 0]) for array in answers] == [1, 10, 2, 20]
    first, second = [inputs["x"] for inputs in model.ran if len(inputs["x"]) == 2]
    assert np.shares_memory(first, second) != hands_through


def test_a_batch_says_how_it_went(bench):
    model = bench.model()
    bench.serve(model, batching())
    blocker = bench.occupy(model)
    first, second, third = (bench.send(0, id=name, with_timing=name != "b") for name in "abc")
    model.gate.set()
    blocker.result()
    for one in (first, second, third):
        one.result()
        assert one.call.batch == 3
        assert one.call.queue_ns > 0
        assert one.call.infer_ns > 0
    assert [one.call.mates for one in (first, second, third)] == [("b", "c"), (), ("a", "b")]
    assert [one.call.executes for one in (first, second, third)] == [True, False, False]


def test_a_full_queue_rejects_what_comes_then(bench):
    model = bench.model()
    served = bench.serve(model, batching(default_queue_policy={"max_queue_size": 2}))
    blocker = bench.occupy(model)
    sent = [bench.send(number) for number in range(4)]
    for rejected in sent[2:]:
        assert isinstance(rejected.error(), RejectedError)
        assert str(rejected.error()) == "Exceeds maximum queue size"
    model.gate.set()
    for one in (blocker, *sent[:2]):
        one.result()
    assert served.counters.failed.count == 2


def test_a_request_that_waits_too_long_is_rejected_while_the_instance_is_busy(bench):
    model = bench.model()
    policy = {"default_timeout_microseconds": 60_000_000, "allow_timeout_override": True}
    bench.serve(model, batching(default_queue_policy=policy))
    blocker = bench.occupy(model)
    patient, hasty = bench.send(1), bench.send(2, timeout_us=2000)
    error = hasty.error()
    assert isinstance(error, RejectedError)
    assert str(error) == "Request timeout expired"
    assert hasty.call.queue_ns >= 2_000_000
    assert not patient.is_done
    model.gate.set()
    blocker.result()
    patient.result()


def test_a_request_that_is_late_runs_behind_others_where_the_policy_says_so(bench):
    model = bench.model()
    policy = {"default_timeout_microseconds": 60_000_000, "allow_timeout_override": True, "timeout_action": "DELAY"}
    served = bench.serve(model, batching(1, default_queue_policy=policy))
    blocker = bench.occupy(model)
    late, punctual = bench.send(1, timeout_us=1), bench.send(2)
    assert served.scheduler.pending == 2
    model.gate.set()
    for one in (blocker, late, punctual):
        one.result()
    assert [float(inputs["x"][0, 0]) for inputs in model.ran] == [-1, 2, 1]


def test_higher_priorities_run_first(bench):
    model = bench.model()
    bench.serve(model, batching(1, priority_levels=3, default_priority_level=2))
    blocker = bench.occupy(model)
    sent = [bench.send(number, priority=priority) for number, priority in enumerate([3, 0, 1, 2, 1])]
    model.gate.set()
    for one in (blocker, *sent):
        one.result()
    assert [float(inputs["x"][0, 0]) for inputs in model.ran] == [-1, 2, 4, 1, 3, 0]


def test_cancelled_calls_do_not_run(bench):
    model = bench.model()
    served = bench.serve(model, batching())
    blocker = bench.occupy(model)
    gone, stays = bench.send(1), bench.send(2)
    bench.cancel(gone)
    model.gate.set()
    blocker.result()
    stays.result()
    assert isinstance(gone.error(), RequestCancelledError)
    assert [float(inputs["x"][0, 0]) for inputs in model.ran] == [-1, 2]
    assert served.counters.failures["CANCELED"] == 1


@pytest.mark.parametrize("in_order", [True, False])
def test_answers_keep_the_order_in_which_their_batches_began(bench, in_order):
    slow = threading.Event()

    def compute(inputs):
        if inputs["x"][0, 0] == 1:
            assert slow.wait(10)
        return {"y": inputs["x"]}

    config = batching(1, preserve_ordering=in_order)
    config["instance_group"] = [{"count": 2}]
    model = bench.model(compute)
    bench.serve(model, config)
    first = bench.send(1)
    assert model.entered.acquire(timeout=10)
    others = [bench.send(number) for number in (2, 3)]
    for _ in others:
        assert model.entered.acquire(timeout=10)
    if not in_order:
        for one in others:
            one.result()
    slow.set()
    for one in (first, *others):
        one.result()
    assert bench.order == ([first, *others] if in_order else [*others, first])


def test_without_batching_requests_run_one_by_one(bench):
    model = bench.model()
    bench.serve(model, {"instance_group": [{"count": 1}]})
    for _ in range(3):
        bench.send(1).result()
    assert bench.executions() == {1: 3}


def test_instances_run_side_by_side(bench):
    model = bench.model()
    config = batching()
    config["instance_group"] = [{"count": 2}]
    bench.serve(model, config)
    first = bench.occupy(model)
    second = bench.send(1)
    assert model.entered.acquire(timeout=10), "the second instance runs while the first does"
    waiting = [bench.send(number) for number in (2, 3)]
    model.gate.set()
    for one in (first, second, *waiting):
        one.result()
    assert bench.executions() == {1: 2, 2: 1}


def test_every_call_gets_its_own_rows_under_load(bench):
    config = batching(16, max_queue_delay_microseconds=200, preferred_batch_size=[4, 8], priority_levels=2)
    config["instance_group"] = [{"count": 2}]
    served = bench.serve(bench.model(lambda inputs: {"y": inputs["x"] * 2}), config)
    generator = np.random.default_rng(7)
    sent = []
    for _ in range(400):
        x = generator.random((generator.integers(1, 5), generator.integers(1, 3)), np.float32)
        sent.append((x, bench.send(x, priority=int(generator.integers(0, 3)))))
    for x, one in sent:
        np.testing.assert_array_equal(one.result()["y"], x * 2)
    assert served.counters.rows == sum(len(x) for x, _ in sent)
    assert sum(rows * count for rows, count in bench.executions().items()) == served.counters.rows
    assert max(bench.executions()) <= 16
    assert served.counters.executions < 400


def test_batches_and_full_queues_over_http(bench, connect, tools):
    model = bench.model()
    bench.serve(model, batching(default_queue_policy={"max_queue_size": 2}))
    blocker = bench.occupy(model)
    clients = [connect(bench.server) for _ in range(2)]
    for number, client in enumerate(clients):
        client.send(tools.request("POST", "/v2/models/m/infer", tools.infer_json([[number]], shape=[1, 1])))
    served = bench.plane.find("m")
    tools.until(lambda: served.scheduler.pending == 2, "both wait")
    refused = connect(bench.server)
    refused.send(tools.request("POST", "/v2/models/m/infer", tools.infer_json([[9]], shape=[1, 1])))
    answer = refused.answer()
    assert answer.status == 503
    assert "Exceeds maximum queue size" in answer.error
    model.gate.set()
    blocker.result()
    answers = [client.answer() for client in clients]
    assert [json.loads(answer.body)["outputs"][0]["data"] for answer in answers] == [[0], [1]]
    assert bench.executions() == {1: 1, 2: 1}
