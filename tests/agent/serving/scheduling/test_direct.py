from __future__ import annotations

import pytest

from edgeserve.contracts.errors import RequestCancelledError


@pytest.mark.parametrize(
    "group", [{"count": 1}, {"count": 1, "rate_limiter": {"resources": [{"name": "R"}]}}], ids=["free", "limited"]
)
def test_cancelled_calls_do_not_run(bench, group):
    model = bench.model()
    served = bench.serve(model, {"isolation": "process", "instance_group": [group]})
    blocker = bench.occupy(model)
    gone, stays = bench.send(1), bench.send(2)
    assert served.scheduler.pending == 3
    bench.cancel(gone)
    model.gate.set()
    for one in (blocker, stays):
        one.result()
    assert isinstance(gone.error(), RequestCancelledError)
    assert [float(inputs["x"][0, 0]) for inputs in model.ran] == [-1, 2]
    assert served.scheduler.pending == 0


def test_an_instance_group_says_how_many_run_side_by_side(bench):
    model = bench.model()
    bench.serve(model, {"isolation": "process", "instance_group": [{"count": 1}, {"count": 2}]})
    model.gate.clear()
    sent = [bench.send(number) for number in range(4)]
    for _ in range(3):
        assert model.entered.acquire(timeout=10)
    assert not model.entered.acquire(timeout=0.05)
    model.gate.set()
    for one in sent:
        one.result()
