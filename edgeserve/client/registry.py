"""Push a release to an OCI registry (distribution specification 1.1): the fleet manager's own, or any other."""

from __future__ import annotations

import time
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Final

import urllib3

from edgeserve.client.fleet import failure, reason
from edgeserve.contracts.errors import EdgeServeError, InputError, TransientError
from edgeserve.contracts.limits import MAX_INDEX_BYTES, MIB
from edgeserve.contracts.names import model_name, version_name
from edgeserve.contracts.oci import INDEX_TYPE, MANIFEST_TYPE, Descriptor
from edgeserve.release.layout import Release

CHUNK_BYTES: Final = 8 * MIB
"""One PATCH of an upload; registries in the cloud want at least 5 MiB."""
_ATTEMPTS: Final = 5
"""Consecutive failures without a new byte before an upload gives up."""
_FIRST_PAUSE_S: Final = 0.1
_TIMEOUT: Final = urllib3.Timeout(connect=5.0, read=300.0)
_MANIFESTS: Final = (INDEX_TYPE, MANIFEST_TYPE)

Progress = Callable[[int, int], None]
"""Called with the bytes that are there and the bytes of the whole release."""


class RegistryClient:
    """One repository of a registry.

    Args:
        url: Base URL of the registry, such as `http://127.0.0.1:8080`.
        repository: Name of the repository: for releases, the model's name.
        token: Sent as a Bearer token, to this registry only; empty = none.
        chunk_bytes: Bytes sent by one request of an upload.
    """

    def __init__(self, url: str, repository: str, *, token: str = "", chunk_bytes: int = CHUNK_BYTES) -> None:
        self._base = f"{url.rstrip('/')}/v2/{model_name(repository)}"
        self._authorization = {"Authorization": f"Bearer {token}"} if token else {}
        self._chunk_bytes = chunk_bytes
        self._pool = urllib3.PoolManager(timeout=_TIMEOUT, retries=False)

    def push(self, release: Release, *, tag: str = "", progress: Progress | None = None) -> int:
        """Push every blob that is not there yet, then the manifests, the index last, and tag it.

        Args:
            release: What to push.
            tag: Default: its version.
            progress: Told how far it is.

        Returns:
            Bytes that were sent; the rest was there.

        Raises:
            InputError, TrustError: The registry refused.
            TransientError: It cannot be reached.
        """
        tag = version_name(tag or release.identity.version)
        descriptors = release.blob_descriptors()
        total = sum(descriptor.size for descriptor in descriptors)
        done = sent = 0
        for descriptor in descriptors:
            if descriptor.media_type in _MANIFESTS:
                self._put_manifest(release, descriptor, descriptor.digest)
                sent += descriptor.size
            elif not self.has_blob(descriptor):
                for arrived in self._upload(release, descriptor):
                    if progress:
                        progress(done + arrived, total)
                sent += descriptor.size
            done += descriptor.size
            if progress:
                progress(done, total)
        root = next(descriptor for descriptor in descriptors if descriptor.digest == release.digest)
        self._put_manifest(release, root, tag)
        return sent

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Tell whether the registry has a blob of this digest and length."""
        answer = self._request("HEAD", f"{self._base}/blobs/{descriptor.digest}")
        if answer.status not in (200, 404):
            raise self._failure(answer, "asking for a blob")
        return answer.status == 200 and answer.headers.get("Content-Length") in (None, str(descriptor.size))

    def _upload(self, release: Release, descriptor: Descriptor) -> Iterator[int]:
        """Send one blob in chunks, going on where the registry is after a broken connection; yields what arrived."""
        location, offset, failures = self._begin(), 0, 0
        with release.open_blob(descriptor.digest) as blob:
            while True:
                blob.seek(offset)
                chunk = blob.read(min(self._chunk_bytes, descriptor.size - offset))
                if len(chunk) < min(self._chunk_bytes, descriptor.size - offset):
                    raise InputError(f"blob {descriptor.digest} is shorter than declared", hint="verify the release")
                end = offset + len(chunk)
                try:
                    if self._send(location, descriptor, chunk, offset):
                        return
                    offset, failures = end, 0
                    yield offset
                except TransientError:
                    failures += 1
                    if failures >= _ATTEMPTS:
                        raise
                    time.sleep(_FIRST_PAUSE_S * 2**failures)
                    if self.has_blob(descriptor):
                        return
                    found = self._offset(location)
                    if found is None or found > descriptor.size:
                        location, found = self._begin(), 0
                    offset = found

    def _begin(self) -> str:
        answer = self._request("POST", f"{self._base}/blobs/uploads/", body=b"")
        if answer.status != 202:
            raise self._failure(answer, "starting an upload")
        return self._location(answer)

    def _send(self, location: str, descriptor: Descriptor, chunk: bytes, offset: int) -> bool:
        """Send one chunk; True when it was the last and the registry has the blob."""
        last = offset + len(chunk) == descriptor.size
        headers = {"Content-Type": "application/octet-stream"}
        if chunk:
            headers["Content-Range"] = f"{offset}-{offset + len(chunk) - 1}"
        url = location
        if last:
            url += ("&" if "?" in location else "?") + urllib.parse.urlencode({"digest": descriptor.digest})
        answer = self._request("PUT" if last else "PATCH", url, body=chunk, headers=headers)
        if answer.status == 416:
            raise TransientError("the registry is at another place of the upload")
        if answer.status != (201 if last else 202):
            raise self._failure(answer, f"sending blob {descriptor.digest}")
        return last

    def _offset(self, location: str) -> int | None:
        """Bytes of an upload that the registry has; None when it does not know the upload."""
        answer = self._request("GET", location)
        if answer.status != 204:
            return None
        end = answer.headers.get("Range", "").rpartition("-")[2]
        # "0-0" is what registries say of an empty upload, too: sending the first byte again is refused, and starts over
        return int(end) + 1 if end.isascii() and end.isdigit() and end != "0" else 0

    def _put_manifest(self, release: Release, descriptor: Descriptor, reference: str) -> None:
        data = release.blobs.read(descriptor.digest, limit=MAX_INDEX_BYTES)
        headers = {"Content-Type": descriptor.media_type}
        url = f"{self._base}/manifests/{reference}"
        answer = self._request("PUT", url, body=data, headers=headers)
        if answer.status != 201:
            raise self._failure(answer, f"sending manifest {reference}")

    def _location(self, answer: urllib3.BaseHTTPResponse) -> str:
        location = answer.headers.get("Location", "")
        if not location:
            raise TransientError(f"the registry at {self._base} did not say where the upload goes")
        return urllib.parse.urljoin(f"{self._base}/blobs/uploads/", location)

    def _request(
        self, method: str, url: str, *, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> urllib3.BaseHTTPResponse:
        same = urllib.parse.urlsplit(url)[:2] == urllib.parse.urlsplit(self._base)[:2]
        sent = {**(self._authorization if same else {}), **(headers or {})}
        try:
            return self._pool.request(method, url, body=body, headers=sent, redirect=False)
        except urllib3.exceptions.HTTPError as error:
            raise TransientError(
                f"cannot reach the registry at {self._base}: {reason(error)}", hint="try again: what arrived is kept"
            ) from error

    def _failure(self, answer: urllib3.BaseHTTPResponse, what: str) -> EdgeServeError:
        return failure(answer.status, answer.data, what=f"{self._base}: {what}")
