"""Areas `trace` and `logging`: settings of a running server (`extension_trace.md`, `extension_logging.md`).

Only values that were read are written, so that a server is as it was.
"""

from __future__ import annotations

from typing import Final

from edgeserve.conformance.check import Level, check
from edgeserve.conformance.http import model_path
from edgeserve.conformance.target import Target

_TRACE: Final = "Triton, extension_trace; L0_trace: trace_endpoint_test"
_LOGGING: Final = "Triton, extension_logging; L0_logging: logging_endpoint_test"


@check("trace.get", level=Level.EXTENSION, source=_TRACE, extension="trace")
def trace_get(target: Target) -> None:
    """GET /v2/trace/setting answers an object of texts and lists of texts."""
    answer = target.http.get("/v2/trace/setting").ok()
    for name, value in answer.document().items():
        texts = isinstance(value, str) or (
            isinstance(value, list) and all(isinstance(part, str | dict) for part in value)
        )
        answer.must(texts, f"{name!r} to be a text or a list of texts", repr(value))


@check("trace.model", level=Level.EXTENSION, source=_TRACE, extension="trace")
def trace_model(target: Target) -> None:
    """GET /v2/models/M/trace/setting answers the settings of one model."""
    target.http.get(f"{model_path(target.model.name)}/trace/setting").ok().document()


@check("trace.update", level=Level.EXTENSION, source=_TRACE, extension="trace")
def trace_update(target: Target) -> None:
    """POST of a setting's own value answers the settings, unchanged."""
    before = target.http.get("/v2/trace/setting").ok().document()
    rate = before.get("trace_rate", "1000")
    answer = target.http.post("/v2/trace/setting", {"trace_rate": rate}).ok()
    answer.must(answer.document().get("trace_rate") == rate, f'"trace_rate": {rate!r}')


@check("trace.unknown-setting", level=Level.SHOULD, source=f"{_TRACE}: update_unknown_settings", extension="trace")
def trace_unknown(target: Target) -> None:
    """A setting that does not exist is refused."""
    target.http.post("/v2/trace/setting", {"conformance_no_such_setting": "1"}).refused()


@check(
    "trace.wrong-value",
    level=Level.EXTENSION,
    source=f"{_TRACE}: update_settings with a wrong value",
    extension="trace",
)
def trace_wrong_value(target: Target) -> None:
    """A value that a setting cannot have is refused."""
    target.http.post("/v2/trace/setting", {"trace_rate": "often"}).refused()


@check("trace.unknown-model", level=Level.EXTENSION, source=_TRACE, extension="trace")
def trace_unknown_model(target: Target) -> None:
    """Settings of a model that does not exist are refused."""
    target.http.get("/v2/models/conformance-no-such-model/trace/setting").refused()


@check("logging.get", level=Level.EXTENSION, source=_LOGGING, extension="logging")
def logging_get(target: Target) -> None:
    """GET /v2/logging answers an object with log_info, log_warning, log_error and log_verbose_level."""
    answer = target.http.get("/v2/logging").ok()
    missing = {"log_info", "log_warning", "log_error", "log_verbose_level"} - answer.document().keys()
    answer.must(not missing, f"{sorted(missing)} too")


@check("logging.update", level=Level.EXTENSION, source=_LOGGING, extension="logging")
def logging_update(target: Target) -> None:
    """POST of a setting's own value answers the settings, unchanged."""
    before = target.http.get("/v2/logging").ok().document()
    wanted = {"log_info": before.get("log_info"), "log_verbose_level": before.get("log_verbose_level")}
    answer = target.http.post("/v2/logging", wanted).ok()
    after = answer.document()
    answer.must({name: after.get(name) for name in wanted} == wanted, f"{wanted}")


@check("logging.unknown-setting", level=Level.SHOULD, source=_LOGGING, extension="logging")
def logging_unknown(target: Target) -> None:
    """A setting that does not exist is refused."""
    target.http.post("/v2/logging", {"conformance_no_such_setting": True}).refused()


@check("logging.wrong-value", level=Level.EXTENSION, source=_LOGGING, extension="logging")
def logging_wrong_value(target: Target) -> None:
    """A value of the wrong kind is refused."""
    target.http.post("/v2/logging", {"log_info": "yes please"}).refused()
