"""OpenVINO IR (`*.xml` with its `*.bin`) on Intel CPU, GPU and NPU. The only module that serves with openvino.

GPU and NPU: unverified, no one here has one. The CPU takes the same ways, blobs included.
"""

# ruff: noqa: E402 - telemetry has to be off before the library is imported

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final, cast

import msgspec
import numpy as np

sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # it would write to the home folder and call home

import openvino

from edgeserve.contracts.errors import DeviceError, InputError, NotFoundError
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.runtimes.base import ONE_DEVICE, LoadedModel, RuntimeOptions, Tensor, Tensors
from edgeserve.runtimes.checks import check_file, check_inputs, first_line
from edgeserve.runtimes.engine_cache import EngineKey
from edgeserve.runtimes.kept_folder import runtime_cache
from edgeserve.runtimes.model_files import digest_files, model_files
from edgeserve.runtimes.openvino_advice import advice, base, is_chooser
from edgeserve.runtimes.openvino_blob import from_blob

_DATATYPES: Final = {
    "boolean": Datatype.BOOL,
    "u8": Datatype.UINT8,
    "u16": Datatype.UINT16,
    "u32": Datatype.UINT32,
    "u64": Datatype.UINT64,
    "i8": Datatype.INT8,
    "i16": Datatype.INT16,
    "i32": Datatype.INT32,
    "i64": Datatype.INT64,
    "f16": Datatype.FP16,
    "f32": Datatype.FP32,
    "f64": Datatype.FP64,
}
_IR_STARTS: Final = (b"<?xml", b"<net")
_CAPABILITIES: Final = "OPTIMIZATION_CAPABILITIES"
_PROPERTIES: Final = "SUPPORTED_PROPERTIES"
_FACTS: Final = ("FULL_DEVICE_NAME", "DEVICE_ARCHITECTURE", "DEVICE_UUID", "DRIVER_VERSION", "COMPILER_VERSION")
"""How the names of the properties end that a blob depends on."""


class OpenVinoRuntime:
    """Loads `*.xml`; the weights lie beside it in `*.bin`."""

    name = "openvino"

    def version(self) -> str:
        """Version of openvino."""
        return str(openvino.__version__)

    def load(self, path: Path, options: RuntimeOptions) -> LoadedModel:
        """Read and compile the IR; see `edgeserve.runtimes.base.Runtime.load`."""
        _check_ir(path)
        core = openvino.Core()
        model = _read(core, path)
        # Of the file: the ports of a compiled model also have the names of what was fused into them.
        signature = _signature(model, path.name)
        reason = ""
        try:
            device = _device(core, options)
            if base(device) != base(options.device):  # simulated: its settings mean nothing to another device
                options = msgspec.structs.replace(options, settings={})
            compiled = _open(core, model, path, device, options)
        except DeviceError as error:
            if not options.fallback or base(options.device) == "CPU" or is_chooser(options.device):
                raise
            reason = f"{options.device} was asked for, CPU runs it: {error.message}"
            compiled = _open(core, model, path, "CPU", msgspec.structs.replace(options, settings={}))
        actual = ", ".join(compiled.get_property("EXECUTION_DEVICES"))
        name = actual + (" (simulated)" if options.simulate else "")
        return OpenVinoModel(compiled, signature, name, fallback=reason)


