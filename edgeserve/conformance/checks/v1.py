"""Area `v1`: KServe's V1 protocol, where a server speaks it beside V2."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import quote

from edgeserve.conformance.check import Level, Skip, check
from edgeserve.conformance.http import Answer
from edgeserve.conformance.target import Model, Target
from edgeserve.contracts.tensors import Datatype

_KSERVE: Final = "KServe V1 protocol; KServe's TestV1Endpoints"
_TFS: Final = "TensorFlow Serving REST API, Predict"


@check("v1.model", level=Level.EXTENSION, source=_KSERVE)
def model_status(target: Target) -> None:
    """GET /v1/models/M names the model and says that it is ready, or has TensorFlow Serving's status."""
    answer = _v1(target)
    document = answer.document()
    kserve = document.get("name") == target.model.name and document.get("ready") is True
    answer.must(kserve or "model_version_status" in document, '"name" and "ready", or "model_version_status"')


@check("v1.models", level=Level.EXTENSION, source=_KSERVE)
def models(target: Target) -> None:
    """GET /v1/models lists the models."""
    _v1(target)
    answer = target.http.get("/v1/models").ok()
    listed = answer.document().get("models")
    answer.must(
        isinstance(listed, list) and target.model.name in map(str, listed),
        f"{target.model.name!r} in the list 'models'",
    )


@check("v1.unknown-model", level=Level.EXTENSION, source=_KSERVE)
def unknown_model(target: Target) -> None:
    """A model that does not exist is answered 404 with a JSON error."""
    _v1(target)
    for answer in (
        target.http.get("/v1/models/conformance-no-such-model"),
        target.http.post("/v1/models/conformance-no-such-model:predict", {"instances": [[0]]}),
    ):
        answer.refused()
        answer.must(answer.status == 404, "status 404")


@check("v1.predict", level=Level.EXTENSION, source=f"{_KSERVE}; {_TFS}")
def predict(target: Target) -> None:
    """POST /v1/models/M:predict with "instances" answers "predictions", one for each."""
    _v1(target)
    model = _one_input(target)
    rows = model.givens()[0].array.tolist()
    answer = target.http.post(f"/v1/models/{quote(model.name, safe='')}:predict", {"instances": rows})
    predictions = answer.ok().document().get("predictions")
    answer.must(predictions is not None, '"predictions"')


@check("v1.predict-malformed", level=Level.EXTENSION, source=f"{_KSERVE}; {_TFS}")
def predict_malformed(target: Target) -> None:
    """A predict request that is not JSON, or has no "instances" and "inputs", is refused."""
    _v1(target)
    path = f"/v1/models/{quote(target.model.name, safe='')}:predict"
    target.http.post(path, body=b"{oops", headers={"Content-Type": "application/json"}).refused()
    target.http.post(path, {"conformance": 1}).refused()


def _v1(target: Target) -> Answer:
    answer = target.http.get(f"/v1/models/{quote(target.model.name, safe='')}")
    if answer.status != 200:
        raise Skip(f"the server does not speak V1: GET /v1/models/{target.model.name} answers {answer.status}")
    return answer


def _one_input(target: Target) -> Model:
    usable: list[Any] = [
        model
        for model in target.models
        if len(model.inputs) == 1 and model.inputs[0].datatype is Datatype.FP32 and model.inputs[0].shape[:1] == (-1,)
    ]
    if not usable:
        raise Skip("needs a model with one FP32 input whose first dimension varies")
    return min(usable, key=lambda model: model.elements)  # type: ignore[no-any-return]
