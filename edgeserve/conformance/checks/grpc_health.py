"""Area `grpc-core`: health and metadata over gRPC."""

from __future__ import annotations

from typing import Final

from edgeserve.conformance.check import Level, Violation, check
from edgeserve.conformance.grpc_client import Failure
from edgeserve.conformance.target import Target
from edgeserve.contracts.tensors import Datatype

_SOURCE: Final = "OIP gRPC"
_ABSENT: Final = "conformance-no-such-model"


@check("grpc-core.live", level=Level.MUST, source=f"{_SOURCE}, ServerLive")
def live(target: Target) -> None:
    """ServerLive answers live."""
    _must("ServerLive", target.grpc.call("ServerLive").live, "live: true")


@check("grpc-core.ready", level=Level.MUST, source=f"{_SOURCE}, ServerReady")
def ready(target: Target) -> None:
    """ServerReady answers ready while the models are ready."""
    _must("ServerReady", target.grpc.call("ServerReady").ready, "ready: true")


@check("grpc-core.model-ready", level=Level.MUST, source=f"{_SOURCE}, ModelReady")
def model_ready(target: Target) -> None:
    """ModelReady answers ready for a model that serves, with and without its version."""
    request = target.grpc.messages.ModelReadyRequest
    for version in ("", *target.model.versions):
        message = request(name=target.model.name, version=version)
        _must(f"ModelReady {message}", target.grpc.call("ModelReady", message).ready, "ready: true")


@check("grpc-core.unknown-model-ready", level=Level.MUST, source=f"{_SOURCE}, ModelReady")
def unknown_model_ready(target: Target) -> None:
    """ModelReady of a model that does not exist is not ready, or an error."""
    answer = target.grpc.attempt("ModelReady", target.grpc.messages.ModelReadyRequest(name=_ABSENT))
    _must("ModelReady", isinstance(answer, Failure) or not answer.ready, "ready: false, or an error")


@check("grpc-core.server-metadata", level=Level.MUST, source=f"{_SOURCE}, ServerMetadata")
def server_metadata(target: Target) -> None:
    """ServerMetadata answers a name and version, and the extensions that GET /v2 lists."""
    answer = target.grpc.call("ServerMetadata")
    _must("ServerMetadata", answer.name and answer.version, "name and version", str(answer))
    listed = target.metadata.get("extensions", [])
    _must("ServerMetadata", set(answer.extensions) == set(listed), f"the extensions {listed}", str(answer.extensions))


@check("grpc-core.model-metadata", level=Level.MUST, source=f"{_SOURCE}, ModelMetadata")
def model_metadata(target: Target) -> None:
    """ModelMetadata answers the same names, datatypes and shapes as GET /v2/models/M."""
    for model in target.models:
        answer = target.grpc.call("ModelMetadata", target.grpc.messages.ModelMetadataRequest(name=model.name))
        sent = f"ModelMetadata {model.name}"
        _must(sent, answer.name == model.name, f"name {model.name!r}", answer.name)
        for side, specs in (("inputs", model.inputs), ("outputs", model.outputs)):
            found = {tensor.name: (tensor.datatype, tuple(tensor.shape)) for tensor in getattr(answer, side)}
            wanted = {spec.name: (spec.datatype.value, spec.shape) for spec in specs}
            _must(sent, found == wanted, f"{side} {wanted}", f"{found}")


@check("grpc-core.datatypes", level=Level.MUST, source=f"{_SOURCE}, Tensor Data Types")
def datatypes(target: Target) -> None:
    """Datatypes in ModelMetadata are those of the protocol."""
    answer = target.grpc.call("ModelMetadata", target.grpc.messages.ModelMetadataRequest(name=target.model.name))
    known = {datatype.value for datatype in Datatype}
    for tensor in (*answer.inputs, *answer.outputs):
        _must("ModelMetadata", tensor.datatype in known, "a datatype of the protocol", tensor.datatype)


@check("grpc-core.unknown-model-metadata", level=Level.MUST, source=f"{_SOURCE}, ModelMetadata")
def unknown_model_metadata(target: Target) -> None:
    """ModelMetadata of a model that does not exist is an error."""
    target.grpc.refused("ModelMetadata", target.grpc.messages.ModelMetadataRequest(name=_ABSENT))


@check("grpc-core.health", level=Level.SHOULD, source="gRPC Health Checking Protocol; Triton and Kubernetes probes")
def health(target: Target) -> None:
    """Health/Check of grpc.health.v1 answers SERVING."""
    answer = target.grpc.attempt("Health/Check")
    serving = target.grpc.messages.HealthCheckResponse.ServingStatus.Value("SERVING")
    _must("Health/Check", not isinstance(answer, Failure) and answer.status == serving, "SERVING", str(answer))


@check("grpc-core.unknown-method", level=Level.MUST, source="gRPC status codes: UNIMPLEMENTED")
def unknown_method(target: Target) -> None:
    """A method that does not exist is UNIMPLEMENTED."""
    answer = target.grpc.attempt("ConformanceNoSuchMethod", raw=b"")
    _must(
        "ConformanceNoSuchMethod",
        isinstance(answer, Failure) and answer.code == "UNIMPLEMENTED",
        "UNIMPLEMENTED",
        str(answer),
    )


def _must(sent: str, condition: object, expected: str, got: str = "something else") -> None:
    if not condition:
        raise Violation(sent=sent, expected=expected, got=got)
