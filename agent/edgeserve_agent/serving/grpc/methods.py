"""The unary methods of `GRPCInferenceService` but for inference: from a request to the fields of its response."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from edgeserve import __version__
from edgeserve.contracts.errors import NotFoundError, TransientError, UnsupportedError
from edgeserve.contracts.tensors import TensorSpec
from edgeserve_agent.serving.dataplane import DataPlane
from edgeserve_agent.serving.model_document import model_document
from edgeserve_agent.serving.repository_control import RepositoryControl, check_unload, load_request
from edgeserve_agent.serving.settings import LogSettings, LogValue, TraceSettings
from edgeserve_agent.serving.shared_memory import SharedMemory
from edgeserve_agent.serving.statistics_document import statistics_document

Fields = Mapping[str, Any]
Handler = Callable[[Any], Fields]
AsyncHandler = Callable[[Any], Awaitable[Fields]]


class ModelMethods:
    """What there is and how it does."""

    def __init__(self, plane: DataPlane, *, ready: Callable[[], bool], extensions: tuple[str, ...]) -> None:
        self._plane = plane
        self._ready = ready
        self._extensions = extensions

    def table(self) -> Mapping[str, Handler]:
        """The methods by their names."""
        return {
            "ServerLive": lambda _: {"live": True},
            "ServerReady": lambda _: {"ready": self._ready()},
            "ModelReady": self._model_ready,
            "ServerMetadata": lambda _: {
                "name": "edgeserve", "version": __version__, "extensions": self._extensions,
            },
            "ModelMetadata": self._model_metadata,
            "ModelConfig": lambda request: {
                "config": model_document(self._plane.find(request.name, request.version)),
            },
            "ModelStatistics": lambda request: statistics_document(self._plane, request.name, request.version),
        }  # fmt: skip

    def _model_ready(self, request: Any) -> Fields:  # noqa: ANN401 - protobuf has no types
        try:
            self._plane.find(request.name, request.version)
        except (NotFoundError, TransientError):
            return {"ready": False}  # as in Triton, what is not there is just not ready
        return {"ready": True}

    def _model_metadata(self, request: Any) -> Fields:  # noqa: ANN401 - protobuf has no types
        served = self._plane.find(request.name, request.version)
        loaded = self._plane.loaded(served.identity.model)
        return {
            "name": served.identity.model,
            "versions": sorted({other.identity.version for other in loaded}),
            "platform": served.opened.runtime,
            "inputs": [_described(spec) for spec in served.signature.inputs],
            "outputs": [_described(spec) for spec in served.signature.outputs],
        }


class RepositoryMethods:
    """The model repository. Without one to control, the index still says what is served."""

    def __init__(self, plane: DataPlane, repository: RepositoryControl | None) -> None:
        self._plane = plane
        self._repository = repository

    def table(self) -> Mapping[str, Handler]:
        """The methods that answer at once, by their names."""
        return {"RepositoryIndex": self._index}

    def async_table(self) -> Mapping[str, AsyncHandler]:
        """The methods that take their time."""
        return {"RepositoryModelLoad": self._load, "RepositoryModelUnload": self._unload}

    def _index(self, request: Any) -> Fields:  # noqa: ANN401 - protobuf has no types
        _check_repository(request)
        states = (self._plane.states if self._repository is None else self._repository.index)()
        return {
            "models": [
                {"name": state.model, "version": state.version, "state": state.state, "reason": state.reason}
                for state in states
                if state.state == "READY" or not request.ready
            ]
        }

    async def _load(self, request: Any) -> Fields:  # noqa: ANN401 - protobuf has no types
        repository = self._controlled(request)
        wanted = load_request(_plain(request.parameters))
        await repository.load(request.model_name, config=wanted.config, files=wanted.files)
        return {}

    async def _unload(self, request: Any) -> Fields:  # noqa: ANN401 - protobuf has no types
        repository = self._controlled(request)
        check_unload(_plain(request.parameters))
        await repository.unload(request.model_name)
        return {}

    def _controlled(self, request: Any) -> RepositoryControl:  # noqa: ANN401 - protobuf has no types
        _check_repository(request)
        if self._repository is None:
            raise UnsupportedError(
                "models cannot be loaded or unloaded here", hint="this server serves what it was started with"
            )
        return self._repository


class SharedMemoryMethods:
    """Regions that clients share."""

    def __init__(self, regions: SharedMemory | None) -> None:
        self._regions = regions

    def table(self) -> Mapping[str, Handler]:
        """The methods by their names."""
        return {
            "SystemSharedMemoryStatus": self._status,
            "SystemSharedMemoryRegister": self._register,
            "SystemSharedMemoryUnregister": self._unregister,
            "CudaSharedMemoryStatus": lambda _: {},
            "CudaSharedMemoryRegister": _no_cuda,
            "CudaSharedMemoryUnregister": lambda _: {},  # perf_analyzer begins with this
        }

    def _status(self, request: Any) -> Fields:  # noqa: ANN401 - protobuf has no types
        found = [] if self._regions is None and not request.name else self._control().status(request.name)
        return {
            "regions": {
                region.name: {
                    "name": region.name, "key": region.key, "offset": region.offset, "byte_size": region.byte_size,
                }
                for region in found
            }
        }  # fmt: skip

    def _register(self, request: Any) -> Fields:  # noqa: ANN401 - protobuf has no types
        self._control().register(request.name, request.key, request.offset, request.byte_size)
        return {}

    def _unregister(self, request: Any) -> Fields:  # noqa: ANN401 - protobuf has no types
        if self._regions is not None:
            self._regions.unregister(request.name)
        return {}

    def _control(self) -> SharedMemory:
        if self._regions is None:
            raise UnsupportedError("shared memory is switched off", hint="start the server with --allow-shm")
        return self._regions


class SettingMethods:
    """Trace and log settings."""

    def __init__(self, plane: DataPlane, trace: TraceSettings, log: LogSettings) -> None:
        self._plane = plane
        self._trace = trace
        self._log = log

    def table(self) -> Mapping[str, Handler]:
        """The methods by their names."""
        return {"TraceSetting": self._trace_setting, "LogSettings": self._log_settings}

    def _trace_setting(self, request: Any) -> Fields:  # noqa: ANN401 - protobuf has no types
        if request.model_name:
            self._plane.find(request.model_name)
        changes = {name: list(setting.value) for name, setting in request.settings.items()}
        settings = self._trace.update(changes, request.model_name)
        return {
            "settings": {
                name: {"value": value if isinstance(value, list) else [value]} for name, value in settings.items()
            }
        }

    def _log_settings(self, request: Any) -> Fields:  # noqa: ANN401 - protobuf has no types
        settings = self._log.update(_plain(request.settings))
        return {"settings": {name: _log_setting(value) for name, value in settings.items()}}


def _log_setting(value: LogValue) -> Fields:
    kind = "bool_param" if isinstance(value, bool) else "uint32_param" if isinstance(value, int) else "string_param"
    return {kind: value}


def _plain(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Entries with a oneof `parameter_choice` as plain values; None where nothing is set."""
    choices = {name: (entry, entry.WhichOneof("parameter_choice")) for name, entry in entries.items()}
    return {name: None if choice is None else getattr(entry, choice) for name, (entry, choice) in choices.items()}


def _check_repository(request: Any) -> None:  # noqa: ANN401 - protobuf has no types
    if request.repository_name:
        raise UnsupportedError("there is one repository and it has no name", hint="leave repository_name empty")


def _no_cuda(_request: Any) -> Fields:  # noqa: ANN401 - protobuf has no types
    raise UnsupportedError("CUDA shared memory is not supported", hint="use system shared memory")


def _described(spec: TensorSpec) -> Fields:
    return {"name": spec.name, "datatype": spec.datatype.value, "shape": spec.shape}
