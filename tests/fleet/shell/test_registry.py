"""The embedded registry, over the wire, against the distribution specification 1.1."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import time
import urllib.parse
from collections.abc import Callable
from typing import Any

import pytest

from edgeserve.contracts.limits import MAX_BLOB_BYTES, MAX_INDEX_BYTES
from edgeserve.contracts.oci import INDEX_TYPE, MANIFEST_TYPE

EMPTY = "application/vnd.oci.empty.v1+json"


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def push_blob(http: Any, data: bytes, name: str = "digits") -> str:
    digest = digest_of(data)
    location = http("POST", f"/v2/{name}/blobs/uploads/", body=b"").headers["Location"]
    assert http("PUT", f"{location}?digest={digest}", body=data).status == 201
    return digest


def error_code(answer: Any) -> str:
    return str(json.loads(answer.data)["errors"][0]["code"])


def manifest_of(config: bytes, *layers: bytes) -> bytes:
    def descriptor(data: bytes, kind: str) -> dict[str, Any]:
        return {"mediaType": kind, "digest": digest_of(data), "size": len(data)}

    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": descriptor(config, EMPTY),
            "layers": [descriptor(layer, "application/octet-stream") for layer in layers],
        }
    ).encode()


# Pull ----------------------------------------------------------------------------------------------


def test_a_pushed_blob_comes_back_whole_with_its_digest(http):
    data = b"model bytes" * 50_000
    digest = push_blob(http, data)
    answer = http("GET", f"/v2/digits/blobs/{digest}")
    assert answer.status == 200
    assert answer.data == data
    assert answer.headers["Docker-Content-Digest"] == digest
    assert answer.headers["ETag"] == f'"{digest}"'
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert answer.headers["Content-Length"] == str(len(data))


def test_head_tells_the_length_and_sends_nothing(http):
    digest = push_blob(http, b"head me")
    answer = http("HEAD", f"/v2/digits/blobs/{digest}")
    assert (answer.status, answer.headers["Content-Length"], answer.data) == (200, "7", b"")


@pytest.mark.parametrize(
    ("asked", "status", "content", "content_range"),
    [
        pytest.param("bytes=0-3", 206, b"0123", "bytes 0-3/10", id="head"),
        pytest.param("bytes=4-", 206, b"456789", "bytes 4-9/10", id="resume"),
        pytest.param("bytes=9-", 206, b"9", "bytes 9-9/10", id="last byte"),
        pytest.param("bytes=-3", 206, b"789", "bytes 7-9/10", id="suffix"),
        pytest.param("bytes=5-400", 206, b"56789", "bytes 5-9/10", id="end past the blob"),
        pytest.param("bytes=10-", 416, None, "bytes */10", id="already whole"),
        pytest.param("bytes=999-", 416, None, "bytes */10", id="beyond"),
    ],
)
def test_a_range_is_answered_exactly(http, asked, status, content, content_range):
    digest = push_blob(http, b"0123456789")
    answer = http("GET", f"/v2/digits/blobs/{digest}", headers={"Range": asked})
    assert answer.status == status
    assert answer.headers["Content-Range"] == content_range
    if content is not None:
        assert answer.data == content


def test_a_download_in_pieces_is_the_blob(http):
    data = bytes(range(256)) * 4000
    digest = push_blob(http, data)
    pieces = []
    for start in range(0, len(data), 300_000):
        headers = {"Range": f"bytes={start}-{start + 299_999}", "If-Range": f'"{digest}"'}
        pieces.append(http("GET", f"/v2/digits/blobs/{digest}", headers=headers).data)
    assert b"".join(pieces) == data


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        pytest.param(f"/v2/digits/blobs/sha256:{'0' * 64}", 404, "BLOB_UNKNOWN", id="unknown blob"),
        pytest.param("/v2/digits/blobs/sha256:abc", 400, "DIGEST_INVALID", id="short digest"),
        pytest.param("/v2/digits/blobs/md5:d41d8cd98f00b204e9800998ecf8427e", 400, "DIGEST_INVALID", id="other hash"),
        pytest.param(f"/v2/digits/blobs/sha256:{'A' * 64}", 400, "DIGEST_INVALID", id="upper case"),
        pytest.param("/v2/digits/blobs/..%2f..%2foperator.token", 404, "NAME_UNKNOWN", id="climbing digest"),
        pytest.param("/v2/digits/blobs/..", 400, "DIGEST_INVALID", id="dots"),
        pytest.param(f"/v2/..%2f../blobs/sha256:{'0' * 64}", 404, "NAME_UNKNOWN", id="climbing name"),
        pytest.param(f"/v2/Digits/blobs/sha256:{'0' * 64}", 400, "NAME_INVALID", id="upper-case name"),
        pytest.param(f"/v2/%3Cb%3E/blobs/sha256:{'0' * 64}", 400, "NAME_INVALID", id="markup in the name"),
        pytest.param("/v2/digits/manifests/nope", 404, "MANIFEST_UNKNOWN", id="unknown tag"),
        pytest.param(f"/v2/digits/manifests/sha256:{'0' * 64}", 404, "MANIFEST_UNKNOWN", id="unknown manifest"),
        pytest.param("/v2/digits/manifests/..%2f..%2foperator.token", 404, "NAME_UNKNOWN", id="climbing tag"),
        pytest.param("/v2/digits/manifests/.hidden", 400, "MANIFEST_INVALID", id="hidden tag"),
        pytest.param(f"/v2/digits/blobs/uploads/{'0' * 32}", 404, "BLOB_UPLOAD_UNKNOWN", id="unknown upload"),
        pytest.param("/v2/digits/blobs/uploads/..", 404, "BLOB_UPLOAD_UNKNOWN", id="climbing upload"),
        pytest.param("/v2/digits/tags/list", 404, "NAME_UNKNOWN", id="not served"),
    ],
)
def test_what_is_not_there_is_refused_in_the_form_of_the_specification(http, path, status, code):
    # a client that normalises paths would hide the tricks, so this one does not
    answer = raw_get(http, path)
    assert (answer[0], json.loads(answer[1])["errors"][0]["code"]) == (status, code)


def raw_get(http: Any, path: str) -> tuple[int, bytes]:
    address = urllib.parse.urlsplit(http.url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {address.netloc}\r\nConnection: close\r\n"
            f"Authorization: Bearer {http.manager.operator_token}\r\n\r\n".encode()
        )
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), body


# Push ----------------------------------------------------------------------------------------------


def test_a_chunked_upload_resumes_where_it_was(http):
    data = b"chunk" * 10_000
    location = http("POST", "/v2/digits/blobs/uploads/", body=b"").headers["Location"]
    first = http("PATCH", location, body=data[:20_000], headers={"Content-Range": "0-19999"})
    assert (first.status, first.headers["Range"]) == (202, "0-19999")
    lost = http("PATCH", location, body=data[:20_000], headers={"Content-Range": "0-19999"})
    assert (lost.status, lost.headers["Range"], error_code(lost)) == (416, "0-19999", "BLOB_UPLOAD_INVALID")
    asked = http("GET", location)
    assert (asked.status, asked.headers["Range"]) == (204, "0-19999")
    digest = digest_of(data)
    done = http("PUT", f"{location}?digest={digest}", body=data[20_000:], headers={"Content-Range": "20000-49999"})
    assert (done.status, done.headers["Docker-Content-Digest"]) == (201, digest)
    assert http("GET", f"/v2/digits/blobs/{digest}").data == data
    assert http("GET", location).status == 404


def test_bytes_that_came_before_a_broken_connection_are_kept(http):
    location = http("POST", "/v2/digits/blobs/uploads/", body=b"").headers["Location"]
    address = urllib.parse.urlsplit(http.url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(
            f"PATCH {location} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: 1000000\r\n"
            f"Authorization: Bearer {http.manager.operator_token}\r\n\r\n".encode()
            + b"x" * 1000
        )
    while (answer := http("GET", location)).headers["Range"] != "0-999":
        assert answer.status == 204  # until the server has seen the end of the connection
    assert http("PUT", f"{location}?digest={digest_of(b'x' * 1000)}", body=b"").status == 201


def test_a_single_post_stores_a_blob(http):
    data = b"in one request"
    answer = http("POST", f"/v2/digits/blobs/uploads/?digest={digest_of(data)}", body=data)
    assert answer.status == 201
    assert http("GET", f"/v2/digits/blobs/{digest_of(data)}").data == data


@pytest.mark.parametrize("digest", ["sha256:12", digest_of(b"something else")], ids=["no digest", "another digest"])
def test_a_single_post_that_fails_leaves_nothing_behind(http, manager, digest):
    before = uploads_of(manager)
    answer = http("POST", f"/v2/digits/blobs/uploads/?digest={digest}", body=b"one post")
    assert (answer.status, error_code(answer)) == (400, "DIGEST_INVALID")
    assert uploads_of(manager) == before


def test_a_client_that_leaves_in_the_middle_of_a_post_leaves_nothing_behind_and_is_no_failure(http, manager, caplog):
    before = uploads_of(manager)
    with socket.create_connection(("127.0.0.1", urllib.parse.urlsplit(http.url).port)) as client:
        client.sendall(
            f"POST /v2/digits/blobs/uploads/?digest={digest_of(b'x' * 100)} HTTP/1.1\r\nHost: localhost\r\n"
            f"Authorization: Bearer {manager.operator_token}\r\nContent-Length: 100\r\n\r\nhalf".encode()
        )
        wait_until(lambda: uploads_of(manager) != before)
    wait_until(lambda: uploads_of(manager) == before)
    assert http("GET", "/v2/").status == 200
    assert "Traceback" not in caplog.text
    assert "failed" not in caplog.text


def uploads_of(manager: Any) -> set[str]:
    return {path.name for path in (manager.state.path / "blobs" / "uploads").iterdir()}


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_blob_of_another_repository_is_mounted(http):
    digest = push_blob(http, b"shared between models", name="first")
    answer = http("POST", f"/v2/second/blobs/uploads/?mount={digest}&from=first", body=b"")
    assert (answer.status, answer.headers["Location"]) == (201, f"/v2/second/blobs/{digest}")
    unknown = http("POST", f"/v2/second/blobs/uploads/?mount={digest_of(b'unknown')}&from=first", body=b"")
    assert unknown.status == 202
    http("DELETE", unknown.headers["Location"])


def test_an_empty_blob_is_a_blob(http):
    assert http("GET", f"/v2/digits/blobs/{push_blob(http, b'')}").status == 200


def test_bytes_that_are_not_the_digest_are_refused_and_forgotten(http, manager):
    uploads = manager.state.path / "blobs" / "uploads"
    before = set(uploads.iterdir())
    location = http("POST", "/v2/digits/blobs/uploads/", body=b"").headers["Location"]
    wrong = digest_of(b"what was promised")
    answer = http("PUT", f"{location}?digest={wrong}", body=b"what was sent")
    assert (answer.status, error_code(answer)) == (400, "DIGEST_INVALID")
    assert http("HEAD", f"/v2/digits/blobs/{wrong}").status == 404
    assert http("HEAD", f"/v2/digits/blobs/{digest_of(b'what was sent')}").status == 404
    assert http("GET", location).status == 404
    assert set(uploads.iterdir()) == before


def test_a_cancelled_upload_is_gone(http):
    location = http("POST", "/v2/digits/blobs/uploads/", body=b"").headers["Location"]
    assert http("DELETE", location).status == 204
    assert http("PATCH", location, body=b"late").status == 404


def test_a_blob_beyond_the_limit_is_refused_before_it_is_read(http):
    location = http("POST", "/v2/digits/blobs/uploads/", body=b"").headers["Location"]
    address = urllib.parse.urlsplit(http.url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(
            f"PATCH {location} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: {MAX_BLOB_BYTES + 1}\r\n"
            f"Authorization: Bearer {http.manager.operator_token}\r\n\r\n".encode()
        )
        assert connection.recv(1024).split(b" ")[1] == b"413"
    http("DELETE", location)


@pytest.mark.parametrize("declared", ["20-", "a-b", "bytes", "-5", "0-1-2"])
def test_a_content_range_that_is_none_is_refused(http, declared):
    location = http("POST", "/v2/digits/blobs/uploads/", body=b"").headers["Location"]
    answer = http("PATCH", location, body=b"data", headers={"Content-Range": declared})
    assert (answer.status, error_code(answer)) == (400, "BLOB_UPLOAD_INVALID")
    http("DELETE", location)


# Manifests -----------------------------------------------------------------------------------------


def test_a_manifest_is_stored_by_digest_and_tag_and_is_also_a_blob(http):
    push_blob(http, b"{}")
    push_blob(http, b"layer")
    data = manifest_of(b"{}", b"layer")
    digest = digest_of(data)
    answer = http("PUT", "/v2/digits/manifests/v1", body=data, headers={"Content-Type": MANIFEST_TYPE})
    assert (answer.status, answer.headers["Docker-Content-Digest"]) == (201, digest)
    for reference in ("v1", digest):
        got = http("GET", f"/v2/digits/manifests/{reference}")
        assert (got.status, got.data, got.headers["Content-Type"]) == (200, data, MANIFEST_TYPE)
        assert http("HEAD", f"/v2/digits/manifests/{reference}").headers["Content-Length"] == str(len(data))
    assert http("GET", f"/v2/digits/blobs/{digest}").data == data
    assert http("GET", "/v2/other/manifests/v1").status == 404


def test_a_blob_that_is_no_manifest_is_not_served_as_one(http):
    digest = push_blob(http, b"just bytes")
    assert http("GET", f"/v2/digits/manifests/{digest}").status == 404


@pytest.mark.parametrize(
    ("data", "reference", "code"),
    [
        pytest.param(b"not json", "v9", "MANIFEST_INVALID", id="not JSON"),
        pytest.param(b"[" * 100_000, "v9", "MANIFEST_INVALID", id="deeply nested"),
        pytest.param(b'{"mediaType": "\xff"}', "v9", "MANIFEST_INVALID", id="not UTF-8"),
        pytest.param(b"{}", "v9", "MANIFEST_INVALID", id="no media type"),
        pytest.param(
            json.dumps({"mediaType": "application/vnd.docker.distribution.manifest.v2+json"}).encode(),
            "v9", "MANIFEST_INVALID", id="docker manifest",
        ),
        pytest.param(manifest_of(b"{}"), f"sha256:{'1' * 64}", "DIGEST_INVALID", id="other digest"),
        pytest.param(manifest_of(b"{}", b"never pushed"), "v9", "MANIFEST_BLOB_UNKNOWN", id="missing blob"),
        pytest.param(
            json.dumps({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [{"mediaType": MANIFEST_TYPE,
                        "digest": f"sha256:{'2' * 64}", "size": 10 << 30}]}).encode(),
            "v9", "MANIFEST_INVALID", id="10 GiB manifest",
        ),
        pytest.param(manifest_of(b"{}"), "../../v9", "NAME_UNKNOWN", id="climbing tag"),
        pytest.param(manifest_of(b"{}"), "a" * 65, "MANIFEST_INVALID", id="long tag"),
    ],
)  # fmt: skip
def test_a_manifest_that_is_none_is_refused(http, data, reference, code):
    push_blob(http, b"{}")
    path = f"/v2/digits/manifests/{urllib.parse.quote(reference, safe=':')}"
    answer = http("PUT", path, body=data)
    assert 400 <= answer.status < 500
    assert error_code(answer) == code


def test_a_manifest_beyond_the_limit_is_refused(http):
    answer = http("PUT", "/v2/digits/manifests/v9", body=b" " * (MAX_INDEX_BYTES + 1))
    assert (answer.status, error_code(answer)) == (413, "SIZE_INVALID")


# Clients -------------------------------------------------------------------------------------------


def test_a_client_without_token_is_told_how_to_log_in(http):
    answer = http("GET", "/v2/", token=None)
    assert (answer.status, error_code(answer)) == (401, "UNAUTHORIZED")
    assert answer.headers["WWW-Authenticate"].startswith("Basic ")


def test_a_token_as_basic_password_is_good_for_the_registry_alone(http):
    secret = base64.b64encode(f"anyone:{http.manager.operator_token}".encode()).decode()
    headers = {"Authorization": f"Basic {secret}"}
    assert http("GET", "/v2/", token=None, headers=headers).status == 200
    assert http("GET", "/v1/devices", token=None, headers=headers).status == 401
