"""ONNX models on ONNX Runtime and its providers. The only module of the serving side that imports onnxruntime."""

from __future__ import annotations

import contextlib
import ctypes
import io
import math
import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when the library is loaded

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from edgeserve.contracts.errors import DeviceError, InputError
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.runtimes.advice import package_for, this_machine
from edgeserve.runtimes.base import ONE_DEVICE, LoadedModel, RuntimeOptions, Tensor, Tensors
from edgeserve.runtimes.bound import BoundCalls
from edgeserve.runtimes.checks import check_file, check_inputs, first_line
from edgeserve.runtimes.cuda import Cuda, driver_version
from edgeserve.runtimes.engine_cache import EngineKey
from edgeserve.runtimes.kept_folder import KeptFolder, runtime_cache
from edgeserve.runtimes.model_files import digest_files, model_files
from edgeserve.runtimes.onnx_providers import CPU, Attempt, device_of, fallback, plan
from edgeserve.runtimes.openvino_advice import advice

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
_ONNX_BFLOAT16: Final = 16
"""`TensorProto.BFLOAT16`."""
_FATAL_ONLY: Final = 4
"""Log severity: what the library would print is raised as an error as well."""

onnxruntime.set_default_logger_severity(_FATAL_ONLY)  # what it says when it leaves out a provider: `_cause` finds out


class OnnxRuntime:
    """Loads `*.onnx` and `*.ort` on the devices that `edgeserve.runtimes.onnx_providers.plan` names."""

    name = "onnxruntime"

    def version(self) -> str:
        """Version of onnxruntime."""
        return str(onnxruntime.__version__)

    def load(self, path: Path, options: RuntimeOptions) -> LoadedModel:
        """Make a session; see `edgeserve.runtimes.base.Runtime.load`.

        A session counts only if the provider that was meant is in it and has operations of the model: ONNX Runtime
        itself leaves out what it cannot make, and says so only in its log.
        """
        check_file(path)
        chosen = plan(options, onnxruntime.get_available_providers(), this_machine())
        reasons = list(chosen.passed_over)
        for attempt in chosen.attempts:
            try:
                session, placement, folder = _open(path, options, attempt)
            except DeviceError as error:
                if attempt is chosen.attempts[-1]:
                    raise
                reasons.append(error.message)
                continue
            device = attempt.device + (" (simulated)" if options.simulate else "")
            return OnnxModel(
                session,
                _signature(session, path.name),
                device,
                fallback=fallback(options.device, attempt.device, reasons),
                placement=placement,
                takes_bound_memory=attempt.takes_bound_memory,
                folder=folder,
            )
        raise AssertionError("a plan has at least one attempt")


class OnnxModel:
    """An ONNX Runtime session. Sessions are safe to call from several threads."""

    def __init__(
        self,
        session: Any,  # noqa: ANN401
        signature: Signature,
        executing_device: str,
        *,
        fallback: str = "",
        placement: Mapping[str, int] = ONE_DEVICE,
        takes_bound_memory: bool = True,
        folder: KeptFolder | None = None,
    ) -> None:
        self.signature = signature
        self.executing_device = executing_device
        self.fallback = fallback
        self.placement = placement
        self._session = session
        self._folder = folder
        self._names = [spec.name for spec in signature.outputs]
        self._strings = [spec.name for spec in signature.inputs if spec.datatype is Datatype.BYTES]
        self._half = {spec.name for spec in signature.inputs if spec.datatype is Datatype.BF16}
        self._exotic = bool(self._strings) or any(
            spec.datatype in (Datatype.BYTES, Datatype.BF16) for spec in (*signature.inputs, *signature.outputs)
        )
        self._calls = BoundCalls(session, signature, usable=takes_bound_memory)

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
        if self._folder is not None:
            self._folder.close()


def _open(path: Path, options: RuntimeOptions, attempt: Attempt) -> tuple[Any, Mapping[str, int], KeptFolder | None]:
    """A session in which the provider that was meant has operations of the model, and where all of them are.

    Raises:
        InputError: The file is not a model that this ONNX Runtime can load.
        DeviceError: The provider cannot run it.
    """
    folder = _kept(path, options, attempt)
    try:
        if attempt.provider != CPU:
            _preload(attempt)
        session = _session(path, options, attempt, attempt.with_cache(str(folder.path) if folder else ""))
        placement = _placement(session, attempt)
        if session.get_providers()[:1] != [attempt.provider] or (placement and attempt.kind not in placement):
            raise _unusable(path, attempt, session.get_providers())
        if folder is not None:
            folder.keep()
    except BaseException:
        if folder is not None:
            folder.close()
        raise
    return session, placement, folder


