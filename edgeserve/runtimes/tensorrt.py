"""ONNX on NVIDIA GPUs by TensorRT (8.6 and 10: JetPack 6 and PCs). The only module that imports tensorrt.

An engine is built once for a device (`engine_cache`), from the loading of a model and never from a call of it. Tried
against a simulator of the library and of CUDA that computes by ONNX Runtime; on real hardware: unverified.
https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/python-api-docs.html
"""

from __future__ import annotations

import contextlib
import math
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from edgeserve.contracts.errors import DeviceError, InputError, MissingLibraryError
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.runtimes.advice import package_for, this_machine
from edgeserve.runtimes.base import ONE_DEVICE, LoadedModel, RuntimeOptions, Tensor, Tensors
from edgeserve.runtimes.checks import check_file, check_inputs
from edgeserve.runtimes.cuda import LIBRARY, Buffer, Cuda, driver_version
from edgeserve.runtimes.engine_cache import SHARED, EngineCache, EngineKey, NoSpaceError
from edgeserve.runtimes.kept_folder import runtime_cache
from edgeserve.runtimes.model_files import digest_files, model_files
from edgeserve.runtimes.tensorrt_engine import build, recipe

_DATATYPES: Final = {
    "FLOAT": Datatype.FP32,
    "HALF": Datatype.FP16,
    "BF16": Datatype.BF16,
    "INT8": Datatype.INT8,
    "UINT8": Datatype.UINT8,
    "INT32": Datatype.INT32,
    "INT64": Datatype.INT64,
    "BOOL": Datatype.BOOL,
}
_DEVICE: Final = re.compile(r"(?:TENSORRT|CUDA|GPU)(?::(\d{1,3}))?", re.IGNORECASE)
_FIRST_VERSION: Final = (8, 6)


class TensorRtRuntime:
    """Loads `*.onnx` on the devices `TENSORRT[:n]`, which may also be called `CUDA[:n]` or `GPU[:n]`.

    Args:
        driver: Name or path of CUDA's driver library.

    Raises:
        MissingLibraryError: TensorRT's Python binding is not installed, or too old.
    """

    name = "tensorrt"

    def __init__(self, *, driver: str = LIBRARY) -> None:
        self._trt = _library()
        self._driver = driver

    def version(self) -> str:
        """Version of TensorRT."""
        return str(self._trt.__version__)

    def load(self, path: Path, options: RuntimeOptions) -> LoadedModel:
        """Find or build the engine and load it; see `edgeserve.runtimes.base.Runtime.load`.

        With `options.cache`, engines lie in `CACHE/tensorrt/` and the device's secret in `CACHE.key` beside the folder.
        With `options.fallback`, a model that TensorRT cannot run here is left to ONNX Runtime on CUDA, else on the CPU.
        """
        check_file(path)
        if not path.stat().st_size:
            raise InputError(f"{path.name} is empty, not a model")
        if options.simulate:
            return _simulated(path, options)
        try:
            return self._load(path, options)
        except NoSpaceError:
            raise
        except DeviceError as error:
            if not options.fallback:
                raise
            return _by_onnxruntime(path, options, error)

    def _load(self, path: Path, options: RuntimeOptions) -> LoadedModel:
        trt = self._trt
        how = recipe(options.settings, path.parent)
        cuda = self._open(options)
        cuda.enter()
        log = _logger(trt)

        def built() -> bytes:
            timings = (cache.find(timing_key) if cache else None) or b""
            engine, timed = build(trt, log, path, how, timings=timings)
            if cache and timed:
                with contextlib.suppress(NoSpaceError):  # it only makes the next build quicker
                    cache.save(timing_key, timed)
            return engine

        key = self._key(path, options, cuda)
        timing_key = EngineKey(model=SHARED, built_for=key.built_for)
        cache = _cache(options)
        data = cache.find_or_build(key, built, what=path.name) if cache else built()
        engine = trt.Runtime(log).deserialize_cuda_engine(data)
        if engine is None and cache:  # sealed and whole, but not for this library: its own checks know more
            cache.remove(key)
            engine = trt.Runtime(log).deserialize_cuda_engine(cache.find_or_build(key, built, what=path.name))
        if engine is None:
            raise DeviceError(f"TensorRT {trt.__version__} does not take the engine of {path.name}: {log.last_error}")
        name = f"TensorRT {'.'.join(str(trt.__version__).split('.')[:2])} on {cuda.name} ({cuda.sm})"
        return TensorRtModel(trt, engine, cuda, log, name, path.name)

    def unbuilt(self, path: Path, options: RuntimeOptions) -> str:
        """Why `load` would have to build the engine; empty when it lies in the cache.

        Raises:
            EdgeServeError: As `load`.
        """
        check_file(path)
        cache = _cache(options)
        if options.simulate:
            return ""
        if cache is None:
            return "nothing is kept"
        return cache.why_absent(self._key(path, options, self._open(options)))

    def _open(self, options: RuntimeOptions) -> Cuda:
        matched = _DEVICE.fullmatch(options.device)
        hint = "it has TENSORRT[:n], a GPU of NVIDIA; the runtime for the CPU is onnxruntime"
        if matched is None:
            raise DeviceError(f"TensorRT has no device {options.device[:40]!r}", hint=hint)
        try:
            return Cuda(int(matched[1] or 0), library=self._driver)
        except MissingLibraryError:
            raise
        except DeviceError as error:
            raise DeviceError(f"{options.device}: {error.message}", hint=error.hint or hint) from error

    def _key(self, path: Path, options: RuntimeOptions, cuda: Cuda) -> EngineKey:
        facts = {
            "tensorrt": self.version(),
            "cuda": cuda.version,
            "driver": driver_version(),
            "soc": f"{cuda.name} {cuda.sm}, {cuda.multiprocessors} multiprocessors",
        }
        return EngineKey(model=digest_files(model_files(path)), built_for=facts, settings=options.settings)


