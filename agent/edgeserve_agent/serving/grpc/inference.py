"""ModelInfer and ModelStreamInfer: messages in, messages out.

A request whose bytes but for the tensors are known takes the short way: its head was read before, the tensors are views
of the message, and the beginning of the answer was written before. No protobuf is parsed or made.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

from edgeserve.client.oip_proto import messages, read_message
from edgeserve.contracts.errors import EdgeServeError, InputError
from edgeserve.contracts.limits import (
    MAX_CACHED_HEAD_BYTES,
    MAX_CACHED_HEADS,
    MAX_STREAM_REQUESTS,
    STREAM_BYTES,
)
from edgeserve.runtimes.base import Tensors
from edgeserve_agent.serving.call import Call
from edgeserve_agent.serving.codec.head import checked_id
from edgeserve_agent.serving.dataplane import DataPlane
from edgeserve_agent.serving.grpc.answer import answer_chunks
from edgeserve_agent.serving.grpc.fields import check_infer
from edgeserve_agent.serving.grpc.request import Cutter, Head, Plan, cut, plan_of, read_head, scheduled_call
from edgeserve_agent.serving.grpc.status import fail, message_of
from edgeserve_agent.serving.grpc.wire import (
    Layout,
    Scanned,
    check_raw_count,
    response_flag,
    scan,
    stream_error,
    stream_response,
)
from edgeserve_agent.serving.regions import Regions
from edgeserve_agent.serving.rpc import Message, RpcCall, StatusCode
from edgeserve_agent.serving.served import ServedRelease

_LAYOUTS_OF_A_SIZE: Final = 4
_FINAL: Final = response_flag("triton_final_response")
_STATUS_ON_ERROR: Final = "triton_grpc_error"

Done = Callable[[Plan, str, Call, Tensors | EdgeServeError], None]


class _Known(NamedTuple):
    """Messages of one form."""

    layout: Layout
    head: Head
    cutter: Cutter | None


class Inference:
    """Lets models answer.

    Args:
        plane: What answers.
        regions: Shared memory; None = switched off.
    """

    def __init__(self, plane: DataPlane, regions: Regions | None) -> None:
        self._plane = plane
        self._regions = regions
        self._heads: dict[bytes, Head] = {}
        self._by_size: dict[int, tuple[_Known, ...]] = {}
        """By size of the message."""

    def unary(self, rpc: RpcCall, message: Message) -> None:
        """Answer ModelInfer.

        Raises:
            EdgeServeError: It cannot be answered.
        """
        call = self.submit(message, partial(self._answer, rpc))
        if not call.infer_ns:  # it waits for its turn, or runs on a thread
            rpc.on_cancel = partial(_cancel, call)

    def submit(self, message: Message, done: Done) -> Call:
        """Let a model answer a request; `done` gets the outcome, at once or later.

        Raises:
            EdgeServeError: It is not a request that can be run.
        """
        identity = ""
        known = self._known(message)
        if known is not None:
            head, cutter = known.head, known.cutter
            served = self._plane.find(head.model, head.version)
            raw = known.layout.raw(message) if cutter is None else []
        else:
            served, head, identity, raw = self._read(message)
            cutter = None
        try:
            plan = plan_of(head, served)
            inputs = cut(head, raw, self._regions) if cutter is None else cutter.inputs(message)
        except InputError:
            served.counters.rejected += 1
            raise
        answer = partial(done, plan, identity)
        call = (
            Call(served, inputs, answer, identity)
            if head.bare
            else scheduled_call(head, served, inputs, answer, identity)
        )
        self._plane.infer(call)
        return call

    def answer(self, plan: Plan, identity: str, call: Call, outputs: Tensors) -> list[Message]:
        """The message that answers a call.

        Raises:
            InputError: The outputs cannot be had as they were asked for.
        """
        return answer_chunks(plan, identity, call.served, outputs, self._regions)

    def _answer(self, rpc: RpcCall, plan: Plan, identity: str, call: Call, outcome: Tensors | EdgeServeError) -> None:
        if rpc.on_cancel is not None:
            rpc.on_cancel = None  # it holds the call, which holds the tensors
        if isinstance(outcome, EdgeServeError):
            call.done = _answered  # `unary` may give the call to `on_cancel` yet: that would be a circle
            fail(rpc, outcome)
            return
        try:
            chunks = answer_chunks(plan, identity, call.served, outcome, self._regions)
        except EdgeServeError as error:
            fail(rpc, error)
            return
        rpc.send(chunks)
        rpc.finish()

    # Reading -------------------------------------------------------------------------------------

    def _known(self, message: Message) -> _Known | None:
        for known in self._by_size.get(len(message), ()):
            if known.layout.fits(message):
                return known
        return None

    def _read(self, message: Message) -> tuple[ServedRelease, Head, str, list[memoryview]]:
        scanned = scan(message)
        if scanned is None:
            parsed = _parsed(message)
            check_raw_count(len(parsed.raw_input_contents))
            identity = checked_id(parsed.id)
            served, head = self._read_head(parsed)
            return served, head, identity, [memoryview(blob) for blob in parsed.raw_input_contents]
        known = self._heads.get(scanned.head)
        parsed = _parsed(scanned.head) if known is None else None
        checked_id(scanned.id)
        if known is not None:
            served, head = self._plane.find(known.model, known.version), known
        else:
            served, head = self._read_head(parsed)
        # A head with numbers in it would keep them in memory.
        if len(scanned.head) <= MAX_CACHED_HEAD_BYTES and not head.typed:
            self._keep(message, scanned, head)
        return served, head, scanned.id, scanned.raw(message)

    def _read_head(self, parsed: Any) -> tuple[ServedRelease, Head]:  # noqa: ANN401 - protobuf has no types
        # Which model it is comes first: a request for none has no other errors.
        served = self._plane.find(parsed.model_name, parsed.model_version)
        try:
            return served, read_head(parsed)
        except InputError:
            served.counters.rejected += 1
            raise

    def _keep(self, message: Message, scanned: Scanned, head: Head) -> None:
        if scanned.head not in self._heads:
            if len(self._heads) >= MAX_CACHED_HEADS:
                self._heads.clear()
            self._heads[scanned.head] = head
        # A message with an id rarely comes again, and one with tensors that nobody asked for is refused.
        if scanned.id or len(scanned.bounds) > len(head.inputs):
            return
        size = len(message)
        if len(self._by_size) >= MAX_CACHED_HEADS:
            self._by_size.clear()
        known = _Known(Layout(message, scanned), head, Cutter.of(head, scanned.bounds))
        self._by_size[size] = (known, *self._by_size.get(size, ())[: _LAYOUTS_OF_A_SIZE - 1])


class _Slot:
    """One request of a stream."""

    __slots__ = ("answer", "call", "error", "identity", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.call: Call | None = None
        self.identity = ""
        self.answer: list[Message] | None = None
        self.error: EdgeServeError | None = None


class InferenceStream:
    """ModelStreamInfer: answers keep the order of the requests, and a client that asks faster than they come must wait.

    An error is an answer and the stream goes on, unless the client asked (metadata `triton_grpc_error`) for a status
    instead, which ends it. Every answer says that it is the last of its request (`triton_final_response`): there is one
    each, so that `triton_enable_empty_final_response` changes nothing.
    """

    def __init__(self, rpc: RpcCall, inference: Inference, ended: Callable[[InferenceStream], None]) -> None:
        self._rpc = rpc
        self._inference = inference
        self._on_end = ended
        self._status_on_error = rpc.metadata.get(_STATUS_ON_ERROR, "").lower() == "true"
        self._slots: deque[_Slot] = deque()
        self._bytes = 0
        """Of the requests that wait for their answers."""
        self._paused = False
        self._last_came = False
        self._drains = False
        self._over = False
        rpc.on_cancel = self._cancel

    def __call__(self, message: Message | None) -> None:
        """Take a request, or learn that there are no more."""
        if self._over:
            return
        if message is None:
            self._last_came = True
        else:
            self._take(message)
        self._flush()

    def drain(self) -> None:
        """End when all that came is answered."""
        self._drains = True
        self._flush()

    def _take(self, message: Message) -> None:
        slot = _Slot(len(message))
        self._slots.append(slot)
        self._bytes += slot.size
        try:
            call = self._inference.submit(message, partial(self._done, slot))
        except EdgeServeError as error:
            # The traceback holds this frame, which holds the message.
            slot.error, slot.identity = error.with_traceback(None), _id_of(message)
        else:
            slot.call = call

    def _done(self, slot: _Slot, plan: Plan, identity: str, call: Call, outcome: Tensors | EdgeServeError) -> None:
        slot.identity = identity
        if isinstance(outcome, EdgeServeError):
            slot.error = outcome
        else:
            try:
                slot.answer = self._inference.answer(plan, identity, call, outcome)
            except EdgeServeError as error:
                slot.error = error
        self._flush()

    def _flush(self) -> None:
        """Send what is ready, up to the first request that is not answered yet."""
        slots = self._slots
        while slots and not self._over:
            slot = slots[0]
            if slot.answer is None and slot.error is None:
                break
            slots.popleft()  # before sending, which may end the call
            self._bytes -= slot.size
            if slot.answer is not None:
                self._rpc.send(stream_response((_FINAL, *slot.answer)))
            elif slot.error is not None and self._status_on_error:
                fail(self._rpc, slot.error)
                self._cancel()
            elif slot.error is not None:
                self._rpc.send(stream_error(message_of(slot.error), slot.identity))
        if not self._over and not slots and (self._last_came or self._drains):
            self._end()
            code = StatusCode.OK if self._last_came else StatusCode.UNAVAILABLE
            self._rpc.finish(code, "" if self._last_came else "the server is stopping")
        elif not self._over:
            self._pace()

    def _pace(self) -> None:
        """Have the client wait once enough of its requests do, until half of them are answered."""
        if not self._paused and (len(self._slots) >= MAX_STREAM_REQUESTS or self._bytes >= STREAM_BYTES):
            self._paused = True
            self._rpc.pause()
        elif self._paused and len(self._slots) <= MAX_STREAM_REQUESTS // 2 and self._bytes <= STREAM_BYTES // 2:
            self._paused = False
            self._rpc.resume()

    def _cancel(self) -> None:
        self._end()
        for slot in self._slots:
            if slot.call is not None:
                slot.call.cancelled = True
        self._slots.clear()

    def _end(self) -> None:
        self._over = True
        self._on_end(self)


def _cancel(call: Call) -> None:
    call.cancelled = True


def _answered(_call: Call, _outcome: Tensors | EdgeServeError) -> None:
    """It is."""


def _id_of(message: Message) -> str:
    try:
        scanned = scan(message)
        return checked_id(str(_parsed(message).id) if scanned is None else scanned.id)
    except InputError:
        return ""


def _parsed(message: Message) -> Any:  # noqa: ANN401 - protobuf has no types
    check_infer(message)
    return read_message(messages().ModelInferRequest, message)
