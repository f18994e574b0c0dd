"""Downloads against a real HTTP server that misbehaves in one way at a time."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from edgeserve.contracts.errors import DeviceError, NotFoundError, TransientError, TrustError
from edgeserve.contracts.limits import DOWNLOAD_ATTEMPTS
from edgeserve.contracts.oci import MANIFEST_TYPE, Descriptor
from edgeserve.contracts.variant import VARIANT_FILE_TYPE
from edgeserve.release.blobs import BlobFolder
from edgeserve_agent.download import Downloader, StoppedError

DATA = bytes(range(256)) * 4096
DIGEST = "sha256:" + hashlib.sha256(DATA).hexdigest()
BLOB = Descriptor(media_type=VARIANT_FILE_TYPE, digest=DIGEST, size=len(DATA))


class Answering(BaseHTTPRequestHandler):
    """Answers by the script of the test: one function a request, the last one for ever."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer waits 40 ms for a delayed acknowledgement
    script: list[Callable[[Answering], None]]
    asked: list[tuple[str, str, str]]

    def do_GET(self) -> None:
        headers = self.headers
        self.asked.append((self.path, headers.get("Range", ""), headers.get("Authorization", "")))
        (self.script.pop(0) if len(self.script) > 1 else self.script[0])(self)

    @property
    def start(self) -> int:
        return int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))

    def answer(self, status: int, body: bytes = b"", *, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)
        if length is not None and length != len(body):
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name in http.server
        pass


def whole(handler: Answering) -> None:
    if handler.start:
        body = DATA[handler.start :]
        handler.answer(206, body, Content_Range=f"bytes {handler.start}-{len(DATA) - 1}/{len(DATA)}")
    else:
        handler.answer(200, DATA)


def ignores_ranges(handler: Answering) -> None:
    handler.answer(200, DATA)


def breaks_off(handler: Answering) -> None:
    body = DATA[handler.start :][:100_000]
    if handler.start:
        end = f"bytes {handler.start}-{len(DATA) - 1}/{len(DATA)}"
        handler.answer(206, body, length=len(DATA) - handler.start, Content_Range=end)
    else:
        handler.answer(200, body, length=len(DATA))


def breaks_off_and_ignores_ranges(handler: Answering) -> None:
    handler.answer(200, DATA[:100_000], length=len(DATA))


def sends_less(handler: Answering) -> None:
    if handler.start:
        handler.answer(416)
    else:
        handler.answer(200, DATA[:-1])


def sends_more(handler: Answering) -> None:
    handler.answer(200, DATA + b"more")


def sends_endlessly(handler: Answering) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.close_connection = True
    try:
        while True:
            handler.wfile.write(DATA)
    except OSError:
        return


def sends_garbage(handler: Answering) -> None:
    handler.answer(200, b"\0" * len(DATA))


def sends_another_range(handler: Answering) -> None:
    handler.answer(206, DATA, Content_Range=f"bytes 7-{len(DATA) + 6}/{len(DATA) + 7}")


def redirects_away(handler: Answering) -> None:
    handler.answer(307, Location="http://127.0.0.2:1/elsewhere")


def redirects_here(handler: Answering) -> None:
    handler.answer(307, Location="/there")


def status(code: int) -> Callable[[Answering], None]:
    return lambda handler: handler.answer(code)


@pytest.fixture
def server():
    started = []

    def start(*script: Callable[[Answering], None]):
        handler = type("Handler", (Answering,), {"script": list(script), "asked": []})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        started.append((server, thread))
        return f"http://127.0.0.1:{server.server_address[1]}", handler.asked

    yield start
    for server, thread in started:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def downloader(tmp_path):
    made = []

    def make(url: str, **changes: Any) -> Downloader:
        fields: dict[str, Any] = {
            "registry": url, "model": "digits", "token": "secret", "blobs": BlobFolder(tmp_path / "blobs"),
            "partial": tmp_path / "downloads", "stop": threading.Event(), "backoff_s": 0.001,
        }  # fmt: skip
        made.append(Downloader(**{**fields, **changes}))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize(
    "script",
    [
        (whole,),
        (breaks_off, whole),
        (breaks_off, breaks_off, breaks_off, whole),
        (breaks_off, ignores_ranges),
        (status(500), status(503), status(429), whole),
        (sends_garbage, whole),
        (redirects_here, whole),
    ],
    ids=lambda script: "-".join(getattr(one, "__name__", "x") for one in script),
)
def test_a_blob_arrives_whole_in_spite_of(server, downloader, tmp_path, script):
    url, asked = server(*script)
    downloader(url).fetch(BLOB)
    assert BlobFolder(tmp_path / "blobs").path(DIGEST).read_bytes() == DATA
    assert not list((tmp_path / "downloads").iterdir())
    assert {authorization for _, _, authorization in asked} == {"Bearer secret"}


