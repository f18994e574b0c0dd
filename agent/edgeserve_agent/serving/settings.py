"""Trace and log settings as Triton's "Trace" and "Logging" extensions read and write them. Pure: values and checks.

The log settings govern this server's log (`LogSettings.level`). Trace settings are kept and answered; edgeserve writes
no trace files, its timings are in the statistics and in `edgeserve-explain`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from edgeserve.contracts.errors import InputError, UnsupportedError
from edgeserve.contracts.limits import MAX_TRACED_MODELS

LogValue = bool | int | str
TraceValue = str | list[str]

_TRACE: Final[Mapping[str, tuple[str, ...]]] = {
    "trace_level": ("OFF",),
    "trace_rate": ("1000",),
    "trace_count": ("-1",),
    "log_frequency": ("0",),
    "trace_file": ("",),
    "trace_mode": ("triton",),
}
_LEVELS: Final = ("OFF", "TIMESTAMPS", "TENSORS")
_LISTS: Final = frozenset({"trace_level"})
_RANGES: Final = {
    "trace_rate": (0, (1 << 32) - 1),
    "trace_count": (-1, (1 << 31) - 1),
    "log_frequency": (0, (1 << 32) - 1),
}
_FIXED: Final = frozenset({"trace_file", "trace_mode", "log_file"})
_LOG: Final[Mapping[str, LogValue]] = {
    "log_file": "",
    "log_info": True,
    "log_warning": True,
    "log_error": True,
    "log_verbose_level": 0,
    "log_format": "default",
}
_LOG_FORMATS: Final = ("default", "ISO8601")


class TraceSettings:
    """Settings of all models, and those of single models that differ from them."""

    def __init__(self) -> None:
        self._global = dict(_TRACE)
        self._models: dict[str, dict[str, tuple[str, ...]]] = {}

    def of(self, model: str = "") -> dict[str, TraceValue]:
        """Settings of a model, or the global ones."""
        settings = {**self._global, **self._models.get(model, {})}
        return {name: list(values) if name in _LISTS else values[0] for name, values in settings.items()}

    def update(self, changes: Mapping[str, str | Sequence[str] | None], model: str = "") -> dict[str, TraceValue]:
        """Change settings, all of them or none; None or an empty list puts one back: a model's to the global one.

        Raises:
            InputError: There is no such setting, or it cannot have that value.
            UnsupportedError: It is fixed when the server starts.
        """
        checked = {name: _trace_values(name, value) for name, value in changes.items()}
        if model and model not in self._models and len(self._models) >= MAX_TRACED_MODELS:
            raise InputError(f"{MAX_TRACED_MODELS} models have trace settings of their own, no more are kept")
        settings = self._models.setdefault(model, {}) if model else self._global
        for name, values in checked.items():
            if values:
                settings[name] = values
            elif model:
                settings.pop(name, None)
            else:
                settings[name] = _TRACE[name]
        if model and not settings:
            del self._models[model]
        return self.of(model)


class LogSettings:
    """What is logged.

    Args:
        changed: Called after each change.
    """

    def __init__(self, changed: Callable[[LogSettings], None] | None = None) -> None:
        self._settings = dict(_LOG)
        self._changed = changed

    def all(self) -> dict[str, LogValue]:
        """Every setting."""
        return dict(self._settings)

    def update(self, changes: Mapping[str, object]) -> dict[str, LogValue]:
        """Change settings, all of them or none.

        Raises:
            InputError: There is no such setting, or it cannot have that value.
            UnsupportedError: It is fixed when the server starts.
        """
        self._settings |= {name: _log_value(name, value) for name, value in changes.items()}
        if changes and self._changed is not None:
            self._changed(self)
        return self.all()

    @property
    def level(self) -> str:
        """The least severe level that is logged, in the words of Python's `logging`."""
        if self._settings["log_verbose_level"]:
            return "DEBUG"
        for name, level in (("log_info", "INFO"), ("log_warning", "WARNING"), ("log_error", "ERROR")):
            if self._settings[name]:
                return level
        return "CRITICAL"


def _trace_values(name: str, value: str | Sequence[str] | None) -> tuple[str, ...]:
    if name not in _TRACE:
        raise InputError(f"there is no trace setting {name[:80]!r}", hint=f"there are {', '.join(_TRACE)}")
    _check_not_fixed(name)
    values = () if value is None else (value,) if isinstance(value, str) else tuple(value)
    if name not in _LISTS and len(values) > 1:
        raise InputError(f"trace setting {name} has one value, {len(values)} were given")
    for text in values:
        if name in _LISTS and text not in _LEVELS:
            raise InputError(f"trace setting {name} cannot be {text[:40]!r}", hint=f"it is one of {', '.join(_LEVELS)}")
        if name in _RANGES:
            _check_number(name, text)
    return values


def _check_number(name: str, text: str) -> None:
    low, high = _RANGES[name]
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= len(str(high)) and low <= int(text) <= high):
        raise InputError(f"trace setting {name} is {text[:40]!r}, it must be a number from {low} to {high}")


def _log_value(name: str, value: object) -> LogValue:
    if name not in _LOG:
        raise InputError(f"there is no log setting {name[:80]!r}", hint=f"there are {', '.join(_LOG)}")
    _check_not_fixed(name)
    before = _LOG[name]
    if isinstance(before, bool) and isinstance(value, bool):
        return value
    if name == "log_verbose_level" and type(value) is int and 0 <= value < 1 << 32:
        return value
    if name == "log_format" and isinstance(value, str) and value in _LOG_FORMATS:
        return value
    kinds = {bool: "true or false", int: "a number from 0", str: f"one of {', '.join(_LOG_FORMATS)}"}
    raise InputError(f"log setting {name} cannot be {str(value)[:40]!r}, it must be {kinds[type(before)]}")


def _check_not_fixed(name: str) -> None:
    if name in _FIXED:
        raise UnsupportedError(f"{name} cannot be changed over the network", hint="it is set where the server starts")
