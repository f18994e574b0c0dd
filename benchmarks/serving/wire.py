"""The bytes of requests and the numbers in replies, in each protocol. Standard library only.

All three models take one FP32 tensor `x` and give one FP32 tensor `y`.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass

GRPC_PATH = "/inference.GRPCInferenceService/ModelInfer"
_GRPC_PREFIX = 5
_VARINT, _BYTES = 0, 2  # wire types of protobuf


@dataclass(frozen=True, kw_only=True)
class Model:
    """One of the models, with the input that is sent and what the bare runtime makes of it."""

    name: str
    shape: tuple[int, ...]
    input: bytes
    output_shape: tuple[int, ...]
    output: bytes

    @property
    def values(self) -> list[float]:
        """The input with nine digits, as many as a 32-bit float has."""
        return [float(f"{value:.9g}") for value in floats(self.input)]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the load client sends, and how its reply is read."""

    proto: str
    """`http` or `grpc`."""
    path: str
    body: bytes
    read: Callable[[bytes], list[float]]
    """From the reply, as the client saves it, to the numbers in it."""
    headers: tuple[str, ...] = ()
    reply_bytes: int = 0
    """Length of the reply, where the protocol does not say it (the echo)."""
    shm: str = ""
    """`/name:input_offset:input_bytes:output_offset:output_bytes`, when tensors go through shared memory."""


def floats(data: bytes) -> list[float]:
    found = array("f")
    found.frombytes(data)
    return found.tolist()


# Open Inference Protocol over HTTP ------------------------------------------------------------------------------------


def json_request(model: Model) -> Request:
    tensor = {"name": "x", "shape": model.shape, "datatype": "FP32", "data": model.values}
    body = json.dumps({"inputs": [tensor]}).encode()
    headers = ("Content-Type: application/json",)
    return Request(proto="http", path=_infer(model), body=body, headers=headers, read=read_v2)


def binary_request(model: Model) -> Request:
    tensor = {
        "name": "x", "shape": model.shape, "datatype": "FP32", "parameters": {"binary_data_size": len(model.input)},
    }  # fmt: skip
    output = {"name": "y", "parameters": {"binary_data": True}}
    head = json.dumps({"inputs": [tensor], "outputs": [output]}).encode()
    headers = ("Content-Type: application/octet-stream", f"Inference-Header-Content-Length: {len(head)}")
    return Request(proto="http", path=_infer(model), body=head + model.input, headers=headers, read=read_v2)


def shm_request(model: Model, region: str, key: str) -> Request:
    """Triton's system shared memory: the input at offset 0 of the region, the output behind it."""
    output_at, output_bytes = len(model.input), len(model.output)
    place = {"shared_memory_region": region, "shared_memory_byte_size": len(model.input)}
    tensor = {"name": "x", "shape": model.shape, "datatype": "FP32", "parameters": place}
    back = {
        "shared_memory_region": region, "shared_memory_byte_size": output_bytes, "shared_memory_offset": output_at,
    }  # fmt: skip
    body = json.dumps({"inputs": [tensor], "outputs": [{"name": "y", "parameters": back}]}).encode()
    return Request(
        proto="http",
        path=_infer(model),
        body=body,
        headers=("Content-Type: application/json",),
        read=floats,
        shm=f"{key}:0:{len(model.input)}:{output_at}:{output_bytes}",
    )


def shm_register(region: str, key: str, size: int) -> tuple[str, bytes]:
    """Path and body of the request that makes a region known."""
    body = json.dumps({"key": key, "offset": 0, "byte_size": size}).encode()
    return f"/v2/systemsharedmemory/region/{region}/register", body


def read_v2(reply: bytes) -> list[float]:
    """The first output of a response, JSON or binary."""
    headers, body = split_response(reply)
    head_bytes = int(headers.get("inference-header-content-length", len(body)))
    output = json.loads(body[:head_bytes])["outputs"][0]
    if "data" in output:
        return flat(output["data"])
    return floats(body[head_bytes : head_bytes + output["parameters"]["binary_data_size"]])


def split_response(reply: bytes) -> tuple[dict[str, str], bytes]:
    """Headers, names in lower case, and body of an HTTP response."""
    head, _, body = reply.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")[1:]
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("transfer-encoding", "").lower() == "chunked":
        body = b"".join(_chunks(body))
    return headers, body


def _chunks(body: bytes) -> Iterator[bytes]:
    at = 0
    while True:
        end = body.index(b"\r\n", at)
        size = int(body[at:end], 16)
        if size == 0:
            return
        yield body[end + 2 : end + 2 + size]
        at = end + 2 + size + 2


def flat(values: object) -> list[float]:
    if isinstance(values, list):
        return [number for value in values for number in flat(value)]
    return [float(values)]  # type: ignore[arg-type]


def _infer(model: Model) -> str:
    return f"/v2/models/{model.name}/infer"


# What the frameworks without a protocol of their own are made to speak -----------------------------------------------


def plain_request(model: Model, path: str) -> Request:
    """`{"x": [numbers]}` to `{"y": [numbers]}`."""
    body = json.dumps({"x": model.values}).encode()
    return Request(proto="http", path=path, body=body, headers=("Content-Type: application/json",), read=_read_plain)


def octets_request(model: Model, path: str) -> Request:
    """The input's bytes to the output's bytes."""
    headers = ("Content-Type: application/octet-stream",)
    return Request(
        proto="http", path=path, body=model.input, headers=headers, read=lambda reply: floats(split_response(reply)[1])
    )


def _read_plain(reply: bytes) -> list[float]:
    return flat(json.loads(split_response(reply)[1])["y"])


# Open Inference Protocol over gRPC: protobuf by hand ------------------------------------------------------------------


def grpc_request(model: Model) -> Request:
    """ModelInferRequest: model_name 1, inputs 5 (name 1, datatype 2, shape 3), raw_input_contents 7."""
    shape = b"".join(_varint(size) for size in model.shape)
    tensor = _field(1, b"x") + _field(2, b"FP32") + _field(3, shape)
    body = _field(1, model.name.encode()) + _field(5, tensor) + _field(7, model.input)
    return Request(proto="grpc", path=GRPC_PATH, body=body, read=read_grpc)


def read_grpc(reply: bytes) -> list[float]:
    """ModelInferResponse: raw_output_contents 6, or outputs 5 with contents 5 with fp32_contents 6."""
    message = dict(_fields(reply[_GRPC_PREFIX:]))
    if 6 in message:
        return floats(message[6])
    return floats(dict(_fields(dict(_fields(message[5]))[5]))[6])


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(data)) + data


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """The length-delimited fields; the others are skipped."""
    at = 0
    while at < len(message):
        key, at = _read_varint(message, at)
        size, at = _read_varint(message, at)
        if key & 7 == _VARINT:
            continue
        if key & 7 != _BYTES:
            raise ValueError(f"a field of wire type {key & 7} is not expected in a response")
        yield key >> 3, message[at : at + size]
        at += size


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
