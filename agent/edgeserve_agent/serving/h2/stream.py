"""One call on a stream of HTTP/2: an `RpcCall` for the service, a state machine for the connection."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from struct import Struct
from typing import TYPE_CHECKING, Final

from edgeserve_agent.serving.h2 import frames
from edgeserve_agent.serving.h2.frames import ErrorCode, StreamViolationError
from edgeserve_agent.serving.h2.head import ENCODINGS, RequestHead
from edgeserve_agent.serving.h2.hpack import OK_BLOCK, RESPONSE_BLOCK, http_status_block, status_block
from edgeserve_agent.serving.h2.intake import Intake
from edgeserve_agent.serving.h2.messages import PREFIX
from edgeserve_agent.serving.rpc import Message, Receiver, StatusCode

if TYPE_CHECKING:
    from edgeserve_agent.serving.h2.streams import Streams

_LOG: Final = logging.getLogger(__name__)
_DATA: Final = Struct(">IBIBI")
"""Header of a DATA frame that holds a whole message, and the message's prefix."""
_HEAD_AND_DATA: Final = Struct(f">IBI{len(RESPONSE_BLOCK)}sIBIBI")
_HEAD: Final = len(RESPONSE_BLOCK) << 8 | frames.HEADERS
_OK: Final = Struct(f">IBI{len(OK_BLOCK)}s")
_OK_HEAD: Final = len(OK_BLOCK) << 8 | frames.HEADERS
_LAST: Final = frames.END_HEADERS | frames.END_STREAM
_BUG: Final = "internal error; the server's log says more"


def _ignore(message: Message | None) -> None:
    """Receive nothing more."""


