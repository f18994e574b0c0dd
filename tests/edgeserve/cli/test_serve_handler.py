"""`edgeserve serve` and handlers: code beside a model runs only where someone on this machine says so."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import urllib3

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="handlers need Linux")

HANDLER = """
[[inputs]]
name = "x"
datatype = "FP32"
shape = [-1, 2]

[[outputs]]
name = "y"
datatype = "FP32"
shape = [-1, 2]
"""
CODE = "class Handler:\n    def run(self, inputs):\n        return {'y': inputs['x'] * 2}\n"
REQUEST = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.5, 2.0]}]}


def handler(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "handler.toml").write_text(HANDLER)
    (folder / "handler.py").write_text(CODE)
    return folder / "handler.toml"


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "edgeserve", "serve", *map(str, arguments), "--http", "127.0.0.1:0", "--json"]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "EDGESERVE_TRUST_HANDLERS"}


def test_a_handler_is_refused_without_the_flag(tmp_path: Path):
    path = handler(tmp_path / "doubled")
    ended = subprocess.run(command(path), capture_output=True, text=True, timeout=60, check=False, env=environment())
    assert ended.returncode == 3
    assert "--trust-handlers" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("repository", [False, True], ids=["a handler", "a folder of models"])
def test_with_the_flag_it_answers(tmp_path: Path, repository: bool):
    path = handler(tmp_path / "models" / "doubled" / "1" if repository else tmp_path / "doubled")
    served = path.parents[2] if repository else path
    child = subprocess.Popen(command(served, "--trust-handlers"), stdout=subprocess.PIPE, text=True, env=environment())
    try:
        assert child.stdout is not None
        url = json.loads("".join(iter(child.stdout.readline, "}\n")) + "}")["http"]
        end = time.monotonic() + 30
        while urllib3.request("GET", f"{url}/v2/models/doubled/ready", retries=False).status != 200:
            assert time.monotonic() < end
            time.sleep(0.05)
        answer = urllib3.request("POST", f"{url}/v2/models/doubled/infer", json=REQUEST, retries=False)
        assert answer.status == 200, answer.data
        assert answer.json()["outputs"][0]["data"] == [3.0, 4.0]
    finally:
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=30)
