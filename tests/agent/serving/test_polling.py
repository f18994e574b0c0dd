from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve_agent.serving.polling import Change, due


@pytest.mark.parametrize(
    ("taken", "before", "now", "change"),
    [
        pytest.param({"m": "1"}, {"m": "1"}, {"m": "1"}, None, id="the same"),
        pytest.param({"m": "1"}, {"m": "1"}, {"m": "2"}, None, id="changed just now"),
        pytest.param({"m": "1"}, {"m": "2"}, {"m": "3"}, None, id="being copied"),
        pytest.param({"m": "1"}, {"m": "2"}, {"m": "2"}, Change.LOAD, id="at rest"),
        pytest.param({}, {}, {"m": "1"}, None, id="new"),
        pytest.param({}, {"m": "1"}, {"m": "1"}, Change.LOAD, id="new, at rest"),
        pytest.param({"m": "1"}, {"m": "1"}, {}, None, id="gone just now"),
        pytest.param({"m": "1"}, {}, {}, Change.UNLOAD, id="gone"),
    ],
)
def test_a_change_counts_when_two_looks_saw_the_same(taken, before, now, change):
    assert due(taken, before, now) == ({"m": change} if change else {})


LOOKS = st.lists(st.dictionaries(st.sampled_from("ab"), st.sampled_from("123"), max_size=2), max_size=12)


@given(LOOKS, st.dictionaries(st.sampled_from("ab"), st.sampled_from("123")))
def test_at_rest_all_is_taken_up_once_and_never_what_was_seen_once(looks, final):
    taken: dict[str, str] = {}
    before: dict[str, str] = {}
    for now in [*looks, final, final, final]:
        for name, change in due(taken, before, now).items():
            if change is Change.LOAD:
                assert before[name] == now[name] != taken.get(name)
                taken[name] = now[name]
            else:
                assert name not in before
                assert name not in now
                del taken[name]
        before = now
    assert taken == final
    assert due(taken, final, final) == {}
