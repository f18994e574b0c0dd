"""Frames to the client: those of one turn of the loop are one write, and DATA waits for the windows (section 5.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from edgeserve_agent.serving.h2 import frames
from edgeserve_agent.serving.h2.flow import widened
from edgeserve_agent.serving.h2.frames import ConnectionViolationError, ErrorCode
from edgeserve_agent.serving.h2.hpack import TABLE_EMPTIED
from edgeserve_agent.serving.rpc import Message

if TYPE_CHECKING:
    import asyncio

    from edgeserve_agent.serving.h2.stream import Stream

_JOIN_BYTES: Final = 32 * 1024
"""Writes below this are copied into one; a copy is cheaper than many buffers."""
FLUSH_BYTES: Final = 256 * 1024
"""Written at once before the transport is asked whether the client keeps up."""


class FrameWriter:
    """The sending half of a connection."""

    def __init__(self, flush_soon: Callable[[], None]) -> None:
        """`flush_soon` has `flush` called before the loop waits again."""
        self.transport: asyncio.Transport | None = None
        """None before the connection is made, and when nothing more may be written."""
        self.stream_window = frames.DEFAULT_WINDOW
        """Window of a new stream, by the client's settings."""
        self.window = frames.DEFAULT_WINDOW
        """The connection's window."""
        self.table_update_due = False
        """The next header block must say that our encoder's table is empty (RFC 7541, section 4.2)."""
        self.paused = False
        """The client does not read."""
        self._frame_bytes = frames.MIN_FRAME_SIZE
        self._table_emptied = False
        self._flush_soon = flush_soon
        self._out: list[Message] = []
        self._data_bytes = 0
        self._waiting: dict[Stream, None] = {}
        """Streams with DATA whose own window is open, whose turn it is first."""

    # Writing -------------------------------------------------------------------------------------

    def write(self, frame: bytes) -> None:
        """Write a frame."""
        self._out.append(frame)
        if len(self._out) == 1:
            self._flush_soon()

    def write_block(self, number: int, flags: int, block: bytes) -> None:
        """Write a header block in one frame."""
        if self.table_update_due:
            self.table_update_due = False
            block = TABLE_EMPTIED + block
        self.write(frames.frame(frames.HEADERS, flags, number, block))

    def write_data(self, head: bytes, chunks: Sequence[Message], size: int) -> None:
        """Write a DATA frame of `size` bytes: its header and its payload in pieces."""
        self.window -= size
        self._data_bytes += size
        fresh = not self._out
        self._out.append(head)
        self._out += chunks
        if fresh:
            self._flush_soon()

    def can_send(self, size: int) -> bool:
        """Whether a new response of `size` bytes may go out at once in one DATA frame, as the connection is."""
        return size <= self.window and size <= self._frame_bytes and not self.table_update_due and not self.paused

    def frame_bytes(self) -> int:
        """Largest payload of the next DATA frame."""
        return min(self.window, self._frame_bytes)

    def wait(self, stream: Stream) -> None:
        """Send a stream's DATA frame by frame, in turn with other streams, as the windows open."""
        self._waiting[stream] = None
        self.push()

    def forget(self, stream: Stream) -> None:
        """Send no more of a stream."""
        self._waiting.pop(stream, None)

    def push(self) -> None:
        """Send what may be sent of the DATA that waits."""
        waiting = self._waiting
        while waiting and self.window > 0 and not self.paused:
            stream = next(iter(waiting))
            del waiting[stream]
            if stream.send_frame():
                waiting[stream] = None
            if self._data_bytes >= FLUSH_BYTES:
                self.flush()

    def flush(self) -> None:
        """Give the transport what was written."""
        out = self._out
        if not out:
            return
        self._out = []
        size, self._data_bytes = self._data_bytes, 0
        transport = self.transport
        if transport is None:
            return
        if len(out) == 1:
            transport.write(out[0])
        elif size <= _JOIN_BYTES:
            transport.write(b"".join(out))
        else:
            transport.writelines(out)

    def close(self) -> None:
        """Write nothing more."""
        self.transport = None
        self._out.clear()
        self._waiting.clear()

    # What the client says --------------------------------------------------------------------------

    def settle(self, name: int, value: int, streams: Sequence[Stream]) -> None:
        """Take one of the client's settings (section 6.5.2).

        Raises:
            ConnectionViolationError: A window passes its maximum.
        """
        if name == frames.INITIAL_WINDOW_SIZE:
            change, self.stream_window = value - self.stream_window, value
            for stream in streams:
                if not self._widen(stream, change):
                    raise ConnectionViolationError(ErrorCode.FLOW_CONTROL_ERROR, "a stream's window is above 2^31-1")
        elif name == frames.FRAME_SIZE:
            self._frame_bytes = value
        elif name == frames.HEADER_TABLE_SIZE and value < frames.DEFAULT_TABLE_SIZE and not self._table_emptied:
            self._table_emptied = self.table_update_due = True

    def open_window(self, increment: int) -> None:
        """Widen the connection's window.

        Raises:
            ConnectionViolationError: It passes its maximum.
        """
        window = widened(self.window, increment)
        if window is None:
            raise ConnectionViolationError(ErrorCode.FLOW_CONTROL_ERROR, "the connection's window is above 2^31-1")
        self.window = window
        self.push()

    def open_stream(self, stream: Stream, increment: int) -> bool:
        """Widen a stream's window; False when it passes its maximum."""
        fits = self._widen(stream, increment)
        self.push()
        return fits

    def _widen(self, stream: Stream, change: int) -> bool:
        window = widened(stream.send_window, change)
        if window is None:
            return False
        stream.send_window = window
        if stream.waits and window > 0:
            self._waiting[stream] = None
        return True
