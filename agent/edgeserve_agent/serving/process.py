"""The serving process of a device: serves what `slots.json` names, and obeys the control part, if there is one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from edgeserve import atomic
from edgeserve.contracts.errors import DeviceError, EdgeServeError, UnsupportedError
from edgeserve_agent import slots
from edgeserve_agent.control import (
    SOCKET,
    Activate,
    Command,
    Configure,
    Done,
    Load,
    ReadStats,
    ServedRelease,
    ServingStats,
    ServingStatus,
    SetLabel,
    Status,
    Stop,
    Unload,
)
from edgeserve_agent.serving.control_server import Answer, ControlServer
from edgeserve_agent.serving.fleet_models import FleetModels
from edgeserve_agent.serving.listen import Listening
from edgeserve_agent.serving.served import Identity
from edgeserve_agent.serving.server import ModelServer

_LOG: Final = logging.getLogger(__name__)
_LOCK: Final = "serving.lock"
ADDRESSES: Final = "addresses.json"


class Addresses(msgspec.Struct, frozen=True, kw_only=True):
    """`addresses.json`: where the process of this life listens. A process that ends in order removes it."""

    http: str
    grpc: str = ""
    uds: str = ""
    local: str = ""
    pid: int
    started: str


@dataclass(frozen=True, kw_only=True)
class ServingConfig:
    """What the command line said."""

    state_dir: Path
    listening: Listening
    allow_shm: bool = False
    simulate: bool = False
    insecure_dev: bool = False
    threads: int = 1
    """Inside one call of a model; 0 = the runtime decides."""


class ServingProcess:
    """The model server of one state directory."""

    def __init__(self, loop: asyncio.AbstractEventLoop, stop: asyncio.Event, config: ServingConfig) -> None:
        self._config = config
        self._stop = stop
        self._started = secrets.token_hex(8)
        self._server = ModelServer(
            loop, threads=config.threads, insecure=config.insecure_dev, allow_shm=config.allow_shm
        )
        self._plane = self._server.plane
        self._models = FleetModels(self._plane, config.state_dir, simulate=config.simulate, threads=config.threads)
        self._url = ""
        self._starting = True

    async def run(self) -> None:
        """Serve until told to stop.

        Raises:
            DeviceError: The port is in use, another process serves from the state directory, or it cannot be written.
        """
        config = self._config
        with _locked(config.state_dir):
            wanted = slots.read(config.state_dir)
            for model in wanted.models:
                if model.active is not None:
                    self._plane.expect(model.model)
            control = ControlServer(config.state_dir / SOCKET, self._execute)
            addresses = config.state_dir / ADDRESSES
            try:
                found = await self._server.listen_on(config.listening)
                self._url = found["http"]
                await control.start()
                listening = Addresses(**found, pid=os.getpid(), started=self._started)
                atomic.write_bytes(addresses, msgspec.json.encode(listening))
                _LOG.info("listening on %s", self._url)
                starting = asyncio.ensure_future(self._start_all(wanted.models))
                try:
                    await self._stop.wait()
                finally:
                    starting.cancel()
                    await asyncio.wait((starting,))
                _LOG.info("stopping")
            finally:
                await self._server.close()
                control.close()
                with contextlib.suppress(OSError):
                    addresses.unlink()

    async def _start_all(self, models: tuple[slots.ModelSlots, ...]) -> None:
        try:
            await asyncio.gather(*(self._start(model) for model in models))
        finally:
            self._starting = False

    async def _start(self, model: slots.ModelSlots) -> None:
        """Let the active slot answer, or, should it not load, the previous one: old is better than nothing."""
        reasons: list[str] = []
        for slot in (model.active, model.previous):
            if slot is None or self._plane.is_active(model.model):
                continue
            try:
                identity = Identity(
                    model=model.model,
                    version=slot.version,
                    release=slot.release,
                    variant=slot.variant,
                    counter=slot.counter,
                )
                await self._models.load(identity, slot.folder(self._config.state_dir))
                if not self._plane.is_active(model.model):
                    self._plane.activate(model.model, slot.release)
                return
            except EdgeServeError as error:
                _LOG.error("%s %s cannot be served: %s", model.model, slot.version, error.message)
                reasons.append(f"{slot.version}: {error.message}")
            except Exception as error:  # noqa: BLE001 - a bug that one model shows is not to keep it "being loaded"
                _LOG.exception("%s %s cannot be served", model.model, slot.version)
                reasons.append(f"{slot.version}: {error}")
        if model.active is not None:
            self._plane.give_up(model.model, "; ".join(reasons))

    async def _execute(self, command: Command) -> Answer:
        match command:
            case Status():
                return self._status()
            case Load():
                identity = Identity(
                    model=command.model,
                    version=command.version,
                    release=command.release,
                    variant=command.variant,
                    counter=command.counter,
                )
                await self._models.load(identity, Path(command.folder))
            case Activate(model=model, release=release):
                self._plane.activate(model, release)
            case Unload(model=model, release=release):
                self._models.unload(model, release)
            case Configure(model=model):
                await self._models.configure(model)
            case SetLabel(model=model, label=label, release=release):
                self._models.set_label(model, label, release)
            case ReadStats():
                crashes = {
                    (served.identity.model, served.identity.release): served.crashes
                    for served, _active in self._plane.releases()
                }
                releases = tuple(
                    msgspec.structs.replace(one.stats(), crashes=crashes.get((one.model, one.release), 0))
                    for one in self._plane.counters()
                )
                return ServingStats(started=self._started, releases=releases)
            case Stop():
                self._stop.set()
        return Done()

    def _status(self) -> ServingStatus:
        releases = tuple(
            ServedRelease(
                model=served.identity.model,
                version=served.identity.version,
                release=served.identity.release,
                variant=served.identity.variant,
                active=active,
                executing_device=served.opened.model.executing_device,
                fallback=served.opened.model.fallback,
            )
            for served, active in self._plane.releases()
        )
        return ServingStatus(
            pid=os.getpid(),
            started=self._started,
            http_url=self._url,
            insecure=self._config.insecure_dev,
            starting=self._starting,
            releases=releases,
        )


@contextlib.contextmanager
def _locked(state_dir: Path) -> Iterator[None]:
    """Hold the state directory; the kernel lets go of it with the process, however that ends."""
    try:
        import fcntl
    except ImportError as error:
        raise UnsupportedError("the agent of a device needs Linux", hint="use `edgeserve serve` here") from error
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        file = (state_dir / _LOCK).open("ab")
    except OSError as error:
        raise DeviceError(f"cannot use the state directory {state_dir}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DeviceError(
                f"another process serves from {state_dir}", hint="stop it, or give each its own --state-dir"
            ) from error
        yield
