from __future__ import annotations

import pytest

from edgeserve.contracts.errors import InputError, UnsupportedError
from edgeserve.contracts.limits import MAX_TRACED_MODELS
from edgeserve_agent.serving.settings import LogSettings, TraceSettings

DEFAULTS = {
    "trace_level": ["OFF"],
    "trace_rate": "1000",
    "trace_count": "-1",
    "log_frequency": "0",
    "trace_file": "",
    "trace_mode": "triton",
}


def test_trace_settings_begin_as_those_of_triton():
    assert TraceSettings().of() == TraceSettings().of("m") == DEFAULTS


def test_a_model_has_the_global_settings_until_it_has_its_own():
    settings = TraceSettings()
    assert settings.update({"trace_rate": "5", "trace_level": ["TIMESTAMPS", "TENSORS"]})["trace_rate"] == "5"
    assert settings.update({"trace_rate": "7"}, "m") == {
        **DEFAULTS,
        "trace_rate": "7",
        "trace_level": ["TIMESTAMPS", "TENSORS"],
    }
    assert settings.of("n")["trace_rate"] == "5"
    for nothing in (None, []):
        settings.update({"trace_rate": "7"}, "m")
        assert settings.update({"trace_rate": nothing}, "m")["trace_rate"] == "5"
    assert settings.update({"trace_rate": None, "trace_level": None}) == DEFAULTS


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("trace_colour", "red"),
        ("trace_level", "LOUD"),
        ("trace_level", ["OFF", "LOUD"]),
        ("trace_rate", ["1", "2"]),
        ("trace_rate", "x"),
        ("trace_rate", ""),
        ("trace_rate", "-1"),
        ("trace_rate", str(2**32)),
        ("trace_count", "-2"),
        ("trace_count", str(2**31)),
        ("trace_count", "--1"),
        ("log_frequency", "²"),
        ("log_frequency", "9" * 10_000),
    ],
)
@pytest.mark.parametrize("model", ["", "m"])
def test_what_cannot_be_is_refused_and_nothing_is_changed(name, value, model):
    settings = TraceSettings()
    with pytest.raises(InputError):
        settings.update({"trace_count": "3", name: value}, model)
    assert settings.of(model) == DEFAULTS


@pytest.mark.parametrize("name", ["trace_file", "trace_mode"])
def test_where_traces_go_is_not_for_clients_to_say(name):
    with pytest.raises(UnsupportedError, match=name):
        TraceSettings().update({name: "/etc/passwd"})


def test_models_with_settings_of_their_own_are_bounded():
    settings = TraceSettings()
    for index in range(MAX_TRACED_MODELS):
        settings.update({"trace_rate": "1"}, f"m{index}")
    with pytest.raises(InputError, match=str(MAX_TRACED_MODELS)):
        settings.update({"trace_rate": "1"}, "one more")
    settings.update({"trace_rate": None}, "m0")
    assert settings.update({"trace_rate": "1"}, "one more")["trace_rate"] == "1"


def test_log_settings_begin_as_those_of_triton_and_change():
    settings = LogSettings()
    assert settings.all() == {
        "log_file": "",
        "log_info": True,
        "log_warning": True,
        "log_error": True,
        "log_verbose_level": 0,
        "log_format": "default",
    }
    changed = settings.update({"log_info": False, "log_verbose_level": 3, "log_format": "ISO8601"})
    assert changed == settings.all()
    assert (changed["log_info"], changed["log_verbose_level"], changed["log_format"]) == (False, 3, "ISO8601")


@pytest.mark.parametrize(
    ("changes", "level"),
    [
        ({}, "INFO"),
        ({"log_verbose_level": 1, "log_info": False}, "DEBUG"),
        ({"log_info": False}, "WARNING"),
        ({"log_info": False, "log_warning": False}, "ERROR"),
        ({"log_info": False, "log_warning": False, "log_error": False}, "CRITICAL"),
    ],
)
def test_who_writes_the_log_is_told_the_level(changes, level):
    told = []
    settings = LogSettings(lambda changed: told.append(changed.level))
    settings.update(changes)
    assert settings.level == level
    assert told == ([level] if changes else [])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("log_colour", True),
        ("log_info", 1),
        ("log_info", "true"),
        ("log_info", None),
        ("log_verbose_level", -1),
        ("log_verbose_level", True),
        ("log_verbose_level", 2**32),
        ("log_format", "xml"),
    ],
)
def test_log_settings_that_cannot_be_are_refused(name, value):
    settings = LogSettings()
    with pytest.raises(InputError, match=name):
        settings.update({"log_warning": False, name: value})
    assert settings.all()["log_warning"] is True


def test_where_the_log_goes_is_not_for_clients_to_say():
    with pytest.raises(UnsupportedError, match="log_file"):
        LogSettings().update({"log_file": "/etc/passwd"})
