"""Areas `grpc-repository`, `grpc-statistics`, `grpc-settings`, `grpc-shared-memory`, `grpc-classification`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import numpy as np

from edgeserve.conformance.check import Level, Violation, check
from edgeserve.conformance.checks.shared_memory import EXTENSION as SHARED_MEMORY
from edgeserve.conformance.checks.shared_memory import region
from edgeserve.conformance.grpc_client import Failure, outputs_of, request
from edgeserve.conformance.target import Target
from edgeserve.contracts.tensors import Datatype

_REPOSITORY: Final = "Triton, extension_model_repository"
_STATISTICS: Final = "Triton, extension_statistics"
_SHARED: Final = "Triton, extension_shared_memory"
_ABSENT: Final = "conformance-no-such-model"


@check("grpc-repository.index", level=Level.EXTENSION, source=_REPOSITORY, extension="model_repository")
def index(target: Target) -> None:
    """RepositoryIndex lists every model."""
    names = {model.name for model in target.grpc.call("RepositoryIndex").models}
    wanted = {model.name for model in target.models}
    _must("RepositoryIndex", wanted <= names, f"{sorted(wanted)}", f"{sorted(names)}")


@check("grpc-repository.load-unknown", level=Level.EXTENSION, source=_REPOSITORY, extension="model_repository")
def load_unknown(target: Target) -> None:
    """Loading a model that the repository does not have is an error."""
    target.grpc.refused("RepositoryModelLoad", target.grpc.messages.RepositoryModelLoadRequest(model_name=_ABSENT))


@check(
    "grpc-repository.load-traversal",
    level=Level.EXTENSION,
    source="Triton's L0_input_validation: model_name_invalid_load",
    extension="model_repository",
)
def load_traversal(target: Target) -> None:
    """Loading by a name that climbs out of the repository, or by none, is an error."""
    for name in ("../etc", "a/../b", "..", "/etc/passwd", "", " "):
        target.grpc.refused("RepositoryModelLoad", target.grpc.messages.RepositoryModelLoadRequest(model_name=name))


@check("grpc-statistics.growth", level=Level.EXTENSION, source=_STATISTICS, extension="statistics")
def growth(target: Target) -> None:
    """Three requests raise inference_count and success.count by three."""
    before = _stats(target)
    for _ in range(3):
        target.grpc.call("ModelInfer", request(target.model.name, target.model.givens()))
    after = _stats(target)
    for name, old, new in (
        ("inference_count", before.inference_count, after.inference_count),
        ("success.count", before.inference_stats.success.count, after.inference_stats.success.count),
    ):
        _must("ModelStatistics", new - old == 3, f"{name} to grow by 3", str(new - old))


@check("grpc-statistics.unknown-model", level=Level.EXTENSION, source=_STATISTICS, extension="statistics")
def statistics_unknown(target: Target) -> None:
    """Statistics of a model that does not exist are an error."""
    target.grpc.refused("ModelStatistics", target.grpc.messages.ModelStatisticsRequest(name=_ABSENT))


@check(
    "grpc-settings.config",
    level=Level.EXTENSION,
    source="Triton, extension_model_configuration",
    extension="model_configuration",
)
def config(target: Target) -> None:
    """ModelConfig names the model, and its inputs and outputs as the metadata do."""
    for model in target.models:
        found = target.grpc.call("ModelConfig", target.grpc.messages.ModelConfigRequest(name=model.name)).config
        _must("ModelConfig", found.name == model.name, f"name {model.name!r}", found.name)
        names = {tensor.name for tensor in found.input}
        _must(
            "ModelConfig",
            names >= {spec.name for spec in model.inputs},
            "the inputs of the metadata",
            f"{sorted(names)}",
        )
        _must("ModelConfig", all(tensor.data_type for tensor in found.input), "data types", str(found.input)[:200])


@check("grpc-settings.trace", level=Level.EXTENSION, source="Triton, extension_trace", extension="trace")
def trace(target: Target) -> None:
    """TraceSetting without settings answers those that are, the same names as HTTP's."""
    found = set(target.grpc.call("TraceSetting").settings)
    wanted = set(target.http.get("/v2/trace/setting").ok().document())
    _must("TraceSetting", found == wanted, f"{sorted(wanted)}", f"{sorted(found)}")


@check("grpc-settings.trace-unknown", level=Level.SHOULD, source="Triton, extension_trace", extension="trace")
def trace_unknown(target: Target) -> None:
    """A trace setting that does not exist is an error."""
    message = target.grpc.messages.TraceSettingRequest()
    message.settings["conformance_no_such_setting"].value.append("1")
    target.grpc.refused("TraceSetting", message)


@check("grpc-settings.logging", level=Level.EXTENSION, source="Triton, extension_logging", extension="logging")
def logging(target: Target) -> None:
    """LogSettings without settings answers those that are, the same names as HTTP's."""
    found = set(target.grpc.call("LogSettings").settings)
    wanted = set(target.http.get("/v2/logging").ok().document())
    _must("LogSettings", found == wanted, f"{sorted(wanted)}", f"{sorted(found)}")


@check("grpc-settings.logging-unknown", level=Level.SHOULD, source="Triton, extension_logging", extension="logging")
def logging_unknown(target: Target) -> None:
    """A log setting that does not exist is an error."""
    message = target.grpc.messages.LogSettingsRequest()
    message.settings["conformance_no_such_setting"].bool_param = True
    target.grpc.refused("LogSettings", message)


