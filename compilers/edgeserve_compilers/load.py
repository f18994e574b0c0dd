"""A model as its author saved it to one checked ONNX file: the source that knows its format does it."""

from __future__ import annotations

from pathlib import Path
from typing import Final, cast

from edgeserve import plugins
from edgeserve.contracts.errors import InputError, NotFoundError
from edgeserve.contracts.task import FUNCTION
from edgeserve_compilers.sources.base import Model, Source, SourceOptions
from edgeserve_compilers.sources.sniff import HINTS, Content, sniff

_FORMATS: Final = (
    "ONNX, TFLite, PyTorch (.pt2 or module:function), TensorFlow / Keras, OpenVINO IR, scikit-learn, XGBoost, LightGBM"
)


def load(path_or_function: str | Path, options: SourceOptions | None = None) -> Model:
    """Read and check a model file or folder, or what `module:function` returns.

    Raises:
        NotFoundError: There is no such file or function.
        InputError: No source knows it, it is damaged, or it would execute code and may not.
        DeviceError: The library for its format is not installed.
    """
    options = options or SourceOptions()
    path = Path(path_or_function)
    content = sniff(path)
    if content is Content.NOTHING and not FUNCTION.fullmatch(str(path_or_function)):
        raise NotFoundError(f"there is no model file {path}", hint=HINTS[content])
    if (source := find_source(path)) is not None:
        return source.load(path, options)
    if content is Content.NOTHING:
        raise NotFoundError(f"there is no model file {path}", hint=HINTS[content])
    if content is Content.SPECIAL or content is Content.FOLDER:
        raise InputError(f"{path} is not a file, but {content.value}", hint=HINTS[content])
    raise InputError(f"{path} is {content.value}", hint=HINTS.get(content, f"MODEL is one of {_FORMATS}"))


def find_source(path: Path) -> Source | None:
    """The source that recognises `path`; None = no one does."""
    for name in plugins.names(plugins.SOURCES):
        source = cast("Source", plugins.find(plugins.SOURCES, name)())
        if source.recognises(path):
            return source
    return None
