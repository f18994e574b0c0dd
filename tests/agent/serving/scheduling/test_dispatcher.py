"""What batches and sequences have in common, in a real server."""

from __future__ import annotations

import pytest

from edgeserve.contracts.errors import DeviceError
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve_agent.serving.call import Sequence

X = TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1, 1))
STATE = TensorSpec(name="state", datatype=Datatype.FP32, shape=(-1, 1))
KEPT = Signature(
    inputs=(X, STATE),
    outputs=(
        TensorSpec(name="y", datatype=Datatype.FP32, shape=(-1, 1)),
        TensorSpec(name="left", datatype=Datatype.FP32, shape=(-1, 1)),
    ),
)


def together(**config):
    return {"max_batch_size": 8, "dynamic_batching": config}


def sequences(**config):
    state = [{"input_name": "state", "output_name": "left"}]
    return {"max_batch_size": 8, "sequence_batching": {"state": state, **config}}


SCHEDULERS = [
    pytest.param(together(), id="batches"),
    pytest.param(together(preserve_ordering=True), id="batches in order"),
    pytest.param(sequences(direct={}), id="rows of sequences"),
    pytest.param(sequences(oldest={}), id="oldest of sequences"),
    pytest.param(sequences(oldest={"preserve_ordering": True}), id="oldest of sequences in order"),
]


@pytest.mark.parametrize("unwritable", [1, 2], ids=["so far", "at all"])
@pytest.mark.parametrize("config", SCHEDULERS)
def test_an_answer_that_cannot_be_written_is_no_other_calls_affair(bench, config, unwritable: int):
    """The first of three that run together, and the second; each is answered once, and the model goes on."""
    stateful = "sequence_batching" in config
    model = (
        bench.model(lambda inputs: {"y": inputs["x"], "left": inputs["state"]}, signature=KEPT)
        if stateful
        else bench.model()
    )
    served = bench.serve(model, {**config, "instance_group": [{"count": 1}]})

    def send(number: int, **more):
        if stateful:
            more["sequence"] = Sequence(id=number + 10, start=True, end=True)
        return bench.send(number, **more)

    model.gate.clear()
    blocker = send(-1)
    assert model.entered.acquire(timeout=10)
    spoilt = [send(number, unwritable=unwritable) for number in (1, 2)]
    sent = [send(number) for number in (3, 4)]
    model.gate.set()
    blocker.result()
    assert [float(one.result()["y"][0, 0]) for one in sent] == [3, 4]
    assert [one.attempts for one in (blocker, *spoilt, *sent)] == [1, 2, 2, 1, 1]
    for one in spoilt:
        if unwritable == 1:
            assert isinstance(one.error(), DeviceError)
            assert "cannot be written" in str(one.error())
        assert one.is_done is (unwritable == 1)
    assert float(send(5).result()["y"][0, 0]) == 5
    assert (served.in_flight, served.scheduler.pending) == (0, 0)
