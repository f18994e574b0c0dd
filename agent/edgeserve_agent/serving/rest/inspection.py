"""Triton's "Statistics" and "Model Configuration" extensions over HTTP."""

from __future__ import annotations

from functools import partial

from edgeserve_agent.serving.dataplane import DataPlane
from edgeserve_agent.serving.messages import Reply, Request, json_response
from edgeserve_agent.serving.model_document import model_document
from edgeserve_agent.serving.rest.api import Route, get
from edgeserve_agent.serving.statistics_document import statistics_document


class InspectionApi:
    """`/v2/models/stats`, `/v2/models/M[/versions/V]/stats` and `.../config`."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane

    def route(self, parts: list[str]) -> Route | None:
        """The routes of both extensions."""
        match parts:
            case ["v2", "models", "stats"]:
                return get(partial(self._statistics, "", ""))
            case ["v2", "models", model, "stats"]:
                return get(partial(self._statistics, model, ""))
            case ["v2", "models", model, "versions", version, "stats"]:
                return get(partial(self._statistics, model, version))
            case ["v2", "models", model, "config"]:
                return get(partial(self._config, model, ""))
            case ["v2", "models", model, "versions", version, "config"]:
                return get(partial(self._config, model, version))
            case _:
                return None

    def _statistics(self, model: str, version: str, _request: Request, reply: Reply) -> None:
        reply(json_response(200, statistics_document(self._plane, model, version)))

    def _config(self, model: str, version: str, _request: Request, reply: Reply) -> None:
        reply(json_response(200, model_document(self._plane.find(model, version))))
