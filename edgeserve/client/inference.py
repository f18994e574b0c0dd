"""Client of the Open Inference Protocol v2 over HTTP, with binary tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast
from urllib.parse import quote, urlencode, urlsplit

import msgspec
import numpy as np
import urllib3

from edgeserve.client.blobs import Tensor, decode_blob, encode_blob
from edgeserve.client.fleet import reason
from edgeserve.contracts.errors import (
    ConflictError,
    DeviceError,
    EdgeServeError,
    InputError,
    NotFoundError,
    TransientError,
)
from edgeserve.contracts.tensors import Datatype, TensorSpec, datatype_of

_HEAD_LENGTH: Final = "Inference-Header-Content-Length"
_CONNECTIONS: Final = 16
_TRANSIENT: Final = frozenset({408, 429, 502, 503, 504})

Label = int | str
S = TypeVar("S", bound=msgspec.Struct)


@dataclass(frozen=True, kw_only=True)
class InferenceResult:
    """What a model answered."""

    outputs: dict[str, Tensor]
    """By name, in the server's order; BYTES as arrays of `bytes` objects."""
    model_name: str
    model_version: str
    request_id: str
    release: str
    """Digest of the release that answered; empty when the server is not edgeserve."""


@dataclass(frozen=True, kw_only=True)
class FileResult:
    """What a model made of a picture or sound."""

    predictions: list[dict[str, Any]]
    """One, or one for each step of a stateful model, as `edgeserve.task.present` makes them."""
    model_name: str
    model_version: str
    request_id: str
    release: str
    """Digest of the release that answered."""


class FeedbackResult(msgspec.Struct, frozen=True, kw_only=True):
    """What became of pieces of feedback."""

    counted: int
    unknown: int
    """Their request ids were not known, or too old."""
    duplicate: int
    """Their requests had feedback already."""


class ModelMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """What a server says of a model."""

    name: str
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    versions: tuple[str, ...] = ()
    properties: dict[str, Any] = {}


class _Output(msgspec.Struct, frozen=True):
    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    model_name: str
    outputs: tuple[_Output, ...]
    model_version: str = ""
    id: str = ""


class _FileAnswer(msgspec.Struct, frozen=True, kw_only=True):
    model_name: str
    predictions: list[dict[str, Any]]
    model_version: str = ""
    id: str = ""


