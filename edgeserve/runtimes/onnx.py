"""ONNX models on ONNX Runtime's CPU provider. The only module of the serving side that imports onnxruntime."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when the library is loaded

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from edgeserve.contracts.errors import DeviceError, InputError
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.runtimes.base import LoadedModel, RuntimeOptions, Tensor, Tensors
from edgeserve.runtimes.bound import BoundCalls
from edgeserve.runtimes.checks import check_file, check_inputs, first_line

_ERRORS: Final = (
    ort_errors.EPFail,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.ModelLoaded,
    ort_errors.NoModel,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    RuntimeError,
    ValueError,
)
"""The library's exceptions have no base of their own."""

_DATATYPES: Final = {
    "tensor(bool)": Datatype.BOOL,
    "tensor(uint8)": Datatype.UINT8,
    "tensor(uint16)": Datatype.UINT16,
    "tensor(uint32)": Datatype.UINT32,
    "tensor(uint64)": Datatype.UINT64,
    "tensor(int8)": Datatype.INT8,
    "tensor(int16)": Datatype.INT16,
    "tensor(int32)": Datatype.INT32,
    "tensor(int64)": Datatype.INT64,
    "tensor(float16)": Datatype.FP16,
    "tensor(float)": Datatype.FP32,
    "tensor(double)": Datatype.FP64,
    "tensor(bfloat16)": Datatype.BF16,
    "tensor(string)": Datatype.BYTES,
}
_PROVIDERS: Final = {"CPU": "CPUExecutionProvider"}
_ONNX_BFLOAT16: Final = 16
"""`TensorProto.BFLOAT16`."""
_FATAL_ONLY: Final = 4
"""Log severity: what the library would print is raised as an error as well."""


class OnnxRuntime:
    """Loads `*.onnx` and `*.ort`."""

    name = "onnxruntime"

    def version(self) -> str:
        """Version of onnxruntime."""
        return str(onnxruntime.__version__)

    def load(self, path: Path, options: RuntimeOptions) -> LoadedModel:
        """Make a session; see `edgeserve.runtimes.base.Runtime.load`."""
        check_file(path)
        provider = _provider(options)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = options.threads
        settings.inter_op_num_threads = 1
        settings.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        # Threads that spin between calls take the CPU from everything else on a small board.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if options.simulate:
            # Integer kernels of this CPU may saturate where those of the other do not. Without the fusion into them,
            # quantized operations are computed as they are defined, with the same answers everywhere.
            settings.add_session_config_entry("session.disable_quant_qdq", "1")
        settings.log_severity_level = _FATAL_ONLY
        try:
            session = onnxruntime.InferenceSession(str(path), settings, providers=[provider])
        except MemoryError as error:
            raise DeviceError(f"not enough memory to load {path.name}") from error
        except _ERRORS as error:
            if "alloc" in str(error).lower():
                raise DeviceError(f"not enough memory to load {path.name}: {first_line(error)}") from error
            raise InputError(
                f"{path.name} is not a model that ONNX Runtime {onnxruntime.__version__} can load: {first_line(error)}",
                hint="check that the file is whole; export with an opset that this version knows",
            ) from error
        actual = session.get_providers()
        if actual[:1] != [provider]:
            raise DeviceError(f"{path.name} was to run on {provider}, ONNX Runtime chose {', '.join(actual)}")
        device = actual[0].removesuffix("ExecutionProvider") + (" (simulated)" if options.simulate else "")
        return OnnxModel(session, _signature(session, path.name), device)


