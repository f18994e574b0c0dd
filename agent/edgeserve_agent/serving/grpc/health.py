"""grpc.health.v1: whether the server, or one of its models, answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from edgeserve.client.oip_proto import INFERENCE_SERVICE, messages
from edgeserve.contracts.errors import NotFoundError, TransientError
from edgeserve.contracts.limits import HEALTH_WATCH_S
from edgeserve_agent.serving.dataplane import DataPlane
from edgeserve_agent.serving.rpc import RpcCall, StatusCode

SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3
"""`HealthCheckResponse.ServingStatus`."""


class Health:
    """Answers for the whole server (service "" or that of the protocol), and for models by their names."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane
        self.draining = False

    def status(self, service: str) -> int:
        """The serving status of a service."""
        if service in ("", INFERENCE_SERVICE):
            return SERVING if self._plane.ready() and not self.draining else NOT_SERVING
        try:
            self._plane.find(service)
        except TransientError:
            return NOT_SERVING
        except NotFoundError:
            return SERVICE_UNKNOWN
        return NOT_SERVING if self.draining else SERVING

    def check(self, service: str) -> int:
        """The serving status of a service.

        Raises:
            NotFoundError: There is no such service, as the health protocol asks.
        """
        status = self.status(service)
        if status == SERVICE_UNKNOWN:
            raise NotFoundError(f"unknown service {service[:80]!r}", hint="name a model, or nothing for the server")
        return status


class HealthWatch:
    """One client that watches a service: it gets the status at once and whenever it has changed."""

    def __init__(self, rpc: RpcCall, service: str, health: Health, ended: Callable[[HealthWatch], None]) -> None:
        self._rpc = rpc
        self._service = service
        self._health = health
        self._on_end = ended
        self._told: int | None = None
        self._timer: asyncio.TimerHandle | None = None
        rpc.on_cancel = self._end
        self._look()

    def drain(self) -> None:
        """Say that the server stops, and end."""
        self._tell()
        self._end()
        self._rpc.finish(StatusCode.UNAVAILABLE, "the server is stopping")

    def _look(self) -> None:
        self._tell()
        self._timer = asyncio.get_running_loop().call_later(HEALTH_WATCH_S, self._look)

    def _tell(self) -> None:
        status = self._health.status(self._service)
        if status != self._told:
            self._told = status
            self._rpc.send([messages().HealthCheckResponse(status=status).SerializeToString()])

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._on_end(self)
