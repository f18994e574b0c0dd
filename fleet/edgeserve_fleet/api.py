"""The operator's REST API: `/v1/devices`, `/v1/releases`, `/v1/rollouts`, `/v1/status`, `/v1/changes`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, Protocol

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from edgeserve.contracts.documents import decode
from edgeserve.contracts.errors import EdgeServeError, InputError
from edgeserve.contracts.limits import MAX_API_BODY_BYTES
from edgeserve.contracts.names import DEFAULT_TENANT, device_id, device_name, digest, model_name
from edgeserve.contracts.names import labels as checked_labels
from edgeserve.contracts.rollout import RolloutSpec, parse_waves
from edgeserve_fleet.answers import json_answer, read_body
from edgeserve_fleet.auth import Access, Endpoint, Handler
from edgeserve_fleet.changes import ChangeFeed
from edgeserve_fleet.releases import Releases
from edgeserve_fleet.service import Fleet

_ROLLOUT_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_IDEMPOTENCY_KEY: Final = re.compile(r"[\x21-\x7e]{0,128}\Z")
_ACTOR: Final = "operator"


class BrokerUsers(Protocol):
    """Lets devices into the broker and out again."""

    def add_user(self, username: str, password: str) -> None:
        """Let a device in."""

    def remove_user(self, username: str) -> None:
        """Shut a device out."""


class RolloutAction(Protocol):
    """An operator's intervention in a rollout."""

    def __call__(self, rollout_id: str, /, *, actor: str) -> object:
        """Do it and return the rollout as it is then."""


class Enrolment(msgspec.Struct, frozen=True, kw_only=True):
    """What a device needs to join; the token is shown this once."""

    device: str
    token: str
    manager_key: str
    """Public key that signs desired documents, pinned by the device."""
    mqtt_url: str
    manager_url: str


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """How the manager runs."""

    version: str
    url: str
    mqtt_url: str
    mqtt_connected: bool
    insecure: bool
    """It listens on a public address without TLS, because the operator said so."""
    devices: int
    releases: int
    rollouts: int
    changes: int


class _NewDevice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    device: str
    labels: dict[str, str] = {}
    profile: str = ""


