"""gRPC as a check needs it: every answer is held against what was sent. grpcio is imported here only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import SimpleNamespace
from typing import Any, Final

import numpy as np

from edgeserve.client.blobs import Tensor, decode_blob, encode_blob
from edgeserve.client.oip_proto import HEALTH_SERVICE, INFERENCE_SERVICE, messages, service_methods
from edgeserve.client.oip_schema import CONTENTS_FIELDS
from edgeserve.conformance.check import NoAnswer, Violation
from edgeserve.conformance.http import shorten
from edgeserve.conformance.infer import Given, Got
from edgeserve.contracts.errors import InputError, MissingLibraryError, TransientError
from edgeserve.contracts.tensors import Datatype

_OPTIONS: Final = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A status other than OK."""

    sent: str
    code: str
    """Name of the status, such as `INVALID_ARGUMENT`."""
    details: str

    def must(self, condition: object, expected: str) -> None:
        """Raise `Violation` unless `condition` holds."""
        if not condition:
            raise Violation(sent=self.sent, expected=expected, got=f"{self.code}: {shorten(self.details)}")


class Grpc:
    """Calls one server.

    Args:
        address: HOST:PORT.
        timeout_s: For each call.

    Raises:
        InputError: `address` is not one.
        MissingLibraryError: grpcio or protobuf is not installed.
        TransientError: Nothing answers there.
    """

    def __init__(self, address: str, *, timeout_s: float) -> None:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit() or "://" in address:
            raise InputError(f"{address[:120]!r} is not the address of a gRPC server", hint="write HOST:PORT")
        self._grpc = _grpcio()
        self._timeout_s = timeout_s
        self._channel = self._grpc.insecure_channel(address, options=_OPTIONS)
        try:
            self._grpc.channel_ready_future(self._channel).result(timeout=timeout_s)
        except self._grpc.FutureTimeoutError:
            self._channel.close()
            raise TransientError(
                f"no gRPC server answers at {address} within {timeout_s:g} s",
                hint="is this its gRPC port? Leave --grpc out to check HTTP only",
            ) from None

    @property
    def messages(self) -> SimpleNamespace:
        """Message classes by name."""
        return messages()

    def close(self) -> None:
        """End the connection."""
        self._channel.close()

    def call(self, method: str, request: Any = None, **options: Any) -> Any:  # noqa: ANN401 - messages are made at run time
        """Call a unary method; its status must be OK.

        Raises:
            Violation: It is another.
        """
        answer = self.attempt(method, request, **options)
        if isinstance(answer, Failure):
            kind = NoAnswer if answer.code == "UNAVAILABLE" else Violation
            raise kind(sent=answer.sent, expected="status OK", got=f"{answer.code}: {shorten(answer.details)}")
        return answer

    def refused(self, method: str, request: Any = None, **options: Any) -> Failure:  # noqa: ANN401
        """Call a unary method; its status must say that the request was wrong, with words.

        Raises:
            Violation: It is OK, or says that the server failed.
        """
        answer = self.attempt(method, request, **options)
        if not isinstance(answer, Failure):
            raise Violation(
                sent=shown(method, request), expected="a status other than OK", got=f"OK {shorten(str(answer))}"
            )
        if answer.code in ("CANCELLED", "DEADLINE_EXCEEDED", "UNAVAILABLE"):
            raise NoAnswer(sent=answer.sent, expected="a refusal", got=f"{answer.code}: {shorten(answer.details)}")
        answer.must(answer.details, "details that say what is wrong")
        return answer

    def attempt(
        self,
        method: str,
        request: Any = None,  # noqa: ANN401
        *,
        compression: str = "",
        raw: bytes | None = None,
    ) -> Any:  # noqa: ANN401
        """Call a unary method and return its response or `Failure`; `raw` is sent in place of a message."""
        path = path_of(method)
        known = service_methods().get(path)
        message = request if request is not None or known is None else known.request()
        call = self._channel.unary_unary(
            path,
            request_serializer=lambda given: given if raw is not None else given.SerializeToString(),
            response_deserializer=None if known is None else known.response.FromString,
        )
        kind = getattr(self._grpc.Compression, compression.capitalize()) if compression else None
        try:
            return call(message if raw is None else raw, timeout=self._timeout_s, compression=kind)
        except self._grpc.RpcError as error:
            return Failure(sent=shown(method, request), code=error.code().name, details=error.details() or "")

    def stream(self, requests: Iterable[Any]) -> list[Any]:
        """Send requests on `ModelStreamInfer`, one after another, and return every response.

        Raises:
            Violation: The stream ended with a status other than OK.
        """
        path = path_of("ModelStreamInfer")
        known = service_methods()[path]
        call = self._channel.stream_stream(
            path,
            request_serializer=lambda given: given.SerializeToString(),
            response_deserializer=known.response.FromString,
        )
        try:
            return list(call(iter(list(requests)), timeout=self._timeout_s))
        except self._grpc.RpcError as error:
            got = f"{error.code().name}: {shorten(error.details() or '')}"
            raise Violation(sent="ModelStreamInfer", expected="a stream that ends with OK", got=got) from error


