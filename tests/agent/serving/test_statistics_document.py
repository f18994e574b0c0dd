from __future__ import annotations

from edgeserve_agent.serving.call import Call
from edgeserve_agent.serving.counters import Counters, FailureReason
from edgeserve_agent.serving.statistics_document import model_statistics


def call(**how_it_went):
    made = Call(None, {}, lambda *_: None)
    for name, value in how_it_went.items():
        setattr(made, name, value)
    return made


def test_requests_rows_and_executions_are_counted_as_triton_does():
    counters = Counters(model="m", version="2", release="sha256:0")
    shared = {"arrived_ns": 5000, "batch": 5, "queue_ns": 10, "input_ns": 20, "infer_ns": 300, "output_ns": 40}
    counters.succeeded(call(**shared), 3, 6000)
    counters.succeeded(call(**shared, executes=False), 2, 7000)
    counters.failed_by(FailureReason.BACKEND, 500)
    counters.rejected += 1
    found = model_statistics(counters)
    assert (found["name"], found["version"]) == ("m", "2")
    assert (found["inference_count"], found["execution_count"]) == (5, 1)
    assert found["inference_stats"] == {
        "success": {"count": 2, "ns": 3000},
        "fail": {"count": 1, "ns": 500},
        "queue": {"count": 2, "ns": 20},
        "compute_input": {"count": 2, "ns": 40},
        "compute_infer": {"count": 2, "ns": 600},
        "compute_output": {"count": 2, "ns": 80},
        "cache_hit": {"count": 0, "ns": 0},
        "cache_miss": {"count": 0, "ns": 0},
    }
    assert found["batch_stats"] == [
        {
            "batch_size": 5,
            "compute_input": {"count": 1, "ns": 20},
            "compute_infer": {"count": 1, "ns": 300},
            "compute_output": {"count": 1, "ns": 40},
        }
    ]
    assert found["last_inference"] > 1.6e12
    assert (found["memory_usage"], found["response_stats"]) == ([], {})


def test_what_never_answered_has_statistics_too():
    found = model_statistics(Counters(model="m", version="1", release="sha256:0"))
    assert (found["inference_count"], found["last_inference"], found["batch_stats"]) == (0, 0, [])