class _NewRelease(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    digest: str


class OperatorApi:
    """The operator's routes.

    Args:
        fleet: Decides and remembers.
        releases: Reads and checks pushed releases.
        users: The embedded broker's users; None when the broker is run by somebody else.
        feed: Streams of changes.
        enrolment: Makes the answer to an enrolment from device and token.
        status: Describes the manager.
    """

    def __init__(
        self,
        *,
        fleet: Fleet,
        releases: Releases,
        users: BrokerUsers | None,
        feed: ChangeFeed,
        enrolment: Callable[[str, str], Enrolment],
        status: Callable[[], Status],
    ) -> None:
        self._fleet = fleet
        self._releases = releases
        self._users = users
        self._feed = feed
        self._enrolment = enrolment
        self._status = status

    def endpoints(self) -> list[Endpoint]:
        """All routes."""
        rollout = "/v1/rollouts/{rollout}"
        actions = {
            "start": self._fleet.start,
            "pause": self._fleet.pause,
            "resume": self._fleet.resume,
            "abort": self._fleet.abort,
            "rollback": self._fleet.rollback,
        }
        return [
            Endpoint("POST", "/v1/devices", Access.OPERATE, self._enrol),
            Endpoint("GET", "/v1/devices", Access.VIEW, _plain(self._fleet.devices)),
            Endpoint("GET", "/v1/devices/{device}", Access.VIEW, _of_device(self._fleet.device)),
            Endpoint("DELETE", "/v1/devices/{device}", Access.OPERATE, _of_device(self._revoke)),
            Endpoint("GET", "/v1/devices/{device}/why", Access.VIEW, _of_device(self._fleet.why)),
            Endpoint("POST", "/v1/releases", Access.OPERATE, self._register),
            Endpoint("GET", "/v1/releases", Access.VIEW, _plain(self._fleet.releases)),
            Endpoint("POST", "/v1/rollouts", Access.OPERATE, self._create),
            Endpoint("POST", "/v1/rollouts/plan", Access.OPERATE, self._plan),
            Endpoint("GET", "/v1/rollouts", Access.VIEW, _plain(self._fleet.rollouts)),
            Endpoint("GET", rollout, Access.VIEW, _of_rollout(self._fleet.rollout)),
            *(
                Endpoint("POST", f"{rollout}/{name}", Access.OPERATE, _of_rollout(_acting(act)))
                for name, act in actions.items()
            ),
            Endpoint("GET", "/v1/status", Access.VIEW, _plain(self._status)),
            Endpoint("GET", "/v1/changes", Access.VIEW, self._feed.answer),
        ]

    # Devices ---------------------------------------------------------------------------------------

    async def _enrol(self, request: Request) -> Response:
        body = decode(await read_body(request, MAX_API_BODY_BYTES), _NewDevice, what="device", limit=MAX_API_BODY_BYTES)
        device, labels = full_device_id(body.device), checked_labels(body.labels)
        if body.profile:
            model_name(body.profile)  # profiles are named by the same rule

        def enrol() -> Enrolment:
            token = self._fleet.enrol(device, labels=labels, profile=body.profile, actor=_ACTOR)
            if self._users is not None:
                try:
                    self._users.add_user(device, token)
                except EdgeServeError:
                    self._fleet.revoke(
                        device, actor=_ACTOR
                    )  # half enrolled would mean that it cannot be enrolled again
                    raise
            return self._enrolment(device, token)

        return json_answer(await run_in_threadpool(enrol), 201)

    def _revoke(self, device: str) -> dict[str, str]:
        try:
            self._fleet.revoke(device, actor=_ACTOR)
        finally:  # also when it was revoked before and the broker could not be told
            if self._users is not None:
                self._users.remove_user(device)
        return {"revoked": device}

    # Releases and rollouts -------------------------------------------------------------------------

    async def _register(self, request: Request) -> Response:
        body = decode(
            await read_body(request, MAX_API_BODY_BYTES), _NewRelease, what="release", limit=MAX_API_BODY_BYTES
        )
        release = digest(body.digest)
        return json_answer(await run_in_threadpool(self._releases.register, release, _ACTOR), 201)

    async def _create(self, request: Request) -> Response:
        key = request.headers.get("idempotency-key", "")
        if not _IDEMPOTENCY_KEY.match(key):
            raise InputError("Idempotency-Key must have at most 128 printable characters")
        body = await read_body(request, MAX_API_BODY_BYTES)
        view = await run_in_threadpool(
            lambda: self._fleet.create_rollout(self._spec(body), actor=_ACTOR, idempotency_key=key)
        )
        return json_answer(view, 201)

    async def _plan(self, request: Request) -> Response:
        body = await read_body(request, MAX_API_BODY_BYTES)
        return json_answer(await run_in_threadpool(lambda: self._fleet.plan(self._spec(body))))

    def _spec(self, body: bytes) -> RolloutSpec:
        """Read an order: as `RolloutSpec`, but `release` may be `name:version` and `waves` a text such as `1,3,6`."""
        try:
            document = msgspec.json.decode(body, type=dict[str, object])
            unknown = sorted(set(document) - set(RolloutSpec.__struct_fields__))
            if unknown:
                raise InputError(f"rollout has the unknown field {unknown[0][:40]!r}")
            release, waves = document.get("release"), document.get("waves")
            if isinstance(release, str):
                view = self._fleet.resolve_release(release)
                document |= {"release": view.digest, "model": document.get("model") or view.name}
            if isinstance(waves, str):
                document["waves"] = [msgspec.to_builtins(wave) for wave in parse_waves(waves)]
            return msgspec.convert(document, RolloutSpec)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InputError(f"rollout is not valid: {error}") from error


def full_device_id(text: str) -> str:
    """Device id of a name as an operator writes it: `camera-1` is `default.camera-1`.

    Raises:
        InputError: It is neither a device name nor a device id.
    """
    return device_id(text) if "." in text else device_id(f"{DEFAULT_TENANT}.{device_name(text)}")


def _plain(read: Callable[[], object]) -> Handler:
    async def handler(_request: Request) -> Response:
        return json_answer(await run_in_threadpool(read))

    return handler


def _of_device(read: Callable[[str], object]) -> Handler:
    async def handler(request: Request) -> Response:
        return json_answer(await run_in_threadpool(read, full_device_id(request.path_params["device"])))

    return handler


def _of_rollout(read: Callable[[str], object]) -> Handler:
    async def handler(request: Request) -> Response:
        rollout = str(request.path_params["rollout"])
        if not _ROLLOUT_ID.match(rollout):
            raise InputError(f"{rollout[:40]!a} is not the id of a rollout")
        return json_answer(await run_in_threadpool(read, rollout))

    return handler


def _acting(act: RolloutAction) -> Callable[[str], object]:
    return lambda rollout: act(rollout, actor=_ACTOR)
