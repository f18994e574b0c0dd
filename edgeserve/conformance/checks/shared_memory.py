"""Area `shared-memory`: tensors in POSIX shared memory of this machine (`extension_shared_memory.md`)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker, shared_memory
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeserve.client.blobs import Tensor
from edgeserve.conformance.check import Level, Skip, Violation, check
from edgeserve.conformance.http import Answer
from edgeserve.conformance.infer import head
from edgeserve.conformance.target import Model, Target
from edgeserve.contracts.tensors import Datatype

Numbers = npt.NDArray[np.int32]

EXTENSION: Final = "system_shared_memory"
_DOCUMENT: Final = "Triton, extension_shared_memory"
_TESTS: Final = "Triton's L0_shared_memory"
_SWITCHED_OFF: Final = ("disabled", "switched off", "not allowed", "not enabled")
"""What servers say that were started without it."""
_SIZE: Final = 64
"""Bytes of the tensor: sixteen INT32."""


@dataclass(frozen=True, kw_only=True)
class Region:
    """A shared memory object that this process made, and the path of its registration."""

    name: str
    key: str
    memory: shared_memory.SharedMemory
    target: Target

    def register(self, **changes: Any) -> Answer:  # noqa: ANN401 - any JSON
        """Ask the server to map it."""
        document = {"key": self.key, "offset": 0, "byte_size": self.memory.size, **changes}
        return self.target.http.post(f"/v2/systemsharedmemory/region/{self.name}/register", document)

    def unregister(self) -> Answer:
        """Ask the server to forget it."""
        return self.target.http.post(f"/v2/systemsharedmemory/region/{self.name}/unregister")

    def write(self, array: Tensor, offset: int = 0) -> None:
        """Put a tensor there."""
        _buffer(self.memory)[offset : offset + array.nbytes] = array.tobytes()

    def read(self, offset: int = 0) -> Numbers:
        """Sixteen INT32 that are there."""
        return np.frombuffer(bytes(_buffer(self.memory)[offset : offset + _SIZE]), dtype=np.int32).reshape(1, 16)


@contextmanager
def region(target: Target, size: int = 4 * _SIZE, *, registered: bool = True) -> Iterator[Region]:
    """A region for the time of a check; a server that refuses all of them is skipped, with its words."""
    target.local()
    memory = shared_memory.SharedMemory(create=True, size=size)
    resource_tracker.unregister(f"/{memory.name}", "shared_memory")  # removed below, in any case
    made = Region(name=f"conformance_{os.getpid()}", key=f"/{memory.name}", memory=memory, target=target)
    try:
        if registered:
            answer = made.register()
            words = answer.body.decode("latin-1").lower()
            if answer.status >= 400 and any(said in words for said in _SWITCHED_OFF):
                raise Skip(f"the server has shared memory switched off: {answer.shown}")
            answer.ok()
        yield made
    finally:
        with suppress(Violation):
            made.unregister()
        memory.close()
        resource_tracker.register(f"/{memory.name}", "shared_memory")
        memory.unlink()


@check("shared-memory.status", level=Level.EXTENSION, source=_DOCUMENT, extension=EXTENSION)
def status(target: Target) -> None:
    """A registered region is in the list of all regions, and in its own, with name, key, offset and byte_size."""
    with region(target) as made:
        for path in ("/v2/systemsharedmemory/status", f"/v2/systemsharedmemory/region/{made.name}/status"):
            answer = target.http.get(path).ok()
            listed = answer.json()
            answer.must(isinstance(listed, list), "a list")
            wanted = {"name": made.name, "key": made.key, "offset": 0, "byte_size": made.memory.size}
            answer.must(
                wanted in [{key: entry.get(key) for key in wanted} for entry in listed], f"{wanted} in the list"
            )
        made.unregister().ok()
        answer = target.http.get("/v2/systemsharedmemory/status").ok()
        answer.must(made.name not in [entry.get("name") for entry in answer.json()], "the region no longer in the list")


@check("shared-memory.status-unknown", level=Level.EXTENSION, source=_DOCUMENT, extension=EXTENSION)
def status_unknown(target: Target) -> None:
    """The status of a region that is not registered is refused."""
    with region(target):
        target.http.get("/v2/systemsharedmemory/region/conformance_no_such_region/status").refused()


@check(
    "shared-memory.unregister-unknown",
    level=Level.EXTENSION,
    source=f"{_DOCUMENT}; perf_analyzer does so first",
    extension=EXTENSION,
)
def unregister_unknown(target: Target) -> None:
    """Unregistering a region that is not registered is answered 200."""
    target.http.post("/v2/systemsharedmemory/region/conformance_no_such_region/unregister").ok()


@check("shared-memory.register-twice", level=Level.EXTENSION, source=f"{_TESTS}: reregister", extension=EXTENSION)
def register_twice(target: Target) -> None:
    """Registering another region under a name that is taken is refused."""
    with region(target) as made:
        made.register(byte_size=_SIZE).refused()


@check(
    "shared-memory.register-again",
    level=Level.EXTENSION,
    source=f"{_TESTS}: reregister after unregister",
    extension=EXTENSION,
)
def register_again(target: Target) -> None:
    """After unregistering, the name is free."""
    with region(target) as made:
        made.unregister().ok()
        made.register().ok()


@check(
    "shared-memory.register-unknown-key", level=Level.EXTENSION, source=f"{_TESTS}: invalid_create", extension=EXTENSION
)
def register_unknown_key(target: Target) -> None:
    """A key that no shared memory has is refused."""
    with region(target, registered=False) as made:
        made.register(key="/conformance_no_such_key").refused()


@check("shared-memory.register-traversal", level=Level.EXTENSION, source=f"{_TESTS}: invalid keys", extension=EXTENSION)
def register_traversal(target: Target) -> None:
    """A key that leads out of the shared memory folder is refused."""
    with region(target, registered=False) as made:
        for key in ("/../../etc/passwd", "../etc/passwd", ""):
            made.register(key=key).refused()


@check("shared-memory.register-beyond", level=Level.EXTENSION, source=f"{_TESTS}: out_of_bound", extension=EXTENSION)
def register_beyond(target: Target) -> None:
    """A byte_size or offset beyond the end of the shared memory is refused."""
    with region(target, registered=False) as made:
        page = 1 << 20  # a mapping may be rounded up to whole pages
        made.register(byte_size=made.memory.size + page).refused()
        made.register(offset=made.memory.size + page, byte_size=_SIZE).refused()


@check(
    "shared-memory.register-overflow", level=Level.EXTENSION, source=f"{_TESTS}: integer overflow", extension=EXTENSION
)
def register_overflow(target: Target) -> None:
    """An offset and byte_size whose sum overflows 64 bits are refused."""
    with region(target, registered=False) as made:
        made.register(offset=2**63, byte_size=2**63 + _SIZE).refused()


@check("shared-memory.register-incomplete", level=Level.EXTENSION, source=_DOCUMENT, extension=EXTENSION)
def register_incomplete(target: Target) -> None:
    """A registration without key or byte_size is refused."""
    with region(target, registered=False) as made:
        path = f"/v2/systemsharedmemory/region/{made.name}/register"
        target.http.post(path, {"offset": 0, "byte_size": _SIZE}).refused()
        target.http.post(path, {"key": made.key, "offset": 0}).refused()


@check("shared-memory.infer", level=Level.EXTENSION, source=_DOCUMENT, extension=EXTENSION)
def infer(target: Target) -> None:
    """Inputs are read from a region and outputs written to it, at their offsets; the answer has no data for them."""
    model = target.add_sub()
    with region(target) as made:
        left, right = _pair(made)
        outputs = [
            {"name": name, "parameters": _at(made, offset)}
            for name, offset in (("OUTPUT0", 2 * _SIZE), ("OUTPUT1", 3 * _SIZE))
        ]
        answer = target.infer(model, _inputs(model, made), outputs=outputs)
        document, _ = head(answer)
        for entry in document.get("outputs") or ():
            answer.must("data" not in entry, "no data for an output that is in shared memory")
        for name, offset, wanted in (("OUTPUT0", 2 * _SIZE, left + right), ("OUTPUT1", 3 * _SIZE, left - right)):
            found = made.read(offset)
            answer.must(np.array_equal(found, wanted), f"{name} {wanted[0, :4]}... in the region", f"{found[0, :4]}...")


@check("shared-memory.infer-input-only", level=Level.EXTENSION, source=_DOCUMENT, extension=EXTENSION)
def infer_input_only(target: Target) -> None:
    """Inputs in shared memory go with outputs in JSON."""
    model = target.add_sub()
    with region(target) as made:
        left, right = _pair(made)
        answer = target.infer(model, _inputs(model, made))
        document, _ = head(answer)
        found = {entry["name"]: entry.get("data") for entry in document.get("outputs") or ()}
        flat = np.array(found.get("OUTPUT0")).ravel()
        answer.must(np.array_equal(flat, (left + right).ravel()), "OUTPUT0 as JSON", repr(found)[:200])


@check("shared-memory.infer-mixed", level=Level.EXTENSION, source=f"{_TESTS}: mixed_raw_shm", extension=EXTENSION)
def infer_mixed(target: Target) -> None:
    """One input in shared memory, one in JSON; one output in shared memory, one in JSON."""
    model = target.add_sub()
    with region(target) as made:
        left, right = _pair(made)
        first, second = _inputs(model, made)
        plain = replace(model.givens()[1], array=right)
        assert plain.name == second.name
        outputs: list[dict[str, Any]] = [
            {"name": "OUTPUT0", "parameters": _at(made, 2 * _SIZE)},
            {"name": "OUTPUT1"},
        ]
        answer = target.infer(model, [first, plain], outputs=outputs).ok()
        found = {entry["name"]: entry.get("data") for entry in answer.document().get("outputs") or ()}
        answer.must(np.array_equal(made.read(2 * _SIZE), left + right), "OUTPUT0 in the region")
        answer.must(np.array_equal(np.array(found.get("OUTPUT1")).ravel(), (left - right).ravel()), "OUTPUT1 as JSON")


@check("shared-memory.infer-unregistered", level=Level.EXTENSION, source=_TESTS, extension=EXTENSION)
def infer_unregistered(target: Target) -> None:
    """A region that is not registered is refused, as input and as output."""
    model = target.add_sub()
    with region(target, registered=False) as made:
        target.infer(model, _inputs(model, made)).refused()
        target.infer(model, outputs=[{"name": "OUTPUT0", "parameters": _at(made, 0)}]).refused()


@check(
    "shared-memory.infer-after-unregister",
    level=Level.EXTENSION,
    source=f"{_TESTS}: unregister_after_inference",
    extension=EXTENSION,
)
def infer_after_unregister(target: Target) -> None:
    """A region that was unregistered is refused from then on."""
    model = target.add_sub()
    with region(target) as made:
        _pair(made)
        target.infer(model, _inputs(model, made)).ok()
        made.unregister().ok()
        target.infer(model, _inputs(model, made)).refused()


@check("shared-memory.infer-beyond", level=Level.EXTENSION, source=f"{_TESTS}: out_of_bound", extension=EXTENSION)
def infer_beyond(target: Target) -> None:
    """An offset or size beyond the region is refused."""
    model = target.add_sub()
    with region(target) as made:
        for offset, size in (
            (made.memory.size, _SIZE),
            (made.memory.size - 4, _SIZE),
            (2**63, _SIZE),
            (2**64 - 32, _SIZE),
        ):
            bad = {"shared_memory_region": made.name, "shared_memory_byte_size": size, "shared_memory_offset": offset}
            first, second = _inputs(model, made)
            target.infer(model, [replace(first, changes={"parameters": bad, "data": None}), second]).refused()
    target.still_answers("offsets beyond a region")


@check(
    "shared-memory.infer-wrong-size",
    level=Level.EXTENSION,
    source=f"{_TESTS}: too_big_shm; L0_input_validation",
    extension=EXTENSION,
)
def infer_wrong_size(target: Target) -> None:
    """A byte size other than the tensor needs is refused for an input."""
    model = target.add_sub()
    with region(target) as made:
        first, second = _inputs(model, made)
        for size in (_SIZE - 4, _SIZE + 4):
            bad = {"shared_memory_region": made.name, "shared_memory_byte_size": size}
            target.infer(model, [replace(first, changes={"parameters": bad, "data": None}), second]).refused()


@check("shared-memory.infer-small-output", level=Level.EXTENSION, source=_TESTS, extension=EXTENSION)
def infer_small_output(target: Target) -> None:
    """Less room than an output needs is refused, and nothing beyond the room is written."""
    model = target.add_sub()
    with region(target) as made:
        made.write(np.full((1, 16), 77, dtype=np.int32), 2 * _SIZE)
        room = {"shared_memory_region": made.name, "shared_memory_byte_size": 16, "shared_memory_offset": 2 * _SIZE}
        answer = target.infer(model, outputs=[{"name": "OUTPUT0", "parameters": room}])
        answer.refused()
        beyond = made.read(2 * _SIZE)[0, 4:]
        answer.must(np.all(beyond == 77), "the bytes behind the room as they were", f"{beyond}")


@check("shared-memory.cuda-status", level=Level.EXTENSION, source=f"{_DOCUMENT}: CUDA", extension="cuda_shared_memory")
def cuda_status(target: Target) -> None:
    """GET /v2/cudasharedmemory/status answers a list."""
    answer = target.http.get("/v2/cudasharedmemory/status").ok()
    answer.must(isinstance(answer.json(), list), "a list")


def _buffer(memory: shared_memory.SharedMemory) -> memoryview:
    assert memory.buf is not None
    return memory.buf


def _pair(made: Region) -> tuple[Numbers, Numbers]:
    """Write both inputs of the model `simple`, one after the other."""
    left, right = np.arange(16, dtype=np.int32).reshape(1, 16), np.full((1, 16), 3, dtype=np.int32)
    made.write(left, 0)
    made.write(right, _SIZE)
    return left, right


def _at(made: Region, offset: int) -> dict[str, Any]:
    return {"shared_memory_region": made.name, "shared_memory_byte_size": _SIZE, "shared_memory_offset": offset}


def _inputs(model: Model, made: Region) -> list[Any]:
    givens = sorted(model.givens(), key=lambda given: given.name)
    assert all(given.datatype is Datatype.INT32 for given in givens)
    return [
        replace(given, changes={"parameters": _at(made, at * _SIZE), "data": None}) for at, given in enumerate(givens)
    ]
