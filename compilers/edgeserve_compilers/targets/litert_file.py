"""TFLite files and the tables in them: read, name, number, write.

Schema: `schema.fbs` of TensorFlow Lite, version 3, through the classes that ai-edge-litert ships.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Final

import flatbuffers  # type: ignore[import-untyped,unused-ignore]
import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from edgeserve.contracts.errors import InputError

STORED: Final = {"INT8": np.int8, "UINT8": np.uint8, "FLOAT16": np.float16, "FLOAT32": np.float32}
_KEPT_METADATA: Final = b"min_runtime_version"
"""`reduced_precision_support` is not kept: it lets ARM compute in half precision, which nobody measured."""


def _names(enumeration: type) -> dict[int, str]:
    return {value: name for name, value in vars(enumeration).items() if isinstance(value, int)}


_OPERATORS: Final = _names(schema.BuiltinOperator)
_TYPES: Final = _names(schema.TensorType)


class _Builder(flatbuffers.Builder):  # type: ignore[misc]  # the library is not typed
    """Puts the data of buffers on 16 bytes, as the schema asks and the Python classes forget."""

    def CreateNumpyVector(self, x: Any) -> int:  # noqa: N802, ANN401 - the library's name
        self.Prep(16, x.nbytes)
        offset: int = super().CreateNumpyVector(x)
        return offset


class TfliteFile:
    """A model whose first graph matters. Tensors have unique names; constants are those with a buffer of their own."""

    def __init__(self, data: bytes) -> None:
        self._model: Any = schema.ModelT.InitFromPackedBuf(data, 0)
        self._main: Any = self._model.subgraphs[0]
        for code in self._model.operatorCodes:
            # Files of before 2020 have the code in the old field only.
            code.builtinCode = max(code.builtinCode, code.deprecatedBuiltinCode)
        self._model.description = b"edgeserve"
        self._model.metadata = [entry for entry in self._model.metadata or () if entry.name == _KEPT_METADATA]
        self._name_tensors()
        self._take_in_buffers(data)
        self._drop_unused_buffers()  # activations then are those with buffer 0

    def write(self) -> bytes:
        """The file. Same graph, same bytes."""
        self._drop_unused_buffers()
        builder = _Builder(1 << 20)
        builder.Finish(self._model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    @cached_property
    def _tensor_names(self) -> list[str]:
        return [tensor.name.decode() for tensor in self._main.tensors]

    def _name_tensors(self) -> None:
        taken: set[bytes] = set()
        for number, graph in enumerate(self._model.subgraphs):
            for index, tensor in enumerate(graph.tensors):
                name = tensor.name or b"tensor"
                tensor.name = name if name not in taken else name + f"/{number}.{index}".encode()
                taken.add(tensor.name)

    def _real(self, index: int) -> npt.NDArray[np.float32]:
        """Values of a stored constant, whatever they are stored as."""
        tensor = self._main.tensors[index]
        kind = STORED.get(self._type(index))
        if kind is None:
            raise InputError(f"the TFLite model stores {tensor.name.decode()!r} as {self._type(index)}")
        stored = np.frombuffer(bytes(self._model.buffers[tensor.buffer].data), kind).reshape(tensor.shape)
        if tensor.quantization is None or tensor.quantization.scale is None or not len(tensor.quantization.scale):
            return np.asarray(stored, np.float32)
        shape = [1] * stored.ndim
        if len(tensor.quantization.scale) > 1:
            shape[tensor.quantization.quantizedDimension] = -1
        scale, zero = (
            np.asarray(part).reshape(shape) for part in (tensor.quantization.scale, tensor.quantization.zeroPoint)
        )
        return np.asarray((stored.astype(np.float64) - zero) * scale, np.float32)

    def _become_float(self, index: int, values: npt.NDArray[np.float32]) -> None:
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(values.tobytes(), np.uint8)
        self._model.buffers.append(buffer)
        tensor = self._main.tensors[index]
        tensor.type, tensor.quantization = schema.TensorType.FLOAT32, None
        tensor.buffer = len(self._model.buffers) - 1

    def _values(self, index: int) -> npt.NDArray[np.float32] | None:
        """A float constant."""
        tensor = self._main.tensors[index]
        if tensor.buffer == 0 or self._type(index) != "FLOAT32":
            return None
        data = bytes(self._model.buffers[tensor.buffer].data)
        return np.asarray(np.frombuffer(data, np.float32).reshape(tensor.shape))

    def _take_in_buffers(self, data: bytes) -> None:
        """Quantizers put the data of buffers behind the flatbuffer; there is no need for it below 2 GB."""
        for buffer in self._model.buffers:
            if buffer.offset > 1:
                buffer.data = np.frombuffer(data, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0

    def _drop_unused_buffers(self) -> None:
        """Number buffers anew: the empty one, which all activations share, then those with data, as they are used."""
        users = list(self._model.metadata)
        for graph in self._model.subgraphs:
            read = {int(index) for operator in graph.operators for index in operator.inputs} | set(graph.outputs)
            for index, tensor in enumerate(graph.tensors):
                if index in read:
                    users.append(tensor)
                else:  # inputs, and what a change of the graph left without a reader
                    tensor.buffer = 0
        old, kept, place = self._model.buffers, [schema.BufferT()], {}
        for user in users:
            data = old[user.buffer].data
            if data is None or not len(data):
                user.buffer = 0
                continue
            if user.buffer not in place:
                place[user.buffer] = len(kept)
                kept.append(old[user.buffer])
            user.buffer = place[user.buffer]
        self._model.buffers = kept

    def _constant(self, name: bytes, values: Any) -> int:  # noqa: ANN401
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(values.tobytes(), np.uint8)
        self._model.buffers.append(buffer)
        tensor = schema.TensorT()
        tensor.name, tensor.shape = name, list(values.shape)
        tensor.type = schema.TensorType.INT32 if values.dtype == np.int32 else schema.TensorType.FLOAT32
        tensor.buffer = len(self._model.buffers) - 1
        self._main.tensors.append(tensor)
        vars(self).pop("_tensor_names", None)
        return len(self._main.tensors) - 1

    def _free(self, name: str) -> bytes:
        while name in self._tensor_names:
            name += "_"
        return name.encode()

    def _code(self, builtin: int) -> int:
        for index, code in enumerate(self._model.operatorCodes):
            if code.builtinCode == builtin:
                return index
        code = schema.OperatorCodeT()
        code.builtinCode, code.deprecatedBuiltinCode, code.version = builtin, min(builtin, 127), 1
        self._model.operatorCodes.append(code)
        return len(self._model.operatorCodes) - 1

    def _operation(self, operator: Any) -> str:  # noqa: ANN401
        return _OPERATORS.get(self._model.operatorCodes[operator.opcodeIndex].builtinCode, "CUSTOM")

    def _type(self, index: int) -> str:
        return _TYPES[self._main.tensors[index].type]

    def _is_constant(self, index: int) -> bool:
        return index < 0 or self._main.tensors[index].buffer != 0
