import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

pytestmark = pytest.mark.system


def edgeserve(*arguments):
    command = [sys.executable, "-m", "edgeserve", "conformance", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


class _Tiny(BaseHTTPRequestHandler):
    """Has a model that adds nothing, and a health that is never true."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def do_GET(self):
        tensor = {"name": "x", "datatype": "FP32", "shape": [1]}
        known = {
            "/v2": {"name": "tiny", "version": "1", "extensions": []},
            "/v2/health/live": {"live": False},
            "/v2/models": {"models": ["m"]},
            "/v2/models/m": {"name": "m", "platform": "none", "inputs": [tensor], "outputs": [tensor]},
        }
        self._answer(200 if self.path in known else 404, known.get(self.path, {"error": "no such path"}))

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._answer(404, {"error": "no such path"})

    def _answer(self, status, document):
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *arguments):  # noqa: A002
        pass


@pytest.fixture
def tiny():
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Tiny)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_must_that_is_not_kept_is_exit_code_1_and_says_what_came(tiny):
    run = edgeserve("--url", tiny, "--only", "core.ready")
    assert run.returncode == 1, run.stderr
    assert "FAIL  MUST       core.ready: " in run.stdout
    assert "expected  status 200" in run.stdout
    assert "got       404" in run.stdout
    assert "1 MUST not kept (0 checked)" in run.stdout


def test_a_should_that_is_not_kept_is_exit_code_1_only_when_strict(tiny):
    assert edgeserve("--url", tiny, "--only", "core.live-body").returncode == 0
    assert edgeserve("--url", tiny, "--only", "core.live-body", "--strict").returncode == 1


def test_json_and_junit_have_the_outcomes(tiny, tmp_path):
    run = edgeserve(
        "--url", tiny, "--only", "core.live", "--only", "core.ready", "--json", "--junit", tmp_path / "j.xml"
    )
    assert run.returncode == 1
    report = json.loads(run.stdout)
    assert report["server"] == "tiny 1"
    assert {outcome["id"]: outcome["verdict"] for outcome in report["outcomes"]} == {
        "core.live": "PASS",
        "core.ready": "FAIL",
    }
    assert '<testcase classname="conformance.core" name="ready"' in (tmp_path / "j.xml").read_text()


def test_checks_are_listed_without_a_server():
    run = edgeserve("--list", "--only", "ids")
    assert run.returncode == 0
    assert "MUST       ids.echoed: The id of the request is the id of the answer" in run.stdout
    listed = json.loads(edgeserve("--list", "--only", "ids", "--json").stdout)
    assert {entry["area"] for entry in listed} == {"ids"}


def test_models_are_written(tmp_path):
    pytest.importorskip("onnx")
    run = edgeserve("--write-models", tmp_path / "models")
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "models" / "simple" / "1" / "model.onnx").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no --url was given"),
        (["--url", "localhost"], "is not the URL of a server"),
        (["--only", "nonsense"], "there is no area or check 'nonsense'"),
    ],
)
def test_the_users_mistakes_are_exit_code_2(arguments, words):
    run = edgeserve(*arguments)
    assert run.returncode == 2
    assert words in run.stderr
    assert "hint: " in run.stderr
    assert "Traceback" not in run.stderr


def test_a_server_that_is_not_there_is_exit_code_1_with_a_hint():
    run = edgeserve("--url", "http://127.0.0.1:9")
    assert run.returncode == 1
    assert "no connection to http://127.0.0.1:9" in run.stderr
