"""What a gRPC transport gives a service and what it gets back: bytes of messages, a status, no protobuf.

Two transports carry the same service (`edgeserve_agent.serving.grpc`): grpcio's and the small HTTP/2 of our own.
All of it happens on the event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import Protocol

Message = bytes | memoryview
Receiver = Callable[[Message | None], None]
"""Gets each message of the client, then None when there are no more."""


class StatusCode(IntEnum):
    """gRPC status codes (grpc "Status codes and their use in gRPC")."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class RpcCall(Protocol):
    """One call under way, as its transport sees it."""

    path: str
    """`/package.Service/Method`."""
    cancelled: bool
    """The client has gone, cancelled, or its deadline has passed: what is sent now is dropped."""
    on_cancel: Callable[[], None] | None
    """Called once when `cancelled` becomes true; the service may set it."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """Request metadata, names in lower case; binary values (`-bin`) stay base64."""

    def send(self, chunks: Sequence[Message]) -> None:
        """Send one message, given in pieces that are joined on the wire; the pieces must not change afterwards."""

    def pause(self) -> None:
        """Have no more messages come until `resume`: the client must wait, it has sent faster than they are answered.

        Those that the transport has taken in already, and the end after them, come later.
        """

    def resume(self) -> None:
        """Have messages come again, soon but not before this returns."""

    def finish(self, code: StatusCode = StatusCode.OK, message: str = "") -> None:
        """End the call with a status. Once; nothing can be sent afterwards."""


class RpcService(Protocol):
    """Answers calls."""

    def begin(self, call: RpcCall) -> Receiver:
        """A call began; its messages go to the receiver that is returned.

        An unknown path is finished with UNIMPLEMENTED by the service. A service may finish before the last message.
        """
