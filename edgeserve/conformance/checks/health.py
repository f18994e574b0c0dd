"""Area `core`: health and metadata."""

from __future__ import annotations

from edgeserve.conformance.check import Level, Skip, check
from edgeserve.conformance.http import Answer, model_path
from edgeserve.conformance.target import Target
from edgeserve.contracts.tensors import Datatype


@check("core.live", level=Level.MUST, source="OIP REST, Server Live")
def live(target: Target) -> None:
    """GET /v2/health/live answers 200."""
    target.http.get("/v2/health/live").ok()


@check("core.live-body", level=Level.SHOULD, source='OIP REST, Server Live Response; kserve\'s client reads "live"')
def live_body(target: Target) -> None:
    """GET /v2/health/live answers {"live": true}."""
    answer = target.http.get("/v2/health/live").ok()
    answer.must(answer.document().get("live") is True, '"live": true')


@check("core.ready", level=Level.MUST, source="OIP REST, Server Ready")
def ready(target: Target) -> None:
    """GET /v2/health/ready answers 200 while the models are ready."""
    target.http.get("/v2/health/ready").ok()


@check("core.ready-body", level=Level.SHOULD, source='OIP REST, Server Ready Response; kserve\'s client reads "ready"')
def ready_body(target: Target) -> None:
    """GET /v2/health/ready answers a JSON object with "ready" or "live" true."""
    answer = target.http.get("/v2/health/ready").ok()
    document = answer.document()
    answer.must(True in (document.get("ready"), document.get("live")), '"ready": true (or, as the text has it, "live")')


@check("core.server-metadata", level=Level.MUST, source="OIP REST, Server Metadata")
def server_metadata(target: Target) -> None:
    """GET /v2 answers "name", "version" and a list of "extensions", all texts."""
    answer = target.http.get("/v2").ok()
    document = answer.document()
    for field in ("name", "version"):
        answer.must(isinstance(document.get(field), str), f"a text {field!r}")
    extensions = document.get("extensions")
    answer.must(
        isinstance(extensions, list) and all(isinstance(name, str) for name in extensions),
        'a list of texts "extensions"',
    )


@check("core.model-metadata", level=Level.MUST, source="OIP REST, Model Metadata")
def model_metadata(target: Target) -> None:
    """GET /v2/models/M answers the name, platform, inputs and outputs with names, datatypes and shapes."""
    for model in target.models:
        _judge_metadata(target.http.get(model_path(model.name)), model.name)


@check("core.model-metadata-version", level=Level.MUST, source="OIP REST, Model Metadata")
def model_metadata_version(target: Target) -> None:
    """GET /v2/models/M/versions/V answers for each version that the metadata lists."""
    for version in _versions(target):
        _judge_metadata(target.http.get(model_path(target.model.name, version)), target.model.name)


@check("core.model-ready", level=Level.MUST, source="OIP REST, Model Ready")
def model_ready(target: Target) -> None:
    """GET /v2/models/M/ready answers 200 for a model that serves."""
    target.http.get(f"{model_path(target.model.name)}/ready").ok()


@check("core.model-ready-version", level=Level.MUST, source="OIP REST, Model Ready")
def model_ready_version(target: Target) -> None:
    """GET /v2/models/M/versions/V/ready answers 200 for each version that the metadata lists."""
    for version in _versions(target):
        target.http.get(f"{model_path(target.model.name, version)}/ready").ok()


@check("core.model-ready-body", level=Level.SHOULD, source="OIP REST, Model Ready Response; kserve's client reads it")
def model_ready_body(target: Target) -> None:
    """GET /v2/models/M/ready answers {"name": M, "ready": true}."""
    answer = target.http.get(f"{model_path(target.model.name)}/ready").ok()
    document = answer.document()
    answer.must(document.get("ready") is True, '"ready": true')
    answer.must(document.get("name") == target.model.name, f'"name": {target.model.name!r}')


@check("core.json-content-type", level=Level.SHOULD, source="kserve's client reads errors only of application/json")
def json_content_type(target: Target) -> None:
    """Metadata and inference answers have exactly the content type application/json."""
    for answer in (
        target.http.get("/v2"),
        target.http.get(model_path(target.model.name)),
        target.infer(target.model),
    ):
        answer.ok().must(answer.headers.get("content-type") == "application/json", "content-type: application/json")


@check("core.percent-encoded-name", level=Level.SHOULD, source="RFC 3986, 2.3; clients quote model names")
def percent_encoded_name(target: Target) -> None:
    """A model name is found by its percent-encoded form as well."""
    encoded = "".join(f"%{byte:02X}" for byte in target.model.name.encode())
    raw = target.http.raw(
        b"GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n"
        % (target.http.target(f"/v2/models/{encoded}"), target.http.host.encode())
    )
    answer = Answer(sent=f"GET /v2/models/{encoded}", status=_status(raw), headers={}, body=raw)
    answer.ok()


@check("core.query-string", level=Level.SHOULD, source="RFC 3986, 3.4")
def query_string(target: Target) -> None:
    """A query string that the server does not know changes nothing."""
    target.http.get(f"{model_path(target.model.name)}?trace=0").ok()


def _judge_metadata(answer: Answer, name: str) -> None:
    document = answer.ok().document()
    answer.must(document.get("name") == name, f'"name": {name!r}')
    answer.must(isinstance(document.get("platform"), str), 'a text "platform"')
    versions = document.get("versions", [])
    answer.must(
        versions is None or (isinstance(versions, list) and all(isinstance(version, str) for version in versions)),
        '"versions" to be a list of texts, where there is one',
    )
    known = {datatype.value for datatype in Datatype}
    for side in ("inputs", "outputs"):
        tensors = document.get(side)
        answer.must(isinstance(tensors, list), f"a list {side!r}")
        for tensor in tensors or ():
            answer.must(isinstance(tensor, dict) and isinstance(tensor.get("name"), str), f"{side} with names")
            answer.must(tensor.get("datatype") in known, f"a datatype of the protocol for {tensor['name']!r}")
            shape = tensor.get("shape")
            answer.must(
                isinstance(shape, list) and all(type(size) is int and size >= -1 for size in shape),
                f"a shape of whole numbers, -1 where it varies, for {tensor['name']!r}",
            )


def _versions(target: Target) -> tuple[str, ...]:
    if not target.model.versions:
        raise Skip(f"the metadata of {target.model.name!r} lists no versions")
    return target.model.versions


def _status(raw: bytes) -> int:
    words = raw.split(b" ", 2)
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
