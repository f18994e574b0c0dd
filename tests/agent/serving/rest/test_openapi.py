"""The OpenAPI document: it has every route that the dialects know and no other, and strangers' requests made of it."""

from __future__ import annotations

import ast
import contextlib
import json
import logging
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from edgeserve.contracts.errors import NotFoundError
from edgeserve_agent.serving import rest
from edgeserve_agent.serving.rest.api import Api, Route
from edgeserve_agent.serving.rest.openapi_paths import PATHS
from edgeserve_agent.serving.rest.openapi_schemas import EXAMPLES, SCHEMAS

pytest.importorskip("schemathesis", reason="schemathesis is not installed")

import jsonschema_rs
import schemathesis
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS

FOLDER = Path(rest.__file__).parent
EXAMPLES_PER_OPERATION = 25
PROMISES = ("status_code_conformance", "content_type_conformance", "response_schema_conformance")
SERVED = {"model": "m", "version": "7", "label": "stable"}
STRANGE = {"{model}": "§model", "{version}": "§version", "{label}": "§label", "{repository}": "§r", "{region}": "§g"}


@pytest.fixture(scope="module")
def document(shared_server) -> dict[str, Any]:
    with urllib.request.urlopen(f"{shared_server.url}/openapi.json") as answer:
        return json.load(answer)


def find(api: Api, path: str) -> Route | None:
    try:
        return api._find(path.encode())
    except NotFoundError:
        return None


def filled(template: str) -> str:
    for name, value in STRANGE.items():
        template = template.replace(name, value)
    return template


def verbs(item: dict[str, Any]) -> set[str]:
    return {verb.upper() for verb in item if verb != "parameters"}


def words_of_the_routes() -> set[str]:
    """Every literal segment in the patterns of the dialects' source, and the verbs behind a colon."""
    found: set[str] = set()
    for file in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.MatchValue) and isinstance(node.value, ast.Constant):
                found.add(str(node.value.value))
            if isinstance(node, ast.Compare):
                found |= {
                    one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and isinstance(one.value, str)
                }
    return {word for word in found if re.fullmatch(r"[\w.-]+", word)} | {
        f"§model:{verb}" for verb in ("predict", "classify", "regress", "explain")
    }


def test_every_path_of_the_document_is_a_route_with_its_verbs(shared_server, document):
    api = shared_server.server._api
    wrong = {
        path: (set(route.verbs) if (route := find(api, filled(path))) else None)
        for path, item in document["paths"].items()
        if (found := find(api, filled(path))) is None or set(found.verbs) != verbs(item)
    }
    assert wrong == {}


def test_every_route_is_in_the_document(shared_server, document):
    """Routes are found by changing those that are known, a segment at a time, into any word of the dialects."""
    api, words = shared_server.server._api, words_of_the_routes()
    assert {"infer", "systemsharedmemory", "setting", "ping", "metrics", "openapi.json", "stats"} <= words
    known = {filled(path): verbs(item) for path, item in document["paths"].items()}
    words |= set(STRANGE.values())
    missing: set[str] = set()
    for path in known:
        parts = path.split("/")[1:]
        changed = [[*parts[:index], word, *parts[index + 1 :]] for index in range(len(parts)) for word in words]
        longer = [[*parts, word] for word in words]
        shorter = [parts[:-1]] if len(parts) > 1 else []
        for other in [*changed, *longer, *shorter]:
            tried = "/" + "/".join(other)
            if tried in known or tried.strip("/") == "":
                continue
            route = find(api, tried)
            if route is not None and not any(set(route.verbs) == known[path] for path in known if fits(tried, path)):
                missing.add(tried)
    assert sorted(missing) == []


def fits(path: str, known: str) -> bool:
    """Whether `path` is an instance of a known one, whose strange segments stand for any."""
    parts, wanted = path.split("/"), known.split("/")
    return len(parts) == len(wanted) and all(
        re.fullmatch(re.sub(r"§\w+", ".+", re.escape(want)), part) for part, want in zip(parts, wanted, strict=True)
    )


def test_the_document_is_openapi_and_its_schemas_are_schemas(document):
    assert document["openapi"].startswith("3.1.")
    loaded = schemathesis.openapi.from_dict(document)
    assert sum(1 for _ in loaded.get_all_operations()) == sum(map(len, PATHS.values()))
    for name, schema in SCHEMAS.items():
        assert jsonschema_rs.meta.is_valid(schema), name


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_every_example_is_what_its_schema_says(document, name: str):
    schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    assert document["components"]["schemas"][name]["examples"] == [EXAMPLES[name]]
    jsonschema_rs.validate(schema, EXAMPLES[name])


def test_what_is_served_is_shown_by_requests_that_are_answered(shared_server, connect, tools, document):
    assert document["components"]["parameters"]["model"]["examples"] == {"m": {"value": "m"}}
    client = connect(shared_server)
    for schema, path in (("InferRequest", "/v2/models/m/infer"), ("PredictRequest", "/v1/models/m:predict")):
        for example in document["components"]["schemas"][schema]["examples"]:
            answer = client.send(tools.request("POST", path, json.dumps(example).encode())).answer()
            assert answer.status == 200, answer


@pytest.fixture(scope="module")
def schema(document, shared_server) -> Iterator[Any]:
    """As a stranger loads it."""
    level = logging.getLogger().level
    yield schemathesis.openapi.from_dict(document)
    logging.getLogger().setLevel(level)  # it is one of the settings that requests change


def strategies(operation: Any, example: Any) -> Iterator[st.SearchStrategy[Any]]:
    """Requests that the schema allows to what is served, the same to anything, and some that it does not allow."""
    yield operation.as_strategy(path_parameters=SERVED)
    yield operation.as_strategy()
    if example is not None:
        yield operation.as_strategy(path_parameters=SERVED, body=example, media_type="application/json")
    with contextlib.suppress(Exception):
        yield operation.as_strategy(GenerationMode.NEGATIVE, path_parameters=SERVED)


@pytest.mark.parametrize(("path", "verb"), [(path, verb) for path, item in PATHS.items() for verb in item])
def test_strangers_requests_get_the_answers_that_the_document_promises(schema, shared_server, path: str, verb: str):
    operation = schema[path][verb]
    example = example_of(schema.raw_schema, path, verb)

    @hypothesis.settings(
        max_examples=EXAMPLES_PER_OPERATION, derandomize=True, deadline=None, database=None,
        suppress_health_check=list(hypothesis.HealthCheck), phases=[hypothesis.Phase.generate],
    )  # fmt: skip
    @hypothesis.given(case=st.one_of(*strategies(operation, example)))
    def holds(case: Any) -> None:
        response = case.call(base_url=shared_server.url)
        assert response.status_code < 500 or response.status_code in (501, 503), response.text
        case.validate_response(response, checks=[CHECKS.get_one(name) for name in PROMISES])

    holds()


def example_of(document: dict[str, Any], path: str, verb: str) -> Any:
    """One body of the operation, of those that the document shows."""
    body = document["paths"][path][verb].get("requestBody", {})
    schema = body.get("content", {}).get("application/json", {}).get("schema", {})
    schema = schema["anyOf"][0] if "anyOf" in schema else schema
    name = schema.get("$ref", "").rpartition("/")[2]
    return document["components"]["schemas"].get(name, {}).get("examples", [None])[0]
