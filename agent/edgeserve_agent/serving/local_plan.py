"""Plans of the local protocol: a model, and numpy views of where its tensors lie in a client's memory."""

from __future__ import annotations

import mmap
import os
import stat
import sys
from dataclasses import dataclass
from typing import Final

import numpy as np

from edgeserve.client.blobs import decode_blob, encode_blob
from edgeserve.client.local_wire import LAYOUT, LENGTH, Layout, PlacedInput, PlacedOutput, Plan, message
from edgeserve.contracts.errors import DeviceError, InputError, UnsupportedError
from edgeserve.contracts.limits import MAX_LOCAL_LAYOUTS
from edgeserve.contracts.tensors import Datatype, Signature
from edgeserve.runtimes.base import Tensor, Tensors
from edgeserve_agent.serving.call import Call, Done
from edgeserve_agent.serving.served import ServedRelease

_COPIED: Final = (Datatype.BOOL, Datatype.BYTES, Datatype.INT32, Datatype.INT64)
"""Inputs whose values are checked, here or (indices) in the runtime: they must not change between check and use."""

Shapes = tuple[tuple[int, ...], ...]


class MappedPlan:
    """A plan whose region is mapped; the mapping lives as long as anything refers to a tensor in it.

    Args:
        number: What the client calls it.
        plan: As the client asked for.
        memory: Its region.
    """

    def __init__(self, number: int, plan: Plan, memory: mmap.mmap) -> None:
        self.plan = plan
        self.served: ServedRelease | None = None
        """The release that the plan was last held against."""
        self.closed = False
        self.announcement = b""
        """LAYOUT messages that are to be sent before the next DONE."""
        self._number = number
        self._layouts: dict[Shapes, int] = {}
        self._datatypes: dict[str, Datatype] = {}
        """Of the outputs, as the client knows them."""
        self.slots = [Slot(self, index, memory) for index in range(plan.slots)]

    def bind(self, served: ServedRelease) -> None:
        """Hold the plan against a release that it has not met.

        Raises:
            InputError: The model has other inputs or outputs.
        """
        check_plan(self.plan, served.signature)
        outputs = {spec.name: spec.datatype for spec in served.signature.outputs}
        datatypes = {place.name: outputs[place.name] for place in self.plan.outputs}
        for name, known in self._datatypes.items():
            if datatypes[name] is not known:
                raise InputError(
                    f"output {name!r} is {datatypes[name].value} by now, it was {known.value} when the plan was opened",
                    hint="open the plan again",
                )
        self._datatypes = datatypes
        for slot in self.slots:
            slot.bind([datatypes[place.name] for place in self.plan.outputs])
        self._layouts.clear()
        self.served = served

    def close(self) -> None:
        """Let go of the memory, without waiting for the garbage collector; requests in flight keep what they read."""
        self.closed = True
        for slot in self.slots:
            slot.close()

    def layout(self, shapes: Shapes) -> int:
        """The number of a layout; one that the client does not know is announced."""
        number = self._layouts.get(shapes)
        if number is None:
            if len(self._layouts) >= MAX_LOCAL_LAYOUTS:
                self._layouts.clear()
                for slot in self.slots:
                    slot.forget_layouts()
            number = self._layouts[shapes] = len(self._layouts)
            self.announcement += message(LAYOUT, Layout(shapes=shapes), number=self._number, tag=number)
        return number


@dataclass(frozen=True, slots=True, kw_only=True)
class _Targets:
    """Where outputs of certain shapes go in a slot."""

    layout: int
    arrays: list[tuple[str, tuple[int, ...], Tensor]]
    texts: list[PlacedOutput]


