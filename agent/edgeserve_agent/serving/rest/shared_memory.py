"""Triton's shared memory extensions over HTTP: `/v2/systemsharedmemory`; of `/v2/cudasharedmemory` there is none.

Success is always 200 with a JSON body: perf_analyzer unregisters everything before it begins, and ends when it reads
anything else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import msgspec

from edgeserve.contracts.errors import InputError, UnsupportedError
from edgeserve_agent.serving.messages import Reply, Request, json_response
from edgeserve_agent.serving.rest.api import Route, get, post
from edgeserve_agent.serving.shared_memory import SharedMemory


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """Body of a `register` request."""

    key: str
    byte_size: int
    offset: int = 0


_Answer = Callable[[str, Request, Reply], None]
"""Gets the name of the region, empty for all."""


@dataclass(frozen=True, kw_only=True)
class _Answers:
    """Of one kind of memory."""

    status: _Answer
    unregister: _Answer
    register: _Answer


class SharedMemoryApi:
    """Registers regions.

    Args:
        regions: Where; None = shared memory is switched off.
    """

    def __init__(self, regions: SharedMemory | None) -> None:
        self._regions = regions

    def route(self, parts: list[str]) -> Route | None:
        """The routes of both kinds of memory."""
        match parts:
            case ["v2", "systemsharedmemory", *rest]:
                system = _Answers(status=self._status, unregister=self._unregister, register=self._register)
                return _route(rest, system)
            case ["v2", "cudasharedmemory", *rest]:
                return _route(rest, _CUDA)
            case _:
                return None

    def _status(self, name: str, _request: Request, reply: Reply) -> None:
        regions = [] if self._regions is None else self._regions.status(name)
        reply(json_response(200, regions))

    def _unregister(self, name: str, _request: Request, reply: Reply) -> None:
        if self._regions is not None:
            self._regions.unregister(name)
        reply(json_response(200, {}))

    def _register(self, name: str, request: Request, reply: Reply) -> None:
        if self._regions is None:
            raise InputError("shared memory is switched off", hint="start the server with --allow-shm")
        try:
            wanted = msgspec.json.decode(request.body, type=Registration)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            shown = '{"key": "/NAME", "offset": 0, "byte_size": 64}'
            raise InputError(
                f"failed to register shared memory region '{name}': not a registration, {shown}: {error}"
            ) from error
        self._regions.register(name, wanted.key, wanted.offset, wanted.byte_size)
        reply(json_response(200, {}))


def _route(parts: list[str], answers: _Answers) -> Route | None:
    match parts:
        case ["status"]:
            return get(partial(answers.status, ""))
        case ["region", name, "status"]:
            return get(partial(answers.status, name))
        case ["unregister"]:
            return post(partial(answers.unregister, ""))
        case ["region", name, "unregister"]:
            return post(partial(answers.unregister, name))
        case ["region", name, "register"]:
            return post(partial(answers.register, name))
        case _:
            return None


def _no_regions(_name: str, _request: Request, reply: Reply) -> None:
    reply(json_response(200, []))


def _nothing(_name: str, _request: Request, reply: Reply) -> None:
    reply(json_response(200, {}))


def _no_cuda(name: str, _request: Request, _reply: Reply) -> None:
    raise UnsupportedError(
        f"failed to register CUDA shared memory region '{name}': not supported", hint="use system shared memory"
    )


_CUDA: Final = _Answers(status=_no_regions, unregister=_nothing, register=_no_cuda)
