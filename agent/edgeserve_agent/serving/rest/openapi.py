"""`GET /openapi.json`: every path of every REST dialect (OpenAPI 3.1), with examples for what is served now."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from edgeserve import __version__
from edgeserve.contracts.tensors import Datatype, TensorSpec
from edgeserve_agent.serving.dataplane import DataPlane
from edgeserve_agent.serving.messages import Reply, Request, json_response
from edgeserve_agent.serving.rest.api import Route, get
from edgeserve_agent.serving.served import ServedRelease

_MAX_EXAMPLE_ELEMENTS: Final = 1024
_PARAMETER: Final = re.compile(r"\{(\w+)\}")


class OpenApi:
    """The document.

    Args:
        plane: What it has examples for.
        aliases: Further paths -> those of the document with the same meaning.
    """

    def __init__(self, plane: DataPlane, aliases: Mapping[str, str]) -> None:
        self._plane = plane
        self._aliases = aliases

    def route(self, parts: list[str]) -> Route | None:
        """Its one path."""
        return get(self._answer) if parts == ["openapi.json"] else None

    def _answer(self, _request: Request, reply: Reply) -> None:
        active = [served for served, is_active in self._plane.releases() if is_active]
        reply(json_response(200, document(active, self._aliases)))


def document(active: Sequence[ServedRelease], aliases: Mapping[str, str]) -> dict[str, Any]:
    """The document for what `active` models take."""
    # Not needed before someone asks: a device need not hold it in memory.
    from edgeserve_agent.serving.rest.openapi_paths import PATH_PARAMETERS, PATHS, TAGS
    from edgeserve_agent.serving.rest.openapi_schemas import EXAMPLES, SCHEMAS

    names = {
        "model": [served.identity.model for served in active],
        "version": sorted({served.identity.version for served in active}),
        "label": ["stable"] if active else [],
    }
    paths: dict[str, Any] = {}
    for path, item in {**PATHS, **{alias: PATHS[own] for alias, own in aliases.items()}}.items():
        parameters = [_reference(name) for name in _PARAMETER.findall(path)]
        paths[path] = {**({"parameters": parameters} if parameters else {}), **item}
    described = {
        name: {
            "name": name,
            "in": "path",
            "required": True,
            "description": text,
            "schema": {"type": "string", "minLength": 1},
            **_examples(names.get(name, [])),
        }
        for name, text in PATH_PARAMETERS.items()
    }
    schemas = {name: dict(schema) for name, schema in SCHEMAS.items()}
    for name, example in EXAMPLES.items():
        schemas[name]["examples"] = [example]
    if active:
        _add_examples(schemas, active[0])
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "edgeserve model server",
            "version": __version__,
            "description": "All dialects of one port, which speaks gRPC, too. Bodies may be gzip or deflate.",
        },
        "tags": [{"name": name} for name in TAGS],
        "paths": paths,
        "components": {"parameters": described, "schemas": schemas},
    }


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/parameters/{name}"}


def _examples(values: Sequence[str]) -> dict[str, Any]:
    return {"examples": {value: {"value": value} for value in values}} if values else {}


def _add_examples(schemas: dict[str, Any], served: ServedRelease) -> None:
    """Requests of zeros that the model answers, where they are short."""
    specs = served.signature.inputs
    shapes = {spec.name: [1 if size == -1 else size for size in spec.shape] for spec in specs}
    if any(math.prod(shape) > _MAX_EXAMPLE_ELEMENTS for shape in shapes.values()):
        return
    if not any(spec.datatype in (Datatype.FP16, Datatype.BF16) for spec in specs):
        inputs = [
            {
                "name": spec.name,
                "shape": shapes[spec.name],
                "datatype": spec.datatype.value,
                "data": [_zero(spec)] * math.prod(shapes[spec.name]),
            }
            for spec in specs
        ]
        schemas["InferRequest"]["examples"] = [{"id": "1", "inputs": inputs}]
    if not any(spec.datatype is Datatype.BF16 for spec in specs):
        columns = {spec.name: _nested(spec, shapes[spec.name]) for spec in specs}
        schemas["PredictRequest"]["examples"] = [{"inputs": columns}]


def _nested(spec: TensorSpec, shape: Sequence[int]) -> Any:  # noqa: ANN401 - nested lists
    return [_nested(spec, shape[1:]) for _ in range(shape[0])] if shape else _zero(spec)


def _zero(spec: TensorSpec) -> object:
    return "" if spec.datatype is Datatype.BYTES else False if spec.datatype is Datatype.BOOL else 0
