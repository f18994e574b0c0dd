"""Counters as Prometheus text, exposition format 0.0.4.

`nv_inference_*` have Triton's names, labels and meaning, so that its dashboards work; `edgeserve_*` tell releases
apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Final

from edgeserve import __version__
from edgeserve.contracts.model_config import Isolation
from edgeserve.contracts.telemetry import LATENCY_BOUNDS_US
from edgeserve_agent.serving.counters import Counters, FailureReason
from edgeserve_agent.serving.dataplane import DataPlane
from edgeserve_agent.serving.messages import Reply, Request, Response
from edgeserve_agent.serving.rest.api import Route, get

CONTENT_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"

Labels = dict[str, str]
Sample = tuple[Labels, float]


def prometheus(plane: DataPlane, *, insecure: bool) -> str:
    """All metrics of a server."""
    counters = plane.counters()
    lines: list[str] = []
    lines += _family("edgeserve_build_info", "gauge", "Version of edgeserve.", [({"version": __version__}, 1)])
    insecure_help = "1 when the server was told to listen without TLS and token."
    lines += _family("edgeserve_insecure", "gauge", insecure_help, [({}, int(insecure))])
    lines += _triton(plane, counters)
    lines += _per_release(counters)
    lines += _histogram(counters)
    loaded: list[Sample] = [
        (
            {
                "model": served.identity.model,
                "version": served.identity.version,
                "release": served.identity.release,
                "variant": served.identity.variant,
                "executing_device": served.opened.model.executing_device,
            },
            int(active),
        )
        for served, active in plane.releases()
    ]
    lines += _family(
        "edgeserve_release_active", "gauge", "1 for the release that answers, 0 for others loaded.", loaded
    )
    fallen: list[Sample] = [
        (_labels(served.counters), int(bool(served.opened.model.fallback))) for served, _active in plane.releases()
    ]
    lines += _family(
        "edgeserve_release_fallback",
        "gauge",
        "1 for a release that another device runs than the one asked for.",
        fallen,
    )
    crashes: list[Sample] = [
        (_labels(served.counters), served.crashes)
        for served, _active in plane.releases()
        if served.config.isolation is Isolation.PROCESS
    ]
    lines += _family(
        "edgeserve_worker_crashes_total", "counter", "Worker processes of the model that ended unasked.", crashes
    )
    unknown: list[Sample] = [({"model": model}, count) for model, count in plane.unknown_feedback.items()]
    lines += _family("edgeserve_feedback_unknown_total", "counter", "Feedback for ids that are not known.", unknown)
    return "\n".join(lines) + "\n"


class Metrics:
    """`GET /metrics`."""

    def __init__(self, plane: DataPlane, *, insecure: bool) -> None:
        self._plane = plane
        self._insecure = insecure

    def route(self, parts: list[str]) -> Route | None:
        """Its one path."""
        return get(self._answer) if parts == ["metrics"] else None

    def _answer(self, _request: Request, reply: Reply) -> None:
        text = prometheus(self._plane, insecure=self._insecure)
        reply(Response(status=200, content_type=CONTENT_TYPE, chunks=(text.encode(),)))


_TRITON: Final[tuple[tuple[str, str, Callable[[Counters], float]], ...]] = (
    ("nv_inference_request_success", "Answered requests.", lambda one: one.successes),
    ("nv_inference_count", "Inferences: rows of answered requests.", lambda one: one.rows),
    ("nv_inference_exec_count", "Model executions.", lambda one: one.executions),
    ("nv_inference_request_duration_us", "Time in requests.", lambda one: (one.success_ns + one.failed.ns) / 1e3),
    ("nv_inference_queue_duration_us", "Time that requests waited.", lambda one: one.queue_ns / 1e3),
    ("nv_inference_compute_input_duration_us", "Time for inputs.", lambda one: one.input_ns / 1e3),
    ("nv_inference_compute_infer_duration_us", "Time in the runtime.", lambda one: one.infer_ns / 1e3),
    ("nv_inference_compute_output_duration_us", "Time for outputs.", lambda one: one.output_ns / 1e3),
)


def _triton(plane: DataPlane, counters: Sequence[Counters]) -> list[str]:
    # Two releases may have the same version; Triton's labels do not tell them apart, so they are added.
    versions: dict[tuple[str, str], list[Counters]] = {}
    for one in counters:
        versions.setdefault((one.model, one.version), []).append(one)
    labelled = [({"model": model, "version": version}, those) for (model, version), those in versions.items()]
    lines: list[str] = []
    for name, text, value in _TRITON:
        lines += _family(name, "counter", text, [(labels, sum(map(value, those))) for labels, those in labelled])
    failures: list[Sample] = [
        ({**labels, "reason": reason.value}, sum(one.failures[reason] for one in those))
        for labels, those in labelled
        for reason in FailureReason
    ]
    lines += _family("nv_inference_request_failure", "counter", "Requests not answered, by reason.", failures)
    pending: list[Sample] = [
        ({"model": served.identity.model, "version": served.identity.version}, served.scheduler.pending)
        for served, _active in plane.releases()
    ]
    lines += _family("nv_inference_pending_request_count", "gauge", "Requests that wait for their turn.", pending)
    return lines


def _per_release(counters: Iterable[Counters]) -> list[str]:
    families: dict[str, tuple[str, Callable[[Counters], int]]] = {
        "edgeserve_requests_total": ("Requests answered or failed.", lambda one: one.successes + one.failed.count),
        "edgeserve_request_failures_total": (
            "Requests that the server failed to answer.",
            lambda one: one.failed.count,
        ),
        "edgeserve_requests_rejected_total": ("Requests that were the client's mistake.", lambda one: one.rejected),
        "edgeserve_feedback_total": ("Rows with a true label.", lambda one: one.feedback),
        "edgeserve_feedback_correct_total": ("Rows whose true label was predicted.", lambda one: one.correct),
    }
    lines: list[str] = []
    for name, (text, value) in families.items():
        lines += _family(name, "counter", text, [(_labels(one), value(one)) for one in counters])
    return lines


def _histogram(counters: Iterable[Counters]) -> list[str]:
    name = "edgeserve_request_duration_seconds"
    bounds = [*(f"{bound / 1e6:g}" for bound in LATENCY_BOUNDS_US), "+Inf"]
    lines = [f"# HELP {name} Time in requests, queueing included.", f"# TYPE {name} histogram"]
    for one in counters:
        labels = _labels(one)
        for bound, count in zip(bounds, accumulate(one.latency), strict=True):
            lines.append(_line(f"{name}_bucket", {**labels, "le": bound}, count))
        lines.append(_line(f"{name}_sum", labels, (one.success_ns + one.failed.ns) / 1e9))
        lines.append(_line(f"{name}_count", labels, sum(one.latency)))
    return lines


def _labels(one: Counters) -> Labels:
    return {"model": one.model, "version": one.version, "release": one.release}


def _family(name: str, kind: str, text: str, samples: Iterable[Sample]) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}", *(_line(name, *sample) for sample in samples)]


def _line(name: str, labels: Labels, value: float) -> str:
    inner = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    number = str(int(value)) if value == int(value) else repr(float(value))
    return f"{name}{{{inner}}} {number}" if inner else f"{name} {number}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
