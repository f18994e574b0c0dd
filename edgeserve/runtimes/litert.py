"""TFLite models (`*.tflite`) on LiteRT's interpreter with XNNPACK. The only module that serves with LiteRT.

The library is ai-edge-litert or, where only that is installed, tflite-runtime, which needs numpy 1.
"""

from __future__ import annotations

import importlib.metadata
import mmap
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

import numpy as np

from edgeserve.contracts.errors import DeviceError, InputError
from edgeserve.contracts.tensors import Signature, TensorSpec, datatype_of
from edgeserve.runtimes.base import ONE_DEVICE, LoadedModel, RuntimeOptions, Tensor, Tensors
from edgeserve.runtimes.checks import check_file, check_inputs, first_line
from edgeserve.runtimes.flatbuffer import check_tflite
from edgeserve.runtimes.litert_stderr import hush

try:
    from ai_edge_litert import interpreter as litert

    _PACKAGE = "ai-edge-litert"
except ImportError as _error:
    try:
        from tflite_runtime import interpreter as litert

        _PACKAGE = "tflite-runtime"
    except ImportError:
        raise _error from None

_DEVICES: Final = ("CPU",)
_ERRORS: Final = (RuntimeError, ValueError, SystemError, AttributeError)
_NOISE: Final = re.compile(r"^serving_default_|:\d+$")
_DEFAULT_SIGNATURE: Final = "serving_default"
_HINT: Final = "check that the file is whole; operations outside TFLite's built-in set cannot be served"

Shape = tuple[int, ...]
Detail = dict[str, Any]
"""A tensor in the library's words: `name`, `index`, `shape`, `shape_signature`, `dtype`."""


class LiteRtRuntime:
    """Loads `*.tflite`.

    Inputs and outputs are named as in the file's signature `serving_default` (or its only one), else by their tensors
    without TensorFlow's `serving_default_` in front and `:0` behind, unless two names then were the same.
    Integer inputs and outputs of quantized models stay integers: nothing is scaled here.
    """

    name = "litert"

    def version(self) -> str:
        """Version of ai-edge-litert, or of tflite-runtime."""
        return importlib.metadata.version(_PACKAGE)

    def load(self, path: Path, options: RuntimeOptions) -> LoadedModel:
        """Check the file and make an interpreter; see `edgeserve.runtimes.base.Runtime.load`."""
        check_file(path)
        _check_library()
        if options.device not in _DEVICES and not (options.simulate or options.fallback):
            raise DeviceError(
                f"LiteRT has no device {options.device[:40]!r} here", hint=f"it has {', '.join(_DEVICES)}"
            )
        _check_bounds(path)
        return LiteRtModel(path, options)


