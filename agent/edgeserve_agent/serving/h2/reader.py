"""Bytes of one connection to frames (RFC 9113, section 4), header blocks put together, DATA handed on as it comes.

All connections share one buffer. What stays of a frame that is not DATA is kept and put before the next bytes; the
payload of DATA is never kept: a large message is read by the kernel straight into its own memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgeserve.contracts import limits
from edgeserve_agent.serving.h2 import frames
from edgeserve_agent.serving.h2.frames import HEADER, HEADER_BYTES, PREFACE, ConnectionViolationError, ErrorCode

if TYPE_CHECKING:
    from edgeserve_agent.serving.h2.stream import Stream
    from edgeserve_agent.serving.h2.streams import Streams

_DIRECT_BYTES: Final = 16 * 1024
"""Shorter rests of a payload go through the shared buffer: the same read also brings the frame after them."""
_PRIORITY_BYTES: Final = 5
_PAD_LENGTH_BYTES: Final = 1
_MAX_SMALL_BYTES: Final = 4096
"""Payload of SETTINGS, PING and the like: the longest useful one has a few hundred bytes."""


class FrameReader:
    """Splits a connection's bytes."""

    def __init__(self, streams: Streams, buffer: memoryview, *, head_bytes: int) -> None:
        self._streams = streams
        self._buffer = buffer
        self._head_bytes = head_bytes
        self._max_block_frame = head_bytes + _PRIORITY_BYTES + _PAD_LENGTH_BYTES + 255
        self.ended = False
        """What comes is thrown away."""
        self.partial = 0
        """Not 0 while half a frame or half a header block is here; another number for each."""
        self._partials = 0
        self._kept = b""
        self._preface_read = False
        self._settings_read = False
        # A header block under way
        self._block: list[bytes] | None = None
        self._block_bytes = 0
        self._block_stream = 0
        self._block_ends = False
        # The payload under way that is handed on as it comes, or skipped
        self._payload_left = 0
        self._padding = 0
        self._payload_ends = False
        self._sink: Stream | None = None
        self._direct = False

    def get_buffer(self) -> memoryview:
        """Where the next bytes go."""
        self._direct = False
        rest = self._payload_left - self._padding
        if rest >= _DIRECT_BYTES and self._sink is not None:
            room = self._sink.room()
            if room is not None and len(room) >= _DIRECT_BYTES:
                self._direct = True
                return room[:rest]
        kept = self._kept
        if kept:
            self._buffer[: len(kept)] = kept
            return self._buffer[len(kept) :]
        return self._buffer

    def take(self, count: int) -> None:
        """Take in the `count` bytes that were put there.

        Raises:
            ConnectionViolationError: They break the protocol.
        """
        if self._direct:
            self._direct = False
            self._payload_left -= count
            assert self._sink is not None
            ends = self._payload_ends and self._payload_left <= self._padding
            self._streams.data_arrived(self._sink, count, ends=ends)
            return
        end = len(self._kept) + count
        if self.ended:
            return
        self._kept = b""
        position = self._read_payload(0, end) if self._payload_left else 0
        if not self._preface_read:
            position = self._read_preface(position, end)
        if self._preface_read and not self._payload_left:
            position = self._read_frames(position, end)
        if position < end:
            self._kept = bytes(self._buffer[position:end])
        if self._block is None:
            if position == end:
                self.partial = 0
            elif position or not self.partial:
                self._begin_partial()

    def stop(self) -> None:
        """Throw away what comes from now on."""
        self.ended = True
        self._kept = b""
        self._payload_left = 0
        self._sink = None

    def _read_preface(self, position: int, end: int) -> int:
        got = bytes(self._buffer[position : min(end, position + len(PREFACE))])
        if not PREFACE.startswith(got):
            raise ConnectionViolationError(ErrorCode.PROTOCOL_ERROR, "not the preface of HTTP/2")
        if len(got) < len(PREFACE):
            return position
        self._preface_read = True
        return position + len(PREFACE)

    def _read_frames(self, position: int, end: int) -> int:
        """Handle whole frames and the beginning of a payload; returns where the first incomplete frame begins."""
        buffer, streams = self._buffer, self._streams
        unpack = HEADER.unpack_from
        while end - position >= HEADER_BYTES:
            word, flags, stream = unpack(buffer, position)
            length, kind = word >> 8, word & 0xFF
            stream &= frames.STREAM_MASK
            start = position + HEADER_BYTES
            stop = start + length
            if length > limits.H2_FRAME_BYTES:
                raise ConnectionViolationError(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
            if self._block is not None or not self._settings_read:
                self._check_order(kind, flags, stream)
            if kind == frames.DATA:
                if stop <= end and not flags & frames.PADDED:
                    streams.data(stream, buffer[start:stop], ends=flags & frames.END_STREAM != 0)
                    position = stop
                elif (payload := self._begin_payload(flags, stream, length, start, end)) is not None:
                    position = self._read_payload(payload, end)
                    if self._payload_left:
                        return position
                else:
                    return position
            elif kind > frames.CONTINUATION:
                streams.idle_frame()
                self._payload_left, self._padding, self._sink = length, 0, None
                position = self._read_payload(start, end)
                if self._payload_left:
                    return position
            else:
                if length > _MAX_SMALL_BYTES:
                    self._check_length(kind, length)
                if stop > end:
                    return position
                position = stop
                if kind == frames.HEADERS or kind == frames.CONTINUATION:
                    self._take_block(kind, flags, stream, bytes(buffer[start:stop]))
                else:
                    streams.control(kind, flags, stream, bytes(buffer[start:stop]))
            if self.ended:
                return end
        return position

    def _begin_partial(self) -> None:
        self._partials += 1
        self.partial = self._partials

    # Header blocks -------------------------------------------------------------------------------

    def _take_block(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == frames.HEADERS:
            if flags & (frames.PADDED | frames.PRIORITIZED):
                payload = frames.header_fragment(flags, payload)
            ends = flags & frames.END_STREAM != 0
            if flags & frames.END_HEADERS:
                if len(payload) > self._head_bytes:
                    raise self._block_too_long()
                self._streams.headers(stream, payload, ends=ends)
                return
            self._begin_partial()
            self._block, self._block_bytes = [], 0
            self._block_stream, self._block_ends = stream, ends
        if self._block is None:
            raise ConnectionViolationError(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        self._block.append(payload)
        self._block_bytes += len(payload)
        if self._block_bytes > self._head_bytes or len(self._block) > limits.H2_CONTINUATIONS + 1:
            raise self._block_too_long()
        if flags & frames.END_HEADERS:
            block, self._block = b"".join(self._block), None
            self._streams.headers(stream, block, ends=self._block_ends)

    def _check_order(self, kind: int, flags: int, stream: int) -> None:
        if not self._settings_read:
            if kind != frames.SETTINGS or flags & frames.ACK:
                raise ConnectionViolationError(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")
            self._settings_read = True
        elif kind != frames.CONTINUATION or stream != self._block_stream:
            raise ConnectionViolationError(ErrorCode.PROTOCOL_ERROR, "a frame within a header block")

    def _check_length(self, kind: int, length: int) -> None:
        """Refuse a long frame before it is kept."""
        if kind in (frames.HEADERS, frames.CONTINUATION):
            if length > self._max_block_frame:
                raise self._block_too_long()
        elif kind in (frames.SETTINGS, frames.GOAWAY):
            raise ConnectionViolationError(ErrorCode.ENHANCE_YOUR_CALM, f"a frame of type {kind} of {length} bytes")
        else:
            raise ConnectionViolationError(ErrorCode.FRAME_SIZE_ERROR, f"a frame of type {kind} of {length} bytes")

    def _block_too_long(self) -> ConnectionViolationError:
        return ConnectionViolationError(
            ErrorCode.ENHANCE_YOUR_CALM, f"a header block of more than {self._head_bytes} bytes or too many frames"
        )

    # Payload of DATA -----------------------------------------------------------------------------

    def _begin_payload(self, flags: int, stream: int, length: int, start: int, end: int) -> int | None:
        """Begin to hand on a payload; returns where it begins, None while its length of padding is not here."""
        padding = 0
        payload = start
        if flags & frames.PADDED:
            if not length:
                raise ConnectionViolationError(ErrorCode.FRAME_SIZE_ERROR, "padded DATA without a length of padding")
            if start == end:
                return None
            padding = self._buffer[start]
            payload += _PAD_LENGTH_BYTES
            if padding + _PAD_LENGTH_BYTES > length:
                raise ConnectionViolationError(ErrorCode.PROTOCOL_ERROR, "the padding of DATA is longer than the frame")
        ends = flags & frames.END_STREAM != 0
        self._sink = self._streams.data_begins(stream, length, ends=ends)
        self._payload_left = start + length - payload
        self._padding = padding
        self._payload_ends = ends
        if self._payload_left == padding and self._sink is not None:
            self._streams.data_piece(self._sink, self._buffer[:0], ends=ends)
        return payload

    def _read_payload(self, position: int, end: int) -> int:
        """Hand on what is here of the payload under way."""
        count = min(self._payload_left, end - position)
        useful = min(count, self._payload_left - self._padding)
        self._payload_left -= count
        if useful > 0 and self._sink is not None:
            ends = self._payload_ends and self._payload_left <= self._padding
            self._streams.data_piece(self._sink, self._buffer[position : position + useful], ends=ends)
        if not self._payload_left:
            self._sink = None
        return position + count
