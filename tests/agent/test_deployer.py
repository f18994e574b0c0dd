"""Orders that cross each other, with the real installer and no serving process; the test is the worker."""

from __future__ import annotations

import functools
import sys
import time
from collections import deque

import msgspec
import pytest

from edgeserve.contracts.desired import Generation, Halt
from edgeserve.contracts.reported import DeploymentState as State
from edgeserve_agent import slots
from edgeserve_agent.deployer import RETRY_S, Deployer
from edgeserve_agent.deployment import Event, EventKind, Prepare
from edgeserve_agent.hardware import device_facts
from edgeserve_agent.installer import Installer
from edgeserve_agent.journal import JournalFile

TRIAL = (sys.executable, "-S", "-c", "print('{\"passed\": true}')")
FAILING = (sys.executable, "-S", "-c", 'print(\'{"passed": false, "reason": "it is wrong"}\')')


known_facts = functools.cache(device_facts)
"""Asked once: it reads the metadata of every installed package."""


class Bench:
    """A device on which time is what the test says."""

    def __init__(self, config, manager, releases, trial=TRIAL) -> None:
        config.folder.mkdir(exist_ok=True)
        facts, targets = known_facts(config.device)
        self.config, self.manager, self.releases = config, manager, releases
        self.journal = JournalFile(config.folder)
        self.jobs = deque()
        self.installer = Installer(
            config=config, facts=facts, targets=targets, journal=lambda: self.journal.value, serving=None,
            trial_command=trial,
        )  # fmt: skip
        self.deployer = Deployer(config=config, journal=self.journal, installer=self.installer, submit=self.jobs.append)
        self.n = 0

    def want(self, *targets, **changes):
        self.n += 1
        desired = self.manager.document(*targets, gen=Generation(1, self.n), **changes)
        self.journal.save(self.journal.value.with_desired(desired, "sha256:" + "0" * 64))
        self.deployer.reconcile()

    def release(self, version, **changes):
        return self.manager.publish(self.releases.make(version, counter=int(version), **changes))

    def work(self, until=None):
        """Do the jobs; stop before the first effect of the kind `until`."""
        while self.jobs and not (until and isinstance(self.jobs[0].effect, until)):
            job = self.jobs.popleft()
            self.deployer.finished(job, self.installer.perform(job.effect, job.entry, job.stop))

    def prove(self):
        self.work()
        self.deployer.happened("digits", Event(kind=EventKind.PROVEN))
        self.work()

    @property
    def record(self):
        return self.journal.value.entry("digits").record

    @property
    def active(self):
        active = slots.read(self.config.folder).of("digits").active
        return active.version if active else ""

    def states(self):
        return [(event.release[-4:], event.state) for event in self.journal.value.events]


@pytest.fixture
def bench(configure, manager, releases):
    return Bench(configure(), manager, releases)


def test_an_order_for_another_release_ends_the_one_under_way(bench):
    first, second = bench.release("1"), bench.release("2")
    bench.want(first)
    job = bench.jobs[0]
    bench.want(second)
    assert job.stop.is_set()
    bench.prove()
    assert (bench.active, bench.record.state) == ("2", State.COMMITTED)
    assert State.REJECTED not in [state for _, state in bench.states()]


def test_an_order_for_what_answered_before_takes_a_probation_back(bench):
    first, second = bench.release("1"), bench.release("2")
    bench.want(first)
    bench.prove()
    bench.want(second)
    bench.work()
    assert (bench.active, bench.record.state) == ("2", State.PROBATION)
    bench.want(first)
    bench.work()
    assert (bench.active, bench.record.state, bench.record.release) == ("1", State.COMMITTED, first.release)
    assert (second.release[-4:], State.REVERTED) in bench.states()
    assert bench.journal.value.quarantined == ()


def test_a_new_generation_that_wants_the_same_goes_on_with_it(bench):
    first = bench.release("1")
    bench.want(first)
    bench.want(msgspec.structs.replace(first, rollout="r-2"))
    assert len(bench.jobs) == 1
    bench.prove()
    bench.want(msgspec.structs.replace(first, rollout="r-2"))
    assert bench.jobs == deque()
    assert (bench.record.gen, bench.record.target.rollout) == (Generation(1, 3), "r-2")
    assert [state for _, state in bench.states()].count(State.COMMITTED) == 1


def test_a_halt_drops_a_candidate_and_takes_a_probation_back_but_leaves_what_is_committed(bench):
    first, second = bench.release("1"), bench.release("2")
    bench.want(first)
    bench.prove()
    for version, until in (("2", Prepare), ("2", None)):
        bench.want(second)
        bench.work(until)
        halt = Halt(id="h", issuer="fm", term=1, version=bench.n, releases=(second.release, first.release))
        bench.deployer.halt(halt)
        bench.work()
        assert (bench.active, bench.record.reason) == ("1", "halted by the fleet"), version
        bench.deployer.halt(Halt(id="h", issuer="fm", term=1, version=bench.n + 1))
    assert bench.record.state is State.REVERTED
    bench.deployer.halt(Halt(id="h", issuer="fm", term=2, version=0, rollouts=("r-9",)))
    bench.want(msgspec.structs.replace(second, rollout="r-9"))
    assert bench.record.state is State.REJECTED


