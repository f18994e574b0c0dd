"""Models that share named resources, in a real server. What is asserted follows Triton's `qa/L0_rate_limiter`."""

from __future__ import annotations

import threading
import time

import pytest

from edgeserve.contracts.errors import InputError
from edgeserve_agent.serving.dataplane import DataPlane
from edgeserve_agent.serving.scheduling.build import SchedulerBuilder


def group(count: int = 1, priority: int = 1, **resources: int):
    needs = [{"name": name, "count": number} for name, number in resources.items()]
    return [{"count": count, "rate_limiter": {"resources": needs, "priority": priority}}]


class Meter:
    """Counts who runs at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.now = self.most = 0

    def compute(self, inputs):
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.001)
        with self._lock:
            self.now -= 1
        return {"y": inputs["x"]}


@pytest.mark.parametrize("batching", [{}, {"max_batch_size": 1, "dynamic_batching": {}}], ids=["direct", "batched"])
def test_models_that_need_the_same_resource_run_one_after_the_other(bench, batching):
    meter = Meter()
    for name in ("a", "b"):
        bench.serve(bench.model(meter.compute), {**batching, "instance_group": group(2, R=1)}, name=name)
    meter.most = 0
    sent = [bench.send(number, name=name) for number in range(8) for name in ("a", "b")]
    for one in sent:
        one.result()
    assert meter.most == 1


def test_models_that_share_nothing_run_side_by_side(bench):
    first, second = bench.model(), bench.model()
    bench.serve(first, {"instance_group": group(R=1)}, name="a")
    bench.serve(second, {"instance_group": group(S=1)}, name="b")
    blocker = bench.occupy(first, name="a")
    bench.send(1, name="b").result()
    assert not blocker.is_done
    first.gate.set()
    blocker.result()


def test_a_model_waits_until_all_that_it_needs_is_free(bench):
    small, big = bench.model(), bench.model()
    bench.serve(small, {"instance_group": group(R=1)}, name="small")
    bench.serve(big, {"instance_group": group(R=2, S=1)}, name="big")
    blocker = bench.occupy(small, name="small")
    waiting = bench.send(1, name="big")
    assert not big.entered.acquire(timeout=0.05)
    assert bench.plane.find("big").scheduler.pending == 1
    small.gate.set()
    blocker.result()
    waiting.result()


@pytest.mark.parametrize("batching", [{}, {"max_batch_size": 1, "dynamic_batching": {}}], ids=["direct", "batched"])
def test_a_model_of_priority_1_runs_twice_as_often_as_one_of_priority_2(bench, batching):
    ran: list[str] = []
    gate = bench.model()
    bench.serve(gate, {"instance_group": group(R=1)}, name="gate")
    for name, priority in (("high", 1), ("low", 2)):
        model = bench.model(lambda inputs, name=name: ran.append(name) or {"y": inputs["x"]})
        bench.serve(model, {**batching, "instance_group": group(priority=priority, R=1)}, name=name)
    ran.clear()
    blocker = bench.occupy(gate, name="gate")
    sent = [bench.send(number, name=name) for number in range(20) for name in ("high", "low")]
    gate.gate.set()
    for one in (blocker, *sent):
        one.result()
    assert len(ran) == 40
    assert ran[:30].count("high") in (19, 20)


def test_a_batch_grows_while_it_waits_for_a_resource(bench):
    blocking, batched = bench.model(), bench.model()
    bench.serve(blocking, {"instance_group": group(R=1)}, name="blocking")
    config = {"max_batch_size": 8, "dynamic_batching": {}, "instance_group": group(R=1)}
    bench.serve(batched, config, name="batched")
    blocker = bench.occupy(blocking, name="blocking")
    sent = [bench.send(number, name="batched") for number in range(3)]
    blocking.gate.set()
    for one in (blocker, *sent):
        one.result()
    assert bench.executions("batched") == {3: 1}


def test_a_model_that_leaves_frees_its_place(bench):
    first = bench.model()
    bench.serve(first, {"instance_group": group(R=2)}, name="a")
    bench.send(1, name="a").result()
    limiter = bench.plane.schedulers._admission.limiter
    assert limiter.maximum("R") == 2
    bench.server.call(bench.plane.unload, "a", bench.digest(1))
    bench.serve(bench.model(), {"instance_group": group(R=1)}, name="b")
    assert limiter.maximum("R") == 1
    bench.send(1, name="b").result()


def test_a_model_that_needs_more_than_there_is_is_refused_when_it_is_loaded(bench):
    plane: DataPlane = bench.plane
    bench.server.call(
        setattr,
        plane,
        "schedulers",
        SchedulerBuilder(bench.server.loop, instances=1, finish=plane._finish, resources={"R": 2}),
    )
    with pytest.raises(InputError, match="limited to 2"):
        bench.serve(bench.model(), {"instance_group": [*group(R=1), *group(R=3)]})
    bench.serve(bench.model(), {"instance_group": group(R=2)})
    bench.send(1).result()
