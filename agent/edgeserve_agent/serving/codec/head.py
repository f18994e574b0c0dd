"""The JSON of an inference request, as it comes (Open Inference Protocol v2 REST, "Inference Request JSON Object")."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from edgeserve.contracts.errors import EdgeServeError, InputError
from edgeserve.contracts.limits import MAX_REQUEST_ID_CHARS
from edgeserve.contracts.tensors import Datatype
from edgeserve_agent.serving.call import Sequence
from edgeserve_agent.serving.codec.json_tensors import explained

Parameters = dict[str, Any]


class RequestInput(msgspec.Struct, frozen=True, kw_only=True):
    """One element of `inputs`."""

    name: str
    shape: tuple[int, ...]
    datatype: Datatype
    parameters: Parameters = {}
    data: msgspec.Raw = msgspec.Raw()


class RequestOutput(msgspec.Struct, frozen=True, kw_only=True):
    """One element of `outputs`."""

    name: str
    parameters: Parameters = {}


class RequestHead(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON of an inference request."""

    inputs: tuple[RequestInput, ...]
    id: str = ""
    parameters: Parameters = {}
    outputs: tuple[RequestOutput, ...] = ()


_HEAD: Final = msgspec.json.Decoder(RequestHead)
_U64: Final = 1 << 64
_RESERVED: Final = {"binary_data_output", "sequence_id", "sequence_start", "sequence_end", "priority", "timeout"}


def parse_head(json: bytes | memoryview) -> RequestHead:
    """Read the JSON.

    Raises:
        InputError: It is not an inference request.
    """
    try:
        return _HEAD.decode(json)
    except (msgspec.DecodeError, EdgeServeError, RecursionError, UnicodeDecodeError) as error:
        raise InputError(explained(bytes(json), error)) from error


def checked_id(identity: str) -> str:
    """The id of a request.

    Raises:
        InputError: It is too long to be kept and given back.
    """
    if len(identity) > MAX_REQUEST_ID_CHARS:
        raise InputError(
            f"the id of the request has {len(identity)} characters, at most {MAX_REQUEST_ID_CHARS} are allowed"
        )
    return identity


def flag(parameters: Parameters, name: str, *, default: bool = False) -> bool:
    """A parameter that is true or false.

    Raises:
        InputError: It is something else.
    """
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InputError(f"parameter {name} is {str(value)[:40]!r}, it must be true or false")
    return value


def number(parameters: Parameters, name: str, *, most: int = _U64 - 1) -> int:
    """A parameter that counts something; 0 when it is not given.

    Raises:
        InputError: It is something else.
    """
    value = parameters.get(name, 0)
    if type(value) is not int or not 0 <= value <= most:
        raise InputError(f"parameter {name} is {str(value)[:40]!r}, it must be a number from 0 to {most}")
    return value


def sequence_of(parameters: Parameters) -> Sequence | None:
    """The sequence that a request belongs to (Triton's "Sequence" extension), if any.

    Raises:
        InputError: `sequence_id` is neither a number nor a text, or a flag is none.
    """
    identity = parameters.get("sequence_id", 0)
    if type(identity) not in (int, str) or (type(identity) is int and not 0 <= identity < _U64):
        raise InputError(f"parameter sequence_id is {str(identity)[:40]!r}, it must be a number or a text")
    start, end = flag(parameters, "sequence_start"), flag(parameters, "sequence_end")
    if not identity:
        return None
    return Sequence(id=identity, start=start, end=end)


def own_parameters(parameters: Parameters) -> Parameters:
    """Those that the protocol has no meaning for."""
    return {name: value for name, value in parameters.items() if name not in _RESERVED}
