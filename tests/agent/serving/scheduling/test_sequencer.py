"""Sequences in a real server. What is asserted follows Triton's `qa/L0_sequence_batcher` and its implicit state."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edgeserve.contracts.errors import DeviceError, InputError, RejectedError, RequestCancelledError
from edgeserve.contracts.task import Kind, Task
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve_agent.serving.call import Sequence


def spec(name: str, datatype: Datatype = Datatype.FP32, shape: tuple[int, ...] = (-1, 1)) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape)


SUMS = Signature(
    inputs=(
        spec("start", Datatype.INT32),
        spec("x"),
        spec("state"),
        spec("ready", Datatype.BOOL),
        spec("end"),
        spec("id", Datatype.UINT64),
    ),
    outputs=(spec("y"), spec("new_state")),
)
CONTROLS = [
    {"name": "start", "control": [{"kind": "CONTROL_SEQUENCE_START", "int32_false_true": [0, 1]}]},
    {"name": "ready", "control": [{"kind": "CONTROL_SEQUENCE_READY", "bool_false_true": [False, True]}]},
    {"name": "end", "control": [{"kind": "CONTROL_SEQUENCE_END", "fp32_false_true": [0, 2.5]}]},
    {"name": "id", "control": [{"kind": "CONTROL_SEQUENCE_CORRID", "data_type": "TYPE_UINT64"}]},
]
STATE = [{"input_name": "state", "output_name": "new_state", "data_type": "TYPE_FP32", "dims": [1]}]


def running_sum(inputs):
    total = inputs["state"] + inputs["x"]
    if (inputs["x"] == 13).any():
        raise DeviceError("poison")
    return {"y": total + inputs["end"] * 100, "new_state": total}


def config(most: int = 4, *, instances: int = 1, **sequence_batching):
    return {
        "max_batch_size": most,
        "sequence_batching": {"control_input": CONTROLS, "state": STATE, **sequence_batching},
        "instance_group": [{"count": instances}],
    }


def step(bench, identity, x: float, *, start: bool = False, end: bool = False, **more):
    return bench.send(x, sequence=Sequence(id=identity, start=start, end=end), **more)


def y(sent) -> float:
    outputs = sent.result()
    return float(outputs["y"][0, 0])


@pytest.fixture
def sums(bench):
    return bench.model(running_sum, signature=SUMS)


STRATEGIES = [
    pytest.param({"direct": {}}, id="direct"),
    pytest.param({"oldest": {"max_candidate_sequences": 4}}, id="oldest"),
]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_state_is_carried_within_a_sequence_and_not_beyond(bench, sums, strategy):
    bench.serve(sums, config(**strategy))
    for _ in range(2):
        assert [
            y(step(bench, 5, 1, start=True)), y(step(bench, 5, 2)), y(step(bench, 5, 4, end=True))
        ] == [1, 3, 7 + 250]  # fmt: skip
    assert [int(inputs["start"][0, 0]) for inputs in sums.ran] == [1, 0, 0] * 2
    assert all(inputs["id"][0, 0] == 5 and inputs["ready"][0, 0] for inputs in sums.ran)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_sequences_that_run_together_keep_their_own_state(bench, sums, strategy):
    bench.serve(sums, config(**strategy))
    sums.gate.clear()
    blocker = step(bench, 99, 0, start=True)
    assert sums.entered.acquire(timeout=10)
    sent = [step(bench, number, number, start=True) for number in (1, 2)]
    sent += [step(bench, number, 10 * number, end=True) for number in (1, 2)]
    sums.gate.set()
    blocker.result()
    assert [y(one) for one in sent] == [1, 2, 11 + 250, 22 + 250]
    joined = [inputs for inputs in sums.ran if inputs["ready"].sum() == 2]
    assert len(joined) == 2
    for inputs in joined:
        rows = inputs["ready"][:, 0]
        assert list(inputs["id"][rows, 0]) == [1, 2]


def test_direct_fills_the_rows_of_others_with_zeros(bench, sums):
    bench.serve(sums, config(direct={}))
    step(bench, 1, 1, start=True).result()
    step(bench, 2, 2, start=True).result()
    assert y(step(bench, 2, 5)) == 7
    last = sums.ran[-1]
    assert last["x"].tolist() == [[0], [5]]
    assert last["ready"].tolist() == [[False], [True]]
    assert last["id"].tolist() == [[0], [2]]


@pytest.mark.parametrize(
    ("sequence", "words"),
    [
        (None, "inference request to model 'm' must specify a non-zero or non-empty correlation ID"),
        (
            Sequence(id=7),
            "inference request for sequence 7 to model 'm' must specify the START flag on the first request of the seq",
        ),
        (Sequence(id="text", start=True), "sequence id 'text' does not fit input 'id'"),
    ],
)
def test_requests_that_no_sequence_can_take_are_refused(bench, sums, sequence, words):
    served = bench.serve(sums, config(direct={}))
    error = bench.send(1, sequence=sequence).error()
    assert isinstance(error, InputError)
    assert words in str(error)
    assert served.counters.rejected == 1


def test_clients_must_not_send_what_the_server_adds(bench, sums):
    bench.serve(sums, config(direct={}))
    x = np.zeros((1, 1), np.float32)
    sequence = Sequence(id=1, start=True)
    error = bench.send(inputs={"x": x, "state": x}, sequence=sequence).error()
    assert "input 'state' is not one of the model's" in str(error)
    rows = bench.send(inputs={"x": np.zeros((2, 1), np.float32)}, sequence=sequence).error()
    assert "must specify batch-size 1" in str(rows)


def test_an_idle_sequence_is_forgotten(bench, sums, tools):
    bench.serve(sums, config(direct={}, max_sequence_idle_microseconds=20_000))
    step(bench, 1, 1, start=True).result()
    tools.until(lambda: not bench.plane.find("m").scheduler._sequences.active, "it is idle too long")
    assert "START" in str(step(bench, 1, 1).error())


def test_sequences_beyond_the_places_wait_for_one(bench, sums):
    bench.serve(sums, config(1, direct={}))
    first = step(bench, 1, 1, start=True)
    waiting = [step(bench, 2, 20, start=True), step(bench, 2, 2, end=True)]
    first.result()
    assert y(step(bench, 1, 1)) == 2
    assert not any(one.is_done for one in waiting)
    step(bench, 1, 1, end=True).result()
    assert [y(one) for one in waiting] == [20, 22 + 250]


def test_a_request_that_fails_leaves_the_state_of_all_as_it_was(bench, sums):
    bench.serve(sums, config(oldest={"max_candidate_sequences": 4}))
    for number in (1, 2):
        step(bench, number, number, start=True).result()
    sums.gate.clear()
    blocker = step(bench, 3, 0, start=True)
    assert sums.entered.acquire(timeout=10)
    poison, good = step(bench, 1, 13), step(bench, 2, 5)
    sums.gate.set()
    blocker.result()
    assert "poison" in str(poison.error())
    assert y(good) == 7
    assert y(step(bench, 1, 1)) == 2


def test_cancelled_requests_of_a_sequence_do_not_run(bench, sums):
    bench.serve(sums, config(direct={}))
    sums.gate.clear()
    first = step(bench, 1, 1, start=True)
    assert sums.entered.acquire(timeout=10)
    gone, last = step(bench, 1, 10), step(bench, 1, 100, end=True)
    bench.cancel(gone)
    sums.gate.set()
    first.result()
    assert isinstance(gone.error(), RequestCancelledError)
    assert y(last) == 101 + 250


def test_executions_are_counted_by_rows(bench, sums):
    served = bench.serve(sums, config(oldest={"max_candidate_sequences": 4}))
    sums.gate.clear()
    blocker = step(bench, 9, 0, start=True)
    assert sums.entered.acquire(timeout=10)
    sent = [step(bench, number, 1, start=True) for number in (1, 2, 3)]
    assert served.scheduler.pending == 3
    sums.gate.set()
    for one in (blocker, *sent):
        one.result()
    assert bench.executions() == {1: 1, 3: 1}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"control_input": [{"name": "nope", "control": [{"int32_false_true": [0, 1]}]}]}, "'nope' is not one of"),
        ({"control_input": [{"name": "start", "control": [{"fp32_false_true": [0, 1]}]}]}, "'start' is INT32"),
        ({"control_input": [{"name": "start", "control": [{"int32_false_true": [0]}]}]}, "'start' is INT32"),
        ({"control_input": [{"name": "x", "control": [{"kind": "CONTROL_SEQUENCE_CORRID"}]}]}, "holds no sequence id"),
        ({"state": [{"input_name": "x", "output_name": "nope"}]}, "state 'nope'"),
        ({"state": [{"input_name": "start", "output_name": "y"}]}, "of one datatype"),
    ],
)
def test_a_configuration_that_does_not_fit_the_model_is_refused_when_it_is_loaded(bench, sums, change, words):
    with pytest.raises(InputError, match=words):
        bench.serve(sums, config(**change))


def test_sequences_over_http_have_numbers_or_texts_as_ids(bench, connect, tools):
    signature = Signature(inputs=(spec("x"), spec("state")), outputs=(spec("y"), spec("new_state")))
    model = bench.model(
        lambda inputs: {"y": inputs["x"] + inputs["state"], "new_state": inputs["x"] + inputs["state"]},
        signature=signature,
    )
    bench.serve(model, {"max_batch_size": 2, "sequence_batching": {"oldest": {}, "state": STATE}})
    client = connect(bench.server)

    def infer(identity, value, **flags):
        body = tools.infer_json([[value]], shape=[1, 1], parameters={"sequence_id": identity, **flags})
        return client.send(tools.request("POST", "/v2/models/m/infer", body)).answer()

    for identity in (7, "seven"):
        answers = [infer(identity, 1, sequence_start=True), infer(identity, 2), infer(identity, 3, sequence_end=True)]
        outputs = [json.loads(answer.body)["outputs"] for answer in answers]
        assert [[output["name"] for output in one] for one in outputs] == [["y"]] * 3, "state is the server's"
        assert [one[0]["data"] for one in outputs] == [[1], [3], [6]]
    refused = infer("seven", 1)
    assert refused.status == 400
    assert "must specify the START flag" in refused.error
    metadata = client.send(tools.request("GET", "/v2/models/m")).answer().json
    assert [one["name"] for one in metadata["inputs"]] == ["x"]


VAD = Signature(
    inputs=(spec("input", shape=(-1, 3)), spec("state", shape=(2, -1, 4))),
    outputs=(spec("output", shape=(-1, 1)), spec("stateN", shape=(-1, -1, -1))),
)


def vad(inputs):
    state = inputs["state"] + inputs["input"].sum(axis=1)[None, :, None]
    return {"output": state[0, :, :1], "stateN": state}


TASK = Task(kind=Kind.REGRESSION, state={"state": "stateN"})


def listen(bench, identity, value: float, *, start: bool = False):
    inputs = {"input": np.full((1, 3), value, np.float32)}
    return bench.send(inputs=inputs, sequence=Sequence(id=identity, start=start))


def test_a_model_whose_task_has_state_takes_sequences_without_configuration(bench):
    bench.serve(bench.model(vad, signature=VAD), task=TASK)
    assert float(listen(bench, "a", 1, start=True).result()["output"][0, 0]) == 3
    assert float(listen(bench, "b", 2, start=True).result()["output"][0, 0]) == 6
    assert float(listen(bench, "a", 1).result()["output"][0, 0]) == 6


def test_clients_of_such_a_model_may_carry_the_state_themselves(bench):
    bench.serve(bench.model(vad, signature=VAD), task=TASK)
    inputs = {"input": np.ones((1, 3), np.float32), "state": np.zeros((2, 1, 4), np.float32)}
    outputs = bench.send(inputs=inputs).result()
    again = bench.send(inputs={**inputs, "state": outputs["stateN"]}).result()
    assert float(again["output"][0, 0]) == 6
    assert "state' is missing" in str(bench.send(inputs={"input": inputs["input"]}).error())


def test_states_whose_rows_are_not_the_first_axis_are_joined_along_theirs(bench):
    model = bench.model(vad, signature=VAD)
    bench.serve(model, {"max_batch_size": 4, "instance_group": [{"count": 1}]}, task=TASK)
    model.gate.clear()
    blocker = listen(bench, 9, 0, start=True)
    assert model.entered.acquire(timeout=10)
    first = [listen(bench, number, number, start=True) for number in (1, 2)]
    second = [listen(bench, number, number) for number in (1, 2)]
    model.gate.set()
    blocker.result()
    assert [float(one.result()["output"][0, 0]) for one in (*first, *second)] == [3, 6, 6, 12]
    assert [inputs["state"].shape for inputs in model.ran] == [(2, 1, 4), (2, 2, 4), (2, 2, 4)]
    assert all(one.result()["stateN"].flags.c_contiguous for one in second)


def test_state_that_comes_out_in_another_shape_is_the_models_failure(bench):
    model = bench.model(
        lambda inputs: {"output": inputs["input"][:, :1], "stateN": np.zeros(3, np.float32)}, signature=VAD
    )
    bench.serve(model, task=TASK)
    error = listen(bench, 1, 1, start=True).error()
    assert isinstance(error, DeviceError)
    assert not isinstance(error, RejectedError)
    assert "state 'stateN' came out as" in str(error)


@pytest.mark.parametrize("most", [0, 2], ids=["one by one", "together"])
def test_a_voice_detector_answers_over_v2_as_it_did_elsewhere(bench, connect, tools, realdata, tmp_path, most):
    """The state of Silero VAD (v5, ONNX) is kept by the server, chunk after chunk, for two streams at once."""
    import onnx
    from onnx import numpy_helper

    from edgeserve.runtimes.base import RuntimeOptions
    from edgeserve.runtimes.onnx import OnnxRuntime

    built = onnx.load(realdata / "models" / "silero_vad_16k_op15.onnx")
    built.graph.input.remove(next(one for one in built.graph.input if one.name == "sr"))
    built.graph.initializer.append(numpy_helper.from_array(np.array(16_000, np.int64), "sr"))
    onnx.save(built, tmp_path / "vad.onnx")
    steps = 60
    with np.load(realdata / "data" / "vad_streams_8x50s.npz") as stored:
        samples = stored["streams_int16_16khz"][:2, : steps * 512].astype(np.float32) / 32768
        expected = stored["float_prob_carried_state"][:2, :steps]
    chunks = samples.reshape(2, steps, 512)
    chunks = np.concatenate(
        [np.concatenate([np.zeros((2, 1, 64), np.float32), chunks[:, :-1, -64:]], axis=1), chunks], axis=2
    )
    model = OnnxRuntime().load(tmp_path / "vad.onnx", RuntimeOptions())
    bench.serve(model, {"max_batch_size": most}, task=Task(kind=Kind.REGRESSION, state={"state": "stateN"}))
    clients = [connect(bench.server) for _ in range(2)]
    answers = np.zeros((2, steps))
    for step_number in range(steps):
        for stream, client in enumerate(clients):
            body = tools.infer_json(
                chunks[stream, step_number].tolist(),
                shape=[1, 576],
                name="input",
                outputs=[{"name": "output"}],
                parameters={
                    "sequence_id": f"stream {stream}",
                    "sequence_start": step_number == 0,
                    "sequence_end": step_number == steps - 1,
                },
            )
            client.send(tools.request("POST", "/v2/models/m/infer", body))
        for stream, client in enumerate(clients):
            answers[stream, step_number] = client.answer().json["outputs"][0]["data"][0]
    np.testing.assert_allclose(answers, expected, atol=1e-4)