class TensorRtModel:
    """An engine, with an execution context, a stream and bound buffers for each call that is under way.

    A call of more rows than the engine takes at once is computed in parts.
    """

    fallback = ""
    placement = ONE_DEVICE

    def __init__(self, trt: Any, engine: Any, cuda: Cuda, log: Any, name: str, what: str) -> None:  # noqa: ANN401
        self._engine = engine
        self._cuda = cuda
        self._log = log
        self._lock = threading.Lock()
        self._idle: list[_Call] = []
        self.executing_device = name
        self.signature = _signature(trt, engine, what)
        self._most = _most_rows(engine, self.signature)

    def run(self, inputs: Mapping[str, Tensor]) -> Tensors:
        """Compute the outputs; see `edgeserve.runtimes.base.LoadedModel.run`."""
        if self._engine is None:
            raise DeviceError("the model was closed")
        check_inputs(self.signature, inputs)
        call = self._take()
        broken = True
        try:
            outputs = self._in_parts(call, inputs) if self._most else call.run(inputs)
            broken = False
        except InputError:
            broken = False
            raise
        finally:
            self._give_back(call, broken=broken)
        return outputs

    def close(self) -> None:
        """Release the engine and its memory once running calls have ended."""
        with self._lock:
            self._engine = None
            idle, self._idle = self._idle, []
        for call in idle:
            call.free()

    def _take(self) -> _Call:
        self._cuda.enter()
        with self._lock:
            engine = self._engine
            if self._idle:
                return self._idle.pop()
        if engine is None:
            raise DeviceError("the model was closed")
        return _Call(engine, self.signature, self._cuda, self._log)

    def _give_back(self, call: _Call, *, broken: bool) -> None:
        with self._lock:
            if self._engine is not None and not broken:
                self._idle.append(call)
                return
        call.free()

    def _in_parts(self, call: _Call, inputs: Mapping[str, Tensor]) -> Tensors:
        rows = {array.shape[0] for array in inputs.values()}
        if len(rows) > 1:
            raise InputError(f"the inputs have different numbers of rows: {', '.join(map(str, sorted(rows)))}")
        (count,) = rows
        most = self._most
        if 0 < count <= most:
            return call.run(inputs)
        if count == 0:  # no engine takes none
            one = call.run({name: np.zeros((1, *array.shape[1:]), array.dtype) for name, array in inputs.items()})
            return {name: array[:0].copy() for name, array in one.items()}
        parts = [
            call.run({name: array[start : start + most] for name, array in inputs.items()})
            for start in range(0, count, most)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


class _Call:
    """What one call at a time needs; the GPU's context is that of the calling thread."""

    def __init__(self, engine: Any, signature: Signature, cuda: Cuda, log: Any) -> None:  # noqa: ANN401
        self._signature = signature
        self._cuda = cuda
        self._log = log
        self._buffers: dict[str, Buffer] = {}
        self._context = engine.create_execution_context()
        if self._context is None:
            raise DeviceError(f"TensorRT cannot make room for one more call: {log.last_error}")
        self._stream = cuda.new_stream()

    def run(self, inputs: Mapping[str, Tensor]) -> Tensors:
        """Compute with inputs that were checked."""
        context, stream = self._context, self._stream
        for spec in self._signature.inputs:
            array = inputs[spec.name]
            if not context.set_input_shape(spec.name, array.shape):
                raise InputError(
                    f"input {spec.name!r} has shape {list(array.shape)}, which the engine was not built for",
                    hint="the profile of the variant says which it takes",
                )
            self._bound(spec.name, array.nbytes).write(array, stream)
        targets: list[tuple[str, Buffer, tuple[int, ...], np.dtype[np.generic]]] = []
        for spec in self._signature.outputs:
            shape = tuple(int(size) for size in context.get_tensor_shape(spec.name))
            if any(size < 0 for size in shape):
                raise DeviceError(f"the shape of output {spec.name!r} depends on values, which is not served here")
            dtype = np.dtype(spec.datatype.numpy_name)
            targets.append((spec.name, self._bound(spec.name, math.prod(shape) * dtype.itemsize), shape, dtype))
        if not context.execute_async_v3(stream):
            raise DeviceError(f"TensorRT failed: {self._log.last_error}")
        for _name, buffer, shape, dtype in targets:
            buffer.read_soon(math.prod(shape) * dtype.itemsize, stream)
        self._cuda.wait(stream)
        return {name: buffer.array(shape, dtype).copy() for name, buffer, shape, dtype in targets}

    def free(self) -> None:
        """Release everything. Call it once."""
        self._cuda.enter()
        self._context = None
        for buffer in self._buffers.values():
            buffer.free()
        self._buffers.clear()
        self._cuda.free_stream(self._stream)

    def _bound(self, name: str, size: int) -> Buffer:
        """The buffer of a tensor, at least as large, and bound."""
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size < size:
            if buffer is not None:
                del self._buffers[name]
                buffer.free()
            buffer = self._buffers[name] = self._cuda.buffer(size)
            if not self._context.set_tensor_address(name, buffer.address):
                raise DeviceError(f"TensorRT does not take memory for {name!r}: {self._log.last_error}")
        return buffer


def _library() -> Any:  # noqa: ANN401
    try:
        import tensorrt
    except ImportError as error:
        raise MissingLibraryError(
            f"the runtime tensorrt needs tensorrt, which cannot be imported: {error}",
            hint=package_for("tensorrt", "", this_machine()),
        ) from error
    version = str(tensorrt.__version__)
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers < _FIRST_VERSION:
        raise MissingLibraryError(
            f"the runtime tensorrt needs TensorRT 8.6 or newer, this is {version}", hint="JetPack 6 has it"
        )
    return tensorrt


def _logger(trt: Any) -> Any:  # noqa: ANN401
    """A logger that remembers the last error; the library asks for one that outlives everything made with it."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last_error = "it says nothing"

        def log(self, severity: Any, msg: str) -> None:  # noqa: ANN401
            if severity.name in ("ERROR", "INTERNAL_ERROR"):
                self.last_error = " ".join(msg.split())[:300]

    return Log()


def _cache(options: RuntimeOptions) -> EngineCache | None:
    return runtime_cache(options.cache, TensorRtRuntime.name) if options.cache is not None else None


def _by_onnxruntime(path: Path, options: RuntimeOptions, cause: DeviceError) -> LoadedModel:
    try:
        from edgeserve.runtimes.onnx import OnnxRuntime
    except ImportError:
        raise cause from None
    matched = _DEVICE.fullmatch(options.device)
    device = f"CUDA:{matched[1]}" if matched and matched[1] else "CUDA"
    model = OnnxRuntime().load(path, msgspec.structs.replace(options, device=device, settings={}))
    why = f"{options.device} was asked for, {model.executing_device} runs it: {cause.message}"
    model.fallback = f"{why}; {model.fallback}" if model.fallback else why
    return model


def _simulated(path: Path, options: RuntimeOptions) -> LoadedModel:
    from edgeserve.runtimes.onnx import OnnxRuntime

    return OnnxRuntime().load(path, RuntimeOptions(device="CPU", threads=options.threads, simulate=True))


def _signature(trt: Any, engine: Any, what: str) -> Signature:  # noqa: ANN401
    names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
    takes = {name: engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names}
    return Signature(
        inputs=tuple(_spec(engine, name, what) for name in names if takes[name]),
        outputs=tuple(_spec(engine, name, what) for name in names if not takes[name]),
    )


def _spec(engine: Any, name: str, what: str) -> TensorSpec:  # noqa: ANN401
    kind = engine.get_tensor_dtype(name).name
    datatype = _DATATYPES.get(kind)
    shape = tuple(int(size) for size in engine.get_tensor_shape(name))
    if datatype is None or not shape or engine.is_shape_inference_io(name):
        raise InputError(
            f"{name!r} of {what} is a {kind} of shape {list(shape)}: only tensors of plain numbers are served",
            hint="export the model so that nothing but such tensors, of one dimension or more, goes in and comes out",
        )
    return TensorSpec(name=name, datatype=datatype, shape=shape)


def _most_rows(engine: Any, signature: Signature) -> int:  # noqa: ANN401
    """Rows that the engine takes at once, where every input and output has as many; 0 = calls are not divided."""
    if any(spec.shape[0] != -1 for spec in (*signature.inputs, *signature.outputs)):
        return 0
    return min(int(engine.get_tensor_profile_shape(spec.name, 0)[2][0]) for spec in signature.inputs)
