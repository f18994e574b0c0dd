"""One connection of the local protocol (`edgeserve.client.local_wire`).

A plain socket on the loop's poller: uvloop's transports cannot take descriptors, and cost 0.4 us a request more.
`recvmsg` costs 0.8 us more than `recv_into`, so it is used only while a descriptor is on its way.
"""

from __future__ import annotations

import array
import asyncio
import os
import socket
from functools import partial
from typing import TYPE_CHECKING, Final

from edgeserve import __version__
from edgeserve.client.local_wire import (
    CLOSE,
    DESCRIBE,
    DESCRIBED,
    DONE,
    FROM_CLIENT,
    HEAD,
    HELLO,
    MAGIC,
    OPEN,
    OPENED,
    READY,
    REGION,
    RUN,
    VERSION,
    WELCOME,
    Describe,
    Described,
    MessageReader,
    Plan,
    Welcome,
    decode_body,
    failed,
    head,
    message,
)
from edgeserve.contracts.errors import ConflictError, EdgeServeError, InputError, NotFoundError, UnsupportedError
from edgeserve.runtimes.base import Tensors
from edgeserve_agent.serving.call import Call
from edgeserve_agent.serving.dataplane import DataPlane
from edgeserve_agent.serving.local_plan import MappedPlan, Slot, check_plan, map_region

if TYPE_CHECKING:
    from edgeserve_agent.serving.local_server import LocalServer

_ONE_DESCRIPTOR: Final = socket.CMSG_LEN(array.array("i").itemsize) if hasattr(socket, "CMSG_LEN") else 0
"""Room for one: the kernel closes what comes beyond it."""
_pack = HEAD.pack
_unpack = HEAD.unpack_from


