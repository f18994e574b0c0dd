"""Client of the local protocol: inference for programs on the device that the server runs on, without copying tensors.

with LocalClient("/run/edgeserve/local.sock") as client:
    session = client.session("detector")
    session.inputs["image"][...] = frame        # numpy views of memory that the server maps, too
    session.run()
    boxes = session.outputs["boxes"]
"""

from __future__ import annotations

import itertools
import mmap
import os
import socket
import sys
import time
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final

from edgeserve.client.blobs import Tensor, encode_blob
from edgeserve.client.local_layout import BYTES_PLACE, concrete, new_region, output_bytes, sendable, size_of
from edgeserve.client.local_session import Session, Slot
from edgeserve.client.local_wire import (
    CLOSE,
    DESCRIBE,
    DESCRIBED,
    DONE,
    FAILED,
    FROM_SERVER,
    HELLO,
    LAYOUT,
    LENGTH,
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
    Failed,
    Layout,
    Message,
    MessageReader,
    decode_body,
    error_of,
    head,
    message,
    place,
)
from edgeserve.contracts.errors import EdgeServeError, InputError, TransientError, UnsupportedError
from edgeserve.contracts.limits import KIB
from edgeserve.contracts.tensors import Datatype

_READ_BYTES: Final = 64 * KIB
_MODEL_SESSIONS: Final = 8
"""Sessions that `LocalModel.infer` keeps: one for each set of shapes."""


