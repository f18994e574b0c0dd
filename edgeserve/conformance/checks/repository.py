"""Area `repository`: list, load and unload models (`extension_model_repository.md`).

Only the model `lifecycle` of the suite's own repository is ever unloaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from edgeserve.conformance.check import Level, Skip, check
from edgeserve.conformance.http import Answer, model_path
from edgeserve.conformance.infer import outputs_of
from edgeserve.conformance.target import Model, Target

EXTENSION: Final = "model_repository"
MODEL: Final = "lifecycle"
_DOCUMENT: Final = "Triton, extension_model_repository"
_TESTS: Final = "Triton's L0_lifecycle"


@check("repository.index", level=Level.EXTENSION, source=_DOCUMENT, extension=EXTENSION)
def index(target: Target) -> None:
    """POST /v2/repository/index answers a list of all models with name, and version, state and reason as texts."""
    answer = target.http.post("/v2/repository/index", {})
    listed = _index(answer)
    names = {entry["name"] for entry in listed}
    missing = sorted({model.name for model in target.models} - names)
    answer.must(not missing, f"the models {missing} too")


@check(
    "repository.index-empty-body",
    level=Level.EXTENSION,
    source=f"{_DOCUMENT}; tritonclient sends none",
    extension=EXTENSION,
)
def index_empty_body(target: Target) -> None:
    """The index is answered to a request without a body."""
    _index(target.http.post("/v2/repository/index"))


@check("repository.index-ready", level=Level.EXTENSION, source=_DOCUMENT, extension=EXTENSION)
def index_ready(target: Target) -> None:
    """With "ready": true only models that are ready are listed."""
    answer = target.http.post("/v2/repository/index", {"ready": True})
    states = {entry.get("state") for entry in _index(answer)}
    answer.must(states <= {"READY", None, ""}, "only models in the state READY", repr(sorted(map(str, states))))


@check(
    "repository.index-wrong-ready",
    level=Level.SHOULD,
    source="Triton's L0_http: repository_index_deeply_nested_json",
    extension=EXTENSION,
)
def index_wrong_ready(target: Target) -> None:
    """A "ready" that is no boolean is refused."""
    target.http.post("/v2/repository/index", {"ready": [[True]]}).refused()


@check("repository.load-unknown", level=Level.EXTENSION, source=_DOCUMENT, extension=EXTENSION)
def load_unknown(target: Target) -> None:
    """Loading a model that the repository does not have is refused."""
    target.http.post("/v2/repository/models/conformance-no-such-model/load", {}).refused()


@check(
    "repository.load-traversal",
    level=Level.EXTENSION,
    source="Triton's L0_input_validation: model_name_invalid_load",
    extension=EXTENSION,
)
def load_traversal(target: Target) -> None:
    """Loading by a name that climbs out of the repository is refused."""
    for name in ("..%2F..%2Fetc", "%2e%2e", "a%2F..%2Fb", "%2Fetc%2Fpasswd"):
        answer = target.http.post(f"/v2/repository/models/{name}/load", {})
        answer.must(400 <= answer.status < 600, "an error status")


@check("repository.load-malformed", level=Level.EXTENSION, source=_DOCUMENT, extension=EXTENSION)
def load_malformed(target: Target) -> None:
    """A load request that is not JSON is refused."""
    target.named(MODEL)
    target.http.post(f"/v2/repository/models/{MODEL}/load", body=b"{oops").refused()


@check("repository.load-again", level=Level.EXTENSION, source=_TESTS, extension=EXTENSION)
def load_again(target: Target) -> None:
    """Loading a model that is loaded answers exactly 200, and it goes on serving."""
    with _lifecycle(target) as model:
        target.http.post(f"/v2/repository/models/{MODEL}/load", {}).ok()
        outputs_of(target.infer(model))


@check(
    "repository.load-empty-body",
    level=Level.EXTENSION,
    source=f"{_DOCUMENT}: parameters are optional",
    extension=EXTENSION,
)
def load_empty_body(target: Target) -> None:
    """A load request without a body is answered 200."""
    with _lifecycle(target):
        target.http.post(f"/v2/repository/models/{MODEL}/load").ok()


@check(
    "repository.unload", level=Level.EXTENSION, source=f"{_DOCUMENT}; MLServer's endpoint tests", extension=EXTENSION
)
def unload(target: Target) -> None:
    """After unload (exactly 200) the model is not ready, and inference on it is refused; the others serve on."""
    with _lifecycle(target) as model:
        target.http.post(f"/v2/repository/models/{MODEL}/unload", {}).ok()
        _until_unloaded(target)
        target.infer(model).refused()
        target.still_answers("unload of another model")


@check(
    "repository.load-after-unload",
    level=Level.EXTENSION,
    source=f"{_DOCUMENT}; MLServer's endpoint tests",
    extension=EXTENSION,
)
def load_after_unload(target: Target) -> None:
    """After load (exactly 200) an unloaded model is ready and serves at once."""
    with _lifecycle(target) as model:
        target.http.post(f"/v2/repository/models/{MODEL}/unload", {}).ok()
        target.http.post(f"/v2/repository/models/{MODEL}/load", {}).ok()
        target.http.get(f"{model_path(MODEL)}/ready").ok()
        outputs_of(target.infer(model))


@check("repository.unloaded-in-index", level=Level.SHOULD, source=_DOCUMENT, extension=EXTENSION)
def unloaded_in_index(target: Target) -> None:
    """An unloaded model is not READY in the index, and not among the ready ones."""
    with _lifecycle(target):
        target.http.post(f"/v2/repository/models/{MODEL}/unload", {}).ok()
        _until_unloaded(target)
        answer = target.http.post("/v2/repository/index", {})
        states = [entry.get("state") for entry in _index(answer) if entry["name"] == MODEL]
        answer.must("READY" not in states, "the model not READY", repr(states))
        answer = target.http.post("/v2/repository/index", {"ready": True})
        answer.must(MODEL not in [entry["name"] for entry in _index(answer)], "the model not among the ready ones")


@check("repository.unload-unknown", level=Level.EXTENSION, source=_DOCUMENT, extension=EXTENSION)
def unload_unknown(target: Target) -> None:
    """Unloading a model that was never there is answered 200, or refused with a JSON error."""
    answer = target.http.post("/v2/repository/models/conformance-no-such-model/unload", {})
    if answer.status != 200:
        answer.refused()


@check(
    "repository.unload-dependents",
    level=Level.EXTENSION,
    source=f"{_DOCUMENT}: unload_dependents",
    extension="model_repository(unload_dependents)",
)
def unload_dependents(target: Target) -> None:
    """The parameter "unload_dependents" is accepted."""
    with _lifecycle(target):
        path = f"/v2/repository/models/{MODEL}/unload"
        target.http.post(path, {"parameters": {"unload_dependents": True}}).ok()


@contextmanager
def _lifecycle(target: Target) -> Iterator[Model]:
    """The model that may be unloaded; loaded again in any case."""
    try:
        model = target.named(MODEL)
    except Skip:
        raise Skip(
            f"no model of yours is unloaded: needs the model {MODEL!r} of `edgeserve conformance --write-models DIR`"
        ) from None
    probe = target.http.post(f"/v2/repository/models/{MODEL}/load", {})
    if probe.status >= 400 and "not allowed" in probe.body.decode("latin-1"):
        raise Skip(f"the server does not let clients load models: {probe.shown}")
    try:
        yield model
    finally:
        target.http.post(f"/v2/repository/models/{MODEL}/load", {})


def _until_unloaded(target: Target) -> None:
    """Unloading may end after its answer: ask for readiness a few times."""
    for attempt in range(50):
        answer = target.http.get(f"{model_path(MODEL)}/ready")
        if answer.status != 200:
            return
        target.pause(0.02 * (attempt + 1))
    answer.must(answer.status != 200, "an unloaded model not to be ready")


def _index(answer: Answer) -> list[dict[str, Any]]:
    listed = answer.ok().json()
    answer.must(isinstance(listed, list) and all(isinstance(entry, dict) for entry in listed), "a list of objects")
    for entry in listed:
        answer.must(isinstance(entry.get("name"), str), "entries with a text 'name'")
        for field in ("version", "state", "reason"):
            answer.must(
                entry.get(field) is None or isinstance(entry[field], str), f"{field!r} to be a text, where there is one"
            )
    return list(listed)
