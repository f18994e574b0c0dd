"""Triton's "Model Repository" extension over HTTP.

A client may load models of the repository anew, with another configuration or files of its own, and unload them; what
that means is in `edgeserve_agent.serving.repository`. Success is 200 with an empty body.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final

import msgspec

from edgeserve.contracts.errors import DeviceError, EdgeServeError, InputError, UnsupportedError
from edgeserve_agent.serving.dataplane import DataPlane
from edgeserve_agent.serving.messages import JSON, Reply, Request, Response, failure_response, json_response
from edgeserve_agent.serving.repository_control import RepositoryControl, check_unload, load_request
from edgeserve_agent.serving.rest.api import Route, post

_LOG: Final = logging.getLogger(__name__)


class _Index(msgspec.Struct, frozen=True):
    ready: bool = False


class _Parameters(msgspec.Struct, frozen=True):
    parameters: dict[str, Any] = {}


class RepositoryApi:
    """Lists, loads and unloads models.

    Args:
        loop: Where loads run.
        plane: What is served.
        control: Gives the repository; None = nothing can be loaded or unloaded over the network.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, plane: DataPlane, control: Callable[[], RepositoryControl | None]
    ) -> None:
        self._loop = loop
        self._plane = plane
        self._control = control
        self._tasks: set[asyncio.Task[None]] = set()

    def route(self, parts: list[str]) -> Route | None:
        """The routes below `/v2/repository`; a repository's name in the path is ignored: there is one."""
        match parts:
            case ["v2", "repository", "index"] | ["v2", "repository", _, "index"]:
                return post(self._index)
            case ["v2", "repository", "models", model, "load"] | ["v2", "repository", _, "models", model, "load"]:
                return post(partial(self._load, model))
            case ["v2", "repository", "models", model, "unload"] | ["v2", "repository", _, "models", model, "unload"]:
                return post(partial(self._unload, model))
            case _:
                return None

    def _index(self, request: Request, reply: Reply) -> None:
        wanted = _read(request, _Index)
        control = self._control()
        states = control.index(ready_only=wanted.ready) if control is not None else self._plane.states()
        document = [
            {
                "name": state.model,
                **({"version": state.version} if state.version else {}),
                **({"state": state.state} if state.state else {}),
                **({"reason": state.reason} if state.reason else {}),
            }
            for state in states
            if state.state == "READY" or not wanted.ready
        ]
        reply(json_response(200, document))

    def load(self, model: str, reply: Reply) -> None:
        """Load a model as the repository has it, or anew.

        Raises:
            UnsupportedError: Nothing is loaded over the network here.
        """
        self._begin(self._controlled().load(model), reply)

    def unload(self, model: str, reply: Reply) -> None:
        """Unload a model.

        Raises:
            UnsupportedError: Nothing is unloaded over the network here.
        """
        self._begin(self._controlled().unload(model), reply)

    def _load(self, model: str, request: Request, reply: Reply) -> None:
        control = self._controlled()
        parameters = _read(request, _Parameters).parameters
        wanted = load_request({name: _bytes_of(name, value) for name, value in parameters.items()})
        self._begin(control.load(model, config=wanted.config, files=wanted.files), reply)

    def _unload(self, model: str, request: Request, reply: Reply) -> None:
        self._controlled()
        check_unload(_read(request, _Parameters).parameters)
        self.unload(model, reply)

    def _controlled(self) -> RepositoryControl:
        control = self._control()
        if control is None:
            raise UnsupportedError(
                "models are not loaded over the network here",
                hint="on a device the fleet decides; `edgeserve serve FOLDER` serves a repository",
            )
        return control

    def _begin(self, work: Coroutine[Any, Any, None], reply: Reply) -> None:
        task = self._loop.create_task(_answered(work, reply))
        self._tasks.add(task)  # the loop itself keeps no reference
        task.add_done_callback(self._tasks.discard)


async def _answered(work: Coroutine[Any, Any, None], reply: Reply) -> None:
    try:
        await work
    except EdgeServeError as error:
        reply(failure_response(error))
    except Exception as error:  # noqa: BLE001 - logged, and the client must hear of it
        _LOG.exception("changing what is served failed")
        reply(failure_response(DeviceError(f"internal error: {error}")))
    else:
        reply(Response(status=200, content_type=JSON, chunks=()))


def _read(request: Request, kind: type[Any]) -> Any:  # noqa: ANN401 - of `kind`
    try:
        return msgspec.json.decode(request.body or b"{}", type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"the body is not a repository request: {error}") from error


def _bytes_of(name: str, value: object) -> object:
    """Content of a file, which JSON carries as base64."""
    if not name.startswith("file:") or not isinstance(value, str):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"parameter {name[:80]!r} is not base64: {error}") from error
