"""Pushing a release: to the manager's registry, and through connections that break."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import urllib.parse
from collections.abc import Iterator

import pytest
import urllib3

from edgeserve.client.registry import RegistryClient
from edgeserve.contracts.errors import InputError, TransientError, TrustError


class Cutter:
    """A proxy that cuts connections: the n-th one after the bytes that the plan says, None = never."""

    def __init__(self, target: str, plan: Iterator[int | None]) -> None:
        address = urllib.parse.urlsplit(target)
        self._target = (address.hostname, address.port)
        self._plan = plan
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._ends: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def _accept(self) -> None:
        pumps = []
        while True:
            try:
                client, _address = self._listener.accept()
            except OSError:
                break
            server = socket.create_connection(self._target)
            self._ends += [client, server]
            limit = next(self._plan)
            for source, sink, most in ((client, server, limit), (server, client, None)):
                pump = threading.Thread(target=self._pump, args=(source, sink, most))
                pump.start()
                pumps.append(pump)
        for pump in pumps:
            pump.join()
        for end in self._ends:
            end.close()

    def _pump(self, source: socket.socket, sink: socket.socket, most: int | None) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                passed += len(data)
                sink.sendall(data)
                if most is not None and passed > most:
                    break
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def pull(fleet, name: str, digest: str) -> bytes:
    headers = {"Authorization": f"Bearer {fleet.token}"}
    answer = urllib3.request("GET", f"{fleet.url}/v2/{name}/blobs/{digest}", headers=headers)
    assert answer.status == 200
    return answer.data


def assert_whole(fleet, release) -> None:
    for descriptor in release.blob_descriptors():
        data = pull(fleet, release.identity.name, descriptor.digest)
        assert data == release.blobs.read(descriptor.digest, limit=1 << 20)


def test_a_release_is_there_whole_after_a_push(fleet_process, make_release):
    weights = b"only in this release" * 1000
    release = make_release("push-1", weights=weights)
    seen = []
    client = RegistryClient(fleet_process.url, "push-1", token=fleet_process.token)
    sent = client.push(release, progress=lambda done, total: seen.append((done, total)))
    size = sum(descriptor.size for descriptor in release.blob_descriptors())
    assert len(weights) <= sent <= size  # small documents may be there already
    assert seen[-1] == (size, size)
    assert [done for done, _total in seen] == sorted(done for done, _total in seen)
    assert_whole(fleet_process, release)
    headers = {"Authorization": f"Bearer {fleet_process.token}"}
    tagged = urllib3.request("HEAD", f"{fleet_process.url}/v2/push-1/manifests/v1", headers=headers)
    assert tagged.headers["Docker-Content-Digest"] == release.digest


def test_what_is_there_is_not_sent_again(fleet_process, make_release):
    client = RegistryClient(fleet_process.url, "push-2", token=fleet_process.token)
    first = client.push(make_release("push-2", "v1", weights=b"the same" * 10_000))
    second = client.push(make_release("push-2", "v2", counter=2, weights=b"the same" * 10_000))
    assert second < first - 70_000


def test_a_large_file_goes_in_chunks(fleet_process, make_release):
    release = make_release("push-3", weights=bytes(range(256)) * 1000)
    client = RegistryClient(fleet_process.url, "push-3", token=fleet_process.token, chunk_bytes=50_000)
    seen = []
    client.push(release, progress=lambda done, _total: seen.append(done))
    assert len([done for done in seen if done % 50_000 == 0]) >= 5
    assert_whole(fleet_process, release)


@pytest.mark.parametrize("cut", [0, 1_500, 60_000, 130_000], ids=lambda cut: f"after {cut} bytes")
def test_a_push_survives_connections_that_break(fleet_process, make_release, cut):
    release = make_release(f"push-cut-{cut}", weights=bytes(range(256)) * 1000 + str(cut).encode())
    plan = itertools.chain([None, cut, None, cut], itertools.repeat(None))
    proxy = Cutter(fleet_process.url, plan)
    try:
        client = RegistryClient(proxy.url, release.identity.name, token=fleet_process.token, chunk_bytes=100_000)
        for _attempt in range(6):  # what is not an upload is not repeated by the client itself
            try:
                client.push(release)
                break
            except TransientError:
                continue
        else:
            pytest.fail("the release never arrived")
    finally:
        proxy.close()
    assert_whole(fleet_process, release)


def test_a_registry_that_is_away_is_a_transient_error(make_release):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(TransientError, match="cannot reach the registry"):
        RegistryClient(url, "away").push(make_release("away"))


def test_a_wrong_token_is_a_trust_error(fleet_process, make_release):
    with pytest.raises(TrustError, match="401 Unauthorized"):
        RegistryClient(fleet_process.url, "denied", token="wrong").push(make_release("denied"))


@pytest.mark.parametrize("name", ["../up", "A", "", "a/b", "x" * 65])
def test_a_repository_name_that_is_none_is_refused(name):
    with pytest.raises(InputError):
        RegistryClient("http://127.0.0.1:1", name)
