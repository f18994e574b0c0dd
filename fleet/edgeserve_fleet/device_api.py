"""The device's REST API under `/v1/me/`: what MQTT carries, for when there is no broker. A token names the device."""

from __future__ import annotations

from typing import Final

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from edgeserve.contracts.documents import decode
from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import MAX_API_BODY_BYTES, MAX_JOURNAL_EVENTS, MAX_REPORT_BYTES
from edgeserve.contracts.reported import Ack, Event
from edgeserve_fleet.answers import json_answer, read_body
from edgeserve_fleet.auth import Access, Caller, Endpoint
from edgeserve_fleet.service import Fleet

_ENVELOPE_TYPE: Final = "application/vnd.dsse.envelope.v1+json"


class DeviceApi:
    """The device's routes."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def endpoints(self) -> list[Endpoint]:
        """All routes."""
        return [
            Endpoint("GET", "/v1/me/desired", Access.DEVICE, self._desired),
            Endpoint("GET", "/v1/me/halt", Access.DEVICE, self._halt),
            Endpoint("POST", "/v1/me/reported", Access.DEVICE, self._reported),
            Endpoint("POST", "/v1/me/events", Access.DEVICE, self._events),
            Endpoint("POST", "/v1/me/stats", Access.DEVICE, self._stats),
        ]

    async def _desired(self, request: Request) -> Response:
        return _envelope(request, *await run_in_threadpool(self._fleet.desired, _device(request)))

    async def _halt(self, request: Request) -> Response:
        """The list of halted releases; devices ask for it before they obey what is desired."""
        found = await run_in_threadpool(self._fleet.halt)
        return Response(status_code=204) if found is None else _envelope(request, *found)

    async def _reported(self, request: Request) -> Response:
        body = await read_body(request, MAX_REPORT_BYTES)
        await run_in_threadpool(self._fleet.apply_reported, _device(request), body)
        return Response(status_code=204)

    async def _events(self, request: Request) -> Response:
        """A JSON array of all events that wait on the device, oldest first; the answer acknowledges them (`Ack`)."""
        body = await read_body(request, MAX_API_BODY_BYTES)
        try:
            events = [bytes(event) for event in msgspec.json.decode(body, type=list[msgspec.Raw])]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InputError(f"events are not a JSON array: {error}") from error
        if not 1 <= len(events) <= MAX_JOURNAL_EVENTS:
            raise InputError(f"{len(events)} events at once, 1 to {MAX_JOURNAL_EVENTS} are allowed")
        await run_in_threadpool(self._fleet.apply_events, _device(request), events)
        fences = [decode(event, Event, what="event", limit=MAX_REPORT_BYTES).fence for event in events]
        install_id = fences[-1].install_id
        epoch, seq = max((fence.epoch, fence.seq) for fence in fences if fence.install_id == install_id)
        return json_answer(Ack(device=_device(request), install_id=install_id, epoch=epoch, seq=seq))

    async def _stats(self, request: Request) -> Response:
        body = await read_body(request, MAX_REPORT_BYTES)
        await run_in_threadpool(self._fleet.apply_stats, _device(request), body)
        return Response(status_code=204)


def _envelope(request: Request, tag: str, envelope: bytes) -> Response:
    """A signed document, or 304 when the device has it."""
    quoted = f'"{tag}"'
    headers = {"ETag": quoted, "Cache-Control": "no-cache"}
    known = [word.strip().removeprefix("W/") for word in request.headers.get("if-none-match", "").split(",")]
    if quoted in known:
        return Response(status_code=304, headers=headers)
    return Response(envelope, media_type=_ENVELOPE_TYPE, headers=headers)


def _device(request: Request) -> str:
    caller: Caller = request.state.caller
    return caller.device
