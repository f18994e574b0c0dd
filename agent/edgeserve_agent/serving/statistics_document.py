"""Counters in the words of Triton's "Statistics" extension; REST and gRPC answer with the same. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from edgeserve_agent.serving.counters import BatchStats, Counters

if TYPE_CHECKING:
    from edgeserve_agent.serving.dataplane import DataPlane
    from edgeserve_agent.serving.served import ServedRelease


def statistics_document(plane: DataPlane, model: str = "", version: str = "") -> dict[str, Any]:
    """`ModelStatisticsResponse` of what is loaded: of everything, of one model, or of one version of it.

    Raises:
        NotFoundError, TransientError: As `DataPlane.find`.
    """
    chosen: Iterable[ServedRelease]
    if not model:
        chosen = (served for served, _ in plane.releases())
    elif version:
        chosen = (plane.find(model, version),)
    else:
        chosen = plane.loaded(model) or (plane.find(model),)
    return {"model_stats": [model_statistics(served.counters) for served in chosen]}


def model_statistics(counters: Counters) -> dict[str, Any]:
    """`ModelStatistics`: durations in nanoseconds, `last_inference` in milliseconds since 1970."""
    done = counters.successes
    return {
        "name": counters.model,
        "version": counters.version,
        "last_inference": counters.last_ms,
        "inference_count": counters.rows,
        "execution_count": counters.executions,
        "inference_stats": {
            "success": _duration(done, counters.success_ns),
            "fail": _duration(counters.failed.count, counters.failed.ns),
            "queue": _duration(done, counters.queue_ns),
            "compute_input": _duration(done, counters.input_ns),
            "compute_infer": _duration(done, counters.infer_ns),
            "compute_output": _duration(done, counters.output_ns),
            "cache_hit": _duration(0, 0),
            "cache_miss": _duration(0, 0),
        },
        "batch_stats": [_batch(size, batch) for size, batch in sorted(counters.batches.items())],
        "memory_usage": [],
        "response_stats": {},
    }


def _batch(size: int, batch: BatchStats) -> dict[str, Any]:
    return {
        "batch_size": size,
        "compute_input": _duration(batch.count, batch.input_ns),
        "compute_infer": _duration(batch.count, batch.infer_ns),
        "compute_output": _duration(batch.count, batch.output_ns),
    }


def _duration(count: int, ns: int) -> dict[str, int]:
    return {"count": count, "ns": ns}