def _session(path: Path, options: RuntimeOptions, attempt: Attempt, providers: Sequence[Any]) -> Any:  # noqa: ANN401
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
    for name, value in attempt.session.items():
        settings.add_session_config_entry(name, value)
    settings.log_severity_level = _FATAL_ONLY
    try:
        # Without `enable_fallback=0` the library itself takes another provider, now or in a later call.
        return onnxruntime.InferenceSession(str(path), settings, providers=list(providers), enable_fallback=0)
    except MemoryError as error:
        raise DeviceError(f"not enough memory to load {path.name}") from error
    except _ERRORS as error:
        if "alloc" in str(error).lower():
            raise DeviceError(f"not enough memory to load {path.name}: {first_line(error)}") from error
        if attempt.provider != CPU and _cpu_takes(path):
            raise _unusable(path, attempt, (), first_line(error)) from error
        raise InputError(
            f"{path.name} is not a model that ONNX Runtime {onnxruntime.__version__} can load: {first_line(error)}",
            hint="check that the file is whole; export with an opset that this version knows",
        ) from error


def _cpu_takes(path: Path) -> bool:
    """Whether the model is whole: then it was the device that could not."""
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = _FATAL_ONLY
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        onnxruntime.InferenceSession(str(path), settings, providers=[CPU], enable_fallback=0)
    except (MemoryError, *_ERRORS):
        return False
    return True


def _placement(session: Any, attempt: Attempt) -> Mapping[str, int]:  # noqa: ANN401
    """Operations by kind of device. Older libraries do not say; newer ones were asked to remember."""
    if attempt.provider == CPU or not hasattr(session, "get_provider_graph_assignment_info"):
        return ONE_DEVICE
    counted: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        counted[device_of(part.ep_name)] += len(part.get_nodes())
    return dict(counted)


def _unusable(path: Path, attempt: Attempt, chosen: Sequence[str], said: str = "") -> DeviceError:
    """The error for a provider that is there and does not run the model, with what is known of the cause."""
    cause, hint = _cause(attempt)
    if attempt.provider in chosen and not cause:
        cause, hint = "it took none of the model's operations", "run it on the CPU, or let that take over (`fallback`)"
    what = cause or said or "ONNX Runtime left its provider out"
    return DeviceError(f"{path.name} cannot run on {attempt.device}: {what}", hint=hint)


def _cause(attempt: Attempt) -> tuple[str, str]:
    """What the library says only in its log: a shared library that is not there, or no driver; with a hint."""
    name = attempt.provider.removesuffix("ExecutionProvider").lower()
    library = Path(onnxruntime.__file__).parent / "capi" / f"libonnxruntime_providers_{name}.so"
    if library.is_file():
        try:
            ctypes.CDLL(str(library))
        except OSError as error:
            return str(error), package_for("onnxruntime", attempt.kind, this_machine())
    if attempt.kind in ("CUDA", "TENSORRT"):
        try:
            Cuda(int(attempt.unit))
        except DeviceError as error:
            return error.message, error.hint
    if attempt.kind == "OPENVINO":
        return "", advice(attempt.unit) if attempt.unit != "CPU" else ""
    return "", ""


def _preload(attempt: Attempt) -> None:
    """Let the libraries of CUDA be found that were installed as Python packages."""
    preload = getattr(onnxruntime, "preload_dlls", None)  # from 1.21 on
    if attempt.kind in ("CUDA", "TENSORRT") and preload is not None:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find, which is no error by itself
            preload()


def _kept(path: Path, options: RuntimeOptions, attempt: Attempt) -> KeptFolder | None:
    """What its first provider has built of the model, if it builds anything and there is a place for it."""
    if options.cache is None or not attempt.cache_option:
        return None
    return KeptFolder(
        runtime_cache(options.cache, OnnxRuntime.name),
        EngineKey(
            model=digest_files(model_files(path)),
            built_for={
                "onnxruntime": str(onnxruntime.get_build_info()) + onnxruntime.__version__,
                "device": attempt.device,
                "cpu": platform.processor() or platform.machine(),
                "driver": driver_version(),
            },
            settings=attempt.providers[0][1],
        ),
        what=path.name,
    )


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