class Stream:
    """A call under way. What most calls never use stands on the class: making one is part of each call's cost."""

    cancelled = False
    on_cancel: Callable[[], None] | None = None
    """Called once when the client has gone or cancelled, its deadline has passed, its message cannot be taken, or the
    service has failed: when the call ends without a status of the service's. The service may set it."""
    deadline: float | None = None
    """Time of the loop's clock at which the call has failed."""
    remote_closed = False
    """The client has sent its last frame."""
    finished = False
    """The service has given the status."""
    progressed = 0.0
    """When a frame of what waits was sent last."""
    _receiver: Receiver = staticmethod(_ignore)
    _head_sent = False
    _intake: Intake | None = None
    _waiting: deque[Message] | None = None
    _waiting_bytes = 0
    _status: bytes | None = None
    _body_bytes = 0

    def __init__(self, streams: Streams, number: int, head: RequestHead, receive_window: int) -> None:
        self.number = number
        self.path: str = head.path
        self.metadata: Mapping[str, str] = head.metadata
        self.receive_left = receive_window
        self.send_window = streams.writer.stream_window
        self._head = head
        self._streams = streams
        self._writer = streams.writer

    # Receiving -----------------------------------------------------------------------------------

    def begin(self) -> None:
        """Give the call to the service, or refuse it by its head."""
        head = self._head
        if head.http_status is not None:
            self.finished = True
            self._end(http_status_block(head.http_status))
        elif head.refused is not None:
            code, message = head.refused
            self.finished = True
            self._end(RESPONSE_BLOCK + status_block(code, message, grpc_accept_encoding=",".join(ENCODINGS)))
        else:
            try:
                receiver = self._streams.server.service.begin(self)
            except Exception as error:  # noqa: BLE001 - it is logged
                self.failed(error)
            else:
                if not self.finished:
                    self._receiver = receiver

    def take(self, data: memoryview) -> None:
        """A piece of DATA.

        Raises:
            StreamViolationError: More came than `content-length` said.
        """
        if self._head.content_length is not None:
            self._body_bytes += len(data)
            if self._body_bytes > self._head.content_length:
                raise StreamViolationError(ErrorCode.PROTOCOL_ERROR, "DATA is longer than content-length")
        if self.finished or self.cancelled:
            return
        if self._intake is None:
            if PREFIX.size <= len(data) <= self._streams.server.small_bytes:
                flag, size = PREFIX.unpack_from(data)
                if not flag and size == len(data) - PREFIX.size:
                    self.deliver(bytes(data[PREFIX.size :]))
                    return
            self._intake = self._new_intake()
        self._intake.take(data)

    def room(self) -> memoryview | None:
        """Where the next bytes of a large message go, if one is under way."""
        if self._intake is None or self.finished or self.cancelled or self._head.content_length is not None:
            return None
        return self._intake.room()

    def advance(self, count: int) -> None:
        """Take in bytes that were put into `room`."""
        assert self._intake is not None
        self._intake.advance(count)

    def end(self) -> None:
        """The client has sent all.

        Raises:
            StreamViolationError: Less came than `content-length` said.
        """
        self.remote_closed = True
        length = self._head.content_length
        if length is not None and length != self._body_bytes:
            raise StreamViolationError(ErrorCode.PROTOCOL_ERROR, "DATA is shorter than content-length")
        if self.finished or self.cancelled:
            return
        if self._intake is not None:
            self._intake.end()
        else:
            self.deliver(None)

    def pause(self) -> None:
        """Deliver nothing more until `resume`."""
        if not self.finished and not self.cancelled:
            if self._intake is None:
                self._intake = self._new_intake()
            self._intake.pause()

    def resume(self) -> None:
        """Deliver on, from the next turn of the loop."""
        if self._intake is not None:
            self._intake.resume()

    def _new_intake(self) -> Intake:
        return Intake(self._streams.server, self._head.encoding, self)

    # Called by the intake ------------------------------------------------------------------------

    @property
    def holds(self) -> bool:
        """Whether what comes has to wait for the service."""
        return self._intake is not None and self._intake.holds

    def deliver(self, message: Message | None) -> None:
        """Give the service a message, or the end."""
        if self.finished or self.cancelled:  # by the message before it, which came in the same frame
            return
        try:
            self._receiver(message)
        except Exception as error:  # noqa: BLE001 - it is logged
            self.failed(error)

    def kept(self, count: int) -> None:
        """So many more bytes wait for the service; fewer when it is negative."""
        self._streams.kept(count)

    def open_window(self, room: int) -> None:
        """Let the client send `room` bytes, or as many as the window has."""
        self._streams.open_window(self, room)

    def failed(self, error: Exception) -> None:
        """End the call for a bug."""
        _LOG.error("answering %r failed", self.path[:200], exc_info=error)
        self.abandon(StatusCode.INTERNAL, _BUG)

    # Sending -------------------------------------------------------------------------------------

    def send(self, chunks: Sequence[Message]) -> None:
        """Send one message."""
        if self.finished or self.cancelled:
            return
        size = 0
        for chunk in chunks:
            size += len(chunk) if type(chunk) is bytes else memoryview(chunk).nbytes
        length = size + PREFIX.size
        writer = self._writer
        if self._waiting is None and length <= self.send_window and writer.can_send(length):
            self.send_window -= length
            if self._head_sent:
                head = _DATA.pack(length << 8, 0, self.number, 0, size)
            else:
                self._head_sent = True
                head = _HEAD_AND_DATA.pack(
                    _HEAD, frames.END_HEADERS, self.number, RESPONSE_BLOCK, length << 8, 0, self.number, 0, size
                )
            writer.write_data(head, chunks, length)
            self._streams.progressed()
            return
        if not self._head_sent:
            self._head_sent = True
            writer.write_block(self.number, frames.END_HEADERS, RESPONSE_BLOCK)
        if self._waiting is None:
            self._waiting = deque()
            self.progressed = self._streams.server.time()
        elif self._waiting_bytes > self._streams.server.limits.waiting_bytes:
            # The client asks on and does not read.
            self._streams.reset(self.number, ErrorCode.ENHANCE_YOUR_CALM)
            return
        self._waiting.append(PREFIX.pack(0, size))
        self._waiting.extend(memoryview(chunk).cast("B") for chunk in chunks if memoryview(chunk).nbytes)
        self._waiting_bytes += length
        writer.wait(self)

    def finish(self, code: StatusCode = StatusCode.OK, message: str = "") -> None:
        """End the call with a status."""
        if self.finished or self.cancelled:
            return
        self.finished = True
        status = OK_BLOCK if code == StatusCode.OK and not message else status_block(code, message)
        if self._waiting is not None:
            self._status = status
        else:
            self._end(status if self._head_sent else RESPONSE_BLOCK + status)

    def send_frame(self) -> bool:
        """Send one DATA frame of what waits; whether another may follow at once."""
        waiting = self._waiting
        if waiting is None:
            return False
        size = min(self._waiting_bytes, self.send_window, self._writer.frame_bytes())
        if size <= 0:
            return False
        self.progressed = self._streams.server.time()
        self._streams.progressed()
        self.send_window -= size
        self._waiting_bytes -= size
        pieces: list[Message] = []
        left = size
        while left:
            piece = waiting.popleft()
            if len(piece) > left:
                waiting.appendleft(memoryview(piece)[left:])
                piece = memoryview(piece)[:left]
            pieces.append(piece)
            left -= len(piece)
        self._writer.write_data(frames.HEADER.pack(size << 8, 0, self.number), pieces, size)
        if waiting:
            return self.send_window > 0
        self._waiting = None
        if self._status is not None:
            self._end(self._status)
        return False

    @property
    def waits(self) -> bool:
        """Whether something waits for the client's windows."""
        return self._waiting is not None

    def _end(self, block: bytes) -> None:
        if block is OK_BLOCK and not self._writer.table_update_due:
            self._writer.write(_OK.pack(_OK_HEAD, _LAST, self.number, block))
        else:
            self._writer.write_block(self.number, _LAST, block)
        self._streams.ended(self)
        self._release()

    # Ending --------------------------------------------------------------------------------------

    def cancel(self) -> None:
        """Nobody wants the answer any more."""
        on_cancel = self.on_cancel
        self._waiting = None
        self._release()
        self._end_service(on_cancel)

    def abandon(self, code: StatusCode, message: str) -> None:
        """End the call with a status that the service did not give."""
        on_cancel = self.on_cancel
        self.finish(code, message)
        self._end_service(on_cancel)

    def _end_service(self, on_cancel: Callable[[], None] | None) -> None:
        if self.cancelled:
            return
        self.cancelled = True
        if on_cancel is not None:
            try:
                on_cancel()
            except Exception:  # noqa: BLE001 - it is logged
                _LOG.exception("cancelling %r failed", self.path[:200])

    def _release(self) -> None:
        """Let go of what knows this call in turn: without the cycle all is freed at once."""
        self._receiver = _ignore
        self.on_cancel = None
        intake, self._intake = self._intake, None
        if intake is not None:
            intake.close()

    def expire(self) -> None:
        """The deadline has passed."""
        if self._waiting is not None:
            self._streams.reset(self.number, ErrorCode.CANCEL)
        else:
            self.abandon(StatusCode.DEADLINE_EXCEEDED, "the deadline has passed")

    def check(self, now: float) -> None:
        """End the call if its message takes too long to arrive, or the client does not read."""
        bounds = self._streams.server.limits
        if self._waiting is not None and now > self.progressed + bounds.idle_s:
            self._streams.reset(self.number, ErrorCode.CANCEL)
        elif self._intake is not None and self._intake.overdue(
            now, grace_s=bounds.head_s, bytes_per_s=bounds.body_bytes_per_s
        ):
            self.abandon(StatusCode.DEADLINE_EXCEEDED, "the message took too long to arrive")
