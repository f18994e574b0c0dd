"""`handler.toml`: what a handler takes and gives, where its code is, what it may use. Reading it runs nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from edgeserve.contracts.errors import EdgeServeError, InputError, NotFoundError
from edgeserve.contracts.limits import (
    HANDLER_CALL_S,
    HANDLER_MEMORY_BYTES,
    MAX_CONFIG_BYTES,
    MAX_HANDLER_CALL_S,
    MAX_HANDLER_MEMORY_BYTES,
    MIB,
)
from edgeserve.contracts.names import file_name, plugin_name
from edgeserve.contracts.tensors import Signature, TensorSpec
from edgeserve.release.blobs import open_regular
from edgeserve.runtimes.checks import check_file

_RUNTIMES: Final = {
    ".onnx": "onnxruntime",
    ".xml": "openvino",
    ".tflite": "litert",
    ".null.json": "null",
}
"""Ending of the model's file -> the runtime, where `then_runtime` does not say."""
_LEAST_MEMORY_MIB: Final = 256


class HandlerLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[limits]`: what the handler's process may use."""

    memory_mib: int = HANDLER_MEMORY_BYTES // MIB
    """Address space, interpreter and libraries included."""
    call_s: float = HANDLER_CALL_S
    """Seconds of one step: `run`, `preprocess` or `postprocess`."""

    def __post_init__(self) -> None:
        if not _LEAST_MEMORY_MIB <= self.memory_mib <= MAX_HANDLER_MEMORY_BYTES // MIB:
            raise InputError(
                f"memory_mib of {self.memory_mib} is not between {_LEAST_MEMORY_MIB} "
                f"and {MAX_HANDLER_MEMORY_BYTES // MIB}"
            )
        if not 0 < self.call_s <= MAX_HANDLER_CALL_S:
            raise InputError(f"call_s of {self.call_s} is not above 0 and at most {MAX_HANDLER_CALL_S:g}")


class HandlerFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of `handler.toml`."""

    module: str = "handler.py"
    """File beside it with the code."""
    handler: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")] = "Handler"
    """A class, or a function of the inputs, in that file."""
    then: str = ""
    """A model beside it that runs between `preprocess` and `postprocess`; empty = `run` computes the outputs."""
    then_runtime: str = ""
    """What runs that model; empty = by the ending of its name."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    limits: HandlerLimits = HandlerLimits()

    def __post_init__(self) -> None:
        if not file_name(self.module).endswith(".py"):
            raise InputError(f"module {self.module!r} is not a Python file", hint="give its name an ending of .py")
        Signature(inputs=self.inputs, outputs=self.outputs)
        if not self.then:
            if self.then_runtime:
                raise InputError("then_runtime is set and there is no `then`", hint="name the model's file in `then`")
            return
        file_name(self.then)
        if plugin_name(self.runtime_of_model, "runtime") == "python":
            raise InputError("a handler cannot follow a handler", hint="call one from the other in Python")

    @property
    def signature(self) -> Signature:
        """What clients send and get."""
        return Signature(inputs=self.inputs, outputs=self.outputs)

    @property
    def runtime_of_model(self) -> str:
        """Name of the runtime of `then`.

        Raises:
            InputError: Neither `then_runtime` nor the name of the file tells.
        """
        known = next((name for ending, name in _RUNTIMES.items() if self.then.endswith(ending)), "")
        if not (self.then_runtime or known):
            raise InputError(
                f"the name of `then`, {self.then!r}, does not tell what runs it",
                hint='add then_runtime = "onnxruntime", or the runtime that it is for',
            )
        return self.then_runtime or known


def read_handler_file(path: Path) -> HandlerFile:
    """Read `handler.toml` and make sure that the files that it names are there.

    Raises:
        NotFoundError: It, or a file that it names, is missing.
        InputError: It is not valid, or a file is not a regular one.
    """
    check_file(path)
    with open_regular(path) as file:
        data = file.read(MAX_CONFIG_BYTES + 1)
    if len(data) > MAX_CONFIG_BYTES:
        raise InputError(f"handler model {path} has more than {MAX_CONFIG_BYTES} bytes")
    try:
        document: dict[str, Any] = msgspec.toml.decode(data, type=dict[str, Any])
        handler = msgspec.convert(document, HandlerFile)
    except (msgspec.DecodeError, UnicodeDecodeError, EdgeServeError, RecursionError) as error:
        raise InputError(
            f"handler model {path} is not valid: {error}", hint=getattr(error, "hint", "") or "docs/handler.md has one"
        ) from error
    for name in filter(None, (handler.module, handler.then)):
        _check_beside(path, name)
    return handler


def _check_beside(path: Path, name: str) -> None:
    try:
        open_regular(path.parent / name).close()
    except NotFoundError as error:
        raise NotFoundError(f"{path.name} names {name!r}, which is missing beside it") from error