class Slot:
    """The part of a region that one request at a time uses."""

    __slots__ = (
        "_copied", "_datatypes", "_inputs", "_last", "_memory", "_plan", "_start", "_targets", "call", "done", "index",
        "tag",
    )  # fmt: skip

    def __init__(self, plan: MappedPlan, index: int, memory: mmap.mmap) -> None:
        self.index = index
        self.tag = 0
        """Of the request in flight."""
        self.call: Call | None = None
        """The request in flight."""
        self.done: Done
        """What takes the outcome; set by the connection."""
        self._targets: dict[Shapes, _Targets] = {}
        """By the shapes of the outputs."""
        self._last: _Targets | None = None
        self._plan = plan
        self._memory = memory
        self._start = index * plan.plan.slot_bytes
        self._inputs: Tensors = {place.name: self._input(place) for place in plan.plan.inputs}
        self._copied = [place for place in plan.plan.inputs if place.datatype in _COPIED]
        self._datatypes: list[Datatype] = []

    def bind(self, datatypes: list[Datatype]) -> None:
        """Say what the outputs are."""
        self._datatypes = datatypes
        self.forget_layouts()

    def forget_layouts(self) -> None:
        """Layouts are numbered anew."""
        self._targets.clear()
        self._last = None

    def close(self) -> None:
        """Let go of the memory."""
        del self.done, self._memory
        self._inputs = {}
        self.forget_layouts()

    def read(self) -> Tensors:
        """The inputs: views where the client may do as it likes, else checked copies.

        Raises:
            InputError: The bytes are not such tensors.
        """
        if not self._copied:
            return self._inputs
        inputs = dict(self._inputs)
        for place in self._copied:
            inputs[place.name] = decode_blob(place.name, place.datatype, place.shape, self._bytes_of(place))
        return inputs

    def write(self, outputs: Tensors) -> int:
        """Copy outputs to their places and return the number of their layout.

        Raises:
            InputError: One is larger than its place.
        """
        last = self._last
        if last is not None:
            for name, shape, target in last.arrays:
                array = outputs[name]
                if array.shape != shape:
                    break
                target[...] = array
            else:
                return last.layout
        self._last = targets = self._aim(outputs)
        for name, _, target in targets.arrays:
            target[...] = outputs[name]
        for place in targets.texts:
            self._write_text(place, outputs[place.name])
        if targets.texts:  # whose length is looked at each time
            self._last = None
        return targets.layout

    def _aim(self, outputs: Tensors) -> _Targets:
        places = self._plan.plan.outputs
        shapes = tuple([outputs[place.name].shape for place in places])
        found = self._targets.get(shapes)
        if found is None:
            sides = list(zip(places, self._datatypes, shapes, strict=True))
            arrays = [
                (place.name, shape, self._output(place, datatype, shape))
                for place, datatype, shape in sides
                if datatype is not Datatype.BYTES
            ]
            texts = [place for place, datatype, _ in sides if datatype is Datatype.BYTES]
            layout = self._plan.layout(shapes)  # which may forget all targets, so this comes first
            found = self._targets[shapes] = _Targets(layout=layout, arrays=arrays, texts=texts)
        return found

    def _input(self, place: PlacedInput) -> Tensor:
        if place.datatype is Datatype.BYTES:
            return np.empty(0, object)  # stands for it in the order of the inputs
        dtype = np.dtype(place.datatype.numpy_name)
        try:
            array: Tensor = np.ndarray(place.shape, dtype, buffer=self._memory, offset=self._start + place.offset)
        except ValueError as error:  # no elements, and other dimensions whose product overflows
            raise InputError(f"input {place.name!r} cannot have shape {list(place.shape)}: {error}") from error
        return array

    def _bytes_of(self, place: PlacedInput) -> memoryview:
        start = self._start + place.offset
        if place.datatype is not Datatype.BYTES:
            return memoryview(self._memory[start : start + place.byte_size])
        size = int(LENGTH.unpack_from(self._memory, start)[0])
        start += LENGTH.size
        if size > place.byte_size - LENGTH.size:
            raise InputError(
                f"input {place.name!r} says that it has {size} bytes, its place has {place.byte_size - LENGTH.size}"
            )
        return memoryview(self._memory[start : start + size])  # slicing an mmap copies

    def _output(self, place: PlacedOutput, datatype: Datatype, shape: tuple[int, ...]) -> Tensor:
        dtype = np.dtype(datatype.numpy_name)
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if size > place.byte_size:
            raise _too_small(place, size)
        array: Tensor = np.ndarray(shape, dtype, buffer=self._memory, offset=self._start + place.offset)
        return array

    def _write_text(self, place: PlacedOutput, array: Tensor) -> None:
        blob = encode_blob(Datatype.BYTES, array)
        if LENGTH.size + len(blob) > place.byte_size:
            raise _too_small(place, LENGTH.size + len(blob))
        start = self._start + place.offset
        LENGTH.pack_into(self._memory, start, len(blob))
        self._memory[start + LENGTH.size : start + LENGTH.size + len(blob)] = bytes(blob)