def request(
    model: str,
    givens: Sequence[Given],
    *,
    typed: bool = False,
    outputs: Sequence[str] = (),
    parameters: Mapping[str, Any] | None = None,
    request_id: str = "",
    version: str = "",
) -> Any:  # noqa: ANN401 - messages are made at run time
    """A `ModelInferRequest`; tensors go as `raw_input_contents`, or as `contents` when `typed`."""
    message = messages().ModelInferRequest(model_name=model, model_version=version, id=request_id)
    for given in givens:
        tensor = message.inputs.add(name=given.name, datatype=given.datatype.value, shape=given.array.shape)
        if typed:
            values = given.array.ravel().tolist()
            getattr(tensor.contents, CONTENTS_FIELDS[given.datatype]).extend(values)
        else:
            message.raw_input_contents.append(bytes(encode_blob(given.datatype, given.array)))
    for name in outputs:
        message.outputs.add(name=name)
    for name, value in (parameters or {}).items():
        set_parameter(message.parameters[name], value)
    return message


def set_parameter(parameter: Any, value: object) -> None:  # noqa: ANN401
    """Fill an `InferParameter` by the kind of a value; `("uint64", 7)` names the field."""
    if isinstance(value, tuple):
        setattr(parameter, f"{value[0]}_param", value[1])
    elif isinstance(value, bool):
        parameter.bool_param = value
    elif isinstance(value, int):
        parameter.int64_param = value
    elif isinstance(value, float):
        parameter.double_param = value
    else:
        parameter.string_param = str(value)


def outputs_of(response: Any, *, sent: str) -> dict[str, Got]:  # noqa: ANN401
    """Every output of a `ModelInferResponse` by name, from raw or typed contents.

    Raises:
        Violation: Shapes, datatypes and data do not fit one another.
    """
    raw = list(response.raw_output_contents)
    if raw and len(raw) != len(response.outputs):
        expected = f"raw_output_contents for each of {len(response.outputs)} outputs, or for none"
        raise Violation(sent=sent, expected=expected, got=f"{len(raw)}")
    found = {}
    for index, output in enumerate(response.outputs):
        shape = tuple(output.shape)
        try:
            datatype = Datatype(output.datatype)
            if raw:
                array = decode_blob(output.name, datatype, shape, memoryview(raw[index]))
            else:
                array = _typed(datatype, shape, output.contents)
        except (InputError, ValueError, KeyError) as error:
            expected = f"output {output.name!r} whose shape, datatype and data fit"
            raise Violation(sent=sent, expected=expected, got=f"{error}; {shorten(str(output))}") from error
        found[output.name] = Got(datatype=datatype, shape=shape, array=array, binary=bool(raw))
    return found


def path_of(method: str) -> str:
    """Path of a method of the inference service, or of `Health/Check`."""
    return f"/{HEALTH_SERVICE}/{method[7:]}" if method.startswith("Health/") else f"/{INFERENCE_SERVICE}/{method}"


def shown(method: str, message: object) -> str:
    """A call as a finding quotes it."""
    return f"{method} {shorten(' '.join(str(message or '').split()))}".rstrip()


def _typed(datatype: Datatype, shape: tuple[int, ...], contents: Any) -> Tensor:  # noqa: ANN401
    values = list(getattr(contents, CONTENTS_FIELDS[datatype]))
    if datatype is Datatype.BYTES:
        array = np.empty(len(values), dtype=object)
        array[:] = values
        return array.reshape(shape)
    return np.array(values, dtype=datatype.numpy_name).reshape(shape)


def _grpcio() -> Any:  # noqa: ANN401 - grpcio has no types
    try:
        return import_module("grpc")
    except ImportError as error:
        raise MissingLibraryError(
            "gRPC checks need the package grpcio, which is not installed", hint="pip install 'edgeserve[grpc]'"
        ) from error