class OpenVinoModel:
    """A compiled model with one infer request for each call that is under way."""

    placement = ONE_DEVICE

    def __init__(
        self,
        compiled: Any,  # noqa: ANN401
        signature: Signature,
        executing_device: str,
        *,
        fallback: str = "",
    ) -> None:
        self.signature = signature
        self.executing_device = executing_device
        self.fallback = fallback
        self._compiled = compiled
        self._idle: SimpleQueue[Any] = SimpleQueue()

    def run(self, inputs: Mapping[str, Tensor]) -> Tensors:
        """Compute the outputs; see `edgeserve.runtimes.base.LoadedModel.run`."""
        compiled = self._compiled
        if compiled is None:
            raise DeviceError("the model was closed")
        check_inputs(self.signature, inputs)
        idle = self._idle
        try:
            request = idle.get_nowait()
        except Empty:
            request = compiled.create_infer_request()
        try:
            for index, spec in enumerate(self.signature.inputs):
                array = np.ascontiguousarray(inputs[spec.name])
                request.set_input_tensor(index, openvino.Tensor(array, shared_memory=False))
            request.infer()
            outputs = {
                spec.name: np.array(request.get_output_tensor(index).data)
                for index, spec in enumerate(self.signature.outputs)
            }
        except (RuntimeError, MemoryError) as error:
            raise DeviceError(f"OpenVINO failed: {first_line(error)}") from error
        idle.put(request)
        return outputs

    def close(self) -> None:
        """Release the model once running calls have ended."""
        self._compiled = None
        self._idle = SimpleQueue()


def available_devices() -> tuple[str, ...]:
    """Devices that OpenVINO can use on this machine, such as `CPU`, `NPU`."""
    return tuple(openvino.Core().available_devices)


def device_names() -> dict[str, str]:
    """Full name of each of `available_devices`, such as `Intel(R) AI Boost`; empty where OpenVINO does not say."""
    core = openvino.Core()
    return {device: _said(core, device, "FULL_DEVICE_NAME") for device in core.available_devices}


def compile_for(core: Any, model: Any, device: str, config: Mapping[str, Any], what: str) -> Any:  # noqa: ANN401
    """Compile `model` and make sure that the device which was asked for, and no other, executes it.

    Args:
        core: An `openvino.Core`.
        model: An `openvino.Model`.
        device: In OpenVINO's words.
        config: Properties for the device.
        what: Name of the model, for errors.

    Raises:
        DeviceError: OpenVINO cannot compile it for the device, or chose another one.
    """
    try:
        compiled = core.compile_model(model, device, dict(config))
    except RuntimeError as error:
        raise DeviceError(
            f"OpenVINO cannot compile {what} for {device}: {first_line(error)}", hint=advice(device, str(error))
        ) from error
    _check_device(compiled, device, what)
    return compiled


def _check_device(compiled: Any, device: str, what: str) -> None:  # noqa: ANN401
    actual = compiled.get_property("EXECUTION_DEVICES")
    if not actual or any(base(name) != base(device) for name in actual):
        raise DeviceError(
            f"{what} was to run on {device}, OpenVINO chose {', '.join(actual) or 'nothing'}",
            hint=f"name the device itself, such as NPU; {advice('NPU')}" if is_chooser(device) else advice(device),
        )


def _open(core: Any, model: Any, path: Path, device: str, options: RuntimeOptions) -> Any:  # noqa: ANN401
    """Compile the IR, or take what was compiled of it before, where that is kept."""
    config = _config(core, device, options)

    def compiled() -> Any:  # noqa: ANN401
        return compile_for(core, model, device, config, path.name)

    if options.cache is None or options.simulate or "EXPORT_IMPORT" not in _listed(core, device, _CAPABILITIES):
        return compiled()
    key = EngineKey(
        model=digest_files(model_files(path)),
        built_for={"openvino": openvino.get_version(), "device": device, **_facts(core, device)},
        settings={name: str(value) for name, value in config.items()},
    )
    found = from_blob(
        runtime_cache(options.cache, OpenVinoRuntime.name),
        key,
        compiled,
        lambda blob: core.import_model(blob, device, config),  # which takes none of its settings from the blob
        what=path.name,
    )
    _check_device(found, device, path.name)
    return found


def _read(core: Any, path: Path) -> Any:  # noqa: ANN401
    try:
        return core.read_model(path)
    except RuntimeError as error:
        raise InputError(
            f"{path.name} is not an OpenVINO IR that {openvino.__version__} can read: {first_line(error)}",
            hint="check that the .xml and the .bin are whole and belong together",
        ) from error


