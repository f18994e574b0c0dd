"""Plugins by entry point; our own are registered like a stranger's, and nothing is imported before it is asked for."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

from edgeserve.contracts.errors import MissingLibraryError, NotFoundError

RUNTIMES: Final = "edgeserve.runtimes"
SOURCES: Final = "edgeserve.sources"
TARGETS: Final = "edgeserve.targets"

_EXTRA: Final = {
    "ai_edge_litert": "litert",
    "ai_edge_quantizer": "litert",
    "flatbuffers": "litert",
    "httptools": "agent",
    "jinja2": "fleet",
    "joblib": "sklearn",
    "keras": "tensorflow",
    "lightgbm": "lightgbm",
    "nncf": "openvino",
    "numpy": "onnx",
    "onnx": "compile",
    "onnxmltools": "sklearn",
    "onnxruntime": "onnx",
    "onnxscript": "torch",
    "openvino": "openvino",
    "paho": "agent",
    "PIL": "media",
    "skl2onnx": "sklearn",
    "sklearn": "sklearn",
    "sqlalchemy": "fleet",
    "starlette": "fleet",
    "tensorflow": "tensorflow",
    "tf2onnx": "tensorflow",
    "torch": "torch",
    "uvicorn": "fleet",
    "xgboost": "xgboost",
    "yaml": "compile",
}


def names(group: str) -> tuple[str, ...]:
    """Names registered in `group`, sorted."""
    return tuple(sorted({entry.name for entry in entry_points(group=group)}))


def find(group: str, name: str) -> Any:  # noqa: ANN401 - the caller knows the protocol of its group
    """Import and return the object registered as `name` in `group`.

    Raises:
        NotFoundError: No plugin has this name.
        MissingLibraryError: It is there but what it needs is not installed; the hint names the extra.
    """
    entry = _entry(group, name)
    try:
        return entry.load()
    except ImportError as error:
        raise missing(error, f"{group.rpartition('.')[2].rstrip('s')} {name}") from error


def missing(error: ImportError, what: str, *, extra: str = "") -> MissingLibraryError:
    """The error for a package that is not installed: says what needs it and the extra that brings it.

    Args:
        error: As it was raised.
        what: Needs it.
        extra: Brings it, when it is one that several do.
    """
    module = (error.name or "").partition(".")[0]
    extra = extra or _EXTRA.get(module, "")
    hint = f"pip install 'edgeserve[{extra}]'" if extra else f"install the package that provides {module or error}"
    return MissingLibraryError(f"{what} needs {module or error}, which cannot be imported: {error}", hint=hint)


def _entry(group: str, name: str) -> EntryPoint:
    for entry in entry_points(group=group):
        if entry.name == name:
            return entry
    raise NotFoundError(
        f"no {group.rpartition('.')[2].rstrip('s')} is named {name[:60]!r}",
        hint=f"known: {', '.join(names(group))}",
    )
