"""Model configurations as files: Triton's `config.pbtxt`, or the same names as TOML or JSON."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from edgeserve.contracts.errors import EdgeServeError, InputError, NotFoundError, UnsupportedError
from edgeserve.contracts.limits import MAX_CONFIG_BYTES
from edgeserve.contracts.model_config import ModelConfig
from edgeserve.release.blobs import open_regular

_LOG: Final = logging.getLogger(__name__)
CONFIG_FILES: Final = ("config.pbtxt", "config.toml", "config.json")
_KNOWN: Final = frozenset(field.encode_name for field in msgspec.structs.fields(ModelConfig))


def find_config(folder: Path) -> ModelConfig:
    """The configuration in a model's folder; one that says nothing where there is no file.

    Raises:
        InputError: There are several, or the one is not valid; names file and field.
        MissingLibraryError: It is a `config.pbtxt` and protobuf is not installed.
    """
    # `Path.exists` raises for a folder that may not be looked into.
    found = [name for name in CONFIG_FILES if os.path.exists(folder / name)]  # noqa: PTH110
    if len(found) > 1:
        raise InputError(f"{folder} has {' and '.join(found)}", hint="keep one of them")
    return read_config(folder / found[0]) if found else ModelConfig()


def read_config(path: Path) -> ModelConfig:
    """Read one file; its name says the format.

    Raises:
        NotFoundError: It is not there.
        InputError: It is not valid; names file and field.
        MissingLibraryError: It is protobuf text and protobuf is not installed.
    """
    try:
        with open_regular(path, follow=True) as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
    except NotFoundError:
        raise NotFoundError(f"there is no {path}") from None
    return parse_config(data, what=str(path))


def parse_config(data: bytes, *, what: str) -> ModelConfig:
    """Read a configuration.

    Args:
        data: TOML, protobuf text, or, unless the end of `what` says so, JSON.
        what: File name, or a description such as `config of model 'm'`.

    Raises:
        InputError: It is not valid.
        MissingLibraryError: It is protobuf text and protobuf is not installed.
    """
    if len(data) > MAX_CONFIG_BYTES:
        raise InputError(f"{what} has more than the {MAX_CONFIG_BYTES} bytes allowed for it")
    try:
        if what.endswith(".pbtxt"):
            document = _protobuf_text(data.decode(), what)
        elif what.endswith(".toml"):
            document = msgspec.toml.decode(data, type=dict[str, Any])
        else:
            document = msgspec.json.decode(data, type=dict[str, Any])
        return _config(document, what)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, a number without end
        raise InputError(f"{what} is not valid: {error}") from error


def _config(document: Mapping[str, Any], what: str) -> ModelConfig:
    if "ensemble_scheduling" in document:
        raise UnsupportedError(f"{what}: ensemble_scheduling is not supported", hint="call the models one by one")
    unused = [name for name in document if name not in _KNOWN]
    if unused:
        _LOG.warning("%s: ignored, since it has no meaning here: %s", what, ", ".join(unused)[:200])
    try:
        # 64-bit numbers and the keys of tables are texts in protobuf's JSON, TOML and JSON.
        return msgspec.convert(document, ModelConfig, strict=False, str_keys=True)
    except EdgeServeError as error:
        raise InputError(f"{what} is not valid: {error.message}", hint=error.hint) from error


def _protobuf_text(text: str, what: str) -> dict[str, Any]:
    from edgeserve.client.oip_text import read_model_config

    document, unknown = read_model_config(text, what=what)
    if unknown:
        _LOG.warning("%s: ignored, since Triton's configuration has no such field: %s", what, ", ".join(unknown)[:200])
    return document