class LocalClient:
    """One connection. Not for several threads at once: give each its own.

    Args:
        path: Of the server's socket.
        timeout_s: For each answer.

    Raises:
        UnsupportedError: The system is not Linux.
        TransientError: Nobody listens there, or the server is full.
        DeviceError: This user may not use the server.

    Methods raise what the server says, `TransientError` when no answer comes in time, and from then on when the
    connection is lost: it does not come back by itself.
    """

    def __init__(self, path: str | Path, *, timeout_s: float = 10.0) -> None:
        if not sys.platform.startswith("linux"):
            raise UnsupportedError("the local protocol needs Linux", hint="use edgeserve.client.inference over HTTP")
        self.timeout_s = timeout_s
        self._reader = MessageReader(FROM_SERVER)
        self._tags = itertools.count(1)
        self._running: dict[int, Slot] = {}
        self._sessions: dict[int, Session] = {}
        self._answers: dict[int, Message] = {}
        self._lost: EdgeServeError | None = None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise TransientError(
                f"no server at {path}: {error.strerror or error}", hint="is it running, with --local?"
            ) from error
        try:
            self._ask(head(HELLO, VERSION, MAGIC, self._next_tag()), WELCOME)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> LocalClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection. Arrays of its sessions stay valid."""
        self._lost = self._lost or TransientError("the connection was closed", hint="make a new LocalClient")
        self._sessions.clear()
        self._running.clear()
        self._socket.close()

    def model(self, name: str, *, version: str = "") -> LocalModel:
        """A model that is served.

        Args:
            name: Of the model.
            version: Empty = the one that is active, also later on.
        """
        return LocalModel(self, self._describe(name, version), version)

    def session(
        self,
        model: str,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        *,
        version: str = "",
        batch: int = 1,
        slots: int = 1,
        places: Mapping[str, int] | None = None,
    ) -> Session:
        """Memory for requests of one form.

        Args:
            model: Its name.
            shapes: Of inputs; those left out are the model's own.
            version: Empty = the one that is active when a request is sent.
            batch: Stands for the first dimension where the model leaves it open.
            slots: Requests that can be in flight.
            places: Bytes of room for BYTES inputs, and outputs whose shapes only the model knows, by name.

        Raises:
            NotFoundError: No such model or version.
            InputError: The shapes do not fit the model, or leave a dimension open.
        """
        return self._open(
            self._describe(model, version), shapes or {}, version=version, batch=batch, slots=slots, places=places or {}
        )

    # Used by models, sessions and slots ----------------------------------------------------------

    def _describe(self, model: str, version: str) -> Described:
        tag = self._next_tag()
        return decode_body(
            self._ask(message(DESCRIBE, Describe(model=model, version=version), tag=tag), DESCRIBED)[4], Described
        )

    def _open(
        self,
        described: Described,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        version: str,
        batch: int,
        slots: int,
        places: Mapping[str, int],
    ) -> Session:
        unknown = (set(shapes) | set(places)) - {spec.name for spec in (*described.inputs, *described.outputs)}
        if unknown:
            raise InputError(f"{described.model} has no tensor {min(unknown)!r}")
        inputs = [concrete(spec, shapes.get(spec.name), batch) for spec in described.inputs]
        plan = place(
            [
                (spec, places.get(spec.name, BYTES_PLACE) if spec.datatype is Datatype.BYTES else size_of(spec))
                for spec in inputs
            ],
            {spec.name: places.get(spec.name, output_bytes(spec, inputs[0].shape[:1])) for spec in described.outputs},
            model=described.model,
            version=version,
            slots=slots,
        )
        number = self._ask(message(OPEN, plan, tag=self._next_tag()), READY)[1]
        descriptor = new_region(plan.region_bytes)
        try:
            memory = mmap.mmap(descriptor, plan.region_bytes)
            self._ask(head(REGION, number, 0, self._next_tag()), OPENED, descriptor)
        finally:
            os.close(descriptor)
        session = self._sessions[number] = Session(self, number, plan, described, memory)
        return session

    def close_session(self, number: int) -> None:
        """Let the server forget a plan."""
        if self._sessions.pop(number, None) is not None and self._lost is None:
            self._write(head(CLOSE, number, 0, self._next_tag()))

    def send_run(self, slot: Slot, number: int, index: int) -> None:
        """Send a request."""
        tag = self._next_tag()
        self._write(head(RUN, number, index, tag))
        self._running[tag] = slot

    def _next_tag(self) -> int:
        return next(self._tags) & 0xFFFFFFFF or self._next_tag()

    def _ask(self, request: bytes, kind: int, descriptor: int | None = None) -> Message:
        """Send a request that is not RUN, and wait for its answer."""
        tag = int.from_bytes(request[12:16], "little")
        self._write(request, descriptor)
        deadline = time.monotonic() + self.timeout_s
        while tag not in self._answers:
            self.read(deadline)
        answer = self._answers.pop(tag)
        if answer[0] == FAILED:
            raise error_of(decode_body(answer[4], Failed))
        if answer[0] != kind:
            raise self._lose(TransientError(f"the server answered with message {answer[0]}, expected is {kind}"))
        return answer

    def _write(self, data: bytes, descriptor: int | None = None) -> None:
        if self._lost is not None:
            raise self._lost
        try:
            self._socket.settimeout(self.timeout_s)
            if descriptor is None:
                self._socket.sendall(data)
            else:
                socket.send_fds(self._socket, [data], [descriptor])
        except TimeoutError as error:
            raise self._lose(TransientError(f"the server took no request for {self.timeout_s} s")) from error
        except OSError as error:
            if not isinstance(error, BrokenPipeError | ConnectionResetError):
                raise self._lose(TransientError(f"the connection to the server broke: {error.strerror}")) from error
            self.read(time.monotonic() + self.timeout_s)  # it may have said why; if not, this raises

    def read(self, deadline: float) -> None:
        """Take in what the server says next.

        Raises:
            TransientError: Nothing came before the deadline, or the connection is lost.
        """
        if self._lost is not None:
            raise self._lost
        left = deadline - time.monotonic()
        try:
            self._socket.settimeout(max(left, 1e-6))
            data = self._socket.recv(_READ_BYTES)
        except TimeoutError:
            raise TransientError(
                "the server did not answer in time", hint="raise timeout_s, or look at its log"
            ) from None
        except OSError as error:
            raise self._lose(TransientError(f"the connection to the server broke: {error.strerror}")) from error
        if not data:
            raise self._lose(TransientError("the server closed the connection", hint="make a new LocalClient"))
        try:
            for answer in self._reader.take(data):
                self._take(answer)
        except InputError as error:
            raise self._lose(
                TransientError(f"the server does not speak the local protocol: {error.message}")
            ) from error

    def _take(self, answer: Message) -> None:
        kind, number, _, tag, body = answer
        if kind == LAYOUT:
            session = self._sessions.get(number)
            if session is not None:
                session.learn(tag, decode_body(body, Layout).shapes)
            return
        if kind in (DONE, FAILED):
            slot = self._running.pop(tag, None)
            if slot is not None:
                slot.finish(number, decode_body(body, Failed) if kind == FAILED else None)
                return
            if tag == 0:
                raise self._lose(error_of(decode_body(body, Failed)))
        self._answers[tag] = answer

    def _lose(self, error: EdgeServeError) -> EdgeServeError:
        self._lost = TransientError(f"the connection is lost: {error.message}", hint="make a new LocalClient")
        self._socket.close()
        return error


class LocalModel:
    """A model of a local server, for callers that have arrays of their own: they are copied to and fro."""

    def __init__(self, client: LocalClient, described: Described, version: str) -> None:
        self.name = described.model
        self.version = described.version
        """The one that answered when this was made."""
        self.release = described.release
        self.inputs = described.inputs
        self.outputs = described.outputs
        self._client = client
        self._described = described
        self._wanted = version
        self._sessions: OrderedDict[object, Session] = OrderedDict()

    def infer(self, inputs: Mapping[str, Tensor], *, timeout_s: float | None = None) -> dict[str, Tensor]:
        """Run the model.

        Args:
            inputs: One array for each input; arrays of `str`, `bytes` or objects of these are BYTES.
            timeout_s: For the answer; None = the client's.

        Returns:
            The outputs, which the caller owns.
        """
        missing = [spec.name for spec in self.inputs if spec.name not in inputs]
        if missing:
            raise InputError(f"input {missing[0]!r} is missing")
        unknown = set(inputs) - {spec.name for spec in self.inputs}
        if unknown:
            raise InputError(f"input {min(unknown)!r} is not one of the model's")
        arrays = {spec.name: sendable(spec, inputs[spec.name]) for spec in self.inputs}
        texts = {
            spec.name: LENGTH.size + len(encode_blob(Datatype.BYTES, arrays[spec.name]))
            for spec in self.inputs
            if spec.datatype is Datatype.BYTES
        }
        # Powers of two, so that texts of like length share a session.
        places = {name: max(BYTES_PLACE, 1 << (size - 1).bit_length()) for name, size in texts.items()}
        session = self._session({name: array.shape for name, array in arrays.items()}, places)
        slot = session.slots[0]
        for name, array in arrays.items():
            slot.set(name, array)
        slot.run(timeout_s=timeout_s)
        return {name: array.copy() for name, array in slot.outputs.items()}

    def _session(self, shapes: dict[str, tuple[int, ...]], places: dict[str, int]) -> Session:
        key = (tuple(shapes.values()), tuple(places.values()))
        session = self._sessions.get(key)
        if session is not None and session.slots[0].in_flight:  # a call that timed out has it still
            del self._sessions[key]
            session.close()
            session = None
        if session is None:
            session = self._client._open(  # noqa: SLF001
                self._described, shapes, version=self._wanted, batch=1, slots=1, places=places
            )
            self._sessions[key] = session
            if len(self._sessions) > _MODEL_SESSIONS:
                self._sessions.popitem(last=False)[1].close()
        self._sessions.move_to_end(key)
        return session
