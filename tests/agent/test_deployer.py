"""Orders that cross each other, with the real installer and no serving process; the test is the worker."""

from __future__ import annotations

import functools
import json
import sys
import time
from collections import deque

import msgspec
import pytest

from edgeserve.contracts.desired import Generation, Halt
from edgeserve.contracts.limits import MAX_ALTERNATIVES
from edgeserve.contracts.reported import DeploymentState as State
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.contracts.variant import Precision
from edgeserve_agent import slots
from edgeserve_agent.deployer import RETRY_S, Deployer
from edgeserve_agent.deployment import Event, EventKind, Prepare
from edgeserve_agent.hardware import device_facts
from edgeserve_agent.installer import Installer
from edgeserve_agent.journal import JournalFile
from edgeserve_agent.sandbox import TRIAL_COMMAND

TRIAL = (sys.executable, "-S", "-c", "print('{\"passed\": true}')")
SAYING = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[sys.argv.index("--folder") + 1])
precision = json.loads((folder / "contract.json").read_bytes())["precision"]
print(json.dumps(json.loads(sys.argv[1])[precision]))
"""
"""A trial that answers what its first argument says of the variant's precision."""
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


def saying(**answers):
    return (sys.executable, "-S", "-c", SAYING, json.dumps(answers))


def passing(latency_ms):
    return {"passed": True, "latency_ms": latency_ms}


BROKEN = {"passed": False, "reason": "it is wrong"}
INT8, FP16, FP32 = ({"precision": precision} for precision in (Precision.INT8, Precision.FP16, Precision.FP32))


@pytest.fixture
def device(configure, manager, releases):
    """A device whose trials say what the test says, and a release with three variants for it."""

    def make(trial, **sections):
        bench = Bench(configure(**sections), manager, releases, trial)
        bench.want(bench.release("1", beside=(FP16, FP32), padding=20_000, **INT8))
        return bench

    return make


def variant_on(bench):
    """Precision of the variant that `slots.json` names."""
    active = slots.read(bench.config.folder).of("digits").active
    return json.loads((active.folder(bench.config.folder) / "contract.json").read_bytes())["precision"]


@pytest.mark.parametrize(
    ("answers", "picked"),
    [
        pytest.param({"int8": passing(3), "fp16": passing(2), "fp32": passing(4)}, "fp16", id="the-fastest"),
        pytest.param({"int8": passing(3), "fp16": passing(3), "fp32": passing(3)}, "int8", id="the-first-of-equals"),
        pytest.param({"int8": BROKEN, "fp16": passing(9), "fp32": passing(7)}, "fp32", id="the-first-is-broken"),
        pytest.param({"int8": passing(9), "fp16": BROKEN, "fp32": BROKEN}, "int8", id="only-one-is-sound"),
        pytest.param({"int8": passing(0), "fp16": passing(9), "fp32": BROKEN}, "fp16", id="one-without-a-latency"),
    ],
)
def test_of_variants_that_only_the_device_can_tell_apart_the_fastest_is_activated(device, answers, picked):
    bench = device(saying(**answers))
    bench.prove()
    assert (bench.active, bench.record.state, variant_on(bench)) == ("1", State.COMMITTED, picked)
    assert bench.record.latency_ms == answers[picked]["latency_ms"]
    assert bench.journal.value.quarantined == ()
    kept = {path.name for path in (bench.config.folder / "variants").iterdir()}
    assert kept == {bench.record.variant.removeprefix("sha256:")}


def test_a_release_all_of_whose_variants_fail_is_rejected_with_every_reason(device):
    bench = device(saying(int8=BROKEN, fp16=BROKEN, fp32=BROKEN))
    bench.work()
    assert (bench.active, bench.record.state) == ("", State.REJECTED)
    assert "none of 3 variants" in bench.record.reason
    assert [f"null {name} (null): the trial failed: it is wrong" in bench.record.reason
            for name in ("int8", "fp16", "fp32")] == [True] * 3  # fmt: skip
    assert bench.journal.value.quarantined == (bench.record.release,)


def test_the_variant_that_was_picked_is_kept_and_returned_to_without_a_download(device):
    bench = device(saying(int8=passing(3), fp16=passing(2), fp32=passing(4)))
    bench.prove()
    first = bench.record.target
    bench.want(bench.release("2", **INT8))
    bench.prove()
    assert (bench.active, variant_on(bench)) == ("2", "int8")
    asked = len(bench.manager.gets)
    bench.want(first)
    bench.prove()
    assert (bench.active, variant_on(bench), bench.manager.gets[asked:]) == ("1", "fp16", [])


def test_variants_that_the_allowance_has_no_room_for_are_left_out(device):
    bench = device(
        saying(int8=passing(3), fp16=passing(2), fp32=passing(1)), limits={"max_download_bytes_per_day": 50_000}
    )
    bench.prove()
    assert (bench.record.state, variant_on(bench)) == (State.COMMITTED, "fp16")
    assert 40_000 < bench.journal.value.day_bytes < 50_000


def test_at_most_so_many_variants_are_fetched(configure, manager, releases):
    answers = {"int8": passing(3), "fp16": passing(2), "fp32": passing(4), "int4": passing(1)}
    bench = Bench(configure(), manager, releases, saying(**answers))
    release = releases.make("1", beside=(FP16, FP32, {"precision": Precision.INT4}), **INT8)
    bench.want(manager.publish(release))
    bench.prove()
    assert MAX_ALTERNATIVES == 3
    assert variant_on(bench) == "fp16"
    fourth = release.variants[3].files["weights.bin"].digest
    assert not [path for path in manager.gets if path.endswith(fourth)]


def test_what_the_release_lacks_in_the_registry_of_one_variant_does_not_stop_the_others(configure, manager, releases):
    bench = Bench(configure(), manager, releases, saying(int8=passing(3), fp16=passing(2)))
    release = releases.make("1", beside=(FP16,), **INT8)
    target = manager.publish(release)
    manager.blobs.remove(release.variants[1].files["weights.bin"].digest)
    bench.want(target)
    bench.prove()
    assert (bench.record.state, variant_on(bench)) == (State.COMMITTED, "int8")


def test_a_variant_that_is_slower_on_real_trials_is_not_activated(configure, manager, releases):
    shape = releases.make("0").variants[0].contract.signature
    slow = Signature(
        inputs=shape.inputs,
        outputs=(*shape.outputs, TensorSpec(name="much", datatype=Datatype.FP32, shape=(-1, 3_000_000))),
    )
    bench = Bench(configure(), manager, releases, TRIAL_COMMAND)
    bench.want(bench.release("1", beside=(FP32,), signature=slow, **INT8))
    bench.prove()
    assert (bench.record.state, variant_on(bench)) == (State.COMMITTED, "fp32")
    assert 0 < bench.record.latency_ms < 3
