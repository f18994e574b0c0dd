"""Areas `statistics` and `configuration`: what the server says of its models' work and settings."""

from __future__ import annotations

from typing import Any, Final

from edgeserve.conformance.check import Level, Skip, check
from edgeserve.conformance.http import Answer, model_path
from edgeserve.conformance.infer import outputs_of
from edgeserve.conformance.target import Target

EXTENSION: Final = "statistics"
_DOCUMENT: Final = "Triton, extension_statistics"
_DURATIONS: Final = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")


@check("statistics.document", level=Level.EXTENSION, source=_DOCUMENT, extension=EXTENSION)
def document(target: Target) -> None:
    """GET /v2/models/M/stats gives counts and durations for each version of the model."""
    answer, found = _stats(target)
    answer.must(found.get("name") == target.model.name, f'"name": {target.model.name!r}')
    answer.must(isinstance(found.get("version"), str), 'a text "version"')
    for field in ("last_inference", "inference_count", "execution_count"):
        answer.must(type(found.get(field)) is int, f"a whole number {field!r}")
    inner = found.get("inference_stats")
    answer.must(isinstance(inner, dict), 'an object "inference_stats"')
    for name in _DURATIONS:
        duration = (inner or {}).get(name)
        whole = isinstance(duration, dict) and all(type(duration.get(part)) is int for part in ("count", "ns"))
        answer.must(whole, f'"{name}" with whole numbers "count" and "ns"')
    answer.must(isinstance(found.get("batch_stats", []), list), 'a list "batch_stats"')


@check("statistics.all-models", level=Level.EXTENSION, source=_DOCUMENT, extension=EXTENSION)
def all_models(target: Target) -> None:
    """GET /v2/models/stats gives every model."""
    answer = target.http.get("/v2/models/stats").ok()
    listed = answer.document().get("model_stats")
    answer.must(isinstance(listed, list), 'a list "model_stats"')
    names = {entry.get("name") for entry in listed or ()}
    missing = sorted({model.name for model in target.models} - names)
    answer.must(not missing, f"the models {missing} too")


@check("statistics.version", level=Level.EXTENSION, source=_DOCUMENT, extension=EXTENSION)
def version(target: Target) -> None:
    """GET /v2/models/M/versions/V/stats gives that version."""
    if not target.model.versions:
        raise Skip(f"the metadata of {target.model.name!r} lists no versions")
    wanted = target.model.versions[0]
    answer = target.http.get(f"{model_path(target.model.name, wanted)}/stats").ok()
    listed = answer.document().get("model_stats")
    answer.must([entry.get("version") for entry in listed or ()] == [wanted], f"the version {wanted!r}")


@check(
    "statistics.growth", level=Level.EXTENSION, source=f"{_DOCUMENT}; perf_analyzer counts on it", extension=EXTENSION
)
def growth(target: Target) -> None:
    """Three requests raise inference_count, success.count and queue.count by three, and their time by some."""
    _, before = _stats(target)
    for _ in range(3):
        outputs_of(target.infer(target.model))
    answer, after = _stats(target)
    grown = after["inference_count"] - before["inference_count"]
    answer.must(grown == 3, "inference_count to grow by 3", str(grown))
    for name in ("success", "queue", "compute_infer"):
        count = _duration(after, name)["count"] - _duration(before, name)["count"]
        answer.must(count == 3, f"{name}.count to grow by 3", str(count))
    time = _duration(after, "success")["ns"] - _duration(before, "success")["ns"]
    answer.must(time > 0, "success.ns to grow", str(time))


@check("statistics.execution", level=Level.EXTENSION, source=f"{_DOCUMENT}: execution_count", extension=EXTENSION)
def execution(target: Target) -> None:
    """The execution_count grows by at least one and by no more than the requests."""
    _, before = _stats(target)
    for _ in range(3):
        outputs_of(target.infer(target.model))
    answer, after = _stats(target)
    grown = after["execution_count"] - before["execution_count"]
    answer.must(1 <= grown <= 3, "execution_count to grow by 1 to 3", str(grown))


@check(
    "statistics.last-inference",
    level=Level.EXTENSION,
    source=f"{_DOCUMENT}: milliseconds since the epoch",
    extension=EXTENSION,
)
def last_inference(target: Target) -> None:
    """The last_inference is in milliseconds and never goes back."""
    outputs_of(target.infer(target.model))
    answer, first = _stats(target)
    outputs_of(target.infer(target.model))
    _, second = _stats(target)
    answer.must(first["last_inference"] > 1_500_000_000_000, "milliseconds since 1970", str(first["last_inference"]))
    answer.must(second["last_inference"] >= first["last_inference"], "a later time", str(second["last_inference"]))


@check(
    "statistics.refused", level=Level.EXTENSION, source=f"{_DOCUMENT}: success counts successes", extension=EXTENSION
)
def refused(target: Target) -> None:
    """A request that is refused does not count as a success."""
    _, before = _stats(target)
    target.infer(target.model, [])
    answer, after = _stats(target)
    count = _duration(after, "success")["count"] - _duration(before, "success")["count"]
    answer.must(count == 0, "success.count as before", f"+{count}")


@check("statistics.unknown-model", level=Level.EXTENSION, source=_DOCUMENT, extension=EXTENSION)
def unknown_model(target: Target) -> None:
    """Statistics of a model that does not exist are refused."""
    target.http.get("/v2/models/conformance-no-such-model/stats").refused()


@check(
    "configuration.document",
    level=Level.EXTENSION,
    source="Triton, extension_model_configuration",
    extension="model_configuration",
)
def configuration(target: Target) -> None:
    """GET /v2/models/M/config gives name, max_batch_size, and inputs and outputs with data types and dims."""
    for model in target.models:
        answer = target.http.get(f"{model_path(model.name)}/config").ok()
        found = answer.document()
        answer.must(found.get("name") == model.name, f'"name": {model.name!r}')
        answer.must(type(found.get("max_batch_size", 0)) is int, 'a whole number "max_batch_size"')
        for side, specs in (("input", model.inputs), ("output", model.outputs)):
            tensors = found.get(side)
            answer.must(isinstance(tensors, list), f"a list {side!r}")
            names = {tensor.get("name") for tensor in tensors or ()}
            answer.must(
                names >= {spec.name for spec in specs}, f"the {side}s of the metadata", f"{sorted(map(str, names))}"
            )
            for tensor in tensors or ():
                fits = str(tensor.get("data_type")).startswith("TYPE_") and isinstance(tensor.get("dims"), list)
                answer.must(fits, f"data_type TYPE_... and dims for {tensor.get('name')!r}")


@check(
    "configuration.unknown-model",
    level=Level.EXTENSION,
    source="Triton, extension_model_configuration",
    extension="model_configuration",
)
def configuration_unknown(target: Target) -> None:
    """The configuration of a model that does not exist is refused."""
    target.http.get("/v2/models/conformance-no-such-model/config").refused()


def _stats(target: Target) -> tuple[Answer, dict[str, Any]]:
    """The entry of the version that answers: the one with the highest count."""
    answer = target.http.get(f"{model_path(target.model.name)}/stats").ok()
    listed = answer.document().get("model_stats")
    answer.must(
        isinstance(listed, list) and listed and all(isinstance(entry, dict) for entry in listed), 'a list "model_stats"'
    )
    entries = listed or []
    return answer, dict(max(entries, key=lambda entry: int(entry.get("inference_count", 0))))


def _duration(entry: dict[str, Any], name: str) -> dict[str, int]:
    return dict((entry.get("inference_stats") or {}).get(name) or {"count": 0, "ns": 0})
