"""Triton's "Trace" and "Logging" extensions over HTTP."""

from __future__ import annotations

from functools import partial

import msgspec

from edgeserve.contracts.errors import InputError
from edgeserve_agent.serving.dataplane import DataPlane
from edgeserve_agent.serving.messages import Reply, Request, json_response
from edgeserve_agent.serving.rest.api import Route
from edgeserve_agent.serving.settings import LogSettings, TraceSettings

_Changes = dict[str, bool | int | str | list[str] | None]


class SettingsApi:
    """`/v2[/models/M]/trace/setting` and `/v2/logging`: GET reads, POST changes and reads."""

    def __init__(self, plane: DataPlane, *, trace: TraceSettings, log: LogSettings) -> None:
        self._plane = plane
        self._trace = trace
        self._log = log

    def route(self, parts: list[str]) -> Route | None:
        """The routes of both extensions."""
        match parts:
            case ["v2", "trace", "setting"]:
                return Route({"GET": partial(self._read_trace, ""), "POST": partial(self._change_trace, "")})
            case ["v2", "models", model, "trace", "setting"]:
                return Route({"GET": partial(self._read_trace, model), "POST": partial(self._change_trace, model)})
            case ["v2", "logging"]:
                return Route({"GET": self._read_log, "POST": self._change_log})
            case _:
                return None

    def _read_trace(self, model: str, _request: Request, reply: Reply) -> None:
        if model:
            self._plane.find(model)
        reply(json_response(200, self._trace.of(model)))

    def _change_trace(self, model: str, request: Request, reply: Reply) -> None:
        if model:
            self._plane.find(model)
        changes = _changes(request)
        texts = {
            name: value if isinstance(value, list) or value is None else _text(value) for name, value in changes.items()
        }
        reply(json_response(200, self._trace.update(texts, model)))

    def _read_log(self, _request: Request, reply: Reply) -> None:
        reply(json_response(200, self._log.all()))

    def _change_log(self, request: Request, reply: Reply) -> None:
        reply(json_response(200, self._log.update(_changes(request))))


def _text(value: bool | int | str) -> str:
    return value if isinstance(value, str) else str(value).lower()


def _changes(request: Request) -> _Changes:
    try:
        return msgspec.json.decode(request.body or b"{}", type=_Changes)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"the body is not an object of settings: {error}") from error
