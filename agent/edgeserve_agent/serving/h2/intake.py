"""What a client sends on one call, handed to the service message by message, no faster than the service takes it.

Once the service has enough, or a message is being decompressed, what comes is kept as it came, and the client is not
allowed to send on (RFC 9113, section 5.2): a stream's window bounds what is kept of it, the connection's that of all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from edgeserve_agent.serving.h2.inflating import Job
from edgeserve_agent.serving.h2.messages import MessageRefusedError
from edgeserve_agent.serving.rpc import Message, StatusCode
from edgeserve_agent.serving.workers import Outcome

if TYPE_CHECKING:
    from edgeserve_agent.serving.h2.server import H2Server


class Owner(Protocol):
    """The stream of a call."""

    def deliver(self, message: Message | None) -> None:
        """Give the service a message, or the end."""

    def abandon(self, code: StatusCode, message: str) -> None:
        """End the call with a status that the service did not give."""

    def failed(self, error: Exception) -> None:
        """End the call for a bug."""

    def kept(self, count: int) -> None:
        """So many more bytes are kept; fewer when it is negative."""

    def open_window(self, room: int) -> None:
        """Let the client send `room` bytes, or more where the stream's window is larger."""


class Intake:
    """One call's, from the first message on that is not small, plain and whole in one frame."""

    def __init__(self, server: H2Server, encoding: str, owner: Owner) -> None:
        self._server = server
        self._encoding = encoding
        self._owner: Owner | None = owner
        self._assembler = server.assembler(encoding)
        self._paused = False
        self._job: Job | None = None
        self._kept = bytearray()
        self._ended = False
        self._scheduled = False

    @property
    def holds(self) -> bool:
        """Whether what comes must wait."""
        return self._paused or self._job is not None or bool(self._kept)

    def overdue(self, now: float, *, grace_s: float, bytes_per_s: float) -> bool:
        """Whether the client takes too long to send the message under way."""
        return not self.holds and self._assembler.overdue(now, grace_s=grace_s, bytes_per_s=bytes_per_s)

    def room(self) -> memoryview | None:
        """Where the next bytes of a large message go, if one is under way."""
        return None if self.holds else self._assembler.room()

    def advance(self, count: int) -> None:
        """Take in bytes that were put into `room`."""
        try:
            message = self._assembler.advance(count)
            if message is not None:
                self._arrived(message)
        except MessageRefusedError as error:
            self._refuse(error)

    def take(self, data: memoryview) -> None:
        """A piece of DATA."""
        try:
            rest = data if self.holds else data[self._feed(data) :]
            if rest and self._owner is not None:
                self._server.memory.reserve(len(rest))
                self._kept += rest
                self._owner.kept(len(rest))
        except MessageRefusedError as error:
            self._refuse(error)

    def end(self) -> None:
        """The client has sent all."""
        if self.holds:
            self._ended = True
        elif self._owner is not None and self._assembler.in_message:
            self._owner.abandon(StatusCode.INTERNAL, "the request ended within a message")
        elif self._owner is not None:
            self._owner.deliver(None)

    def pause(self) -> None:
        """The service has enough."""
        self._paused = True

    def resume(self) -> None:
        """The service takes more; it gets it in the next turn of the loop."""
        self._paused = False
        self._go_on_soon()

    def close(self) -> None:
        """Let go of everything: the call is over."""
        owner, self._owner = self._owner, None
        self._assembler.drop()  # the traceback of a refusal may keep this for a while
        if self._job is not None:
            self._job.cancel()
            self._job = None
        if self._kept and owner is not None:
            self._server.memory.release(len(self._kept))
            owner.kept(-len(self._kept))
            self._kept = bytearray()

    def _feed(self, data: memoryview) -> int:
        """Take in messages until one must wait; how many bytes were taken."""
        position = 0
        while position < len(data) and self._owner is not None and not self._paused and self._job is None:
            count, message = self._assembler.take(data[position:])
            position += count
            if message is not None:
                self._arrived(message)
        if self._owner is not None and self._assembler.missing:
            self._owner.open_window(self._assembler.missing)
        return position

    def _arrived(self, message: Message) -> None:
        if self._assembler.compressed:
            found = self._server.inflater.begin(message, self._encoding, self._inflated)
            if isinstance(found, Job):
                if self._owner is not None:  # it may have been refused at once
                    self._job = found
                return
            message = found
        if self._owner is not None:
            self._owner.deliver(message)

    def _inflated(self, outcome: Outcome[Message]) -> None:
        self._job = None
        if self._owner is None:
            return
        if isinstance(outcome, MessageRefusedError):
            self._refuse(outcome)
        elif isinstance(outcome, Exception):
            self._owner.failed(outcome)
        else:
            self._owner.deliver(outcome)
            self._go_on_soon()

    def _go_on_soon(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._server.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._scheduled = False
        owner = self._owner
        if owner is None or self._paused or self._job is not None:
            return
        self._assembler.restart_clock()
        try:
            with memoryview(self._kept) as data:
                count = self._feed(data)
        except MessageRefusedError as error:
            self._refuse(error)
            return
        if self._owner is not owner:  # what was delivered ended the call
            return
        if count:
            del self._kept[:count]
            self._server.memory.release(count)
            owner.kept(-count)
        if self.holds:
            return
        if self._ended:
            self.end()
        else:
            owner.open_window(0)

    def _refuse(self, error: MessageRefusedError) -> None:
        if self._owner is not None:
            self._owner.abandon(error.code, error.message)
