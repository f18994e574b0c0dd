"""The manager as a process: opens the state folder, wires the parts together, serves, and stops cleanly."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import signal
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Final

import uvicorn

from edgeserve import __version__
from edgeserve.contracts.errors import DeviceError, EdgeServeError, InputError
from edgeserve.link.mosquitto import Mosquitto
from edgeserve.release.blobs import BlobFolder
from edgeserve_fleet.api import Enrolment, OperatorApi, Status
from edgeserve_fleet.app import LOOPBACK_NAMES, create_app
from edgeserve_fleet.auth import Authenticator, load_operator_token
from edgeserve_fleet.broker import BrokerConnection
from edgeserve_fleet.changes import ChangeFeed
from edgeserve_fleet.config import EMBEDDED, FleetConfig, is_loopback
from edgeserve_fleet.content import content
from edgeserve_fleet.database import Database
from edgeserve_fleet.device_api import DeviceApi
from edgeserve_fleet.page import Page
from edgeserve_fleet.registry import Registry
from edgeserve_fleet.releases import Releases
from edgeserve_fleet.service import Fleet
from edgeserve_fleet.state import Addresses, Ports, StateFolder, listen
from edgeserve_fleet.uploads import Uploads

_log = logging.getLogger(__name__)
_TICK_S: Final = 0.5
_BROKER_RETRY_S: Final = 2.0
_STOP_S: Final = 3


class Manager:
    """One fleet manager: everything that `edgeserve fleet serve` runs. Use it as a context.

    Construction binds the address, starts the broker and opens the database; `serve` answers until `stop`.

    Raises:
        InputError: A file of the state folder is not what it should be.
        ConflictError: Another manager uses the state folder.
        DeviceError: The port is in use, the broker cannot be started, or the disk refuses.
    """

    def __init__(self, config: FleetConfig) -> None:
        self._config = config
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        if config.tls:
            _check_certificate(config)
        with contextlib.ExitStack() as opened:
            self.state = StateFolder(Path(config.state_dir))
            opened.callback(self.state.close)
            before = self.state.ports
            self._socket = listen(*config.address(), preferred=before.http)
            opened.callback(self._socket.close)
            self.url = config.public_url.rstrip("/") or self._bound_url()
            self.operator_token = load_operator_token(self.state.operator_token_path)
            key = self.state.signing_key()
            self._manager_key = key.public.text
            self._password = config.broker_password or secrets.token_urlsafe(32)
            self._broker = self._start_broker(before.mqtt)
            if self._broker is not None:
                opened.callback(self._broker.stop)
            self.state.ports = Ports(self._socket.getsockname()[1], self._broker.port if self._broker else 0)
            self.mqtt_url = config.broker if self._broker is None else self._broker.url
            database = Database(config.db or self.state.path / "fleet.db")
            opened.callback(database.close)
            self.fleet = Fleet(database, key=key, issuer=self.url, registry_url=self.url)
            self._shut_out_revoked()
            user, password = config.broker_user, self._password
            self._link = BrokerConnection(self.fleet, url=self.mqtt_url, username=user, password=password)
            opened.callback(self._link.stop)
            self.state.announce(Addresses(http=self.url, mqtt=self.mqtt_url))
            self._feed = ChangeFeed(self.fleet.version, self.fleet.wait_for_change)
            self._server = _Server(self._uvicorn_config(), self._feed)
            self._opened = opened.pop_all()

    def __enter__(self) -> Manager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def serve(self) -> None:
        """Answer requests and run the fleet until `stop` is called, from any thread or a signal handler."""
        self._start_thread("tick", _TICK_S, self.fleet.tick)
        if self._broker is not None:
            self._start_thread("broker", _BROKER_RETRY_S, self._broker.start)
        self._link.start()
        self._server.run(sockets=[self._socket])

    def stop(self, *, at_once: bool = False) -> None:
        """Make `serve` return; `at_once` without waiting for requests."""
        self._stopping.set()
        self._server.should_exit = True
        self._server.force_exit = at_once

    def close(self) -> None:
        """End threads, broker and database."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(timeout=_STOP_S)
        self._opened.close()

    def status(self) -> Status:
        """How the manager runs."""
        return Status(
            version=__version__,
            url=self.url,
            mqtt_url=self.mqtt_url,
            mqtt_connected=self._link.connected,
            insecure=self._config.insecure,
            devices=len(self.fleet.devices()),
            releases=len(self.fleet.releases()),
            rollouts=len(self.fleet.rollouts()),
            changes=self.fleet.version(),
        )

    def _enrolment(self, device: str, token: str) -> Enrolment:
        return Enrolment(
            device=device, token=token, manager_key=self._manager_key, mqtt_url=self.mqtt_url, manager_url=self.url
        )

    def _bound_url(self) -> str:
        host, port = self._socket.getsockname()[:2]
        scheme = "https" if self._config.tls else "http"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    def _start_broker(self, preferred: int) -> Mosquitto | None:
        if self._config.broker != EMBEDDED:
            return None
        if preferred:
            try:
                return self._started_broker(preferred)
            except DeviceError as error:
                _log.warning("the broker gets another port, so devices must be enrolled again: %s", error)
        return self._started_broker(0)

    def _started_broker(self, port: int) -> Mosquitto:
        user = self._config.broker_user
        broker = Mosquitto(self.state.path / "mosquitto", port=port, manager_user=user)
        broker.add_user(user, self._password)
        broker.start()
        return broker

    def _shut_out_revoked(self) -> None:
        """Take revoked devices out of the broker: the last run may have ended before it did."""
        if self._broker is not None:
            for view in self.fleet.devices():
                if view.revoked:
                    self._broker.remove_user(view.device)

    def _uvicorn_config(self) -> uvicorn.Config:
        authenticator = Authenticator(self.operator_token, self.fleet.authenticate)
        blobs = BlobFolder(self.state.path / "blobs")
        registry = Registry(
            blobs=blobs, tags=self.state.path / "tags", uploads=Uploads(self.state.path / "blobs" / "uploads")
        )
        operator = OperatorApi(
            fleet=self.fleet,
            releases=Releases(self.fleet, blobs),
            users=self._broker,
            feed=self._feed,
            enrolment=self._enrolment,
            status=self.status,
        )
        page = Page(
            authenticator=authenticator,
            content=lambda: content(self.fleet, self.status(), time.time()),
            secure=self.url.startswith("https:"),
        )
        endpoints = [
            *operator.endpoints(),
            *DeviceApi(self.fleet).endpoints(),
            *registry.endpoints(),
            *page.endpoints(),
        ]
        app = create_app(endpoints, authenticator=authenticator, feed=self._feed, allowed_hosts=self._allowed_hosts())
        return uvicorn.Config(
            app,
            lifespan="on",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=60,
            timeout_graceful_shutdown=_STOP_S + 2,
            ssl_certfile=self._config.tls_certificate or None,
            ssl_keyfile=self._config.tls_key or None,
        )

    def _allowed_hosts(self) -> set[str] | None:
        host, _port = self._config.address()
        if not is_loopback(host):
            return None
        return {*LOOPBACK_NAMES, host, urllib.parse.urlsplit(self.url).hostname or host}

    def _start_thread(self, name: str, every_s: float, step: Callable[[], object]) -> None:
        """Call `step` again and again in a thread; what it raises is logged once and tried again."""

        def loop() -> None:
            problem = ""
            while not self._stopping.wait(every_s):
                problem = _attempt(name, step, problem)

        thread = threading.Thread(target=loop, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()


class _Server(uvicorn.Server):
    """uvicorn, but open event streams end when it stops, and signals are the caller's."""

    def __init__(self, config: uvicorn.Config, feed: ChangeFeed) -> None:
        super().__init__(config)
        self._feed = feed

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._feed.close()
        patience = asyncio.get_running_loop().call_later(_STOP_S, self._cut)
        await super().shutdown(sockets)
        patience.cancel()

    def _cut(self) -> None:
        """End the connections of clients that do not read: their handlers then see that the client is gone."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def run(config: FleetConfig, *, announce: Callable[[str], None]) -> None:
    """Run a manager until SIGTERM or SIGINT; a second SIGINT does not wait for requests.

    Args:
        config: How.
        announce: Called with each line that the operator should see once everything listens.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # its starts and stops are announced here
    asked = 0

    def interrupt(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, interrupt)
    with Manager(config) as manager:

        def stop(number: int, _frame: FrameType | None) -> None:
            nonlocal asked
            asked += 1
            manager.stop(at_once=asked > 1 and number == signal.SIGINT)

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        announce(f"fleet manager  {manager.url}")
        announce(f"broker         {manager.mqtt_url}")
        announce(f"operator token in {manager.state.operator_token_path}")
        if config.insecure:
            announce("WARNING: a public address without TLS; tokens cross the network in the clear (--insecure-dev)")
        announce(f"export EDGESERVE_FLEET_URL={manager.url}")
        announce(f"export EDGESERVE_FLEET_TOKEN=$(cat {manager.state.operator_token_path})")
        manager.serve()


def _check_certificate(config: FleetConfig) -> None:
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(config.tls_certificate, config.tls_key)
    except OSError as error:
        raise InputError(
            f"cannot use the certificate {config.tls_certificate} with the key {config.tls_key}: {error}",
            hint="both are PEM files, and the key has no password",
        ) from error


def _attempt(name: str, step: Callable[[], object], problem: str) -> str:
    """Returns what is wrong; what was wrong before, `problem`, is not logged again."""
    try:
        step()
    except Exception as error:  # noqa: BLE001 - a defect in one step must not end the manager
        if str(error) != problem:
            unexpected = None if isinstance(error, EdgeServeError) else error
            _log.warning("%s: %s", name, error, exc_info=unexpected)
        return str(error)
    return ""