def _facts(core: Any, device: str) -> dict[str, str]:  # noqa: ANN401
    """What a blob depends on beside OpenVINO, as far as the device says: its name, its driver, the compiler in that."""
    names = sorted(_listed(core, device, _PROPERTIES))
    return {name: _said(core, device, name) for name in names if name.endswith(_FACTS)}


def _listed(core: Any, device: str, name: str) -> tuple[str, ...]:  # noqa: ANN401
    try:
        return tuple(core.get_property(device, name))
    except RuntimeError:
        return ()


def _said(core: Any, device: str, name: str) -> str:  # noqa: ANN401
    try:
        return str(core.get_property(device, name))
    except RuntimeError:  # such as an NPU without its driver
        return ""


def _check_ir(path: Path) -> None:
    """OpenVINO tries every format that it knows on a file; an IR is all that a variant may be."""
    check_file(path)
    with path.open("rb") as file:
        start = file.read(8)
    if path.suffix != ".xml" or not start.startswith(_IR_STARTS):
        raise InputError(f"{path.name} is not an OpenVINO IR", hint="name the .xml file that openvino.save_model wrote")
    if not path.with_suffix(".bin").is_file():
        raise NotFoundError(
            f"the weights of {path.name} are missing", hint=f"put {path.with_suffix('.bin').name} beside it"
        )


def _device(core: Any, options: RuntimeOptions) -> str:  # noqa: ANN401
    present = core.available_devices
    found = ", ".join(f"{name} ({_said(core, name, 'FULL_DEVICE_NAME')})" for name in present) or "none"
    if is_chooser(options.device):
        raise DeviceError(
            f"the device {options.device[:40]!r} leaves the choice to OpenVINO, which takes the CPU without a word",
            hint=f"name the device itself; OpenVINO finds {found} here",
        )
    if any(base(name) == base(options.device) for name in present):
        return options.device
    if options.simulate:
        return "CPU"
    raise DeviceError(
        f"OpenVINO finds no device {options.device[:40]!r} here",
        hint=f"it finds {found}; {advice(options.device)}",
    )


def _config(core: Any, device: str, options: RuntimeOptions) -> dict[str, Any]:  # noqa: ANN401
    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if device == "CPU":
        # Otherwise newer CPUs compute in bfloat16, and answers differ from machine to machine.
        config["INFERENCE_PRECISION_HINT"] = "f32"
        if options.threads:
            config["INFERENCE_NUM_THREADS"] = options.threads
    if "CACHE_MODE" in _listed(core, device, _PROPERTIES):
        config["CACHE_MODE"] = "OPTIMIZE_SPEED"  # blobs with their weights, which need no second file
    # CACHE_DIR would be read as it lies there: `from_blob` verifies what it hands out.
    return config | {name: value for name, value in options.settings.items() if name != "CACHE_DIR"}


def _signature(model: Any, what: str) -> Signature:  # noqa: ANN401
    return Signature(
        inputs=tuple(_spec(port, "input", what) for port in model.inputs),
        outputs=tuple(_spec(port, "output", what) for port in model.outputs),
    )


def _spec(port: Any, side: str, what: str) -> TensorSpec:  # noqa: ANN401
    names = cast("set[str]", port.get_names())
    if not names:
        raise InputError(f"an {side} of {what} has no name", hint="convert the model again: names must be kept")
    name = min(names)
    datatype = _DATATYPES.get(port.element_type.get_type_name())
    if datatype is None:
        raise InputError(
            f"{side} {name!r} of {what} is of type {port.element_type.get_type_name()}, not a plain number"
        )
    shape = port.partial_shape
    if shape.rank.is_dynamic or len(shape) == 0:
        raise InputError(
            f"{side} {name!r} of {what} has no fixed rank, or is a scalar",
            hint="export the model with the shape of every input and output; only the sizes may vary",
        )
    return TensorSpec(name=name, datatype=datatype, shape=tuple(-1 if d.is_dynamic else d.get_length() for d in shape))