class LocalConnection:
    """Reads messages, answers them. Lives on the event loop."""

    def __init__(self, server: LocalServer, client: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        self._server = server
        self._plane: DataPlane = server.plane
        self._buffer = server.read_buffer
        self._loop = loop
        self._socket = client
        self._receive = client.recv_into
        self._send = client.send
        self._reader = MessageReader(FROM_CLIENT)
        self._plans: dict[int, MappedPlan] = {}
        self._next_plan = 1
        self._opening: tuple[int, Plan] | None = None
        """A plan that waits for its region: only then descriptors are taken."""
        self._descriptor = -1
        self._greeted = False
        self._closed = False
        self._draining = False
        self._out: list[bytes] = []
        self._unsent = b""
        """What the client does not read; nothing is read from it meanwhile."""
        self._deadline: asyncio.TimerHandle | None = loop.call_later(server.limits.message_s, self._expire)
        self.in_flight = 0
        loop.add_reader(client.fileno(), self._readable)

    # Reading -------------------------------------------------------------------------------------

    def _readable(self) -> None:
        try:
            count = self._receive(self._buffer)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            count = 0
        if count == HEAD.size and self._greeted and not self._reader.begun:
            kind, number, index, tag = _unpack(self._buffer)
            if kind == RUN:  # nearly always
                self._run(number, index, tag)
                return
        self._take(count)

    def _readable_with_descriptor(self) -> None:
        try:
            count, passed, _, _ = self._socket.recvmsg_into([self._buffer], _ONE_DESCRIPTOR, socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            count, passed = 0, []
        for level, kind, data in passed:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors = array.array("i", data)
                self._drop_descriptor()
                self._descriptor = descriptors[0]
        self._take(count)

    def _take(self, count: int) -> None:
        if not count:
            self.close()
            return
        whole = False
        try:
            for kind, number, extent, tag, body in self._reader.take(self._buffer[:count]):
                whole = True
                if kind == RUN and self._greeted:
                    self._run(number, extent, tag)
                else:
                    self._control(kind, number, extent, tag, body)
        except InputError as error:
            self._answer_last(error)
            return
        if self._greeted and (self._deadline is not None or self._reader.begun):
            self._watch(afresh=whole)

    def _control(self, kind: int, number: int, extent: int, tag: int, body: bytes) -> None:
        if not self._greeted:
            if kind != HELLO or extent != MAGIC:
                raise InputError("a connection of the local protocol begins with HELLO")
            if number != VERSION:
                raise UnsupportedError(
                    f"the client speaks version {number} of the local protocol, the server {VERSION}",
                    hint="update the older of the two",
                )
            self._greeted = True
            self._put(message(WELCOME, Welcome(server=f"edgeserve {__version__}"), number=VERSION, tag=tag))
            return
        try:
            if kind == DESCRIBE:
                self._describe(decode_body(body, Describe), tag)
            elif kind == OPEN:
                self._open(decode_body(body, Plan), tag)
            elif kind == REGION:
                self._map(number, tag)
            elif kind == CLOSE:
                self._forget(number)
            else:
                raise InputError("HELLO comes once")
        except EdgeServeError as error:
            self._put(failed(error, tag=tag))

    # Plans ---------------------------------------------------------------------------------------

    def _describe(self, wanted: Describe, tag: int) -> None:
        served = self._plane.find(wanted.model, wanted.version)
        described = Described(
            model=served.identity.model,
            version=served.identity.version,
            release=served.identity.release,
            inputs=served.signature.inputs,
            outputs=served.signature.outputs,
        )
        self._put(message(DESCRIBED, described, tag=tag))

    def _open(self, plan: Plan, tag: int) -> None:
        if self._opening is not None:
            raise ConflictError("another plan waits for its region", hint="send REGION before the next OPEN")
        if len(self._plans) >= self._server.limits.plans:
            raise InputError(f"the connection has {len(self._plans)} plans, no more are taken", hint="close some")
        check_plan(plan, self._plane.find(plan.model, plan.version).signature)
        self._server.hold(plan.region_bytes)
        number, self._next_plan = self._next_plan, self._next_plan % 0xFFFFFFFF + 1
        self._opening = (number, plan)
        self._put(head(READY, number, 0, tag))
        if not self._unsent:
            self._loop.add_reader(self._socket.fileno(), self._readable_with_descriptor)

    def _map(self, number: int, tag: int) -> None:
        opening, self._opening = self._opening, None
        if opening is None:
            raise InputError("REGION comes after READY")
        if not self._unsent:
            self._loop.add_reader(self._socket.fileno(), self._readable)
        expected, plan = opening
        try:
            if number != expected:
                raise InputError(f"a region came for plan {number}, expected is {expected}")
            if self._descriptor < 0:
                raise InputError("REGION came without a descriptor")
            mapped = MappedPlan(number, plan, map_region(self._descriptor, plan.region_bytes))
            mapped.bind(self._plane.find(plan.model, plan.version))
        except BaseException:
            self._server.release(plan.region_bytes)
            raise
        finally:
            self._drop_descriptor()
        for slot in mapped.slots:
            slot.done = partial(self._answer, mapped, slot)
        self._plans[number] = mapped
        self._put(head(OPENED, number, 0, tag))

    def _forget(self, number: int) -> None:
        mapped = self._plans.pop(number, None)
        if mapped is None:
            raise NotFoundError(f"there is no plan {number}")
        mapped.close()
        self._server.release(mapped.plan.region_bytes)

    # Requests ------------------------------------------------------------------------------------

    def _run(self, number: int, index: int, tag: int) -> None:
        try:
            mapped = self._plans.get(number)
            if mapped is None:
                raise NotFoundError(f"there is no plan {number}", hint="open one first")
            plan, slots = mapped.plan, mapped.slots
            if index >= len(slots):
                raise InputError(f"plan {number} has {len(slots)} slots, there is no slot {index}")
            slot = slots[index]
            if slot.call is not None:
                raise ConflictError(f"slot {index} of plan {number} is in use", hint="wait for its answer")
            served = self._plane.find(plan.model, plan.version)
            if served is not mapped.served:
                mapped.bind(served)
            try:
                inputs = slot.read()
            except InputError:
                served.counters.rejected += 1
                raise
        except EdgeServeError as error:
            self._put(failed(error, tag=tag))
            return
        slot.tag = tag
        slot.call = call = Call(
            served=served, inputs=inputs, done=slot.done, priority=plan.priority, timeout_us=plan.timeout_us
        )
        self.in_flight += 1
        self._plane.infer(call)

    def _answer(self, mapped: MappedPlan, slot: Slot, _call: Call, outcome: Tensors | EdgeServeError) -> None:
        if slot.call is not None:  # else it could not be written, and this says so
            slot.call = None
            self.in_flight -= 1
        if self._closed:
            self._server.left(self)
            return
        try:
            if isinstance(outcome, EdgeServeError):
                raise outcome
            if mapped.closed:
                raise ConflictError("the plan was closed before the request was done")
            layout = slot.write(outcome)
            if mapped.announcement:
                self._put(mapped.announcement)
                mapped.announcement = b""
            self._put(_pack(DONE, layout, slot.index, slot.tag))
        except EdgeServeError as error:
            self._put(failed(error, tag=slot.tag))

    # Writing -------------------------------------------------------------------------------------

    def _put(self, data: bytes) -> None:
        self._out.append(data)
        if len(self._out) == 1:
            self._server.outbox.add(self)

    def send(self) -> None:
        """Give the system the answers that wait for it; close with the last one when draining."""
        out = self._out
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        if self._closed or not data:
            return
        if self._unsent:
            self._unsent += data
            return
        try:
            sent = self._send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self.close()
            return
        if sent < len(data):
            self._unsent = data[sent:]
            self._loop.remove_reader(self._socket.fileno())
            self._loop.add_writer(self._socket.fileno(), self._writable)
        elif self._draining:
            self.drain()

    def _answer_last(self, error: InputError) -> None:
        self._put(failed(error, tag=0))
        self.send()
        self.close()

    def _writable(self) -> None:
        try:
            sent = self._send(self._unsent)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close()
            return
        self._unsent = self._unsent[sent:]
        if self._unsent:
            return
        self._loop.remove_writer(self._socket.fileno())
        if self._draining:
            self.drain()
        else:
            readable = self._readable if self._opening is None else self._readable_with_descriptor
            self._loop.add_reader(self._socket.fileno(), readable)

    # The end -------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Read nothing more; close when all that was read is answered."""
        self._draining = True
        if self._closed:
            return
        self._loop.remove_reader(self._socket.fileno())
        if not self.in_flight and not self._out and not self._unsent:
            self.close()

    def abort(self) -> None:
        """Close at once."""
        self.close()

    def close(self) -> None:
        """Forget everything; what is running keeps its memory until it is done."""
        if self._closed:
            return
        self._closed = True
        if self._deadline is not None:
            self._deadline.cancel()
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        self._socket.close()
        self._drop_descriptor()
        if self._opening is not None:
            self._server.release(self._opening[1].region_bytes)
        for mapped in self._plans.values():
            self._server.release(mapped.plan.region_bytes)
            for slot in mapped.slots:
                if slot.call is not None:
                    slot.call.cancelled = True
            mapped.close()
        self._plans.clear()
        self._server.left(self)

    def _watch(self, *, afresh: bool) -> None:
        """Let a message that has begun arrive in time."""
        if self._closed:
            return
        if self._deadline is not None:
            if not afresh:
                return
            self._deadline.cancel()
            self._deadline = None
        if self._reader.begun:
            self._deadline = self._loop.call_later(self._server.limits.message_s, self._expire)

    def _expire(self) -> None:
        error = InputError("a message took too long to arrive" if self._greeted else "the client did not say HELLO")
        self._answer_last(error)

    def _drop_descriptor(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