class OnnxModel:
    """An ONNX Runtime session. Sessions are safe to call from several threads."""

    def __init__(self, session: Any, signature: Signature, executing_device: str) -> None:  # noqa: ANN401
        self.signature = signature
        self.executing_device = executing_device
        self._session = session
        self._names = [spec.name for spec in signature.outputs]
        self._strings = [spec.name for spec in signature.inputs if spec.datatype is Datatype.BYTES]
        self._half = {spec.name for spec in signature.inputs if spec.datatype is Datatype.BF16}
        self._exotic = bool(self._strings) or any(
            spec.datatype in (Datatype.BYTES, Datatype.BF16) for spec in (*signature.inputs, *signature.outputs)
        )
        self._calls = BoundCalls(session, signature)

    def run(self, inputs: Mapping[str, Tensor]) -> Tensors:
        """Compute the outputs; see `edgeserve.runtimes.base.LoadedModel.run`."""
        outputs = self._calls.run(inputs)
        if outputs is not None:
            return outputs
        session = self._session
        if session is None:
            raise DeviceError("the model was closed")
        check_inputs(self.signature, inputs)
        try:
            if self._exotic:
                return self._run_exotic(session, inputs)
            values = session.run(self._names, inputs)
        except ort_errors.InvalidArgument as error:
            raise InputError(f"the model does not take this input: {first_line(error)}") from error
        except (MemoryError, *_ERRORS) as error:
            raise DeviceError(f"ONNX Runtime failed: {first_line(error)}") from error
        outputs = dict(zip(self._names, values, strict=True))
        self._calls.learn(inputs, outputs)
        return outputs

    def _run_exotic(self, session: Any, inputs: Mapping[str, Tensor]) -> Tensors:  # noqa: ANN401
        """Strings and bfloat16, which the library's plain arrays do not carry as ours do."""
        feed = {name: _texts(name, array) if name in self._strings else array for name, array in inputs.items()}
        if not self._half and not any(spec.datatype is Datatype.BF16 for spec in self.signature.outputs):
            values = session.run(self._names, feed)
        else:
            given = {name: _ort_value(array, half=name in self._half) for name, array in feed.items()}
            values = [_array(value) for value in session.run_with_ort_values(self._names, given)]
        return {
            name: value if value.dtype.kind != "O" else _bytes(value)
            for name, value in zip(self._names, values, strict=True)
        }

    def close(self) -> None:
        """Release the session once running calls have ended."""
        self._session = None
        self._calls.close()


def _provider(options: RuntimeOptions) -> str:
    provider = _PROVIDERS.get(options.device)
    if provider is None and options.simulate:
        provider = _PROVIDERS["CPU"]
    if provider is None:
        raise DeviceError(
            f"ONNX Runtime has no device {options.device[:40]!r} here", hint=f"it has {', '.join(_PROVIDERS)}"
        )
    return provider


def _signature(session: Any, what: str) -> Signature:  # noqa: ANN401
    return Signature(
        inputs=tuple(_spec(value, "input", what) for value in session.get_inputs()),
        outputs=tuple(_spec(value, "output", what) for value in session.get_outputs()),
    )


def _spec(value: Any, side: str, what: str) -> TensorSpec:  # noqa: ANN401
    datatype = _DATATYPES.get(value.type)
    if datatype is None:
        raise InputError(f"{side} {value.name!r} of {what} is a {value.type}: only tensors of plain numbers are served")
    if not value.shape:  # the library shows a scalar and a tensor without rank alike, and neither has rows
        raise InputError(
            f"{side} {value.name!r} of {what} has no fixed rank, or is a scalar",
            hint="export the model with the shape of every input and output; only the sizes may vary",
        )
    return TensorSpec(
        name=value.name,
        datatype=datatype,
        shape=tuple(size if isinstance(size, int) and size >= 0 else -1 for size in value.shape),
    )


def _ort_value(array: Tensor, *, half: bool) -> Any:  # noqa: ANN401
    if half:
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(np.ascontiguousarray(array), _ONNX_BFLOAT16)
    return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


def _array(value: Any) -> Tensor:  # noqa: ANN401
    if value.element_type() != _ONNX_BFLOAT16:
        plain: Tensor = np.asarray(value.numpy())
        return plain
    bits = (ctypes.c_uint16 * math.prod(value.shape())).from_address(value.data_ptr())
    array: Tensor = np.array(bits, np.uint16).reshape(value.shape())
    return array


def _texts(name: str, array: Tensor) -> Tensor:
    try:
        texts = [item.decode() if isinstance(item, bytes) else str(item) for item in array.ravel().tolist()]
    except UnicodeDecodeError as error:
        raise InputError(f"input {name!r} holds bytes that are not UTF-8, which ONNX strings must be") from error
    return np.array(texts, object).reshape(array.shape)


def _bytes(array: Tensor) -> Tensor:
    return np.array([str(item).encode() for item in array.ravel().tolist()], object).reshape(array.shape)