class LiteRtModel:
    """A model with one interpreter for each call that is under way; the file is mapped, so they share its weights."""

    placement = ONE_DEVICE

    def __init__(self, path: Path, options: RuntimeOptions) -> None:
        self.executing_device = "CPU (simulated)" if options.simulate else "CPU"
        foreign = options.device not in _DEVICES and not options.simulate
        self.fallback = f"{options.device} was asked for, CPU runs it: LiteRT has nothing else here" if foreign else ""
        self._path = path
        self._threads = options.threads or None
        self._lock = threading.Lock()
        try:
            first = self._open()
            self.signature = _signature(first, path.name)
        except MemoryError as error:
            raise DeviceError(f"not enough memory to load {path.name}") from error
        except _ERRORS as error:
            raise InputError(
                f"{path.name} is not a model that {_PACKAGE} can load: {first_line(error)}", hint=_HINT
            ) from error
        self._inputs = [detail["index"] for detail in first.get_input_details()]
        self._outputs = [detail["index"] for detail in first.get_output_details()]
        self._varying = any(-1 in spec.shape for spec in self.signature.inputs)
        self._idle: list[_Prepared] | None = [_Prepared(first)]

    def run(self, inputs: Mapping[str, Tensor]) -> Tensors:
        """Compute the outputs; see `edgeserve.runtimes.base.LoadedModel.run`."""
        if self._idle is None:
            raise DeviceError("the model was closed")
        check_inputs(self.signature, inputs)
        arrays = [np.ascontiguousarray(inputs[spec.name]) for spec in self.signature.inputs]
        if self._varying and not all(array.size for array in arrays):
            return _empty(self.signature)
        try:
            prepared = self._take(tuple(array.shape for array in arrays))
            interpreter = prepared.interpreter
            for index, array in zip(self._inputs, arrays, strict=True):
                interpreter.set_tensor(index, array)
            # What a streaming model remembers must not reach the next caller.
            interpreter.reset_all_variables()
            interpreter.invoke()
            outputs = {
                spec.name: interpreter.get_tensor(index)  # a copy
                for spec, index in zip(self.signature.outputs, self._outputs, strict=True)
            }
        except (MemoryError, *_ERRORS) as error:
            raise DeviceError(f"LiteRT failed: {first_line(error)}") from error
        with self._lock:
            if self._idle is not None:
                self._idle.append(prepared)
        return outputs

    def close(self) -> None:
        """Release the interpreters once running calls have ended."""
        with self._lock:  # a call that ends just now must not find the list gone after it has looked
            self._idle = None

    def _open(self) -> Any:  # noqa: ANN401 - the library is not typed
        hush(lambda content: litert.Interpreter(model_content=content))
        return litert.Interpreter(model_path=str(self._path), num_threads=self._threads)

    def _take(self, shapes: tuple[tuple[int, ...], ...]) -> _Prepared:
        """An idle interpreter, rather one that has these input shapes already: allocating anew costs a call or two."""
        with self._lock:
            idle = self._idle or []
            place = next((n for n, prepared in enumerate(idle) if prepared.shapes == shapes), len(idle) - 1)
            prepared = idle.pop(place) if idle else None
        if prepared is None:
            prepared = _Prepared(self._open())
        prepared.resize(self._inputs, shapes)
        return prepared


class _Prepared:
    """An interpreter with the input shapes that its memory is laid out for."""

    def __init__(self, interpreter: Any) -> None:  # noqa: ANN401
        self.interpreter = interpreter
        self.shapes: tuple[tuple[int, ...], ...] = ()

    def resize(self, indices: list[int], shapes: tuple[tuple[int, ...], ...]) -> None:
        if self.shapes == shapes:
            return
        self.shapes = ()
        for index, shape in zip(indices, shapes, strict=True):
            self.interpreter.resize_tensor_input(index, shape)
        self.interpreter.allocate_tensors()
        self.shapes = shapes


def _check_library() -> None:
    numpy_version = np.lib.NumpyVersion(np.__version__)
    if _PACKAGE == "tflite-runtime" and numpy_version >= "2.0.0":
        raise DeviceError(
            f"tflite-runtime was built for numpy 1, numpy {np.__version__} is installed",
            hint="pip uninstall tflite-runtime && pip install ai-edge-litert, or pip install 'numpy<2'",
        )


def _check_bounds(path: Path) -> None:
    with path.open("rb") as file:
        if not file.read(1):
            raise InputError(f"{path.name} is empty, not a TFLite model")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
            check_tflite(view, path.name)


def _signature(interpreter: Any, what: str) -> Signature:  # noqa: ANN401
    inputs: list[Detail] = interpreter.get_input_details()
    outputs: list[Detail] = interpreter.get_output_details()
    taken, given = _shapes(interpreter, inputs, outputs)
    named_inputs, named_outputs = _signature_names(interpreter)
    return Signature(
        inputs=_specs(inputs, named_inputs, "input", what, taken),
        outputs=_specs(outputs, named_outputs, "output", what, given),
    )


