"""A fleet in memory of the test: the real manager core on a real database, and devices that speak its protocol."""

from __future__ import annotations

import copy
import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from edgeserve.contracts import topics
from edgeserve.contracts.desired import DESIRED_TYPE, HALT_TYPE, NEVER, Desired, Generation, Halt
from edgeserve.contracts.device import DeviceFacts
from edgeserve.contracts.documents import encode
from edgeserve.contracts.limits import MAX_DESIRED_BYTES, MAX_HALT_BYTES
from edgeserve.contracts.oci import ReleaseIdentity
from edgeserve.contracts.reported import DeploymentState, Event, Fence, ModelReport, Presence, Reported
from edgeserve.contracts.rollout import RolloutSpec, parse_waves
from edgeserve.contracts.telemetry import DeviceStats, ReleaseStats, encode_stats
from edgeserve.contracts.variant import Selector
from edgeserve.trust.envelope import verify
from edgeserve.trust.keys import SigningKey
from edgeserve_fleet.database import Database
from edgeserve_fleet.service import Fleet
from edgeserve_fleet.views import OutboxRow, RolloutView

MODEL = "digits"
KEY = SigningKey.generate()


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def digest_of(version: str) -> str:
    return "sha256:" + hashlib.sha256(version.encode()).hexdigest()


