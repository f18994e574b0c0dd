"""Messages of ModelInfer: the quick way through a message and protobuf's own agree on every answer."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from google.protobuf.message import DecodeError
from mutations import LENGTHS, mutate
from worlds import ECHO, FindingError, World

from edgeserve.client.oip_proto import messages
from edgeserve_agent.serving.grpc.service import GrpcService
from edgeserve_agent.serving.rpc import StatusCode

_INFER = "/inference.GRPCInferenceService/ModelInfer"
_UNKNOWN_FIELD = b"\x7a\x00"
"""Means nothing, and makes a message unusual, so that protobuf reads it."""


class Call:
    """A call without a transport; keeps to the contract of `RpcCall`."""

    path = _INFER
    metadata: Mapping[str, str] = {}
    cancelled = False
    on_cancel: Callable[[], None] | None = None

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.status: tuple[StatusCode, str] | None = None

    def send(self, chunks: Any) -> None:
        if self.status is not None:
            raise FindingError("sent after the end")
        self.sent.append(b"".join(chunks))

    def finish(self, code: StatusCode = StatusCode.OK, message: str = "") -> None:
        if self.status is not None:
            raise FindingError("finished twice")
        self.status = (code, message)


def _row(**more: Any) -> Any:
    message = messages().ModelInferRequest(model_name="m", raw_input_contents=[struct.pack("<4f", 1, 2, 3, 4)], **more)
    message.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    return message


def _seeds() -> list[bytes]:
    typed = messages().ModelInferRequest(model_name="m", model_version="1", id="typed")
    typed.inputs.add(name="x", datatype="FP32", shape=[1, 4]).contents.fp32_contents.extend([1, 2, 3, 4])
    special = _row(id="7")
    special.outputs.add(name="y").parameters["classification"].int64_param = 2
    special.parameters["priority"].uint64_param = 1
    special.parameters["own"].string_param = "x"
    every = messages().ModelInferRequest(model_name="echo")
    for spec in ECHO.inputs:
        every.inputs.add(name=spec.name, datatype=spec.datatype.value, shape=[1])
        every.raw_input_contents.append(
            b"\1\0\0\0a" if spec.datatype.value == "BYTES" else bytes(spec.datatype.item_bytes)
        )
    empty = messages().ModelInferRequest(model_name="m", raw_input_contents=[b""])
    empty.inputs.add(name="x", datatype="FP32", shape=[0, 4])
    shared = _row()
    shared.inputs[0].parameters["shared_memory_region"].string_param = "r"
    built = [_row(), _row(id="1"), typed, special, every, empty, shared]
    return [message.SerializeToString() for message in built] + [b"", _UNKNOWN_FIELD]


def _edit(message: Any, pick: random.Random) -> None:
    """Change one thing that a message says."""
    raws, tensors = message.raw_input_contents, message.inputs
    tensor = pick.choice(tensors) if tensors else tensors.add(name="x", datatype="FP32")
    match pick.randrange(12):
        case 0:
            message.model_name = pick.choice(("m", "echo", "", "nobody", "m" * 200))
        case 1:
            message.model_version = pick.choice(("", "1", "2", "latest"))
        case 2:
            message.id = pick.choice(("", "1", "x" * 300, "\u20ac"))
        case 3 if raws:
            at = pick.randrange(len(raws))
            raws[at] = pick.choice(
                (raws[at][:-1], raws[at] + b"\0", raws[at] * 2, b"", bytes(pick.choice((1, 16, 130))))
            )
        case 4:
            raws.append(pick.choice((b"", bytes(16), bytes(200))))
        case 5 if raws:
            raws.pop()
        case 6:
            tensor.shape[:] = pick.choices((0, 1, 2, 4, 4, 300, -1, 2**31, 2**62), k=pick.randrange(4))
        case 7:
            tensor.datatype = pick.choice(("FP32", "INT8", "BYTES", "BF16", "", "fp32"))
        case 8:
            tensor.name = pick.choice(("x", "y", "", "in_FP32", "x" * 130))
        case 9:
            contents = pick.choice(("fp32_contents", "int_contents", "uint64_contents", "int64_contents"))
            getattr(tensor.contents, contents).append(pick.choice((0, 1, *LENGTHS[:6])))
        case 10:
            wanted = message.outputs.add(name=pick.choice(("y", "out_FP32", "z")))
            if pick.random() < 0.5:
                wanted.parameters["classification"].int64_param = pick.choice((0, 1, 2, 2**40, -1))
        case _:
            name = pick.choice(("priority", "timeout", "sequence_id", "sequence_start", "binary_data_output", "own"))
            field = pick.choice(("int64_param", "bool_param", "string_param", "uint64_param", "double_param"))
            value: Any = {"bool_param": True, "string_param": "7", "double_param": 1.5}.get(field, 7)
            setattr(message.parameters[name], field, value)


class GrpcTarget:
    """One service that sees every message."""

    @staticmethod
    def mutate(data: bytes, pick: random.Random, others: Sequence[bytes]) -> bytes:
        """Blind changes, those of fields, or both."""
        if pick.random() < 0.7:
            try:
                message = messages().ModelInferRequest.FromString(data)
            except DecodeError:
                message = messages().ModelInferRequest.FromString(pick.choice(others[:5]))
            for _ in range(pick.randrange(4)):
                _edit(message, pick)
            data = message.SerializeToString()
            if pick.random() < 0.6:
                return data
        return mutate(data, pick, others)

    def __init__(self) -> None:
        self.seeds = _seeds()
        self._world = World()
        self._service = GrpcService(self._world.plane)

    def close(self) -> None:
        """End the server."""
        self._world.close()

    def check(self, data: bytes) -> object:
        """Raise `FindingError` if the ways differ."""
        answers = [self._answer(form) for form in (data, memoryview(data), data, _UNKNOWN_FIELD + data)]
        self._world.complaints.check()
        if any(one != answers[0] for one in answers):
            raise FindingError("the ways differ:\n" + "\n".join(map(repr, answers)))
        (code, said), sent = answers[0]
        if code is StatusCode.INTERNAL:
            raise FindingError(f"a failure of the server: {said}")
        if (code is StatusCode.OK) != bool(sent):
            raise FindingError(f"{code} with {sent}")
        return code, "".join(sign for sign in said.split("'")[0][:50] if not sign.isdigit()), bool(sent)

    def _answer(self, message: bytes | memoryview) -> Any:
        call = Call()

        async def deliver() -> None:
            receiver = self._service.begin(call)  # type: ignore[arg-type]
            receiver(message)
            receiver(None)
            await self._world.until(lambda: call.status is not None, "the call ended")

        self._world.loop.run_until_complete(deliver())
        assert call.status is not None
        code, said = call.status
        if "Error parsing message" in said:  # which of several errors protobuf names, depends on where it begins
            said = "no message"
        return (code, said), [messages().ModelInferResponse.FromString(one) for one in call.sent]