class InferenceClient:
    """Talks to one model server; connections are kept open. May be used from several threads.

    Args:
        url: Such as `http://127.0.0.1:8000`.
        timeout_s: For connecting, and again for each wait for bytes.

    Raises:
        InputError: `url` is not one.

    Every method raises `InputError` (`NotFoundError`, `ConflictError`) for what the server calls the client's
    mistake, `TransientError` when no connection or answer is had or the server is not ready, and `DeviceError`
    when the server failed. Nothing is sent twice.
    """

    def __init__(self, url: str, *, timeout_s: float = 10.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"{url[:120]!r} is not the URL of a server", hint="write http://HOST:PORT")
        self._url = url.rstrip("/")
        self._pool = urllib3.PoolManager(
            maxsize=_CONNECTIONS, retries=False, timeout=urllib3.Timeout(connect=timeout_s, read=timeout_s)
        )

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Tensor],
        *,
        version: str = "",
        request_id: str = "",
        outputs: Sequence[str] = (),
    ) -> InferenceResult:
        """Run a model.

        Args:
            model: Its name.
            inputs: One array for each input; arrays of `str`, `bytes` or objects of these are sent as BYTES.
            version: Empty = the one that is active.
            request_id: Echoed, and what feedback refers to.
            outputs: Names of the outputs wanted; empty = all.
        """
        head: dict[str, Any] = {"id": request_id} if request_id else {}
        described: list[dict[str, Any]] = []
        blobs: list[bytes | memoryview] = []
        for name, given in inputs.items():
            array, datatype = _wire_form(name, given)
            blob = encode_blob(datatype, array)
            blobs.append(blob)
            described.append(
                {
                    "name": name,
                    "shape": array.shape,
                    "datatype": datatype.value,
                    "parameters": {"binary_data_size": len(blob)},
                }
            )
        head |= {"inputs": described, "parameters": {"binary_data_output": True}}
        if outputs:
            head["outputs"] = [{"name": name, "parameters": {"binary_data": True}} for name in outputs]
        json = msgspec.json.encode(head)
        response = self._send(
            "POST",
            f"{_model_path(model, version)}/infer",
            b"".join((json, *blobs)),
            {_HEAD_LENGTH: str(len(json)), "Content-Type": "application/octet-stream"},
        )
        return _result(response.data, response.headers)

    def infer_file(
        self, model: str, data: bytes, *, content_type: str, version: str = "", request_id: str = ""
    ) -> FileResult:
        """Let the server turn a picture or sound into tensors, run the model and say what that means.

        Args:
            model: Its name; its task must describe such an input.
            data: Content of the file: JPEG, PNG, BMP, WebP or WAV.
            content_type: Such as `image/jpeg`.
            version: Empty = the one that is active.
            request_id: Echoed, and what feedback refers to.
        """
        query = f"?{urlencode({'id': request_id})}" if request_id else ""
        path = f"{_model_path(model, version)}/infer{query}"
        response = self._send("POST", path, data, {"Content-Type": content_type})
        answer = self._decoded(response.data, _FileAnswer)
        return FileResult(
            predictions=answer.predictions,
            model_name=answer.model_name,
            model_version=answer.model_version,
            request_id=answer.id,
            release=response.headers.get("edgeserve-release", ""),
        )

    def feedback(self, model: str, pairs: Iterable[tuple[str, Label | Sequence[Label]]]) -> FeedbackResult:
        """Tell the server the true labels.

        Args:
            model: Its name.
            pairs: Request id and class index or label name; a list with one for each row of a request with several.
        """
        items = [
            {"id": request_id, "label": label if isinstance(label, (int, str)) else list(label)}
            for request_id, label in pairs
        ]
        body = msgspec.json.encode({"feedback": items})
        response = self._send("POST", f"{_model_path(model)}/feedback", body, {"Content-Type": "application/json"})
        return self._decoded(response.data, FeedbackResult)

    def ready(self) -> bool:
        """Whether the server answers and is ready for inference; never raises."""
        try:
            self._send("GET", "/v2/health/ready")
        except EdgeServeError:
            return False
        return True

    def metadata(self, model: str, *, version: str = "") -> ModelMetadata:
        """What the server says of a model."""
        return self._decoded(self._send("GET", _model_path(model, version)).data, ModelMetadata)

    def close(self) -> None:
        """Close the connections."""
        self._pool.clear()

    def _send(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> urllib3.BaseHTTPResponse:
        try:
            response = self._pool.request(method, self._url + path, body=body, headers=headers, redirect=False)
        except urllib3.exceptions.HTTPError as error:
            raise TransientError(
                f"no answer from {self._url}: {reason(error)}", hint="is the server running?"
            ) from error
        if response.status != 200:
            raise _error(response.status, response.data, self._url)
        return response

    def _decoded(self, data: bytes, kind: type[S]) -> S:
        try:
            return msgspec.json.decode(data, type=kind)
        except (msgspec.DecodeError, EdgeServeError) as error:
            raise TransientError(f"{self._url} answered something else than expected: {error}") from error


def _model_path(model: str, version: str = "") -> str:
    path = f"/v2/models/{quote(model, safe='')}"
    return f"{path}/versions/{quote(version, safe='')}" if version else path


def _wire_form(name: str, given: Tensor) -> tuple[Tensor, Datatype]:
    array = np.asarray(given)
    if array.dtype.kind in "SU":
        array = array.astype(object)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    try:
        return array, datatype_of(array.dtype.name)
    except InputError as error:
        raise InputError(f"input {name[:80]!r}: {error.message}") from error


def _result(data: bytes, headers: Mapping[str, str]) -> InferenceResult:
    declared = headers.get(_HEAD_LENGTH)
    length = int(declared) if declared is not None and declared.isdecimal() else len(data)
    try:
        answer = msgspec.json.decode(data[:length], type=_Answer)
        outputs: dict[str, Tensor] = {}
        rest = memoryview(data)[length:]
        for output in answer.outputs:
            size = output.parameters.get("binary_data_size")
            if size is None:
                outputs[output.name] = _from_json(output)
            else:
                outputs[output.name] = decode_blob(output.name, output.datatype, output.shape, rest[:size])
                rest = rest[size:]
    except (msgspec.DecodeError, InputError, TypeError, ValueError) as error:
        raise TransientError(f"the server's answer is not one of the Open Inference Protocol: {error}") from error
    return InferenceResult(
        outputs=outputs,
        model_name=answer.model_name,
        model_version=answer.model_version,
        request_id=answer.id,
        release=headers.get("edgeserve-release", ""),
    )


def _from_json(output: _Output) -> Tensor:
    if output.datatype is Datatype.BYTES:
        return np.array([text.encode() for text in output.data or []], object).reshape(output.shape)
    # A server that has no NaN in JSON writes null.
    values = [np.nan if value is None else value for value in np.array(output.data or [], object).ravel()]
    return np.array(values, output.datatype.numpy_name).reshape(output.shape)


def _error(status: int, data: bytes, url: str) -> EdgeServeError:
    message = f"{url} answered {status}"
    try:
        text = cast("dict[str, Any]", msgspec.json.decode(data))["error"]
        message = text if isinstance(text, str) else message
    except (msgspec.DecodeError, KeyError, TypeError):
        pass  # not one of the protocol's errors: the status has to do
    if status in _TRANSIENT:
        return TransientError(message)
    if status == 404:
        return NotFoundError(message)
    if status == 409:
        return ConflictError(message)
    return InputError(message) if 400 <= status < 500 else DeviceError(message)