@dataclass
class SimDevice:
    """An agent as the manager sees it: takes signed documents in order of generation, deploys, reports, serves.

    `fate` says how the deployment of a release ends; a release that it does not name commits.
    """

    name: str
    fleet: Fleet
    fate: dict[str, DeploymentState] = field(default_factory=dict)
    install: str = "install-1"
    epoch: int = 1
    seq: int = 0
    gen_seen: Generation = NEVER
    gen_said: Generation = NEVER
    desired_seen: str = ""
    active: str = ""
    previous: str = ""
    state: DeploymentState = DeploymentState.IDLE
    release: str = ""
    rollout: str = ""
    wanted: str = ""
    halted: frozenset[str] = frozenset()
    halt_seen: tuple[int, int] = (-1, -1)
    life: int = 0
    served: dict[str, list[int]] = field(default_factory=dict)
    sent: list[tuple[str, bytes]] = field(default_factory=list)
    """Everything said so far, as (kind, payload)."""
    deaf: bool = False
    delivered: int = 0

    def fence(self) -> Fence:
        self.seq += 1
        return Fence(install_id=self.install, epoch=self.epoch, seq=self.seq)

    def online(self, on: bool = True) -> None:
        self.fleet.apply_presence(self.name, encode(Presence(on=on, epoch=self.epoch)))

    def restart(self) -> None:
        self.epoch, self.seq, self.life = self.epoch + 1, 0, self.life + 1
        self.served.clear()

    def lose_state(self) -> None:
        self.install = f"install-{int(self.install[8:]) + 1}"
        self.epoch, self.seq, self.gen_seen, self.desired_seen = 1, 0, NEVER, ""
        self.active = self.previous = self.release = self.rollout = self.wanted = ""
        self.state, self.delivered = DeploymentState.IDLE, 0

    def receive(self) -> None:
        """Fetch the desired document and the halt list, as by polling."""
        halt = self.fleet.halt()
        if halt is not None:
            self.obey(halt[1])
        self.accept(self.fleet.desired(self.name)[1])

    def listen(self, rows: list[OutboxRow]) -> None:
        """Get what a broker would deliver."""
        for row in rows:
            if row.id > self.delivered and row.topic == topics.HALT:
                self.obey(row.payload)
            elif row.id > self.delivered and row.topic == topics.desired(self.name):
                self.accept(row.payload)
        self.delivered = max([self.delivered, *(row.id for row in rows)])

    def obey(self, envelope: bytes) -> None:
        document = verify(
            envelope, payload_type=HALT_TYPE, key=KEY.public, kind=Halt, what="halt list", limit=MAX_HALT_BYTES
        ).document
        if (document.term, document.version) > self.halt_seen:
            self.halt_seen = (document.term, document.version)
            self.halted = frozenset(document.releases + document.rollouts)

    def accept(self, envelope: bytes) -> None:
        verified = verify(
            envelope,
            payload_type=DESIRED_TYPE,
            key=KEY.public,
            kind=Desired,
            what="desired document",
            limit=MAX_DESIRED_BYTES,
        )
        desired = verified.document
        assert desired.device == self.name
        if desired.gen <= self.gen_seen:
            return
        self.gen_seen, self.desired_seen = desired.gen, verified.payload_digest
        for target in desired.models:
            self.wanted, self.rollout = target.release, target.rollout

    def work(self) -> None:
        """Take the next step of the deployment, and say so."""
        if self.deaf:
            return
        before = (self.state, self.release, self.active)
        stopped = {self.release, self.rollout} & self.halted and not self._ended()
        free = self._ended() and self.wanted not in ("", self.active) and not {self.wanted, self.rollout} & self.halted
        if stopped:
            self.state = DeploymentState.REJECTED
        elif free and self.wanted == self.previous:  # its files are there still
            self.release, self.state = self.wanted, DeploymentState.STAGED
        elif free and self.wanted != self.release:
            self.release, self.state = self.wanted, DeploymentState.FETCHING
        elif not self._ended():
            self._advance()
        after = (self.state, self.release, self.active)
        if after != before or self.gen_seen != self.gen_said:
            self.gen_said = self.gen_seen
            self.report()
        if self.state.is_terminal and after != before:
            self.event()

    def _ended(self) -> bool:
        return self.state is DeploymentState.IDLE or self.state.is_terminal

    def _advance(self) -> None:
        end = self.fate.get(self.release, DeploymentState.COMMITTED)
        if self.state is DeploymentState.FETCHING:
            self.state = DeploymentState.STAGED
            if end is DeploymentState.REJECTED:
                self.state = end
        elif self.state is DeploymentState.STAGED:
            self.previous, self.active = self.active, self.release
            self.state = DeploymentState.PROBATION
        elif self.state is DeploymentState.PROBATION and end is not DeploymentState.PROBATION:
            self.state = end
            if end is DeploymentState.REVERTED:
                self.active, self.previous = self.previous, ""

    def report(self) -> None:
        payload = encode(
            Reported(
                device=self.name,
                fence=self.fence(),
                agent="0.1.0",
                gen_seen=self.gen_seen,
                desired_seen=self.desired_seen,
                models=(
                    ModelReport(
                        model=MODEL,
                        active=self.active,
                        previous=self.previous,
                        state=self.state,
                        release=self.release,
                        rollout=self.rollout,
                        reason="golden set differs" if self.state is DeploymentState.REJECTED else "",
                    ),
                ),
                facts=DeviceFacts(architecture="arm64"),
            )
        )
        self.sent.append(("reported", payload))
        self.fleet.apply_reported(self.name, payload)

    def event(self) -> None:
        payload = encode(
            Event(
                device=self.name,
                fence=self.fence(),
                model=MODEL,
                release=self.release,
                rollout=self.rollout,
                state=self.state,
            )
        )
        self.sent.append(("event", payload))
        self.fleet.apply_events(self.name, [payload])

    def serve(self, requests: int, accuracy: float = 1.0) -> None:
        """Answer requests with the active release; all are labelled, and `accuracy` of them are right."""
        if self.active:
            row = self.served.setdefault(self.active, [0, 0])
            row[0] += requests
            row[1] += round(requests * accuracy)
        self.stats()

    def stats(self) -> None:
        payload = encode_stats(
            DeviceStats(
                device=self.name,
                started=f"{self.install}-life-{self.life}",
                releases=tuple(
                    ReleaseStats(model=MODEL, release=release, requests=total, feedback=total, correct=correct)
                    for release, (total, correct) in self.served.items()
                ),
            )
        )
        self.sent.append(("stats", payload))
        self.fleet.apply_stats(self.name, payload)