def _shapes(interpreter: Any, inputs: list[Detail], outputs: list[Detail]) -> tuple[list[Shape], list[Shape]]:  # noqa: ANN401
    """Shapes of inputs and outputs with -1 where they vary.

    What the file says of its batch is tried with one row and with two: converters declare a varying batch that a
    constant inside then contradicts, and quantizers forget to say that an output's batch varies.
    """
    taken, given = [_dims(detail) for detail in inputs], [_dims(detail) for detail in outputs]
    if any(-1 in shape[1:] for shape in taken):  # sizes that can be tried are not known
        _allocate(interpreter, must_fit=False)
        return taken, given
    _allocate(interpreter, must_fit=True)
    one_row = [_built_in(detail) for detail in interpreter.get_output_details()]
    if not any(shape[:1] == (-1,) for shape in taken):
        return taken, one_row
    for detail, shape in zip(inputs, taken, strict=True):
        interpreter.resize_tensor_input(detail["index"], (2, *shape[1:]) if shape[:1] == (-1,) else shape)
    if not _allocate(interpreter, must_fit=False):
        return [_built_in(detail) for detail in inputs], one_row
    two_rows = [_built_in(detail) for detail in interpreter.get_output_details()]
    return taken, [_varying(*shapes) for shapes in zip(given, one_row, two_rows, strict=True)]


def _allocate(interpreter: Any, *, must_fit: bool) -> bool:  # noqa: ANN401
    """Lay out the memory for the shapes that are set; whether the model takes them."""
    try:
        interpreter.allocate_tensors()
    except _ERRORS as error:
        if must_fit or "unresolved custom op" in str(error):
            raise
        return False
    return True


def _varying(declared: Shape, one: Shape, two: Shape) -> Shape:
    if not len(declared) == len(one) == len(two):  # known only when it has run
        return declared
    return tuple(-1 if size == -1 or a != b else size for size, a, b in zip(declared, one, two, strict=True))


def _built_in(detail: Detail) -> Shape:
    return tuple(int(size) for size in detail["shape"])


def _dims(detail: Detail) -> tuple[int, ...]:
    signature, shape = detail["shape_signature"], detail["shape"]
    return tuple(int(size) for size in (signature if len(signature) == len(shape) else shape))


def _signature_names(interpreter: Any) -> tuple[dict[int, str], dict[int, str]]:  # noqa: ANN401
    """Names of tensors by index, as the file's signature gives them; empty when it has none."""
    known: dict[str, Any] = interpreter.get_signature_list()
    key = _DEFAULT_SIGNATURE if _DEFAULT_SIGNATURE in known else next(iter(known), "") if len(known) == 1 else ""
    if not key:
        return {}, {}
    runner = interpreter.get_signature_runner(key)
    return tuple(  # type: ignore[return-value]
        {cast("int", detail["index"]): name for name, detail in details.items()}
        for details in (runner.get_input_details(), runner.get_output_details())
    )


def _specs(
    details: list[Detail], named: dict[int, str], side: str, what: str, shapes: list[tuple[int, ...]]
) -> tuple[TensorSpec, ...]:
    tensors = [str(detail["name"]) for detail in details]
    short = [_without_noise(name) for name in tensors]
    own = short if len(set(short)) == len(short) else tensors
    # A signature counts when it names them all: it may belong to another graph of the file.
    names = [named.get(detail["index"], "") for detail in details]
    names = names if all(names) else own
    return tuple(
        _spec(detail, name, side, what, shape) for detail, name, shape in zip(details, names, shapes, strict=True)
    )


def _without_noise(name: str) -> str:
    return _NOISE.sub("", name) or name


def _spec(detail: Detail, name: str, side: str, what: str, shape: tuple[int, ...]) -> TensorSpec:
    dtype = np.dtype(detail["dtype"])
    if dtype.kind not in "biuf":
        raise InputError(f"{side} {name!r} of {what} is of type {dtype.name}, not a plain number")
    if not shape:
        raise InputError(
            f"{side} {name!r} of {what} has no fixed rank, or is a scalar",
            hint="export the model with the shape of every input and output; only the sizes may vary",
        )
    return TensorSpec(name=name, datatype=datatype_of(dtype.name), shape=shape)


def _empty(signature: Signature) -> Tensors:
    """Outputs for no rows, which LiteRT itself cannot compute."""
    return {
        spec.name: np.zeros((0, *(max(size, 0) for size in spec.shape[1:])), np.dtype(spec.datatype.numpy_name))
        for spec in signature.outputs
    }
