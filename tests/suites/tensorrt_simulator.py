"""A simulator of NVIDIA's Python module `tensorrt` 10: parses with onnx, computes with ONNX Runtime.

It stands for the library in tests on machines without a GPU and is as strict: it takes no engine of another version or
GPU, no shape outside the profile, no tensor without an address; it reads and writes the memory at those addresses.

`install` puts it on a path as the module `tensorrt`, with a simulator of CUDA's driver library (compiled from C) that
keeps the GPU's memory in that of the process. Environment of the process:
TENSORRT_SIMULATOR_VERSION (of the library), TENSORRT_SIMULATOR_SECONDS (that a build takes), and
TENSORRT_SIMULATOR_BUILDS (a file that gets a byte for each build).
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import shutil
import subprocess
import time
from enum import IntEnum
from pathlib import Path

__version__ = os.environ.get("TENSORRT_SIMULATOR_VERSION", "10.3.0")
GPU = "Imitation GPU"
_MAGIC = b"SIMULATED ENGINE\n"
_UNKNOWN_OPERATION = "Einsum"
"""Of ONNX, which this parser does not know."""

LIBCUDA = """
#include <stdlib.h>
#include <string.h>
#include <stdint.h>
static __thread void *current;
static int context;
#define NEEDS_CONTEXT if (!current) return 201
typedef int R;
R cuInit(unsigned flags) { return getenv("CUDA_SIMULATOR_ERROR") ? atoi(getenv("CUDA_SIMULATOR_ERROR")) : 0; }
R cuDeviceGetCount(int *n) { *n = 1; return 0; }
R cuDeviceGet(int *d, int i) { *d = i; return i == 0 ? 0 : 101; }
R cuDevicePrimaryCtxRetain(void **c, int d) { *c = &context; return 0; }
R cuCtxSetCurrent(void *c) { if (c != &context) return 201; current = c; return 0; }
R cuDeviceGetName(char *s, int n, int d) { strncpy(s, "Imitation GPU", n); return 0; }
R cuDeviceGetAttribute(int *v, int a, int d) { *v = a == 75 ? 8 : a == 76 ? 7 : a == 16 ? 16 : -1; return *v < 0; }
R cuDriverGetVersion(int *v) { *v = 12060; return 0; }
R cuGetErrorName(int e, const char **s) {
  *s = e == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : e == 100 ? "CUDA_ERROR_NO_DEVICE" : 0;
  return *s ? 0 : 1;
}
R cuStreamCreate(void **s, unsigned flags) { NEEDS_CONTEXT; *s = malloc(1); return 0; }
R cuStreamDestroy_v2(void *s) { NEEDS_CONTEXT; free(s); return 0; }
R cuStreamSynchronize(void *s) { NEEDS_CONTEXT; return s ? 0 : 400; }
R cuMemHostAlloc(void **p, size_t n, unsigned flags) { NEEDS_CONTEXT; *p = malloc(n); return *p ? 0 : 2; }
R cuMemFreeHost(void *p) { NEEDS_CONTEXT; free(p); return 0; }
R cuMemAlloc_v2(uint64_t *p, size_t n) {
  NEEDS_CONTEXT;
  const char *most = getenv("CUDA_SIMULATOR_BYTES");
  if (most && n > (size_t)atoll(most)) return 2;
  *p = (uint64_t)malloc(n);
  return *p ? 0 : 2;
}
R cuMemFree_v2(uint64_t p) { NEEDS_CONTEXT; free((void *)p); return 0; }
R cuMemcpyHtoDAsync_v2(uint64_t d, void *s, size_t n, void *q) {
  NEEDS_CONTEXT;
  memcpy((void *)d, s, n);
  return q ? 0 : 400;
}
R cuMemcpyDtoHAsync_v2(void *d, uint64_t s, size_t n, void *q) {
  NEEDS_CONTEXT;
  memcpy(d, (void *)s, n);
  return q ? 0 : 400;
}
"""


def compiler() -> str:
    """Path of a C compiler; empty when there is none."""
    return shutil.which("cc") or shutil.which("gcc") or ""


def install(folder: Path) -> Path:
    """Put `tensorrt.py` and `libcuda.so.1` into `folder`; returns the path of the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(__file__, folder / "tensorrt.py")
    source = folder / "libcuda.c"
    source.write_text(LIBCUDA)
    library = folder / "libcuda.so.1"
    subprocess.run([compiler(), "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
    return library


def environment(folder: Path, **changes: str) -> dict[str, str]:
    """Of a child process that finds both in `folder`."""
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH", ""))))
    return {**os.environ, "PYTHONPATH": path, "LD_LIBRARY_PATH": str(folder), **changes}


# The module ------------------------------------------------------------------------------------------


class DataType(IntEnum):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3
    BOOL = 4
    UINT8 = 5
    INT64 = 8


_OF_ONNX = {1: "FLOAT", 10: "HALF", 3: "INT8", 6: "INT32", 9: "BOOL", 2: "UINT8", 7: "INT64"}
_NUMPY = {"FLOAT": "<f4", "HALF": "<f2", "INT8": "i1", "INT32": "<i4", "BOOL": "?", "UINT8": "u1", "INT64": "<i8"}


class TensorIOMode(IntEnum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class NetworkDefinitionCreationFlag(IntEnum):
    EXPLICIT_BATCH = 0
    STRONGLY_TYPED = 1


class MemoryPoolType(IntEnum):
    WORKSPACE = 0


class BuilderFlag(IntEnum):
    FP16 = 0
    INT8 = 1


class Severity(IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3


class ErrorCode(IntEnum):
    MODEL_DESERIALIZE_FAILED = 3
    UNSUPPORTED_NODE = 8


class ILogger:
    Severity = Severity

    def log(self, severity, msg):
        raise NotImplementedError


def _say(logger, text):
    logger.log(Severity.ERROR, text)


class IProgressMonitor:
    def phase_start(self, phase_name, parent_phase, num_steps):
        raise NotImplementedError


class ParserError:
    def __init__(self, code, text):
        self._code, self._text = code, text

    def code(self):
        return self._code

    def desc(self):
        return self._text


class _Tensor:
    def __init__(self, name, kind, shape):
        self.name, self.dtype, self.shape = name, DataType[kind], tuple(shape)


class _Network:
    def __init__(self):
        self.model = b""
        self.inputs, self.outputs = [], []

    num_layers = 0
    num_inputs = property(lambda self: len(self.inputs))
    num_outputs = property(lambda self: len(self.outputs))

    def get_input(self, number):
        return self.inputs[number]

    def get_output(self, number):
        return self.outputs[number]


class OnnxParser:
    def __init__(self, network, logger):
        self._network = network
        self._errors = []

    num_errors = property(lambda self: len(self._errors))

    def get_error(self, number):
        return self._errors[number]

    def parse_from_file(self, path):
        import onnx

        try:
            model = onnx.load(path)
            onnx.checker.check_model(model)
        except Exception as error:  # noqa: BLE001 - the parser says of every file what is wrong
            self._errors.append(ParserError(ErrorCode.MODEL_DESERIALIZE_FAILED, str(error)))
            return False
        unknown = [node.name for node in model.graph.node if node.op_type == _UNKNOWN_OPERATION]
        if unknown:
            self._errors.append(ParserError(ErrorCode.UNSUPPORTED_NODE, f"no importer for {_UNKNOWN_OPERATION}"))
            return False
        constants = {tensor.name for tensor in model.graph.initializer}
        self._network.model = model.SerializeToString()
        self._network.inputs = [_tensor(value) for value in model.graph.input if value.name not in constants]
        self._network.outputs = [_tensor(value) for value in model.graph.output]
        return True


def _tensor(value):
    kind = value.type.tensor_type
    shape = [size.dim_value if size.HasField("dim_value") else -1 for size in kind.shape.dim]
    return _Tensor(value.name, _OF_ONNX[kind.elem_type], shape)


class _Profile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, name, low, usual, high):
        self.shapes[name] = [list(low), list(usual), list(high)]


class _HostMemory(bytes):
    pass


class _TimingCache:
    def __init__(self, data):
        self.data = data

    def serialize(self):
        return _HostMemory(self.data)


class _Config:
    builder_optimization_level = 3
    progress_monitor = None

    def __init__(self):
        self.profiles, self.flags = [], set()
        self._timings = None

    def set_memory_pool_limit(self, pool, size):
        assert pool is MemoryPoolType.WORKSPACE
        assert size > 0

    def set_flag(self, flag):
        self.flags.add(flag)

    def add_optimization_profile(self, profile):
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, data):
        return _TimingCache(data) if data == b"" or data.startswith(b"timings ") else None

    def set_timing_cache(self, cache, ignore_mismatch):
        self._timings = cache
        return True

    def get_timing_cache(self):
        return self._timings


class Builder:
    def __init__(self, logger):
        assert isinstance(logger, ILogger)
        self._logger = logger

    def create_network(self, flags):
        return _Network()

    def create_builder_config(self):
        return _Config()

    def create_optimization_profile(self):
        return _Profile()

    def build_serialized_network(self, network, config):
        varies = [tensor.name for tensor in network.inputs if -1 in tensor.shape]
        if varies and (not config.profiles or set(varies) - set(config.profiles[0].shapes)):
            _say(self._logger, f"input {varies[0]} is dynamic and has no profile")
            return None
        seconds = float(os.environ.get("TENSORRT_SIMULATOR_SECONDS", "0"))
        monitor, steps = config.progress_monitor, max(1, int(seconds / 0.05))
        if monitor:
            monitor.phase_start("Building Engine", None, steps)
        for step in range(steps):
            time.sleep(seconds / steps)
            if monitor:
                monitor.step_complete("Building Engine", step)
        if monitor:
            monitor.phase_finish("Building Engine")
        if os.environ.get("TENSORRT_SIMULATOR_BUILDS"):
            with Path(os.environ["TENSORRT_SIMULATOR_BUILDS"]).open("ab") as builds:
                builds.write(b".")
        timings = config.get_timing_cache()
        if timings is not None:
            timings.data = (timings.data or b"timings ") + b"+"
        head = {
            "version": __version__, "gpu": GPU, "profile": config.profiles[0].shapes if config.profiles else {},
            "timings": len(timings.data) if timings else 0,
        }  # fmt: skip
        return _HostMemory(_MAGIC + json.dumps(head).encode() + b"\n" + network.model)


class Runtime:
    def __init__(self, logger):
        self._logger = logger

    def deserialize_cuda_engine(self, data):
        assert data.startswith(_MAGIC), "a real engine of this content would be executed"
        head, _, model = data.removeprefix(_MAGIC).partition(b"\n")
        found = json.loads(head)
        if (found["version"], found["gpu"]) != (__version__, GPU):
            _say(self._logger, f"the engine is of version {found['version']}, this is {__version__}")
            return None
        return _Engine(found["profile"], model, self._logger)


class _Engine:
    def __init__(self, profile, model, logger):
        import onnx
        import onnxruntime

        graph = onnx.load_model_from_string(model).graph
        constants = {tensor.name for tensor in graph.initializer}
        inputs = [_tensor(value) for value in graph.input if value.name not in constants]
        self.tensors = {tensor.name: tensor for tensor in (*inputs, *map(_tensor, graph.output))}
        self.inputs = {tensor.name for tensor in inputs}
        self.profile = profile
        self.session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        self.logger = logger

    num_io_tensors = property(lambda self: len(self.tensors))

    def get_tensor_name(self, number):
        return list(self.tensors)[number]

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return self.tensors[name].dtype

    def get_tensor_shape(self, name):
        return self.tensors[name].shape

    def get_tensor_profile_shape(self, name, number):
        assert number == 0
        return self.profile.get(name) or [list(self.tensors[name].shape)] * 3

    def is_shape_inference_io(self, name):
        return False

    def create_execution_context(self):
        return _Context(self)


class _Context:
    def __init__(self, engine):
        self._engine = engine
        self._shapes, self._addresses, self._known = {}, {}, {}

    def set_input_shape(self, name, shape):
        low, _usual, high = self._engine.get_tensor_profile_shape(name, 0)
        fits = len(shape) == len(low) and all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
        if not fits:
            _say(self._engine.logger, f"shape {list(shape)} of {name} is not in the profile")
            return False
        self._shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name):
        if name in self._engine.inputs:
            return self._shapes.get(name, self._engine.tensors[name].shape)
        if set(self._shapes) != self._engine.inputs:
            return self._engine.tensors[name].shape
        key = tuple(sorted(self._shapes.items()))
        if key not in self._known:
            import numpy as np

            zeros = {name: np.zeros(shape, self._dtype(name)) for name, shape in self._shapes.items()}
            outputs = self._engine.session.run(None, zeros)
            names = [name for name in self._engine.tensors if name not in self._engine.inputs]
            self._known[key] = {name: output.shape for name, output in zip(names, outputs, strict=True)}
        return self._known[key][name]

    def set_tensor_address(self, name, address):
        self._addresses[name] = address
        return bool(address)

    def execute_async_v3(self, stream):
        import numpy as np

        if set(self._addresses) != set(self._engine.tensors) or set(self._shapes) != self._engine.inputs or not stream:
            _say(self._engine.logger, "a tensor has no address or no shape, or there is no stream")
            return False
        feed = {}
        for name in self._engine.inputs:
            shape, dtype = self._shapes[name], self._dtype(name)
            size = math.prod(shape) * dtype.itemsize
            feed[name] = np.frombuffer(ctypes.string_at(self._addresses[name], size), dtype).reshape(shape)
        names = [name for name in self._engine.tensors if name not in self._engine.inputs]
        for name, output in zip(names, self._engine.session.run(names, feed), strict=True):
            data = np.ascontiguousarray(output).tobytes()
            ctypes.memmove(self._addresses[name], data, len(data))
        return True

    def _dtype(self, name):
        import numpy as np

        return np.dtype(_NUMPY[self._engine.tensors[name].dtype.name])
