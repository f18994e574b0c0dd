"""How an ONNX file becomes an engine of TensorRT 8.6 or 10: the settings, and the calls of its builder.

`recipe` is pure; `build` gets the library as an argument, which `tensorrt.py` alone imports. Tried against a simulator
of the library; on real hardware: unverified.
https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/python-api-docs.html
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from edgeserve.contracts.errors import DeviceError, InputError
from edgeserve.contracts.limits import ENGINE_PROGRESS_S, ENGINE_ROWS, MAX_CONFIG_BYTES, MAX_TENSOR_ELEMENTS, MIB
from edgeserve.contracts.names import file_name
from edgeserve.release.blobs import open_regular

_SETTINGS: Final = ("typing", "builder_optimization_level", "workspace_mib", "timing_cache", "profile")
_MAX_LEVEL: Final = 5
_MAX_WORKSPACE_MIB: Final = 1 << 20
_log = logging.getLogger(__name__)


class ShapeRange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Shapes of one input that an engine takes, and the one that it is tuned for."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]

    def __post_init__(self) -> None:
        if not len(self.min) == len(self.opt) == len(self.max):
            raise InputError("min, opt and max have another number of dimensions")
        for low, usual, high in zip(self.min, self.opt, self.max, strict=True):
            if not 0 <= low <= usual <= high <= MAX_TENSOR_ELEMENTS:
                raise InputError(f"min {low}, opt {usual} and max {high} of a dimension are not in this order")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to build, as `edgeserve.contracts.variant.Finalize.options` says it."""

    strong_typing: bool = True
    """Numbers are computed in the types of the file, which is what was measured."""
    optimization_level: int = 3
    workspace_bytes: int = 1024 * MIB
    keeps_timings: bool = True
    shapes: Mapping[str, ShapeRange]
    """By input; inputs of fixed shape need none."""


def recipe(settings: Mapping[str, str], folder: Path) -> Recipe:
    """Read the settings of a build.

    Args:
        settings: As the variant has them; empty = TensorRT's defaults.
        folder: Where the file of the profile lies that they name.

    Raises:
        InputError: One is unknown or wrong.
    """
    unknown = sorted(set(settings) - set(_SETTINGS))
    if unknown:
        raise InputError(f"TensorRT's builder has no setting {unknown[0][:40]!r} here", hint="update edgeserve")
    typing = settings.get("typing", "strong")
    if typing not in ("strong", "weak"):
        raise InputError(f"typing {typing[:40]!r} of an engine is neither strong nor weak")
    profile = settings.get("profile", "")
    return Recipe(
        strong_typing=typing == "strong",
        optimization_level=_number(settings, "builder_optimization_level", 3, _MAX_LEVEL),
        workspace_bytes=_number(settings, "workspace_mib", 1024, _MAX_WORKSPACE_MIB) * MIB,
        keeps_timings=bool(settings.get("timing_cache", "yes")),
        shapes=_shapes(folder / file_name(profile)) if profile else {},
    )


def build(trt: Any, log: Any, path: Path, how: Recipe, *, timings: bytes) -> tuple[bytes, bytes]:  # noqa: ANN401
    """Build an engine. It takes seconds to tens of minutes; the log says how far it is.

    Args:
        trt: The library.
        log: A logger of the library that has `last_error`.
        path: The ONNX file.
        how: To build.
        timings: Timing cache of an earlier build on this device; empty = none.

    Returns:
        The engine, serialised, and the timing cache for the next build, empty where there is none.

    Raises:
        InputError: The file is no ONNX model, or its inputs do not fit the profile.
        DeviceError: TensorRT does not know an operation of it, or cannot build it here.
    """
    builder = trt.Builder(log)
    flag = trt.NetworkDefinitionCreationFlag
    flags = 0
    if hasattr(flag, "EXPLICIT_BATCH"):  # TensorRT 8 needs it, 10 ignores it
        flags |= 1 << int(flag.EXPLICIT_BATCH)
    strong = how.strong_typing and hasattr(flag, "STRONGLY_TYPED")
    if strong:
        flags |= 1 << int(flag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(path)):
        raise _refused(trt, parser, path)
    if not network.num_inputs or not network.num_outputs:
        raise InputError(f"{path.name} is a model without inputs or outputs")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, how.workspace_bytes)
    config.builder_optimization_level = how.optimization_level
    if not strong:
        _allow_small_types(trt, network, config)
    _add_profile(builder, config, network, how, path)
    if how.keeps_timings:
        cache = config.create_timing_cache(timings) or config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    watch = _watch(trt, path.name) if hasattr(trt, "IProgressMonitor") else None  # since TensorRT 10
    if watch is not None:
        config.progress_monitor = watch
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise DeviceError(f"TensorRT {trt.__version__} cannot build an engine of {path.name}: {log.last_error}")
    kept = config.get_timing_cache() if how.keeps_timings else None
    return bytes(plan), bytes(kept.serialize()) if kept is not None else b""