def test_a_failed_release_is_quarantined_until_the_fleet_insists(configure, manager, releases):
    bench = Bench(configure(), manager, releases, FAILING)
    bad = bench.release("1")
    bench.want(bad)
    bench.work()
    assert (bench.record.state, bench.record.reason) == (State.REJECTED, "the trial failed: it is wrong")
    bench.want(bad)
    assert bench.jobs == deque()
    bench.want(msgspec.structs.replace(bad, rollout="another"))
    assert "quarantined" in bench.record.reason
    bench.work()
    bench.want(bad, force=(bad.release,))
    assert (bench.record.state, bench.journal.value.quarantined) == (State.FETCHING, ())


def test_a_release_that_the_registry_does_not_have_is_rejected_without_blame_and_tried_again(bench):
    first = bench.release("1")
    path = bench.manager.blobs.path(first.release)
    index = path.read_bytes()
    path.unlink()
    bench.want(first)
    bench.work()
    assert (bench.record.state, bench.journal.value.quarantined) == (State.REJECTED, ())
    path.write_bytes(index)
    bench.want(first)
    bench.prove()
    assert bench.active == "1"


def test_two_models_do_not_disturb_each_other(bench):
    letters = bench.manager.publish(bench.releases.make("7", model="letters"))
    bench.want(bench.release("1"), letters)
    bench.prove()
    bench.deployer.happened("letters", Event(kind=EventKind.FAILED, reason="no", blame=True))
    bench.work()
    known = slots.read(bench.config.folder)
    assert (known.of("digits").active.version, known.of("letters").active) == ("1", None)
    assert bench.journal.value.quarantined == (letters.release,)


def test_what_no_slot_needs_is_removed_and_shared_files_stay(bench):
    leftover = bench.config.folder / "blobs" / "sha256" / ".left.1234.tmp"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"half of a blob that was copied when the power went")
    for version in ("1", "2", "3"):
        bench.want(bench.release(version))
        bench.prove()
    folders = {folder.name for folder in (bench.config.folder / "variants").iterdir()}
    known = slots.read(bench.config.folder).of("digits")
    assert not leftover.exists()
    assert folders == {slot.variant.removeprefix("sha256:") for slot in (known.active, known.previous)}
    bench.want(bench.manager.publish(bench.releases.make("2b", counter=2)))
    bench.prove()
    assert bench.active == "2b"


def test_a_step_that_cannot_be_saved_is_not_made_and_tried_again(bench):
    first = bench.release("1")
    bench.want(first)
    bench.work(Prepare)
    (bench.config.folder / "journal.json").unlink()
    (bench.config.folder / "journal.json").mkdir()  # no file can be renamed over a folder
    bench.work()
    assert bench.record.state is State.STAGED
    assert "journal.json" in bench.deployer.problem
    assert bench.active == ""
    (bench.config.folder / "journal.json").rmdir()
    bench.deployer.tick(time.monotonic() + RETRY_S)
    assert (bench.record.state, bench.active, bench.deployer.problem) == (State.PROBATION, "1", "")


def test_while_nothing_can_be_saved_little_is_tried_and_said(bench, caplog):
    first, second = bench.release("1"), bench.release("2")
    bench.want(first)
    desired = bench.manager.document(second, gen=Generation(1, 9))
    bench.journal.save(bench.journal.value.with_desired(desired, "sha256:" + "0" * 64))
    (bench.config.folder / "journal.json").unlink()
    (bench.config.folder / "journal.json").mkdir()
    before = time.monotonic()
    for number in range(100):
        bench.deployer.tick(before + number * 0.2)
    assert len([line for line in caplog.messages if "cannot be written" in line]) == 1
    assert len(bench.deployer._later) == 1
    (bench.config.folder / "journal.json").rmdir()
    bench.deployer.tick(before + 100)
    bench.prove()
    assert (bench.active, bench.record.state) == ("2", State.COMMITTED)


def test_bytes_of_a_download_that_came_to_nothing_count_too(configure, manager, releases):
    bench = Bench(configure(limits={"max_download_bytes_per_day": 1_000_000}), manager, releases)
    release = bench.releases.make("1", padding=40_000)
    target = manager.publish(release)
    manager.blobs.remove(release.evidence["golden.npz"].digest)
    bench.want(target)
    bench.work()
    assert bench.record.state is State.REJECTED
    failed = bench.journal.value.day_bytes
    assert failed > 0
    bench.want(bench.release("2", padding=40_000))
    job = bench.jobs[-1]
    event = bench.installer.perform(job.effect, job.entry, job.stop)
    bench.want(bench.release("3"))
    bench.deployer.finished(job, event)
    assert bench.journal.value.day_bytes > failed + 40_000


def test_the_longer_of_both_probations_counts(configure, manager, releases):
    bench = Bench(configure(limits={"minimum_probation_s": 60.0}), manager, releases)
    bench.want(msgspec.structs.replace(bench.release("1"), probation_s=5.0))
    assert bench.record.probation_s == 60.0


def test_a_daily_limit_of_bytes_holds(configure, manager, releases):
    bench = Bench(configure(limits={"max_download_bytes_per_day": 60_000}), manager, releases)
    bench.want(bench.release("1", padding=40_000))
    bench.prove()
    bench.want(bench.release("2", padding=40_000))
    bench.work()
    assert (bench.active, bench.record.state) == ("1", State.REJECTED)
    assert "allowed a day" in bench.record.reason
