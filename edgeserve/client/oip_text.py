"""Triton's `config.pbtxt`: protobuf text format of the message `ModelConfig`, to plain values."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any, Final

from edgeserve.client.oip_proto import messages
from edgeserve.contracts.errors import InputError

_NO_NAMES: Final = re.compile(r"\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|#[^\n]*")
"""Strings and comments."""
_NAME: Final = re.compile(r"([A-Za-z_]\w*)\s*[:{<]")


def read_model_config(text: str, *, what: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Read a model configuration.

    Args:
        text: In protobuf's text format.
        what: Its name for errors.

    Returns:
        The fields that are set, by their names in the schema, enums by name, 64-bit numbers as texts (protobuf's JSON
        mapping); and the names of fields that the schema does not have, which are left out.

    Raises:
        InputError: It is not in the format, or a field has a wrong value.
        MissingLibraryError: protobuf is not installed.
    """
    kind = messages().ModelConfig
    text_format = import_module("google.protobuf.text_format")
    json_format = import_module("google.protobuf.json_format")
    unknown: tuple[str, ...] = ()
    try:
        message = kind()
        try:
            text_format.Parse(text, message)
        except text_format.ParseError as error:
            if "has no field named" not in str(error):
                raise
            message = kind()
            text_format.Parse(text, message, allow_unknown_field=True)
            # The parser names only the first that it does not know.
            found = dict.fromkeys(_NAME.findall(_NO_NAMES.sub("", text)))
            known = _field_names(kind.DESCRIPTOR, set())
            unknown = tuple(name for name in found if name not in known) or (str(error),)
        values: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    except (text_format.ParseError, ValueError, RecursionError) as error:
        raise InputError(f"{what}: {error}", hint="it is line:column; the format is Triton's config.pbtxt") from error
    return values, unknown


def _field_names(descriptor: Any, seen: set[str]) -> set[str]:  # noqa: ANN401 - protobuf has no types
    if descriptor.full_name in seen:
        return set()
    seen.add(descriptor.full_name)
    names = set()
    for field in descriptor.fields:
        names.add(field.name)
        if field.message_type is not None:
            names |= _field_names(field.message_type, seen)
    return names
