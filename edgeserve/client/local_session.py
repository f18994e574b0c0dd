"""Memory that a program shares with a local server, and the requests that use it (`edgeserve.client.local`)."""

from __future__ import annotations

import mmap
import time
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from edgeserve.client.blobs import Tensor, decode_blob, encode_blob
from edgeserve.client.local_wire import LENGTH, Described, Failed, PlacedInput, PlacedOutput, Plan, error_of
from edgeserve.contracts.errors import ConflictError, InputError
from edgeserve.contracts.tensors import Datatype

Shapes = tuple[tuple[int, ...], ...]
"""Of a plan's outputs, in its order."""


class Connection(Protocol):
    """What a session needs of its client."""

    timeout_s: float

    def send_run(self, slot: Slot, number: int, index: int) -> None:
        """Send a request; `Slot.finish` is called with the answer, within `read`."""

    def read(self, deadline: float) -> None:
        """Take in what the server says next; see `LocalClient.read`."""

    def close_session(self, number: int) -> None:
        """Let the server forget a plan."""


class Session:
    """Memory shared with the server, cut into slots, for requests of one form. `inputs`, `run` and `outputs` are those
    of the first slot."""

    def __init__(self, client: Connection, number: int, plan: Plan, described: Described, memory: mmap.mmap) -> None:
        self.plan = plan
        self._layouts: dict[int, Shapes] = {}
        datatypes = {spec.name: spec.datatype for spec in described.outputs}
        # Slots know nothing of the session: memory and descriptors are freed without the garbage collector.
        self.slots = tuple(
            Slot(client, plan, datatypes, self._layouts, number, index, memory) for index in range(plan.slots)
        )
        self._client = client
        self._number = number

    @property
    def inputs(self) -> dict[str, Tensor]:
        """Views to write the inputs to, by name; BYTES inputs are given by `Slot.set`."""
        return self.slots[0].inputs

    @property
    def outputs(self) -> dict[str, Tensor]:
        """Views of the outputs of the last run, by name."""
        return self.slots[0].outputs

    def run(self, *, timeout_s: float | None = None) -> None:
        """Run the model on `inputs`; see `Slot.run`."""
        self.slots[0].run(timeout_s=timeout_s)

    def learn(self, number: int, shapes: Shapes) -> None:
        """Called by the client: the server gave a number to shapes of outputs, perhaps anew."""
        self._layouts[number] = shapes
        for slot in self.slots:
            slot.forget(number)

    def close(self) -> None:
        """Let the server forget the memory. Arrays stay valid."""
        self._client.close_session(self._number)


class Slot:
    """One request's memory."""

    def __init__(
        self,
        client: Connection,
        plan: Plan,
        datatypes: Mapping[str, Datatype],
        layouts: Mapping[int, Shapes],
        number: int,
        index: int,
        memory: mmap.mmap,
    ) -> None:
        self._client = client
        self._plan = plan
        self._datatypes = datatypes
        self._layouts = layouts
        self._number = number
        self._index = index
        self._memory = memory
        self._start = index * plan.slot_bytes
        self._places = {place.name: place for place in plan.inputs}
        self._error: Failed | None = None
        self._known: dict[int, dict[str, Tensor]] = {}
        self._texts = [name for name, datatype in datatypes.items() if datatype is Datatype.BYTES]
        self.in_flight = False
        """A request was started and has not been answered; until then the memory is the server's."""
        self.inputs: dict[str, Tensor] = {
            place.name: self._view(place, place.datatype, place.shape)
            for place in plan.inputs
            if place.datatype is not Datatype.BYTES
        }
        """Views to write the inputs to, by name; BYTES inputs are given by `set`."""
        self.outputs: dict[str, Tensor] = {}
        """Views of the outputs, by name, valid until the next `start`; BYTES are copies."""

    def set(self, name: str, array: Tensor) -> None:
        """Copy an input to its place.

        Raises:
            InputError: It does not fit.
        """
        target = self.inputs.get(name)
        if target is not None:
            if array.shape != target.shape:
                raise InputError(f"input {name!r} has shape {list(array.shape)}, the session {list(target.shape)}")
            target[...] = array
            return
        place = self._places.get(name)
        if place is None:
            raise InputError(f"input {name!r} is not one of the model's")
        blob = encode_blob(Datatype.BYTES, array)
        if LENGTH.size + len(blob) > place.byte_size:
            raise InputError(
                f"input {name!r} takes {LENGTH.size + len(blob)} bytes, its place has {place.byte_size}",
                hint="open the session with more in `places`",
            )
        start = self._start + place.offset
        LENGTH.pack_into(self._memory, start, len(blob))
        self._memory[start + LENGTH.size : start + LENGTH.size + len(blob)] = bytes(blob)

    def start(self) -> None:
        """Send the request; its answer is for `wait`.

        Raises:
            ConflictError: One is in flight.
        """
        if self.in_flight:
            raise ConflictError("the slot has a request in flight", hint="wait for it, or use another slot")
        self._error = None
        self.outputs = {}
        self._client.send_run(self, self._number, self._index)
        self.in_flight = True

    def wait(self, *, timeout_s: float | None = None) -> dict[str, Tensor]:
        """Wait for the answer, and return `outputs`.

        Args:
            timeout_s: None = the client's. After a timeout the slot is still in flight, and `wait` may be called again.

        Raises:
            EdgeServeError: As the server says.
            TransientError: None came in time, or the connection is lost.
        """
        if self.in_flight:
            deadline = time.monotonic() + (self._client.timeout_s if timeout_s is None else timeout_s)
            while self.in_flight:
                self._client.read(deadline)
        if self._error is not None:
            raise error_of(self._error)
        return self.outputs

    def run(self, *, timeout_s: float | None = None) -> None:
        """`start` and `wait`."""
        self.start()
        self.wait(timeout_s=timeout_s)

    def finish(self, layout: int, error: Failed | None) -> None:
        """Called by the client: the answer is here."""
        self.in_flight = False
        self._error = error
        if error is None:
            outputs = self._known.get(layout)
            if outputs is None or self._texts:
                outputs = self._known[layout] = self._read(layout)
            self.outputs = outputs

    def forget(self, layout: int) -> None:
        """Called by the session: a layout has other shapes now."""
        self._known.pop(layout, None)

    def _read(self, layout: int) -> dict[str, Tensor]:
        return {
            place.name: self._output(place, self._datatypes[place.name], shape)
            for place, shape in zip(self._plan.outputs, self._layouts[layout], strict=True)
        }

    def _output(self, place: PlacedOutput, datatype: Datatype, shape: tuple[int, ...]) -> Tensor:
        if datatype is not Datatype.BYTES:
            return self._view(place, datatype, shape)
        start = self._start + place.offset
        size = int(LENGTH.unpack_from(self._memory, start)[0])
        start += LENGTH.size
        return decode_blob(place.name, datatype, shape, memoryview(self._memory[start : start + size]))

    def _view(self, place: PlacedInput | PlacedOutput, datatype: Datatype, shape: tuple[int, ...]) -> Tensor:
        dtype = np.dtype(datatype.numpy_name)
        array: Tensor = np.ndarray(shape, dtype, buffer=self._memory, offset=self._start + place.offset)
        return array