def check_plan(plan: Plan, signature: Signature) -> None:
    """Hold a plan against a model.

    Raises:
        InputError: An input is missing, unknown, or has another datatype or shape; or an output is unknown.
    """
    specs = {spec.name: spec for spec in signature.inputs}
    for place in plan.inputs:
        spec = specs.pop(place.name, None)
        if spec is None:
            known = ", ".join(spec.name for spec in signature.inputs)
            raise InputError(f"input {place.name[:80]!r} is not one of the model's: {known}")
        if place.datatype is not spec.datatype:
            raise InputError(
                f"input {spec.name!r} has datatype {place.datatype.value}, the model takes {spec.datatype.value}"
            )
        if not spec.accepts(place.shape):
            raise InputError(f"input {spec.name!r} has shape {list(place.shape)}, the model takes {list(spec.shape)}")
    if specs:
        raise InputError(f"input {next(iter(specs))!r} is missing")
    names = {spec.name for spec in signature.outputs}
    for output in plan.outputs:
        if output.name not in names:
            raise InputError(f"output {output.name[:80]!r} is not one of the model's: {', '.join(sorted(names))}")


def map_region(descriptor: int, size: int) -> mmap.mmap:
    """Map the first `size` bytes of a client's memfd; the descriptor stays open.

    Raises:
        InputError: It is not a memfd, may shrink, or is smaller.
        DeviceError: There is no address space, or there are too many open files.
    """
    assert sys.platform == "linux"
    import fcntl

    if size == 0:
        raise InputError("a region must have at least one byte")
    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError:
        raise InputError("the descriptor is not of a memfd", hint="make it with memfd_create(2)") from None
    if not seals & fcntl.F_SEAL_SHRINK:
        raise InputError(
            "the memfd is not sealed against shrinking",
            hint="create it with MFD_ALLOW_SEALING, give it its size, and add F_SEAL_SHRINK",
        )
    found = os.fstat(descriptor)
    # A huge page that is missing is found out when it is touched, and ends the process.
    if not stat.S_ISREG(found.st_mode) or os.fstatvfs(descriptor).f_bsize != mmap.PAGESIZE:
        raise UnsupportedError("the memfd has huge pages", hint="create it without MFD_HUGETLB")
    if found.st_size < size:
        raise InputError(f"the memfd has {found.st_size} bytes, the plan needs {size}")
    try:
        return mmap.mmap(descriptor, size)
    except PermissionError as error:
        raise InputError(
            f"the memfd cannot be written: {error.strerror}", hint="do not seal it against writing"
        ) from error
    except (OSError, ValueError, OverflowError) as error:
        raise DeviceError(f"cannot map {size} bytes of the client's memory: {error}") from error


def _too_small(place: PlacedOutput, size: int) -> InputError:
    return InputError(
        f"output {place.name!r} has {size} bytes, its place in the region has {place.byte_size}",
        hint="give it more in the plan",
    )
