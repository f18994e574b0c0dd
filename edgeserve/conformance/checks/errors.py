"""Area `errors`: wrong requests get an error status and a JSON object with a text `error`, and hurt nobody else."""

from __future__ import annotations

from edgeserve.conformance.check import Body, Level, Skip, Violation, add, check
from edgeserve.conformance.http import model_path
from edgeserve.conformance.target import Target

_ABSENT = "conformance-no-such-model"
_CLIENTS = "tritonclient reads every error as JSON"


@check("errors.unknown-model", level=Level.MUST, source="OIP REST, Inference Response JSON Error Object")
def unknown_model(target: Target) -> None:
    """Inference on a model that does not exist is refused."""
    target.http.post(f"{model_path(_ABSENT)}/infer", {"inputs": []}).refused()


@check("errors.unknown-model-404", level=Level.SHOULD, source="KServe, MLServer and OVMS answer 404, Triton 400")
def unknown_model_404(target: Target) -> None:
    """The status for a model that does not exist is 404."""
    answer = target.http.get(model_path(_ABSENT))
    answer.must(answer.status == 404, "status 404")


@check("errors.unknown-model-metadata", level=Level.MUST, source="OIP REST, Model Metadata Response JSON Error Object")
def unknown_model_metadata(target: Target) -> None:
    """Metadata of a model that does not exist are refused."""
    target.http.get(model_path(_ABSENT)).refused()


@check("errors.unknown-model-ready", level=Level.MUST, source="OIP REST, Model Ready")
def unknown_model_ready(target: Target) -> None:
    """A model that does not exist is not ready: any status but 200."""
    answer = target.http.get(f"{model_path(_ABSENT)}/ready")
    answer.must(400 <= answer.status < 600, "an error status")


@check(
    "errors.unknown-version", level=Level.MUST, source="OIP REST, Inference: a version that the server does not have"
)
def unknown_version(target: Target) -> None:
    """Inference on a version that does not exist is refused."""
    if not target.model.versions:
        raise Skip(f"the metadata of {target.model.name!r} lists no versions")
    target.infer(target.model, version="99999").refused()


@check("errors.unknown-path", level=Level.SHOULD, source=_CLIENTS)
def unknown_path(target: Target) -> None:
    """A path that does not exist is answered 404, in JSON."""
    answer = target.http.get("/v2/conformance/no/such/path")
    answer.refused()
    answer.must(answer.status == 404, "status 404")


@check("errors.wrong-verb", level=Level.SHOULD, source=f"RFC 9110, 15.5.6; {_CLIENTS}")
def wrong_verb(target: Target) -> None:
    """GET where only POST is served, and POST where only GET is, are answered 405, in JSON."""
    for answer in (
        target.http.get(f"{model_path(target.model.name)}/infer"),
        target.http.post("/v2/health/live", {}),
    ):
        answer.refused()
        answer.must(answer.status == 405, "status 405")


@check("errors.content-type", level=Level.SHOULD, source="kserve's client reads errors only of application/json")
def content_type(target: Target) -> None:
    """Errors have exactly the content type application/json."""
    for answer in (
        target.http.get(model_path(_ABSENT)),
        target.http.post(f"{model_path(target.model.name)}/infer", body=b"{"),
    ):
        answer.must(answer.headers.get("content-type") == "application/json", "content-type: application/json")


_BODIES: dict[str, tuple[str, bytes]] = {
    "empty-body": ("An empty body is refused", b""),
    "malformed-json": ("A body that is not JSON is refused", b'{"inputs": [oops]}'),
    "truncated-json": ("JSON that ends too early is refused", b'{"inputs": [{"name": "x", "shape": [1'),
    "not-an-object": ("JSON that is no object is refused", b"[1, 2, 3]"),
    "no-inputs": ("A request without inputs is refused", b'{"id": "1"}'),
    "inputs-not-a-list": ("Inputs that are no list are refused", b'{"inputs": {"name": "x"}}'),
    "input-not-an-object": ("An input that is no object is refused", b'{"inputs": [7]}'),
    "two-documents": ("A second JSON document in the body is refused", b'{"inputs": []} {"inputs": []}'),
}


