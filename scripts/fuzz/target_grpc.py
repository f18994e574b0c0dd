"""Messages of ModelInfer: the quick way through a message and protobuf's own agree on every answer."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any

from edgeserve.client.oip_proto import messages
from edgeserve_agent.serving.grpc.service import GrpcService
from edgeserve_agent.serving.rpc import StatusCode
from worlds import ECHO, Finding, World

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
            raise Finding("sent after the end")
        self.sent.append(b"".join(chunks))

    def finish(self, code: StatusCode = StatusCode.OK, message: str = "") -> None:
        if self.status is not None:
            raise Finding("finished twice")
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
        every.raw_input_contents.append(b"\1\0\0\0a" if spec.datatype.value == "BYTES" else bytes(spec.datatype.item_bytes))
    empty = messages().ModelInferRequest(model_name="m", raw_input_contents=[b""])
    empty.inputs.add(name="x", datatype="FP32", shape=[0, 4])
    shared = _row()
    shared.inputs[0].parameters["shared_memory_region"].string_param = "r"
    built = [_row(), _row(id="1"), typed, special, every, empty, shared]
    return [message.SerializeToString() for message in built] + [b"", _UNKNOWN_FIELD]


class GrpcTarget:
    """One service that sees every message."""

    def __init__(self) -> None:
        self.seeds = _seeds()
        self._world = World()
        self._service = GrpcService(self._world.plane)

    def check(self, data: bytes) -> object:
        """Raise `Finding` if the ways differ."""
        answers = [self._answer(form) for form in (data, memoryview(data), data, _UNKNOWN_FIELD + data)]
        self._world.complaints.check()
        if any(one != answers[0] for one in answers):
            raise Finding("the ways differ:\n" + "\n".join(map(repr, answers)))
        (code, said), sent = answers[0]
        if code is StatusCode.INTERNAL:
            raise Finding(f"a failure of the server: {said}")
        if (code is StatusCode.OK) != bool(sent):
            raise Finding(f"{code} with {sent}")
        return code, "".join(sign for sign in said.split("'")[0][:50] if not sign.isdigit()), bool(sent)

    def _answer(self, message: bytes | memoryview) -> Any:
        call = Call()

        async def deliver() -> None:
            receiver = self._service.begin(call)  # type: ignore[arg-type]
            receiver(message)
            receiver(None)
            await self._world.until(lambda: call.status is not None, "the call ended")

        self._world.loop.run_until_complete(deliver())
        return call.status, [messages().ModelInferResponse.FromString(one) for one in call.sent]
