"""The embedded OCI registry: pull and push of the distribution specification 1.1 over a folder of blobs.

Served: API version check, blobs with Range, manifests by tag and digest, monolithic and chunked uploads with resume,
cross-repository mount. Not served: deletion, tag lists, referrers. Blobs are global: whoever may pull, may pull any
blob by digest, under any name.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Final

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from edgeserve.atomic import move, write_bytes
from edgeserve.contracts.documents import decode
from edgeserve.contracts.errors import (
    ConflictError,
    EdgeServeError,
    InputError,
    NotFoundError,
    TransientError,
)
from edgeserve.contracts.limits import MAX_BLOB_BYTES, MAX_INDEX_BYTES, MIB
from edgeserve.contracts.names import digest as checked_digest
from edgeserve.contracts.names import is_digest, model_name, version_name
from edgeserve.contracts.oci import INDEX_TYPE, MANIFEST_TYPE, Descriptor, Index, Manifest
from edgeserve.release.blobs import BlobFolder, digest_file, digest_of
from edgeserve_fleet.answers import UnauthorizedError, json_answer, read_body, status_of
from edgeserve_fleet.auth import Access, Endpoint
from edgeserve_fleet.uploads import Uploads, append, sync_file

_CONTENT_RANGE: Final = re.compile(r"(?:bytes )?([0-9]{1,19})-([0-9]{1,19})\Z")
_WRITE_BYTES: Final = MIB


class RegistryError(InputError):
    """An error with its code and status from the distribution specification, section "Error Codes"."""

    def __init__(self, status: int, code: str, message: str, *, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers or {}


class _Kind(msgspec.Struct, frozen=True, rename="camel"):
    media_type: str


class _Entry(msgspec.Struct, frozen=True):
    code: str
    message: str
    detail: str = ""


class _Errors(msgspec.Struct, frozen=True):
    errors: tuple[_Entry, ...]


_CODES: Final = {400: "UNSUPPORTED", 401: "UNAUTHORIZED", 403: "DENIED", 404: "NAME_UNKNOWN", 413: "SIZE_INVALID"}


def registry_problem(error: EdgeServeError) -> Response:
    """Answer an error in the form of the distribution specification."""
    if isinstance(error, RegistryError):
        answer = json_answer(_Errors((_Entry(error.code, error.message),)), error.status)
        answer.headers.update(error.headers)
        return answer
    status = 429 if isinstance(error, TransientError) else status_of(error)
    code = "TOOMANYREQUESTS" if status == HTTPStatus.TOO_MANY_REQUESTS else _CODES.get(status, "UNKNOWN")
    answer = json_answer(_Errors((_Entry(code, error.message, error.hint),)), status)
    if isinstance(error, UnauthorizedError):
        answer.headers["WWW-Authenticate"] = 'Basic realm="edgeserve"'
    return answer


class _Blob(FileResponse):
    chunk_size = 256 * 1024


class Registry:
    """The routes under `/v2/`.

    Args:
        blobs: Where blobs and manifests lie, by digest.
        tags: Folder of tag files, `NAME/TAG`, each holding a digest.
        uploads: Blobs on their way in.
    """

    def __init__(self, *, blobs: BlobFolder, tags: Path, uploads: Uploads) -> None:
        self._blobs = blobs
        self._tags = tags
        self._uploads = uploads

    def endpoints(self) -> list[Endpoint]:
        """All routes. GET answers HEAD too."""
        session = "/v2/{name}/blobs/uploads/{session}"
        return [
            Endpoint("GET", "/v2/", Access.PULL, self._version),
            Endpoint("POST", "/v2/{name}/blobs/uploads/", Access.PUSH, self._begin),
            Endpoint("GET", session, Access.PUSH, self._progress),
            Endpoint("PATCH", session, Access.PUSH, self._chunk),
            Endpoint("PUT", session, Access.PUSH, self._finish),
            Endpoint("DELETE", session, Access.PUSH, self._cancel),
            Endpoint("GET", "/v2/{name}/blobs/{digest}", Access.PULL, self._blob),
            Endpoint("GET", "/v2/{name}/manifests/{reference}", Access.PULL, self._manifest),
            Endpoint("PUT", "/v2/{name}/manifests/{reference}", Access.PUSH, self._put_manifest),
        ]

    # Pull ------------------------------------------------------------------------------------------

    async def _version(self, _request: Request) -> Response:
        return Response(
            b"{}", media_type="application/json", headers={"Docker-Distribution-API-Version": "registry/2.0"}
        )

    async def _blob(self, request: Request) -> Response:
        _name(request)
        digest = _digest(request.path_params["digest"])
        if not self._blobs.has(digest):
            raise RegistryError(404, "BLOB_UNKNOWN", f"blob {digest} is not here")
        return _Blob(
            self._blobs.path(digest),
            media_type="application/octet-stream",
            headers={
                "Docker-Content-Digest": digest,
                "ETag": f'"{digest}"',
                "Cache-Control": "private, max-age=31536000, immutable",
                "X-Content-Type-Options": "nosniff",
            },
        )

    async def _manifest(self, request: Request) -> Response:
        name = _name(request)
        reference = str(request.path_params["reference"])
        digest = await run_in_threadpool(self._resolve, name, reference)
        data, media_type = await run_in_threadpool(self._read_manifest, digest)
        headers = {"Docker-Content-Digest": digest, "ETag": f'"{digest}"', "X-Content-Type-Options": "nosniff"}
        return Response(data, media_type=media_type, headers=headers)

    def _resolve(self, name: str, reference: str) -> str:
        if is_digest(reference):
            return reference
        try:
            return checked_digest((self._tags / name / _tag(reference)).read_text(encoding="ascii").strip())
        except FileNotFoundError:
            raise RegistryError(404, "MANIFEST_UNKNOWN", f"{name}:{reference} is not here") from None

    def _read_manifest(self, digest: str) -> tuple[bytes, str]:
        try:
            data = self._blobs.read(digest, limit=MAX_INDEX_BYTES)
            return data, _parse_manifest(data)[0]
        except InputError:
            raise RegistryError(404, "MANIFEST_UNKNOWN", f"manifest {digest} is not here") from None

    # Push ------------------------------------------------------------------------------------------

    async def _begin(self, request: Request) -> Response:
        name = _name(request)
        mount, whole = request.query_params.get("mount"), request.query_params.get("digest")
        if mount and self._blobs.has(_digest(mount)):
            return _created(f"/v2/{name}/blobs/{mount}", mount)
        digest = _digest(whole) if whole else ""
        session = await run_in_threadpool(self._uploads.begin)
        if not digest:
            return _accepted(name, session, 0)
        try:
            return await self._complete(request, name, session, digest)
        except BaseException:  # the client was not told of the session, so it cannot go on with it
            with contextlib.suppress(NotFoundError, ConflictError):
                self._uploads.cancel(session)
            raise

    async def _progress(self, request: Request) -> Response:
        name, session = _name(request), _session(request)
        with _upload_errors():
            return _accepted(name, session, self._uploads.offset(session), HTTPStatus.NO_CONTENT)

    async def _chunk(self, request: Request) -> Response:
        name, session = _name(request), _session(request)
        return _accepted(name, session, await self._receive(request, name, session))

    async def _finish(self, request: Request) -> Response:
        whole = request.query_params.get("digest")
        if not whole:
            raise RegistryError(400, "DIGEST_INVALID", "the end of an upload needs ?digest=sha256:...")
        return await self._complete(request, _name(request), _session(request), _digest(whole))

    async def _cancel(self, request: Request) -> Response:
        _name(request)
        with _upload_errors():
            self._uploads.cancel(_session(request))
        return Response(status_code=HTTPStatus.NO_CONTENT)

    async def _complete(self, request: Request, name: str, session: str, digest: str) -> Response:
        await self._receive(request, name, session)
        await run_in_threadpool(self._keep_blob, session, digest)
        return _created(f"/v2/{name}/blobs/{digest}", digest)

    async def _receive(self, request: Request, name: str, session: str) -> int:
        """Append the body to a session and return its new length; what came before a broken connection is kept."""
        with _upload_errors(), self._uploads.claim(session) as path, path.open("ab") as file:
            _check_start(request, name, session, file.tell())
            _check_length(request, file.tell())
            pending = bytearray()
            try:
                async for data in request.stream():
                    pending += data
                    if len(pending) >= _WRITE_BYTES:
                        await run_in_threadpool(append, file, bytes(pending))
                        pending.clear()
            finally:
                if pending:
                    append(file, bytes(pending))
            return file.tell()

    def _keep_blob(self, session: str, digest: str) -> None:
        with _upload_errors(), self._uploads.claim(session) as path:
            try:
                found, _size = digest_file(path)
                if found != digest:
                    raise RegistryError(400, "DIGEST_INVALID", f"the bytes have digest {found}, not {digest}")
                destination = self._blobs.path(digest)
                destination.parent.mkdir(parents=True, exist_ok=True)
                sync_file(path)
                move(path, destination)
            finally:
                path.unlink(missing_ok=True)

    async def _put_manifest(self, request: Request) -> Response:
        name, reference = _name(request), str(request.path_params["reference"])
        if not is_digest(reference):
            _tag(reference)
        data = await read_body(request, MAX_INDEX_BYTES)
        digest = await run_in_threadpool(
            self._keep_manifest, name, reference, data, request.headers.get("content-type")
        )
        return _created(f"/v2/{name}/manifests/{digest}", digest)

    def _keep_manifest(self, name: str, reference: str, data: bytes, declared: str | None) -> str:
        digest = digest_of(data)
        if is_digest(reference) and reference != digest:
            raise RegistryError(400, "DIGEST_INVALID", f"the manifest has digest {digest}, not {reference}")
        try:
            media_type, parts = _parse_manifest(data)
        except InputError as error:
            raise RegistryError(400, "MANIFEST_INVALID", error.message) from error
        if declared and declared.partition(";")[0].strip() != media_type:
            raise RegistryError(400, "MANIFEST_INVALID", f"declared as {declared[:80]!r}, but it is {media_type}")
        for part in parts:
            if not self._blobs.has(part.digest, part.size):
                raise RegistryError(400, "MANIFEST_BLOB_UNKNOWN", f"blob {part.digest} of the manifest is not here")
        self._blobs.add(data)
        if not is_digest(reference):
            folder = self._tags / name
            folder.mkdir(parents=True, exist_ok=True)
            write_bytes(folder / reference, digest.encode())
        return digest


def _parse_manifest(data: bytes) -> tuple[str, tuple[Descriptor, ...]]:
    """Media type of an OCI index or manifest, and what it points to."""
    try:
        kind = msgspec.json.decode(data, type=_Kind).media_type
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"not an OCI manifest: {error}") from error
    if kind == INDEX_TYPE:
        return kind, decode(data, Index, what="image index", limit=MAX_INDEX_BYTES).manifests
    if kind == MANIFEST_TYPE:
        manifest = decode(data, Manifest, what="image manifest", limit=MAX_INDEX_BYTES)
        return kind, (manifest.config, *manifest.layers)
    raise InputError(f"manifests of type {kind[:80]!r} are not stored here: only OCI indexes and manifests")


def _check_start(request: Request, name: str, session: str, offset: int) -> None:
    """A chunk that declares its place must start where the upload ends."""
    declared = request.headers.get("content-range")
    if declared is None:
        return
    match = _CONTENT_RANGE.match(declared)
    if not match:
        raise RegistryError(400, "BLOB_UPLOAD_INVALID", f"Content-Range {declared[:60]!r} is not START-END")
    if int(match[1]) != offset:
        headers = dict(_accepted(name, session, offset).headers)
        headers.pop("content-length")
        raise RegistryError(416, "BLOB_UPLOAD_INVALID", f"the upload continues at byte {offset}", headers=headers)


def _check_length(request: Request, offset: int) -> None:
    """Refuse a body from its declared length, before it is read."""
    declared = request.headers.get("content-length", "0")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) + offset > MAX_BLOB_BYTES:
        raise RegistryError(413, "SIZE_INVALID", f"a blob has at most {MAX_BLOB_BYTES} bytes")


@contextlib.contextmanager
def _upload_errors() -> Iterator[None]:
    try:
        yield
    except NotFoundError as error:
        raise RegistryError(404, "BLOB_UPLOAD_UNKNOWN", error.message) from error
    except ConflictError as error:
        raise RegistryError(409, "BLOB_UPLOAD_INVALID", error.message) from error
    except RegistryError:
        raise
    except InputError as error:
        raise RegistryError(413, "SIZE_INVALID", error.message) from error


def _accepted(name: str, session: str, offset: int, status: int = HTTPStatus.ACCEPTED) -> Response:
    return Response(
        status_code=status,
        headers={
            "Location": f"/v2/{name}/blobs/uploads/{session}",
            "Range": f"0-{max(offset - 1, 0)}",
            "Docker-Upload-UUID": session,
        },
    )


def _created(location: str, digest: str) -> Response:
    return Response(status_code=HTTPStatus.CREATED, headers={"Location": location, "Docker-Content-Digest": digest})


def _session(request: Request) -> str:
    return str(request.path_params["session"])


def _name(request: Request) -> str:
    try:
        return model_name(request.path_params["name"])
    except InputError as error:
        raise RegistryError(400, "NAME_INVALID", error.message) from error


def _tag(text: str) -> str:
    try:
        return version_name(text)
    except InputError as error:
        raise RegistryError(400, "MANIFEST_INVALID", error.message) from error


def _digest(text: str) -> str:
    try:
        return checked_digest(text)
    except InputError as error:
        raise RegistryError(400, "DIGEST_INVALID", error.message) from error
