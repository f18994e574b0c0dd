"""What the frames of one connection mean (RFC 9113, sections 5, 6 and 8): calls begin, get their messages, end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeserve.contracts import limits
from edgeserve_agent.serving.h2 import frames
from edgeserve_agent.serving.h2.flow import ReceiveWindow, TokenBucket
from edgeserve_agent.serving.h2.frames import ConnectionViolationError, ErrorCode, StreamViolationError
from edgeserve_agent.serving.h2.head import read_head, wrong_trailer
from edgeserve_agent.serving.h2.hpack import BlockDecoder
from edgeserve_agent.serving.h2.stream import Stream

if TYPE_CHECKING:
    from edgeserve_agent.serving.h2.server import H2Server
    from edgeserve_agent.serving.h2.writer import FrameWriter


class Streams:
    """The streams of one connection."""

    def __init__(self, server: H2Server, writer: FrameWriter) -> None:
        bounds = server.limits
        self.server = server
        self.writer = writer
        self.open: dict[int, Stream] = {}
        self.last = 0
        """Highest stream that the client opened."""
        self.accepted: int | None = None
        """Highest stream that is answered, once GOAWAY was sent."""
        self._window = ReceiveWindow(limits.H2_CONNECTION_WINDOW)
        self._stream_window = bounds.stream_window
        self._decoder = BlockDecoder(read_head, max_list_bytes=bounds.head_bytes)
        self._forgotten: dict[int, None] = {}
        """Streams that we reset, the oldest first: the client may not know yet."""
        now = server.time()
        self._resets = TokenBucket(burst=bounds.resets, per_s=limits.H2_RESETS_PER_S, now=now)
        self._idle_frames = TokenBucket(burst=bounds.idle_frames, per_s=limits.H2_IDLE_FRAMES_PER_S, now=now)

    # Called by the reader; all raise ConnectionViolationError --------------------------------------

    def headers(self, number: int, block: bytes, *, ends: bool) -> None:
        """A whole header block: a new call, or trailers."""
        if number <= self.last:
            self._trailers(number, block, ends=ends)
            return
        if not number & 1:
            raise ConnectionViolationError(ErrorCode.PROTOCOL_ERROR, f"HEADERS on stream {number}")
        self.last = number
        head = self._decoder.decode(block)
        if self.accepted is not None:
            return
        if len(self.open) >= self.server.limits.concurrent_streams:
            self._refuse(number, ErrorCode.REFUSED_STREAM)
        elif head.malformed is not None:
            self._refuse(number, ErrorCode.PROTOCOL_ERROR)
        else:
            stream = self.open[number] = Stream(self, number, head, self._stream_window)
            if head.timeout_s is not None:
                self.server.watch(stream, head.timeout_s)
            stream.remote_closed = ends
            stream.begin()
            if ends:
                self._end(stream)

    def data(self, number: int, payload: memoryview, *, ends: bool) -> None:
        """A whole DATA frame."""
        stream = self.data_begins(number, len(payload), ends=ends)
        if stream is not None:
            self.data_piece(stream, payload, ends=ends)

    def data_begins(self, number: int, length: int, *, ends: bool) -> Stream | None:
        """Count a DATA frame; the stream that its payload goes to, None when it is passed over."""
        increment = self._window.take(length)
        if increment:
            self.writer.write(frames.window_update(0, increment))
        elif increment is None:
            raise ConnectionViolationError(ErrorCode.FLOW_CONTROL_ERROR, "the connection's window is exceeded")
        stream = self.open.get(number)
        if stream is None:
            self._check_known("DATA", number)
            if not self._passed_over(number):
                raise ConnectionViolationError(ErrorCode.STREAM_CLOSED, f"DATA on closed stream {number}")
            if not length:
                self.idle_frame()
            return None
        if stream.remote_closed:
            self._refuse(number, ErrorCode.STREAM_CLOSED)
            return None
        stream.receive_left -= length
        if stream.receive_left < 0:
            self._refuse(number, ErrorCode.FLOW_CONTROL_ERROR)
            return None
        if not ends:
            if stream.receive_left < self._stream_window >> 1:
                self.open_window(stream, 0)
            if not length:
                self.idle_frame()
        return stream

    def data_piece(self, stream: Stream, payload: memoryview, *, ends: bool) -> None:
        """Some of a DATA frame's payload; `ends`: the client sends nothing after it on this stream."""
        try:
            if ends:
                stream.remote_closed = True
            if payload:
                stream.take(payload)
            if ends:
                stream.end()
        except StreamViolationError as error:
            self._refuse(stream.number, error.code)

    def data_arrived(self, stream: Stream, count: int, *, ends: bool) -> None:
        """`data_piece`, when the bytes are in the stream's own memory already."""
        if ends:
            stream.remote_closed = True
        stream.advance(count)
        if ends:
            self._end(stream)

    def control(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        """Any other frame."""
        if kind == frames.WINDOW_UPDATE:
            self._window_update(number, frames.parse_word("WINDOW_UPDATE", payload) & frames.STREAM_MASK)
        elif kind == frames.RST_STREAM:
            frames.parse_word("RST_STREAM", payload)
            self._check_known("RST_STREAM", number)
            self._count_reset()
            self.drop(number)
        elif kind == frames.PRIORITY:
            self._priority(number, payload)
        elif kind == frames.PUSH_PROMISE:
            raise ConnectionViolationError(ErrorCode.PROTOCOL_ERROR, "a client cannot push")
        else:
            self.idle_frame()
            if number:
                raise ConnectionViolationError(ErrorCode.PROTOCOL_ERROR, f"a frame of type {kind} on stream {number}")
            if kind == frames.PING:
                if len(payload) != 8:
                    raise ConnectionViolationError(ErrorCode.FRAME_SIZE_ERROR, f"PING of {len(payload)} bytes")
                if not flags & frames.ACK:
                    self.writer.write(frames.frame(frames.PING, frames.ACK, 0, payload))
            elif kind == frames.SETTINGS:
                self._settings(flags, payload)
            elif len(payload) < 8:
                raise ConnectionViolationError(ErrorCode.FRAME_SIZE_ERROR, f"GOAWAY of {len(payload)} bytes")

    def idle_frame(self) -> None:
        """Count a frame that carries no call."""
        if not self._idle_frames.take(self.server.time()):
            # The words at which gRPC's clients ping less often.
            raise ConnectionViolationError(ErrorCode.ENHANCE_YOUR_CALM, "too_many_pings")

    def open_window(self, stream: Stream, room: int) -> None:
        """Let the client send `room` bytes of a stream, and half a window at least; not while what it sent waits."""
        window = self._stream_window
        if stream.receive_left >= max(room, window >> 1) or stream.holds or stream.remote_closed:
            return
        increment = max(room, window) - stream.receive_left
        stream.receive_left += increment
        self.writer.write(frames.window_update(stream.number, increment))

    # Called by streams ---------------------------------------------------------------------------

    def kept(self, count: int) -> None:
        """So many more bytes of a stream wait for the service; fewer when it is negative."""
        increment = self._window.keep(count)
        if increment:
            self.writer.write(frames.window_update(0, increment))

    def progressed(self) -> None:
        """DATA was sent: frames without calls are allowed again, windows must be opened after all."""
        self._idle_frames.refill()

    def ended(self, stream: Stream) -> None:
        """The last frame of a stream was written."""
        if self.open.pop(stream.number, None) is None:
            return
        if stream.deadline is not None:
            self.server.unwatch(stream)
        self._resets.give()
        if not stream.remote_closed:
            # Section 8.1: the client need not send the rest.
            self.writer.write(frames.rst_stream(stream.number, ErrorCode.NO_ERROR))
            self._remember(stream.number)

    def reset(self, number: int, code: ErrorCode) -> None:
        """End a stream without a status."""
        self.writer.write(frames.rst_stream(number, code))
        self._remember(number)
        self.drop(number)

    def drop(self, number: int) -> None:
        """Cancel a call, if it is open."""
        stream = self.open.pop(number, None)
        if stream is not None:
            if stream.deadline is not None:
                self.server.unwatch(stream)
            self.writer.forget(stream)
            stream.cancel()

    # Inside --------------------------------------------------------------------------------------

    def _trailers(self, number: int, block: bytes, *, ends: bool) -> None:
        stream = self.open.get(number)
        if stream is None and not self._passed_over(number):
            self._check_known("HEADERS", number)
            raise ConnectionViolationError(ErrorCode.STREAM_CLOSED, f"HEADERS on closed stream {number}")
        fields = self._decoder.fields(block)
        if stream is None:
            self.idle_frame()
        elif stream.remote_closed:
            self._refuse(number, ErrorCode.STREAM_CLOSED)
        elif not ends or wrong_trailer(fields) is not None:
            self._refuse(number, ErrorCode.PROTOCOL_ERROR)
        else:
            stream.remote_closed = True
            self._end(stream)

    def _end(self, stream: Stream) -> None:
        try:
            stream.end()
        except StreamViolationError as error:
            self._refuse(stream.number, error.code)

    def _settings(self, flags: int, payload: bytes) -> None:
        if flags & frames.ACK:
            if payload:
                raise ConnectionViolationError(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS with ACK and values")
            return
        for name, value in frames.parse_settings(payload):
            self.writer.settle(name, value, list(self.open.values()))
        self.writer.write(frames.SETTINGS_ACK)
        self.writer.push()

    def _window_update(self, number: int, increment: int) -> None:
        self._check_known("WINDOW_UPDATE", number)
        self.idle_frame()
        stream = self.open.get(number)
        if not increment:
            if not number:
                raise ConnectionViolationError(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE by 0")
            if stream is not None:
                self._refuse(number, ErrorCode.PROTOCOL_ERROR)
        elif not number:
            self.writer.open_window(increment)
        elif stream is not None and not self.writer.open_stream(stream, increment):
            self._refuse(number, ErrorCode.FLOW_CONTROL_ERROR)

    def _priority(self, number: int, payload: bytes) -> None:
        if not number:
            raise ConnectionViolationError(ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0")
        self.idle_frame()
        if len(payload) != 5:
            if number > self.last:  # an idle stream cannot be reset
                raise ConnectionViolationError(ErrorCode.FRAME_SIZE_ERROR, f"PRIORITY of {len(payload)} bytes")
            self._refuse(number, ErrorCode.FRAME_SIZE_ERROR)

    def _refuse(self, number: int, code: ErrorCode) -> None:
        """Reset a stream for the client's error."""
        self.reset(number, code)
        self._count_reset()

    def _count_reset(self) -> None:
        if not self._resets.take(self.server.time()):
            raise ConnectionViolationError(ErrorCode.ENHANCE_YOUR_CALM, "too many streams are reset")

    def _remember(self, number: int) -> None:
        self._forgotten[number] = None
        if len(self._forgotten) > limits.H2_RESET_MEMORY:
            del self._forgotten[next(iter(self._forgotten))]

    def _passed_over(self, number: int) -> bool:
        """Whether the client may not know yet that this stream is closed."""
        return number in self._forgotten or (self.accepted is not None and number > self.accepted)

    def _check_known(self, kind: str, number: int) -> None:
        if number > self.last or (number and not number & 1) or (not number and kind != "WINDOW_UPDATE"):
            raise ConnectionViolationError(ErrorCode.PROTOCOL_ERROR, f"{kind} on idle stream {number}")
