"""Every kind of check finds a server that breaks its rule: a real server behind a proxy that spoils one thing."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace

import pytest

pytestmark = pytest.mark.system
HEAD_LENGTH = "Inference-Header-Content-Length"


def answers(matches, change):
    """Spoil the answers to the requests that match."""

    def fault(asked, forward):
        answer = forward(asked)
        return change(answer) if matches(asked, answer) else answer

    return fault


def path(end, *, verb=""):
    return lambda asked, answer: asked.path.split("?")[0].endswith(end) and verb in ("", asked.verb)


def inferred(asked, answer):
    return asked.path.endswith("/infer") and answer.status == 200 and HEAD_LENGTH not in answer.headers


def inferred_binary(asked, answer):
    return asked.path.endswith("/infer") and answer.status == 200 and HEAD_LENGTH in answer.headers


def refused(asked, answer):
    return answer.status >= 400


def outputs(change):
    """Change each output of a JSON answer."""
    return lambda answer: answer.changed(outputs=[{**output, **change(output)} for output in answer.json["outputs"]])


def requests(change):
    """Spoil what the server is asked."""
    return lambda asked, forward: forward(change(asked) if asked.path.endswith("/infer") else asked)


def without(document, key):
    return {name: value for name, value in document.items() if name != key}


def ignoring(key):
    """A server that does not look at a key of the request."""

    def change(asked):
        try:
            document = json.loads(asked.body)
        except ValueError:
            return asked
        if not isinstance(document, dict) or HEAD_LENGTH in asked.headers:
            return asked
        return replace(asked, body=json.dumps(without(document, key)).encode())

    return requests(change)


def forgiving(asked, forward):
    """A server that answers 200 whatever it is asked."""
    answer = forward(asked)
    if answer.status < 400:
        return answer
    return replace(answer, status=200, body=b'{"model_name": "simple", "outputs": []}')


def plain_text_errors(answer):
    return replace(answer, body=b"Bad Request", headers={"Content-Type": "text/plain"})


def cut_binary(answer):
    return replace(answer, body=answer.body[:-1])


FAULTS = {
    "live says 202": (answers(path("/live"), lambda answer: replace(answer, status=202)), {"core.live"}),
    "live has no body": (
        answers(path("/live", verb="GET"), lambda answer: replace(answer, body=b"")),
        {"core.live-body"},
    ),
    "ready says 503": (answers(path("/v2/health/ready"), lambda answer: replace(answer, status=503)), {"core.ready"}),
    "metadata without version": (
        answers(path("/v2"), lambda answer: answer.changed(version=None)),
        {"core.server-metadata"},
    ),
    "model ready says false": (
        answers(path("/simple/ready"), lambda answer: answer.changed(ready=False)),
        {"core.model-ready-body"},
    ),
    "metadata of a model without platform": (
        answers(path("/models/simple"), lambda answer: answer.changed(platform=None)),
        {"core.model-metadata"},
    ),
    "content type with charset": (
        answers(inferred, lambda answer: replace(answer, headers={"Content-Type": "application/json; charset=utf-8"})),
        {"core.json-content-type"},
    ),
    "201 for an inference": (answers(inferred, lambda answer: replace(answer, status=201)), {"core.infer"}),
    "no model_name": (answers(inferred, lambda answer: answer.changed(model_name=None)), {"core.model-name"}),
    "a version that does not exist": (
        answers(inferred, lambda answer: answer.changed(model_version="77")),
        {"core.model-version", "core.infer-version"},
    ),
    "outputs with another datatype": (
        answers(inferred, outputs(lambda output: {"datatype": "INT64"})),
        {"core.all-outputs"},
    ),
    "outputs whose data do not fill the shape": (
        answers(inferred, outputs(lambda output: {"data": output["data"][:-1]})),
        {"core.infer", "core.infer-every-model", "core.add-sub"},
    ),
    "sum and difference changed places": (
        answers(
            lambda asked, answer: inferred(asked, answer) and "simple" in asked.path,
            lambda answer: answer.changed(
                outputs=[
                    {**output, "name": {"OUTPUT0": "OUTPUT1", "OUTPUT1": "OUTPUT0"}[output["name"]]}
                    for output in answer.json["outputs"]
                ]
            ),
        ),
        {"core.add-sub", "core.batch", "core.requested-output"},
    ),
    "all outputs whatever is requested": (ignoring("outputs"), {"core.requested-output"}),
    "id not echoed": (
        answers(inferred, lambda answer: answer.changed(id=None)),
        {"ids.echoed", "ids.uuid", "ids.unicode", "ids.escapes", "ids.repeated", "ids.concurrent", "ids.long"},
    ),
    "id cut to ASCII": (
        answers(
            inferred,
            lambda answer: answer.changed(id=answer.json.get("id", "").encode("ascii", "ignore").decode()),
        ),
        {"ids.unicode"},
    ),
    "errors as plain text": (
        answers(refused, plain_text_errors),
        {
            "errors.unknown-model",
            "errors.unknown-model-metadata",
            "errors.malformed-json",
            "errors.empty-body",
            "errors.unknown-path",
            "errors.content-type",
            "input-validation.no-name",
            "input-validation.too-few-elements",
            "input-validation.negative-dimension",
        },
    ),
    "the error is an object": (
        answers(refused, lambda answer: answer.with_json({"error": {"message": "no"}})),
        {"errors.unknown-model", "errors.no-inputs"},
    ),
    "500 for the client's mistake": (
        answers(refused, lambda answer: replace(answer, status=500)),
        {"errors.client-mistake", "input-validation.client-mistake", "errors.unknown-model-404", "errors.wrong-verb"},
    ),
    "200 whatever comes": (
        forgiving,
        {
            "errors.unknown-model",
            "errors.unknown-version",
            "errors.truncated-json",
            "errors.path-traversal",
            "errors.deep-json",
            "input-validation.unknown-datatype",
            "input-validation.text-in-numbers",
            "input-validation.missing-input",
            "input-validation.unknown-input",
            "input-validation.unknown-output",
            "input-validation.duplicate-input",
            "input-validation.fixed-dimension",
            "input-validation.out-of-range",
            "input-validation.ragged",
            "binary.size-too-small",
            "binary.size-too-large",
            "binary.bytes-left",
            "binary.bytes-missing",
            "binary.header-too-long",
            "binary.header-not-a-number",
            "binary.raw-uneven",
            "binary.raw-two-inputs",
            "bytes.json-too-few",
            "bytes.binary-length-beyond",
            "bytes.binary-cut-length",
            "bytes.binary-too-many",
            "fp16.fp16-odd-size",
            "zero-size.data-for-nothing",
            "zero-size.nothing-for-data",
            "compression.broken",
            "compression.unknown",
            "overflow.json-element-count",
            "overflow.json-enormous",
        },
    ),
    "numbers as doubles": (
        answers(
            lambda asked, answer: inferred(asked, answer) and "int64" in asked.path,
            outputs(lambda output: {"data": [int(float(value)) for value in output["data"]]}),
        ),
        {"core.json-int64-exact"},
    ),
    "NaN as a bare word that is no number": (
        answers(
            lambda asked, answer: "nan_inf" in asked.path and asked.path.endswith("/infer"),
            lambda answer: replace(answer, status=200, headers={"Content-Type": "application/json"}, body=b"[nan]"),
        ),
        {"core.nan-output"},
    ),
    "binary outputs ignored": (
        ignoring("parameters"),
        {"binary.output-all"},
    ),
    "binary data a byte short": (
        answers(inferred_binary, cut_binary),
        {"binary.output", "binary.int32", "binary.raw", "bytes.binary", "fp16.fp16-binary"},
    ),
    "binary data with their bits turned": (
        answers(inferred_binary, lambda answer: replace(answer, body=answer.body[:-1] + bytes([answer.body[-1] ^ 1]))),
        {"binary.output", "binary.fp32", "binary.uint8", "binary.nan", "fp16.fp16-binary"},
    ),
    "no header for binary data": (
        answers(inferred_binary, lambda answer: replace(answer, headers=without(answer.headers, HEAD_LENGTH))),
        {"binary.output", "binary.raw"},
    ),
    "texts cut at the null character": (
        answers(
            lambda asked, answer: inferred(asked, answer) and "identity_bytes/" in asked.path,
            outputs(lambda output: {"data": [text.split("\0")[0] for text in output["data"]]}),
        ),
        {"bytes.json-null-character"},
    ),
    "an empty tensor comes back with one element": (
        answers(
            lambda asked, answer: inferred(asked, answer) and "zero_size" in asked.path,
            outputs(lambda output: {"shape": [1], "data": [0.0]}),
        ),
        {"zero-size.json"},
    ),
    "compressed though nobody asked": (
        answers(
            inferred,
            lambda answer: replace(
                answer, body=gzip.compress(answer.body), headers={**answer.headers, "Content-Encoding": "gzip"}
            ),
        ),
        {"compression.response-unasked"},
    ),
    "classes in the wrong order": (
        answers(
            lambda asked, answer: inferred(asked, answer) and "classifier" in asked.path,
            outputs(lambda output: {"data": output["data"][::-1]}),
        ),
        {"classification.top", "classification.values", "classification.batch"},
    ),
    "classes without their index": (
        answers(
            lambda asked, answer: inferred(asked, answer) and "classifier" in asked.path,
            outputs(
                lambda output: (
                    {"data": [text.split(":")[0] for text in output["data"]]} if output["datatype"] == "BYTES" else {}
                )
            ),
        ),
        {"classification.top", "classification.one"},
    ),
}


@pytest.mark.parametrize(("fault", "expected"), FAULTS.values(), ids=FAULTS)
def test_a_server_that_breaks_a_rule_fails_the_checks_of_that_rule(server, tools, fault, expected):
    healthy = tools.failed(tools.check(server, *expected))
    assert not healthy & expected, "the server under the proxy fails already"
    with tools.spoiled(server, fault) as url:
        assert tools.failed(tools.check(url, *expected)) == expected


def stats(grown):
    """A server whose statistics grow by `grown` for each request."""
    counter = {"requests": 0}

    def fault(asked, forward):
        if asked.path.endswith("/infer"):
            counter["requests"] += 1
            return forward(asked)
        if not asked.path.endswith("/stats"):
            return forward(asked)
        count = counter["requests"] * grown
        duration = {"count": count, "ns": count * 1000}
        names = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
        entry = {
            "name": "simple",
            "version": "1",
            "last_inference": 1_700_000_000_000,
            "inference_count": count,
            "execution_count": count,
            "inference_stats": dict.fromkeys(names, duration),
        }
        return asked.with_json({"model_stats": [entry]})

    return fault


@pytest.mark.parametrize(
    ("grown", "expected"),
    [
        (0, {"statistics.growth", "statistics.execution"}),
        (2, {"statistics.growth", "statistics.execution"}),
        (1, set()),
    ],
)
def test_statistics_must_grow_with_the_requests(server, tools, grown, expected):
    with tools.spoiled(server, stats(grown)) as url:
        report = tools.check(
            url, "statistics.document", "statistics.growth", "statistics.execution", assumed=("statistics",)
        )
        assert tools.failed(report) == expected


CANNED = {
    "an index that lacks models": (
        "repository.index",
        ("model_repository",),
        lambda asked: asked.path == "/v2/repository/index",
        lambda asked: [{"name": "simple"}, *([{"name": "classifier"}] if asked.body == b'{"ready": true}' else [])],
    ),
    "an index with a state that is not READY": (
        "repository.index-ready",
        ("model_repository",),
        lambda asked: asked.path == "/v2/repository/index",
        [{"name": "simple", "state": "LOADING"}],
    ),
    "a load of a path outside": (
        "repository.load-traversal",
        ("model_repository",),
        lambda asked: asked.path.endswith("/load"),
        {},
    ),
    "a status that is no list": (
        "shared-memory.cuda-status",
        ("cuda_shared_memory",),
        lambda asked: asked.path == "/v2/cudasharedmemory/status",
        {"regions": {}},
    ),
    "a region that never was": (
        "shared-memory.status-unknown",
        ("system_shared_memory",),
        lambda asked: "systemsharedmemory" in asked.path,
        [],
    ),
    "registrations of anything": (
        "shared-memory.register-unknown-key",
        ("system_shared_memory",),
        lambda asked: "systemsharedmemory" in asked.path,
        {},
    ),
    "log settings that lack some": (
        "logging.get",
        ("logging",),
        lambda asked: asked.path == "/v2/logging",
        {"log_info": True},
    ),
    "trace settings that are numbers": (
        "trace.get",
        ("trace",),
        lambda asked: asked.path == "/v2/trace/setting",
        {"trace_rate": 1000},
    ),
    "a configuration of another model": (
        "configuration.document",
        ("model_configuration",),
        lambda asked: asked.path.endswith("/config"),
        {"name": "other", "max_batch_size": 0, "input": [], "output": []},
    ),
}


@pytest.mark.parametrize(("check", "assumed", "matches", "document"), CANNED.values(), ids=CANNED)
def test_an_extension_that_answers_wrongly_fails_its_check(server, tools, check, assumed, matches, document):
    def fault(asked, forward):
        if not matches(asked):
            return forward(asked)
        return asked.with_json(document(asked) if callable(document) else document)

    with tools.spoiled(server, fault) as url:
        assert tools.failed(tools.check(url, check, assumed=assumed)) == {check}
