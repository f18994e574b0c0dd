from __future__ import annotations

import msgspec
import pytest

from edgeserve.contracts.desired import Generation, ModelTarget
from edgeserve.contracts.errors import DeviceError
from edgeserve.contracts.limits import MAX_JOURNAL_EVENTS
from edgeserve.contracts.reported import Ack, DeploymentState
from edgeserve_agent.deployment import Record
from edgeserve_agent.journal import FILE, Entry, Journal, JournalFile, read_journal

RELEASE = "sha256:" + "a" * 64
RECORD = Record(
    target=ModelTarget(model="digits", release=RELEASE, version="1", counter=3, index_size=9),
    gen=Generation(1, 1),
    probation_s=1.0,
    state=DeploymentState.FETCHING,
)
EMPTY = Journal(install_id="i", epoch=1)


def test_a_journal_comes_back_as_it_was_saved(tmp_path):
    file = JournalFile(tmp_path)
    file.begin()
    file.save(file.value.with_entry(Entry(record=RECORD, registry="http://r")).with_event("t.d", RECORD))
    assert JournalFile(tmp_path).value == file.value


def test_every_start_is_a_new_epoch_of_the_same_installation(tmp_path):
    lives = []
    for _ in range(3):
        file = JournalFile(tmp_path)
        file.begin()
        lives.append(file.value)
    assert [life.epoch for life in lives] == [1, 2, 3]
    assert len({life.install_id for life in lives}) == 1


@pytest.mark.parametrize("data", [b"", b"{", b'{"epoch": "x"}', b"\xff" * 100, b"[" * 100_000])
def test_a_damaged_journal_is_set_aside_and_a_new_installation_begins(tmp_path, data):
    first = JournalFile(tmp_path)
    first.begin()
    for number in (1, 2):
        (tmp_path / FILE).write_bytes(data)
        with pytest.raises(DeviceError):
            read_journal(tmp_path)
        file = JournalFile(tmp_path)
        assert file.value.install_id != first.value.install_id
        assert "damaged" in file.problem
        assert (tmp_path / f"{FILE}.damaged-{number}").read_bytes() == data


def test_a_journal_that_cannot_be_saved_keeps_its_old_value_and_begins_in_memory(tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    file = JournalFile(folder)
    folder.rmdir()
    before = file.value
    with pytest.raises(DeviceError):
        file.save(before.numbered())
    assert file.value == before
    file.begin()
    assert file.value.epoch == 1
    assert file.problem


def test_events_are_bounded_and_terminal_ones_go_last():
    journal = EMPTY
    done = msgspec.structs.replace(RECORD, state=DeploymentState.COMMITTED)
    for _ in range(MAX_JOURNAL_EVENTS):
        journal = journal.with_event("t.d", done)
    for _ in range(5):
        journal = journal.with_event("t.d", RECORD)
    assert len(journal.events) == MAX_JOURNAL_EVENTS
    states = [event.state for event in journal.events]
    assert states.count(DeploymentState.COMMITTED) >= MAX_JOURNAL_EVENTS - 1
    assert [event.fence.seq for event in journal.events] == sorted(event.fence.seq for event in journal.events)


@pytest.mark.parametrize(
    ("install_id", "epoch", "seq", "left"),
    [("i", 1, 2, 1), ("i", 1, 3, 0), ("i", 2, 0, 0), ("i", 0, 99, 3), ("other", 9, 9, 3)],
)
def test_an_acknowledgement_is_cumulative_and_of_one_installation(install_id, epoch, seq, left):
    journal = EMPTY
    for _ in range(3):
        journal = journal.with_event("t.d", RECORD)
    ack = Ack(device="t.d", install_id=install_id, epoch=epoch, seq=seq)
    assert len(journal.acknowledged(ack).events) == left


def test_a_blamed_release_is_quarantined_with_its_record_and_can_be_forgiven():
    blamed = msgspec.structs.replace(RECORD, state=DeploymentState.REJECTED, blamed=True)
    journal = EMPTY.with_entry(Entry(record=blamed))
    assert journal.quarantined == (RELEASE,)
    assert journal.without_quarantine(RELEASE).quarantined == ()


def test_the_highest_committed_counter_is_kept():
    journal = EMPTY
    for counter in (3, 7, 5):
        target = msgspec.structs.replace(RECORD.target, counter=counter)
        record = msgspec.structs.replace(RECORD, target=target, state=DeploymentState.COMMITTED)
        journal = journal.with_entry(Entry(record=record))
    assert journal.counters == {"digits": 7}


def test_downloads_are_counted_for_a_day():
    journal = EMPTY.with_download(100, now=1000.0).with_download(50, now=2000.0)
    assert journal.downloaded_today(3000.0) == 150
    assert journal.downloaded_today(1000.0 + 24 * 3600) == 0
    assert journal.downloaded_today(500.0) == 0, "a clock that was set back begins a new day"