@check(
    "grpc-classification.top",
    level=Level.EXTENSION,
    source="Triton, extension_classification",
    extension="classification",
)
def classification(target: Target) -> None:
    """The parameter "classification" gives the highest values as BYTES, highest first."""
    model = target.named("classifier")
    array = np.array([[1, 5, 10, 4]], dtype=np.float32)
    message = request(model.name, [replace(model.givens()[0], array=array)])
    message.outputs.add(name=model.outputs[0].name).parameters["classification"].int64_param = 2
    found = outputs_of(target.grpc.call("ModelInfer", message), sent="ModelInfer, classification 2")[
        model.outputs[0].name
    ]
    _must("ModelInfer, classification 2", found.datatype is Datatype.BYTES, "datatype BYTES", found.datatype.value)
    texts = [text.decode() for text in found.array.ravel().tolist()]
    indices = [text.split(":")[1] for text in texts if ":" in text]
    _must("ModelInfer, classification 2", indices == ["2", "1"], "the classes 2 and 1", repr(texts))


@check("grpc-shared-memory.register", level=Level.EXTENSION, source=_SHARED, extension=SHARED_MEMORY)
def register(target: Target) -> None:
    """A region registered over gRPC is in the status of both protocols until it is unregistered."""
    known = target.grpc.messages
    with region(target, registered=True) as made:
        made.unregister().ok()
        target.grpc.call("SystemSharedMemoryRegister", _registration(known, made))
        found = target.grpc.call("SystemSharedMemoryStatus").regions
        _must("SystemSharedMemoryStatus", made.name in found, made.name, f"{sorted(found)}")
        _must(
            "SystemSharedMemoryStatus",
            found[made.name].byte_size == made.memory.size,
            str(made.memory.size),
            str(found),
        )
        listed = [entry.get("name") for entry in target.http.get("/v2/systemsharedmemory/status").ok().json()]
        _must("GET /v2/systemsharedmemory/status", made.name in listed, made.name, f"{listed}")
        target.grpc.refused("SystemSharedMemoryRegister", _registration(known, made))
        target.grpc.call("SystemSharedMemoryUnregister", known.SystemSharedMemoryUnregisterRequest(name=made.name))
        found = target.grpc.call("SystemSharedMemoryStatus").regions
        _must("SystemSharedMemoryStatus", made.name not in found, "the region gone", f"{sorted(found)}")


@check(
    "grpc-shared-memory.infer",
    level=Level.EXTENSION,
    source=f"{_SHARED}; clients index raw contents by place",
    extension=SHARED_MEMORY,
)
def shared_infer(target: Target) -> None:
    """An output in shared memory keeps its (empty) place in raw_output_contents, so that the next one is found."""
    model = target.add_sub()
    with region(target) as made:
        left, right = np.arange(16, dtype=np.int32).reshape(1, 16), np.full((1, 16), 3, dtype=np.int32)
        made.write(left, 0)
        arrays = {"INPUT0": left, "INPUT1": right}
        givens = sorted(model.givens(), key=lambda given: given.name)
        message = request(model.name, [replace(given, array=arrays[given.name]) for given in givens])
        del message.raw_input_contents[0]  # an input in shared memory has no place there
        _place(message.inputs[0].parameters, made.name, 0)
        _place(message.outputs.add(name="OUTPUT0").parameters, made.name, 128)
        message.outputs.add(name="OUTPUT1")
        response = target.grpc.call("ModelInfer", message)
        sent = "ModelInfer, INPUT0 and OUTPUT0 in shared memory"
        _must(
            sent,
            len(response.raw_output_contents) == 2,
            "two raw_output_contents, the first empty",
            f"{[len(part) for part in response.raw_output_contents]}",
        )
        at = [output.name for output in response.outputs].index("OUTPUT1")
        found = np.frombuffer(response.raw_output_contents[at], dtype=np.int32)
        _must(sent, np.array_equal(found, (left - right).ravel()), f"OUTPUT1 {left - right}", f"{found}")
        _must(sent, np.array_equal(made.read(128), left + right), "OUTPUT0 in the region", f"{made.read(128)}")


@check("grpc-shared-memory.unregistered", level=Level.EXTENSION, source=_SHARED, extension=SHARED_MEMORY)
def shared_unregistered(target: Target) -> None:
    """A region that is not registered is an error."""
    model = target.add_sub()
    message = request(model.name, model.givens())
    del message.raw_input_contents[0]
    _place(message.inputs[0].parameters, "conformance_no_such_region", 0)
    target.grpc.refused("ModelInfer", message)


@check(
    "grpc-shared-memory.cuda-status", level=Level.EXTENSION, source=f"{_SHARED}: CUDA", extension="cuda_shared_memory"
)
def cuda_status(target: Target) -> None:
    """CudaSharedMemoryStatus answers, be it with no region."""
    answer = target.grpc.attempt("CudaSharedMemoryStatus")
    _must("CudaSharedMemoryStatus", not isinstance(answer, Failure), "status OK", str(answer))


def _stats(target: Target) -> Any:  # noqa: ANN401 - messages are made at run time
    message = target.grpc.messages.ModelStatisticsRequest(name=target.model.name)
    return max(target.grpc.call("ModelStatistics", message).model_stats, key=lambda entry: entry.inference_count)


def _registration(known: Any, made: Any) -> Any:  # noqa: ANN401
    return known.SystemSharedMemoryRegisterRequest(name=made.name, key=made.key, byte_size=made.memory.size)


def _place(parameters: Any, name: str, offset: int) -> None:  # noqa: ANN401
    parameters["shared_memory_region"].string_param = name
    parameters["shared_memory_byte_size"].int64_param = 64
    parameters["shared_memory_offset"].int64_param = offset


def _must(sent: str, condition: object, expected: str, got: str) -> None:
    if not condition:
        raise Violation(sent=sent, expected=expected, got=got)