@pytest.mark.parametrize(
    ("answer", "error", "requests"),
    [
        (status(401), DeviceError, 1),
        (status(403), DeviceError, 1),
        (status(404), NotFoundError, 1),
        (status(418), DeviceError, 1),
        (redirects_away, TrustError, 1),
        (redirects_here, TrustError, 4),
        (sends_more, TrustError, 2),
        (sends_endlessly, TrustError, 2),
        (sends_garbage, TrustError, 2),
        (sends_less, TrustError, 4),
        (status(500), TransientError, DOWNLOAD_ATTEMPTS),
        (breaks_off_and_ignores_ranges, TransientError, DOWNLOAD_ATTEMPTS),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_server_that_will_not_do_is_given_up(server, downloader, tmp_path, answer, error, requests):
    url, asked = server(answer)
    with pytest.raises(error):
        downloader(url).fetch(BLOB)
    assert len(asked) == requests
    assert not BlobFolder(tmp_path / "blobs").has(DIGEST)


def test_a_server_that_is_not_there_is_given_up(downloader):
    with pytest.raises(TransientError, match="no progress"):
        downloader("http://127.0.0.1:1").fetch(BLOB)


def test_a_download_goes_on_where_an_earlier_life_stopped(server, downloader, tmp_path):
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / DIGEST.removeprefix("sha256:")).write_bytes(DATA[:500_000])
    url, asked = server(whole)
    one = downloader(url)
    one.fetch(BLOB)
    assert [span for _, span, _ in asked] == ["bytes=500000-"]
    assert one.downloaded == len(DATA) - 500_000


@pytest.mark.parametrize(
    "partial", [b"wrong" * 1000, DATA + b"too long", DATA], ids=["other bytes", "too long", "complete"]
)
def test_a_partial_file_is_hashed_again_before_it_is_believed(server, downloader, tmp_path, partial):
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / DIGEST.removeprefix("sha256:")).write_bytes(partial)
    url, _asked = server(whole)
    downloader(url).fetch(BLOB)
    assert BlobFolder(tmp_path / "blobs").path(DIGEST).read_bytes() == DATA


def test_a_partial_file_that_is_longer_than_the_blob_is_fetched_anew_once(server, downloader, tmp_path):
    url, asked = server(whole)
    partial = tmp_path / "downloads" / DIGEST.removeprefix("sha256:")
    partial.parent.mkdir()
    partial.write_bytes(DATA + b"more")
    made = downloader(url)
    made.fetch(BLOB)
    assert (len(asked), made.downloaded) == (1, len(DATA))


def test_no_more_is_received_than_the_day_allows_whatever_the_server_sends(server, downloader):
    url, asked = server(sends_garbage, whole)
    one = downloader(url, allowance=len(DATA) + 10)
    with pytest.raises(DeviceError, match="today are used up"):
        one.fetch(BLOB)
    assert len(asked) == 2
    assert one.downloaded < 2 * len(DATA)


def test_a_range_that_was_not_asked_for_is_not_written(server, downloader, tmp_path):
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / DIGEST.removeprefix("sha256:")).write_bytes(DATA[:1000])
    url, _asked = server(sends_another_range, whole)
    downloader(url).fetch(BLOB)
    assert BlobFolder(tmp_path / "blobs").path(DIGEST).read_bytes() == DATA


def test_what_is_here_is_not_asked_for(server, downloader, tmp_path):
    BlobFolder(tmp_path / "blobs").add(DATA)
    url, asked = server(whole)
    downloader(url).fetch(BLOB)
    assert asked == []


def test_documents_come_from_the_manifests_of_the_registry(server, downloader):
    url, asked = server(whole)
    downloader(url).fetch(Descriptor(media_type=MANIFEST_TYPE, digest=DIGEST, size=len(DATA)))
    assert [path for path, _, _ in asked] == [f"/v2/digits/manifests/{DIGEST}"]


def test_a_stop_ends_the_wait_for_the_next_attempt(server, downloader, eventually):
    url, asked = server(status(500))
    stop = threading.Event()
    one = downloader(url, stop=stop, backoff_s=1e6)
    caught: list[Exception] = []

    def fetch() -> None:
        try:
            one.fetch(BLOB)
        except StoppedError as error:
            caught.append(error)

    thread = threading.Thread(target=fetch)
    thread.start()
    eventually(lambda: asked)
    stop.set()
    thread.join(10)
    assert caught


def test_too_little_room_is_found_before_the_download(server, downloader):
    url, asked = server(whole)
    with pytest.raises(DeviceError, match="must stay so"):
        downloader(url, min_free_bytes=1 << 60).fetch(BLOB)
    assert asked == []


def test_a_disk_that_fills_up_leaves_room_for_the_journal(server, tmp_path):
    """RLIMIT_FSIZE stands in for the end of the disk: the same error at the same place, EFBIG for ENOSPC."""
    url, _asked = server(whole)
    program = textwrap.dedent(f"""
        import resource, signal, sys, threading
        from pathlib import Path
        from edgeserve.contracts.errors import DeviceError
        from edgeserve.contracts.oci import Descriptor
        from edgeserve.release.blobs import BlobFolder
        from edgeserve_agent.download import Downloader
        from edgeserve_agent.journal import JournalFile
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
        folder = Path({str(tmp_path)!r})
        downloader = Downloader(registry={url!r}, model="digits", token="", blobs=BlobFolder(folder / "blobs"),
                                partial=folder / "downloads", stop=threading.Event(), backoff_s=0.001)
        try:
            downloader.fetch(Descriptor(media_type="x", digest={DIGEST!r}, size={len(DATA)}))
        except DeviceError as error:
            print(error.message)
        JournalFile(folder).begin()
    """)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert f"no room for {DIGEST}" in ended.stdout
    assert list((tmp_path / "downloads").iterdir()) == []
    assert (tmp_path / "journal.json").stat().st_size > 0