class World:
    """A fleet and its devices."""

    def __init__(self, path: Path, on_step: Callable[[str], None] = lambda _step: None) -> None:
        self.path = path
        self.clock = Clock()
        self.devices: dict[str, SimDevice] = {}
        self.open(on_step)

    def open(self, on_step: Callable[[str], None] = lambda _step: None) -> None:
        self.database = Database(self.path, on_step=on_step)
        self.fleet = Fleet(
            self.database, key=KEY, issuer="test", registry_url="http://127.0.0.1:8080", clock=self.clock
        )
        for device in self.devices.values():
            device.fleet = self.fleet

    def close(self) -> None:
        self.database.close()

    def enrol(self, count: int, **labels: str) -> list[SimDevice]:
        added = []
        for number in range(len(self.devices) + 1, len(self.devices) + count + 1):
            name = f"test.d{number}"
            self.fleet.enrol(name, labels=labels, actor="tester")
            device = self.join(name)
            device.online()
            device.receive()
            device.report()
            device.stats()
            added.append(device)
        return added

    def join(self, name: str) -> SimDevice:
        """Give an enrolled device something that speaks for it."""
        device = self.devices[name] = SimDevice(name, self.fleet)
        return device

    def add_release(self, version: str, counter: int, architectures: tuple[str, ...] = ("arm64",)) -> str:
        self.fleet.add_release(
            digest=digest_of(version),
            identity=ReleaseIdentity(name=MODEL, version=version, counter=counter),
            index_size=1000,
            variants=[
                {
                    "target": "arm-cpu",
                    "precision": "int8",
                    "runtime": "null",
                    "memory_bytes": 0,
                    "selector": msgspec.to_builtins(Selector(architectures=architectures)),
                }
            ],
            actor="tester",
        )
        return digest_of(version)

    def spec(self, release: str, waves: str = "1,3,6", **fields: object) -> RolloutSpec:
        return RolloutSpec(
            **{"model": MODEL, "release": release, "waves": parse_waves(waves), "probation_s": 1.0, "observe_s": 5.0}
            | {"wave_deadline_s": 600.0}
            | fields
        )

    def begin(self, release: str, waves: str = "1,3,6", **fields: object) -> str:
        rollout = self.fleet.create_rollout(self.spec(release, waves, **fields), actor="tester").rollout
        self.fleet.start(rollout, actor="tester")
        return rollout

    def second(self, requests: int = 50, accuracy: Callable[[SimDevice], float] = lambda _device: 0.95) -> None:
        """One second in the life of the fleet."""
        self.clock.now += 1.0
        self.fleet.tick()
        rows = self.fleet.pending_outbox(10_000)
        with self.fleet.batch():  # as messages come from the broker
            for device in self.devices.values():
                if device.deaf:
                    continue
                device.listen(rows)
                device.work()
                if requests:
                    device.serve(requests, accuracy(device))

    def run(self, rollout: str, until: set[str], limit_s: int = 900, **second: object) -> RolloutView:
        for _ in range(limit_s):
            view = self.fleet.rollout(rollout)
            if view.state in until:
                return view
            self.second(**second)
        raise AssertionError(f"still {view.state} {view.phase} in wave {view.wave}: {view.now}")

    def install(self, version: str, counter: int) -> str:
        """Roll a release out to every device."""
        release = self.add_release(version, counter)
        self.run(self.begin(release, "100%"), {"succeeded"}, requests=0)
        return release

    def states(self, rollout: str) -> dict[str, str]:
        return {member.device: member.state.value for member in self.fleet.rollout(rollout).devices}

    def active(self) -> set[str]:
        return {device.active for device in self.devices.values()}

    def outbox(self, topic: str) -> bytes | None:
        rows = [row.payload for row in self.fleet.pending_outbox(10_000) if row.topic == topic]
        assert len(rows) <= 1, "a newer document replaces what waits for its topic"
        return rows[0] if rows else None

    def desired_of(self, device: str) -> Desired:
        return verify(
            self.fleet.desired(device)[1],
            payload_type=DESIRED_TYPE,
            key=KEY.public,
            kind=Desired,
            what="desired document",
            limit=MAX_DESIRED_BYTES,
        ).document

    def publish(self) -> list[str]:
        """Take everything out of the outbox; returns the topics."""
        rows = self.fleet.pending_outbox(10_000)
        self.fleet.mark_published([row.id for row in rows])
        return [row.topic for row in rows]

    def desired_topic(self, device: str) -> str:
        return topics.desired(device)


@pytest.fixture
def make_world(tmp_path: Path) -> Iterator[Callable[..., World]]:
    """Make worlds; each has a database of its own unless a path is given."""
    worlds: list[World] = []

    def make(path: Path | None = None, **arguments: object) -> World:
        worlds.append(World(path or tmp_path / f"fleet-{len(worlds)}.db", **arguments))
        return worlds[-1]

    yield make
    for world in worlds:
        world.close()


@pytest.fixture(scope="session")
def six_on_v1(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Six devices that all serve v1: made once, closed, to be copied."""
    world = World(tmp_path_factory.mktemp("six") / "fleet.db")
    world.enrol(6)
    world.install("v1", 1)
    world.close()
    return world


@pytest.fixture
def fleet_of_six(make_world: Callable[..., World], six_on_v1: World, tmp_path: Path) -> World:
    """Six devices that all serve v1."""
    shutil.copyfile(six_on_v1.path, tmp_path / "six.db")
    world = make_world(tmp_path / "six.db")
    world.clock.now = six_on_v1.clock.now
    world.devices = {
        name: copy.deepcopy(device, {id(device.fleet): world.fleet}) for name, device in six_on_v1.devices.items()
    }
    return world


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    """A fleet without devices."""
    return make_world()


@pytest.fixture
def signing_key() -> SigningKey:
    """The manager's key in these tests."""
    return KEY
