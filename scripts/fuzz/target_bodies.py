"""Bodies of V2 and V1: refused or read, and read the same by a decoder that has seen everything as by a new one.

The first byte of an input picks the protocol and the model, the second where the JSON of V2 ends.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from worlds import ECHO, Echo, FindingError

from edgeserve.contracts.errors import EdgeServeError, InputError
from edgeserve.contracts.limits import MAX_CACHED_HEADS
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve_agent.serving.codec import columns
from edgeserve_agent.serving.codec.answer import encode_answer
from edgeserve_agent.serving.codec.request import RequestDecoder
from edgeserve_agent.serving.codec.v1 import read_examples, read_predict


def _spec(name: str, kind: Datatype, *shape: int) -> TensorSpec:
    return TensorSpec(name=name, datatype=kind, shape=shape)


SIGNATURES = (
    ECHO,
    Signature(inputs=(_spec("x", Datatype.FP32, -1, 4),), outputs=(_spec("y", Datatype.FP32, -1, 3),)),
    Signature(inputs=(_spec("x", Datatype.BYTES, -1, 1),), outputs=(_spec("y", Datatype.BYTES, -1),)),
    Signature(
        inputs=(_spec("a", Datatype.UINT8, -1), _spec("b", Datatype.INT64, -1, 2)),
        outputs=(_spec("c", Datatype.FP64, -1), _spec("d", Datatype.BF16, -1)),
    ),
)


def _input(spec: TensorSpec, **more: object) -> dict[str, object]:
    return {"name": spec.name, "shape": [1], "datatype": spec.datatype.value, **more}


def _value(kind: Datatype) -> object:
    return "a" if kind is Datatype.BYTES else True if kind is Datatype.BOOL else 1


def _raw(kind: Datatype) -> bytes:
    return b"\1\0\0\0a" if kind is Datatype.BYTES else bytes(kind.item_bytes)


_JSON_KINDS = [spec for spec in ECHO.inputs if spec.datatype not in (Datatype.FP16, Datatype.BF16)]
_ALL_JSON = json.dumps(
    {
        "inputs": [_input(spec, data=[_value(spec.datatype)]) for spec in _JSON_KINDS],
        "outputs": [{"name": "out_FP32", "parameters": {"classification": 1}}, {"name": "out_BYTES"}],
    }
).encode()
_SIZED = [_input(spec, parameters={"binary_data_size": len(_raw(spec.datatype))}) for spec in ECHO.inputs]
_BINARY_HEAD = json.dumps({"inputs": _SIZED, "parameters": {"binary_data_output": True}}).encode()
_ALL_BINARY = _BINARY_HEAD + b"".join(_raw(spec.datatype) for spec in ECHO.inputs)
_ROW = b'{"id":"1","inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":[[1,2,3,4]]}],"outputs":[{"name":"y"}]}'
_SIXTEEN = b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","parameters":{"binary_data_size":16}}]}' + bytes(16)
_TEXTS = (
    b'{"inputs":[{"name":"x","shape":[2,1],"datatype":"BYTES","data":["a","\\u20ac"]}],'
    b'"parameters":{"sequence_id":"s","sequence_start":true,"priority":1}}'
)
_PAIR = (
    b'{"inputs":[{"name":"a","shape":[3],"datatype":"UINT8","parameters":{"binary_data_size":3}},'
    b'{"name":"b","shape":[1,2],"datatype":"INT64","data":[1,-2]}]}abc'
)
SEEDS = [
    b"\0\0" + _ALL_JSON,
    b"\0\1" + _ALL_BINARY,
    b"\2\0" + _ROW,
    b"\2\1" + _SIXTEEN,
    b"\2\3" + bytes(32),
    b"\4\0" + _TEXTS,
    b"\4\3hello",
    b"\6\1" + _PAIR,
    b"\6\2\0\x20" + _PAIR,
    b'\3\0{"instances": [[1,2,3,4],[NaN,Infinity,-1e30,0]]}',
    b'\3\0{"inputs": {"x": [[1,2,3,4]]}}',
    b'\3\0{"signature_name":"s","instances":[{"x":[1,2,3,4]}]}',
    b'\3\1{"context":{"x":[1,2,3,4]},"examples":[{},{"x":[1,1,1,1]}]}',
    b'\5\0{"instances": [{"b64":"aGk="}]}',
    b'\5\0{"inputs": [["a"],[{"b64":"aGk="}]]}',
    b'\7\0{"instances": [{"a": 1, "b": [1,2]}, {"a": 2, "b": [3,4]}]}',
    b'\1\0{"inputs": {"in_FP32": [1.5], "in_BOOL": [true], "in_UINT64": [18446744073709551615], "in_FP16": [1]}}',
]


class BodyTarget:
    """Decoders that see every input, and new ones for each."""

    seeds = SEEDS

    def __init__(self) -> None:
        self._decoders = [RequestDecoder(signature) for signature in SIGNATURES]
        self._echo = Echo()

    def close(self) -> None:
        """Nothing to end."""

    def check(self, data: bytes) -> object:
        """Raise `FindingError` if it is read in two ways, or an error is none of the client's."""
        if len(data) < 2:
            return None
        which = data[0] // 2 % len(SIGNATURES)
        signature, body = SIGNATURES[which], data[2:]
        if data[0] % 2:
            read = read_examples if data[1] % 2 else read_predict
            outcomes = [_outcome(lambda: _v1(read(signature, body))) for _ in range(2)]
        else:
            length, body = _head_length(data[1] % 4, body)
            known, new = self._decoders[which], RequestDecoder(signature)
            forms: tuple[Any, ...] = (body, memoryview(body))
            outcomes = [
                _outcome(partial(self._v2, decoder, form, length, signature))
                for decoder in (known, new)
                for form in forms
            ]
            if max(len(known._by_bytes), len(known._by_content)) > MAX_CACHED_HEADS:  # noqa: SLF001
                raise FindingError("too many heads are kept")
        if any(one != outcomes[0] for one in outcomes):
            raise FindingError("read in two ways:\n" + "\n".join(map(repr, outcomes)))
        kind, said = outcomes[0][0], outcomes[0][1]
        return which, data[0] % 2, kind, re.sub(r"\d+|'.*?'", "", said[:80]) if kind == "refused" else str(said)[:40]

    def _v2(self, decoder: RequestDecoder, body: Any, length: int | None, signature: Signature) -> Any:
        plan, identity, inputs = decoder.decode(body, length)
        read = {name: _content(array) for name, array in inputs.items()}
        found = (
            plan.names,
            repr(plan.wishes),
            plan.tail,
            plan.priority,
            plan.timeout_us,
            plan.sequence,
            repr(plan.parameters),
        )
        answer: Any = None
        if signature is ECHO and set(inputs) == {spec.name for spec in ECHO.inputs}:
            outputs = self._echo.run(inputs)
            encoded = encode_answer(
                model="m",
                version="1",
                request_id=identity,
                wishes=plan.wishes,
                outputs=outputs,
                labels=(),
                regions=None,
            )
            answer = encoded.json, [bytes(blob) for blob in encoded.blobs]
        return found, identity, read, answer


def _head_length(mode: int, body: bytes) -> tuple[int | None, bytes]:
    match mode:
        case 0:
            return None, body
        case 1:
            return body.rfind(b"}") + 1, body
        case 2:
            return int.from_bytes(body[:2], "big"), body[2:]
        case _:
            return 0, body


def _v1(found: Any) -> Any:
    tensors = found if isinstance(found, dict) else found.inputs
    columns.encode({name: array.tolist() for name, array in tensors.items() if array.dtype != object})
    return {name: _content(array) for name, array in tensors.items()}, getattr(found, "by_rows", None)


def _content(array: Any) -> object:
    """All of a tensor, NaN equal to itself."""
    data = array.ravel().tolist() if array.dtype == object else np.ascontiguousarray(array).tobytes()
    return str(array.dtype), array.shape, data


def _outcome(read: Callable[[], Any]) -> tuple[str, Any]:
    try:
        return "read", read()
    except InputError as error:
        return "refused", error.message
    except EdgeServeError as error:
        raise FindingError(f"{type(error).__name__}: {error.message}") from error