def _number(settings: Mapping[str, str], name: str, default: int, highest: int) -> int:
    text = settings.get(name, str(default))
    if not (text.isascii() and text.isdecimal()) or len(text) > 9 or int(text) > highest:
        raise InputError(f"{name} {text[:40]!r} of an engine is not a number from 0 to {highest}")
    return int(text)


def _shapes(path: Path) -> dict[str, ShapeRange]:
    with open_regular(path) as file:
        data = file.read(MAX_CONFIG_BYTES + 1)
    if len(data) > MAX_CONFIG_BYTES:
        raise InputError(f"{path.name} has more than {MAX_CONFIG_BYTES} bytes")
    try:
        return msgspec.json.decode(data, type=dict[str, ShapeRange])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(
            f"{path.name} has no shapes for the profile of an engine: {error}", hint="compile the model again"
        ) from error


def _refused(trt: Any, parser: Any, path: Path) -> InputError | DeviceError:  # noqa: ANN401
    errors = [parser.get_error(number) for number in range(parser.num_errors)]
    said = "; ".join(" ".join(str(error.desc()).split())[:200] for error in errors[:3]) or "it says nothing"
    if any("UNSUPPORTED" in error.code().name for error in errors):
        return DeviceError(
            f"TensorRT {trt.__version__} does not know an operation of {path.name}: {said}",
            hint="serve the variant for the CPU, or export the model without it",
        )
    return InputError(
        f"{path.name} is not an ONNX model that TensorRT {trt.__version__} can read: {said}",
        hint="check that the file is whole; export with an opset of at most 17",
    )


def _allow_small_types(trt: Any, network: Any, config: Any) -> None:  # noqa: ANN401
    """Without strong typing the builder computes in float unless it is allowed what the network itself holds."""
    kinds = set()
    for number in range(network.num_layers):
        layer = network.get_layer(number)
        kinds |= {layer.get_output(output).dtype for output in range(layer.num_outputs)}
    for kind, flag in ((trt.DataType.HALF, trt.BuilderFlag.FP16), (trt.DataType.INT8, trt.BuilderFlag.INT8)):
        if kind in kinds:
            config.set_flag(flag)


def _add_profile(builder: Any, config: Any, network: Any, how: Recipe, path: Path) -> None:  # noqa: ANN401
    """Say which shapes the inputs have that are not fixed: as the recipe says, else only rows may vary."""
    inputs = [network.get_input(number) for number in range(network.num_inputs)]
    strangers = sorted(set(how.shapes) - {tensor.name for tensor in inputs})
    if strangers:
        raise InputError(f"the profile of {path.name} has shapes for {strangers[0][:80]!r}, which is no input of it")
    profile = builder.create_optimization_profile()
    varies = False
    for tensor in inputs:
        shape = tuple(tensor.shape)
        if -1 not in shape:
            continue
        varies = True
        wanted = how.shapes.get(tensor.name) or _rows(tensor.name, shape, path)
        fits = len(wanted.min) == len(shape) and all(
            size in (-1, low) and size in (-1, high)
            for size, low, high in zip(shape, wanted.min, wanted.max, strict=True)
        )
        if not fits:
            raise InputError(
                f"the profile of input {tensor.name!r} of {path.name} says {list(wanted.max)}, not {list(shape)}"
            )
        profile.set_shape(tensor.name, wanted.min, wanted.opt, wanted.max)
    if varies:
        config.add_optimization_profile(profile)


def _rows(name: str, shape: Sequence[int], path: Path) -> ShapeRange:
    if -1 in shape[1:]:
        raise InputError(
            f"more than the rows of input {name!r} of {path.name} varies ({list(shape)}), and no profile says how far",
            hint="compile the model for jetson-gpu, which writes one, or export it with fixed sizes",
        )
    rest = tuple(shape[1:])
    return ShapeRange(min=(1, *rest), opt=(1, *rest), max=(ENGINE_ROWS, *rest))


def _watch(trt: Any, what: str) -> Any:  # noqa: ANN401
    """A progress monitor that writes to the log; the library calls it from threads of its own."""

    class Watch(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._lock = threading.Lock()
            self._steps: dict[str, int] = {}
            self._next = time.monotonic() + ENGINE_PROGRESS_S

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:  # noqa: ARG002
            with self._lock:
                self._steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._lock:
                now = time.monotonic()
                if now >= self._next:
                    self._next = now + ENGINE_PROGRESS_S
                    _log.info("%s: %s, step %d of %d", what, phase_name, step + 1, self._steps.get(phase_name, 0))
            return True

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                self._steps.pop(phase_name, None)

    return Watch()
