from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.contracts.errors import DeviceError, InputError
from edgeserve.contracts.limits import MAX_LABELLED_VERSIONS
from edgeserve_agent.serving.model_labels import Label, ModelLabels, placed

BY_HAND = Label(stands_for="1")
CONFIGURED = Label(stands_for="1", configured=True)


def at(version: str, *, configured: bool = True) -> Label:
    return Label(stands_for=version, configured=configured)


@pytest.mark.parametrize(
    ("configured", "before", "ready", "after"),
    [
        pytest.param({"s": "2"}, {}, {"2"}, {"s": at("2")}, id="new, ready"),
        pytest.param({"s": "2"}, {}, {"1"}, {}, id="new, not ready"),
        pytest.param({"s": "2"}, {"s": CONFIGURED}, {"1"}, {"s": CONFIGURED}, id="stays until ready"),
        pytest.param({"s": "2"}, {"s": CONFIGURED}, {"1", "2"}, {"s": at("2")}, id="moves"),
        pytest.param({}, {"s": CONFIGURED}, {"1"}, {}, id="no longer configured"),
        pytest.param({}, {"s": BY_HAND}, {"2"}, {"s": BY_HAND}, id="set by hand stays"),
        pytest.param({"s": "2"}, {"s": BY_HAND}, {"1"}, {"s": CONFIGURED}, id="taken over"),
    ],
)
def test_where_labels_stand(configured, before, ready, after):
    assert placed(configured, before, ready) == after


VERSIONS = st.sampled_from("123")
NAMES = st.sampled_from("ab")


@given(
    st.dictionaries(NAMES, VERSIONS),
    st.dictionaries(NAMES, st.builds(Label, stands_for=VERSIONS, configured=st.booleans())),
    st.sets(VERSIONS),
)
def test_a_label_moves_only_to_what_is_ready_and_placing_twice_changes_nothing(configured, before, ready):
    after = placed(configured, before, ready)
    for label, place in after.items():
        moved = label not in before or before[label].stands_for != place.stands_for
        assert not moved or place.stands_for in ready
    assert placed(configured, after, ready) == after


def test_labels_are_kept_in_the_file(tmp_path: Path):
    path = tmp_path / "labels.json"
    labels = ModelLabels(path)
    labels.update("m", {"s": BY_HAND})
    labels.update("n", {"s": CONFIGURED})
    labels.update("n", {})
    again = ModelLabels(path)
    assert again.of("m") == {"s": BY_HAND}
    assert again.of("n") == {}


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b'{"models": 3}', b"\xff", b'{"models": {"m": {"no label": {"stands_for": "1"}}}}'],
)
def test_a_damaged_file_is_reported_and_begun_anew(tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "labels.json"
    path.write_bytes(damage)
    labels = ModelLabels(path)
    assert labels.of("m") == {}
    assert "labels are lost" in caplog.text
    labels.update("m", {"s": BY_HAND})
    assert ModelLabels(path).of("m") == {"s": BY_HAND}


def test_what_cannot_be_kept_changes_nothing(tmp_path: Path):
    labels = ModelLabels(tmp_path / "gone" / "labels.json")
    with pytest.raises(DeviceError):
        labels.update("m", {"s": BY_HAND})
    assert labels.of("m") == {}


@pytest.mark.parametrize(
    "wrong", [{"a/b": BY_HAND}, {"": BY_HAND}, {f"l{number}": BY_HAND for number in range(MAX_LABELLED_VERSIONS + 1)}]
)
def test_names_and_number_are_bounded(wrong):
    labels = ModelLabels(None)
    with pytest.raises(InputError):
        labels.update("m", wrong)
    assert labels.of("m") == {}