def _refuses(body: bytes) -> Body:
    def check_body(target: Target) -> None:
        answer = target.http.post(
            f"{model_path(target.model.name)}/infer", body=body, headers={"Content-Type": "application/json"}
        )
        answer.refused()

    return check_body


for _name, (_title, _body) in _BODIES.items():
    add(
        f"errors.{_name}",
        title=_title,
        level=Level.MUST,
        source="OIP REST, Inference Request JSON Object; Inference Response JSON Error Object",
        extension="",
        body=_refuses(_body),
    )


@check("errors.not-utf8", level=Level.SHOULD, source="RFC 8259, 8.1")
def not_utf8(target: Target) -> None:
    """A body that is not UTF-8 is refused, with an error that is."""
    target.http.post(f"{model_path(target.model.name)}/infer", body=b'{"id": "\xff\xfe", "inputs": []}').refused()


@check("errors.client-mistake", level=Level.SHOULD, source="RFC 9110, 15.5; OIP REST: typically 400")
def client_mistake(target: Target) -> None:
    """The status for every body that is no inference request is a 4xx: a 5xx would blame, and alarm, the server."""
    for _, body in _BODIES.values():
        target.http.post(f"{model_path(target.model.name)}/infer", body=body).refused(most=499)


@check("errors.deep-json", level=Level.MUST, source="Triton's L0_http: json_recursion_depth_limit")
def deep_json(target: Target) -> None:
    """JSON of a hundred thousand nested arrays is refused, and the server goes on."""
    body = b'{"inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    answer = target.http.post(f"{model_path(target.model.name)}/infer", body=body)
    answer.must(400 <= answer.status < 600, "an error status")
    target.still_answers("deeply nested JSON")


@check("errors.deep-json-4xx", level=Level.SHOULD, source=_CLIENTS)
def deep_json_4xx(target: Target) -> None:
    """JSON of two thousand nested arrays is called the client's mistake, a 4xx."""
    body = b'{"inputs": ' + b"[" * 2000 + b"]" * 2000 + b"}"
    target.http.post(f"{model_path(target.model.name)}/infer", body=body).refused(most=499)


@check("errors.path-traversal", level=Level.MUST, source="Triton's L0_input_validation: model_name_invalid")
def path_traversal(target: Target) -> None:
    """Model names that climb out of a repository are refused."""
    for name in ("..", "../..", "../../../../etc/passwd", "a/../b", "/etc/passwd"):
        answer = target.http.get(model_path(name))
        answer.must(400 <= answer.status < 500, "a 4xx status")


@check("errors.garbage", level=Level.MUST, source="RFC 9112, 3; a server must survive what is not HTTP")
def garbage(target: Target) -> None:
    """Bytes that are not HTTP end in 400 or a closed connection, and the server goes on."""
    for data in (
        b"\x00\x01\x02\x03" * 64 + b"\r\n\r\n",
        b"NOT HTTP\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nbroken header\r\n\r\n",
    ):
        received = target.http.raw(data)
        if received and received.split(b" ", 2)[1:2] == [b"200"]:
            raise Violation(sent=repr(data[:40]), expected="400 or a closed connection", got=repr(received[:80]))
    target.still_answers("bytes that are not HTTP")


@check("errors.lying-length", level=Level.MUST, source="RFC 9112, 6.3; a server must survive half a request")
def lying_length(target: Target) -> None:
    """A body shorter than its Content-Length is not answered 200, and the server goes on."""
    path = target.http.target(f"{model_path(target.model.name)}/infer")
    data = b'POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{"inputs": []}' % path
    received = target.http.raw(data)
    if received.split(b" ", 2)[1:2] == [b"200"]:
        raise Violation(sent=repr(data[:80]), expected="no 200", got=repr(received[:80]))
    target.still_answers("half a request")


@check("errors.recovery", level=Level.MUST, source="Triton's L0_http: the server is still working")
def recovery(target: Target) -> None:
    """After a row of wrong requests a right one is answered."""
    for _, body in _BODIES.values():
        target.http.post(f"{model_path(target.model.name)}/infer", body=body)
    target.still_answers("wrong requests")
