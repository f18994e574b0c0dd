"""Small calls of ONNX Runtime through buffers that are bound once.

Binding costs more than a small model: a call whose inputs and outputs are copied through memory that is bound already
takes half the time of `session.run` (2.4 against 4.7 us for a model of 4 inputs and 3 outputs, before the copies).
"""

from __future__ import annotations

from collections.abc import Mapping
from threading import get_ident
from typing import Any, Final

import numpy as np

from edgeserve.contracts.limits import BOUND_RUN_BYTES, MAX_BOUND_SHAPES
from edgeserve.contracts.tensors import Datatype, Signature
from edgeserve.runtimes.base import Tensor, Tensors

_NOT_BOUND: Final = (Datatype.BYTES, Datatype.BF16)

_Key = tuple[Any, ...]
"""Thread, then the shape of each input."""


class _Bound:
    """One set of buffers; belongs to one thread."""

    __slots__ = ("_binding", "_handle", "_outputs", "_run", "_sources")

    def __init__(self, session: Any, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:  # noqa: ANN401
        self._sources = tuple((name, np.empty(array.shape, array.dtype)) for name, array in inputs.items())
        self._outputs = tuple((name, np.empty(array.shape, array.dtype)) for name, array in outputs.items())
        self._binding = session.io_binding()  # keeps what is bound alive
        for name, source in self._sources:
            self._binding.bind_cpu_input(name, source)
        for name, target in self._outputs:
            self._binding.bind_output(name, "cpu", 0, target.dtype, target.shape, target.ctypes.data)
        # The public method spends as long again on options that are not used here.
        self._run = session._sess.run_with_iobinding  # noqa: SLF001
        self._handle = self._binding._iobinding  # noqa: SLF001

    def call(self, inputs: Mapping[str, Tensor]) -> Tensors | None:
        """Compute; None where an array has another datatype than the one that was bound."""
        for name, source in self._sources:
            array = inputs[name]
            if array.dtype != source.dtype:
                return None
            source[...] = array
        self._run(self._handle, None)
        return {name: target.copy() for name, target in self._outputs}


class BoundCalls:
    """Buffers of one session, by thread and shapes of the inputs.

    Args:
        session: Of ONNX Runtime.
        signature: Of its model.
        usable: Whether all that runs the model reads the CPU's memory in each call. What is bound for a GPU is copied
            to it when it is bound, and never again.
    """

    def __init__(self, session: Any, signature: Signature, *, usable: bool = True) -> None:  # noqa: ANN401
        self._session = session
        self._names = tuple(spec.name for spec in signature.inputs)
        self._only = self._names[0] if len(self._names) == 1 else ""
        self._known: dict[_Key, _Bound] = {}
        self._suspects: set[_Key] = set()
        """Calls whose buffers failed just now."""
        self._usable = usable and not any(
            spec.datatype in _NOT_BOUND for spec in (*signature.inputs, *signature.outputs)
        )

    def run(self, inputs: Mapping[str, Tensor]) -> Tensors | None:
        """Compute, or return None where a call like this was not learned: then everything is checked and run anew."""
        if len(inputs) != len(self._names):
            return None
        try:
            if self._only:
                key: _Key = (get_ident(), inputs[self._only].shape)
            else:
                key = (get_ident(), *[inputs[name].shape for name in self._names])
        except KeyError:
            return None
        bound = self._known.get(key)
        if bound is None:
            self._suspects.discard(key)
            return None
        try:
            return bound.call(inputs)
        except Exception:  # noqa: BLE001 - the full way tells what it is
            self._known.pop(key, None)
            self._suspects.add(key)
            return None

    def learn(self, inputs: Mapping[str, Tensor], outputs: Tensors) -> None:
        """Bind buffers for calls like this one, which was answered."""
        if not self._usable or self._session is None:
            return
        size = sum(array.nbytes for array in inputs.values()) + sum(array.nbytes for array in outputs.values())
        empty = any(not array.size for array in (*inputs.values(), *outputs.values()))
        if size > BOUND_RUN_BYTES or empty or not all(isinstance(array, np.ndarray) for array in outputs.values()):
            return
        thread = get_ident()
        ordered = {name: inputs[name] for name in self._names}
        key = (thread, *(array.shape for array in ordered.values()))
        if key in self._suspects:  # what failed with buffers works without: its outputs vary in shape by their content
            self._usable = False
            self._known.clear()
            return
        # Copied in one step, because other threads learn meanwhile. Each takes out only what is its own.
        own = [key for key in list(self._known) if key[0] == thread]
        if len(own) >= MAX_BOUND_SHAPES:
            for key in own:
                self._known.pop(key, None)
        self._known[key] = _Bound(self._session, ordered, outputs)

    def close(self) -> None:
        """Let go of the session and the buffers."""
        self._usable = False
        self._session = None
        self._known.clear()
