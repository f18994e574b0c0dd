"""HTTP/2 on an asyncio Protocol: one connection's transport, times and end. Nothing is awaited."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Final, cast

from edgeserve_agent.serving.h2 import frames
from edgeserve_agent.serving.h2.frames import ConnectionViolationError, ErrorCode
from edgeserve_agent.serving.h2.reader import FrameReader
from edgeserve_agent.serving.h2.streams import Streams
from edgeserve_agent.serving.h2.writer import FLUSH_BYTES, FrameWriter

if TYPE_CHECKING:
    from edgeserve_agent.serving.h2.server import H2Server

_LOG: Final = logging.getLogger(__name__)
_PING: Final = frames.frame(frames.PING, 0, 0, b"edgeserv")


class H2Connection(asyncio.BufferedProtocol):
    """Reads frames, writes frames; what they mean is in `Streams`."""

    def __init__(self, server: H2Server) -> None:
        self._server = server
        self._limits = server.limits
        self._writer = FrameWriter(partial(server.outbox.add, self))
        self._streams = Streams(server, self._writer)
        self._reader = FrameReader(self._streams, server.read_buffer, head_bytes=server.limits.head_bytes)
        self._transport: asyncio.Transport | None = None
        self._ending = False
        """No further call is taken; the connection closes with the last one."""
        self._writing_until: float | None = None
        """Set while the client does not read what was written."""
        self._lingering_until: float | None = None
        """Set when all was written, GOAWAY before it, and what the client still sends is thrown away."""
        self._half_closed = False
        """The client sends nothing more."""
        # Seen by `check`, which takes the time so that reads need not.
        now = server.time()
        self._was_read = False
        self._read_at = now
        self._called_at = now
        self._last_seen = 0
        self._partial_seen = 0
        self._partial_at = now
        self._pinged_at: float | None = None

    # Transport -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the server's preface."""
        self._transport = self._writer.transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=FLUSH_BYTES)
        admitted = self._server.admit(self)
        self._writer.write(self._server.preface)
        if not admitted:
            self._fail(ErrorCode.ENHANCE_YOUR_CALM, f"more than {self._limits.connections} connections are open")
        elif self._server.draining:
            self.drain()
        self.send()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Cancel all calls."""
        self._transport = None
        self._writer.close()
        self._reader.stop()
        self._cancel_all()
        self._server.forget(self)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        """Where the next bytes go."""
        return self._reader.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """Take in the bytes that arrived."""
        self._was_read = True
        try:
            self._reader.take(nbytes)
        except ConnectionViolationError as error:
            self._fail(error.code, error.reason)
        if self._ending:  # what was read may have been the end of the last call
            self.send()

    def feed(self, data: bytes | memoryview) -> None:
        """Take in bytes that someone else has read from the transport."""
        position = 0
        while position < len(data) and self._transport is not None:
            room = self.get_buffer(-1)
            count = min(len(room), len(data) - position)
            room[:count] = data[position : position + count]
            position += count
            self.buffer_updated(count)

    def eof_received(self) -> bool:
        """Answer what was asked whole before the client ended its side, then close."""
        self._ending = self._half_closed = True
        for number, stream in list(self._streams.open.items()):
            if not stream.remote_closed:
                self._streams.drop(number)
        self.send()
        return bool(self._streams.open)

    def pause_writing(self) -> None:
        """Read and write nothing more until the client has read; one that does not read is cut off."""
        assert self._transport is not None
        pending = self._transport.get_write_buffer_size()
        self._writing_until = self._server.time() + self._limits.head_s + pending / self._limits.body_bytes_per_s
        self._writer.paused = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Go on."""
        self._writing_until = None
        self._writer.paused = False
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
            self._writer.push()
            self.send()

    def send(self) -> None:
        """Give the transport what was written; end the connection when it was the last."""
        self._writer.flush()
        if self._ending and not self._streams.open and self._lingering_until is None:
            self._linger()

    # Ending --------------------------------------------------------------------------------------

    def _fail(self, code: ErrorCode, reason: str) -> None:
        """End the connection for the client's error, and say why."""
        if self._transport is None or self._lingering_until is not None:
            return
        _LOG.debug("a connection ends with %s: %s", code.name, reason)
        self._ending = True
        answered = self._streams.last if self._streams.accepted is None else self._streams.accepted
        self._writer.write(frames.goaway(answered, code, reason))
        self._linger()
        self._cancel_all()

    def _linger(self) -> None:
        """Write what there is and no more, and throw input away for a while.

        Closing on unread input would reset the connection, and the client would lose what it has not read yet.
        """
        transport = self._transport
        if transport is None:
            return
        self._lingering_until = self._server.time() + self._limits.linger_s
        self._reader.stop()
        self._writer.flush()
        self._writer.close()
        if self._half_closed:
            transport.close()
        elif not transport.is_closing() and transport.can_write_eof():
            try:
                transport.write_eof()
            except OSError:  # the client has gone, and the loop has not told us yet
                transport.abort()

    def _cancel_all(self) -> None:
        for number in list(self._streams.open):
            self._streams.drop(number)

    def drain(self) -> None:
        """Take no further call; close when those under way have finished."""
        if self._ending:
            return
        self._ending = True
        self._streams.accepted = self._streams.last
        self._writer.write(frames.goaway(self._streams.last, ErrorCode.NO_ERROR))
        self.send()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    # Time ----------------------------------------------------------------------------------------

    def check(self, now: float) -> None:
        """End what has taken too long; the server calls it about every second."""
        if self._transport is None:
            return
        until = self._writing_until or self._lingering_until
        if until is not None:
            if now >= until:
                self._transport.abort()
            return
        if self._was_read:
            self._was_read = False
            self._read_at, self._pinged_at = now, None
        if self._reader.partial != self._partial_seen:
            self._partial_seen, self._partial_at = self._reader.partial, now
        elif self._partial_seen and now >= self._partial_at + self._limits.head_s:
            self._fail(ErrorCode.ENHANCE_YOUR_CALM, "half a frame or header block took too long to arrive")
            return
        if self._streams.open or self._streams.last != self._last_seen:
            self._called_at, self._last_seen = now, self._streams.last
            for stream in list(self._streams.open.values()):
                stream.check(now)
            self._check_alive(now)
        elif now >= self._called_at + self._limits.idle_s:
            self.drain()

    def _check_alive(self, now: float) -> None:
        """Ask a client that is silent with calls open whether it is still there."""
        if self._pinged_at is not None:
            if now >= self._pinged_at + self._limits.ping_s:
                self.abort()
        elif now >= self._read_at + self._limits.idle_s:
            self._pinged_at = now
            self._writer.write(_PING)
