"""A model server: data plane, protocol and listening socket; and the event loop that it runs on."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

from edgeserve.contracts.errors import EdgeServeError
from edgeserve.contracts.limits import DRAIN_S
from edgeserve_agent.serving.cores import worker_threads
from edgeserve_agent.serving.dataplane import DataPlane
from edgeserve_agent.serving.descriptors import raise_descriptor_limit
from edgeserve_agent.serving.heap import keep_large_blocks
from edgeserve_agent.serving.http_server import HttpLimits, HttpServer
from edgeserve_agent.serving.listen import Address, Listening
from edgeserve_agent.serving.rest.api import Api, Dialect
from edgeserve_agent.serving.rest.deferred import Deferred
from edgeserve_agent.serving.rest.v2 import V2
from edgeserve_agent.serving.settings import LogSettings, TraceSettings
from edgeserve_agent.serving.workers import Workers

if TYPE_CHECKING:
    from edgeserve_agent.serving.grpc.service import GrpcService
    from edgeserve_agent.serving.h2.server import H2Server
    from edgeserve_agent.serving.local_server import LocalServer
    from edgeserve_agent.serving.repository_control import RepositoryControl
    from edgeserve_agent.serving.shared_memory import SharedMemory

_LOG: Final = logging.getLogger(__name__)

T = TypeVar("T")


EXTENSIONS: Final = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "sequence",
    "sequence(string_id)",
    "statistics",
    "system_shared_memory",
    "trace",
    "logging",
    "parameters",
)
"""Triton's extensions of the Open Inference Protocol that both REST and gRPC have."""


class ModelServer:
    """Serves what its data plane holds: HTTP and gRPC on the same ports, and local sockets.

    Args:
        loop: Where everything but slow calls happens.
        threads: Inside one call of a model, as its runtime was told; 0 = the runtime takes all.
        insecure: It listens in the open; every status shows it.
        allow_shm: Clients on this machine may register shared memory by name.
        resources: How much there is of the resources that models share (`rate_limiter` in their configurations).
        limits: Of HTTP.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        threads: int,
        insecure: bool,
        allow_shm: bool = False,
        resources: Mapping[str, int] | None = None,
        limits: HttpLimits | None = None,
    ) -> None:
        self.plane = DataPlane(loop, workers=worker_threads(threads), resources=resources)
        self.repository: RepositoryControl | None = None
        """What clients may load from and unload; set before anything listens."""
        self._loop = loop
        self._regions = _shared_memory() if allow_shm else None
        self._trace, self._log = TraceSettings(), LogSettings(_set_level)
        self._insecure = insecure
        self._v2 = V2(self.plane, insecure=insecure, extensions=EXTENSIONS, regions=self._regions)
        self._api = Api(
            [self._v2, Deferred(self._other_dialects)],
            workers=lambda: Workers(loop, threads=1, name="codec"),
            hold=lambda count: self._http.hold_body(count),
        )
        self._http = HttpServer(loop, self._api.handle, limits=limits, http2=self._adopt)
        self._service: GrpcService | None = None
        self._h2: H2Server | None = None
        self._local: LocalServer | None = None

    async def listen(self, address: Address) -> str:
        """Listen for HTTP, and gRPC on the same port, and return the URL.

        Raises:
            DeviceError: The port is in use or the address is not this machine's.
        """
        return address.url(await self._http.listen(address.host, address.port))

    async def listen_on(self, listening: Listening) -> dict[str, str]:
        """Listen everywhere that was asked for, and return what clients need to know, by the names of `Listening`.

        Raises:
            InputError: There is something else at the path of a socket.
            DeviceError: A port or path is in use, or is not this machine's.
            MissingLibraryError: protobuf is not installed, and gRPC is to have a port of its own.
        """
        addresses = {"http": await self.listen(listening.http)}
        if listening.grpc is not None:
            port = await self._grpc().listen(listening.grpc.host, listening.grpc.port)
            addresses["grpc"] = listening.grpc.authority(port)
        if listening.uds is not None:
            await self._http.listen_unix(listening.uds)
            addresses["uds"] = str(listening.uds)
        if listening.local is not None:
            from edgeserve_agent.serving.local_server import LocalServer

            self._local = LocalServer(self._loop, self.plane)
            self._local.listen(listening.local)
            addresses["local"] = str(listening.local)
        return addresses

    async def close(self, *, drain_s: float = DRAIN_S) -> None:
        """Stop listening, finish what is in flight, unload everything."""
        self._v2.draining = True
        if self._service is not None:
            self._service.drain()
        closing = [self._http.close(drain_s)]
        closing += [server.close(drain_s) for server in (self._h2, self._local) if server is not None]
        await asyncio.gather(*closing)
        self._api.close()
        self.plane.close()

    def _other_dialects(self) -> list[Dialect]:
        from edgeserve_agent.serving.rest.cloud import CloudApi
        from edgeserve_agent.serving.rest.feedback import FeedbackApi
        from edgeserve_agent.serving.rest.inspection import InspectionApi
        from edgeserve_agent.serving.rest.metrics import Metrics
        from edgeserve_agent.serving.rest.openapi import OpenApi
        from edgeserve_agent.serving.rest.repository import RepositoryApi
        from edgeserve_agent.serving.rest.settings import SettingsApi
        from edgeserve_agent.serving.rest.shared_memory import SharedMemoryApi
        from edgeserve_agent.serving.rest.v1 import V1

        v1 = V1(self.plane)
        repository = RepositoryApi(self._loop, self.plane, lambda: self.repository)
        cloud = CloudApi(self.plane, v1, self._v2, repository, os.environ)
        return [
            InspectionApi(self.plane),
            FeedbackApi(self.plane),
            SettingsApi(self.plane, trace=self._trace, log=self._log),
            repository,
            SharedMemoryApi(self._regions),
            v1,
            cloud,
            Metrics(self.plane, insecure=self._insecure),
            OpenApi(self.plane, cloud.aliases),
        ]

    def _grpc(self) -> H2Server:
        """The gRPC side, made when the first client wants it: protobuf takes memory that not every device has."""
        if self._h2 is None:
            from edgeserve_agent.serving.grpc.service import GrpcService
            from edgeserve_agent.serving.h2.server import H2Server

            self._service = GrpcService(
                self.plane,
                extensions=EXTENSIONS,
                regions=self._regions,
                repository=self.repository,
                trace=self._trace,
                log=self._log,
            )
            self._h2 = H2Server(self._loop, self._service)
        return self._h2

    def _adopt(self, transport: asyncio.Transport, first: bytes) -> None:
        try:
            server = self._grpc()
        except EdgeServeError as error:
            _LOG.error("a gRPC client was turned away: %s", error.message)
            transport.close()
            return
        server.adopt(transport, first)


def _shared_memory() -> SharedMemory:
    from edgeserve_agent.serving.shared_memory import SharedMemory

    return SharedMemory()


def _set_level(settings: LogSettings) -> None:
    logging.getLogger().setLevel(settings.level)


def run(main: Callable[[asyncio.AbstractEventLoop, asyncio.Event], Coroutine[Any, Any, T]]) -> T:
    """Run `main` on a loop of uvloop, where there is one, and set its event at SIGTERM and SIGINT."""
    keep_large_blocks()
    raise_descriptor_limit()
    loop = _new_loop()
    asyncio.set_event_loop(loop)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        return loop.run_until_complete(main(loop, stop))
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        asyncio.set_event_loop(None)
        loop.close()


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        _LOG.info("uvloop is not installed: asyncio's own loop is used")
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop
