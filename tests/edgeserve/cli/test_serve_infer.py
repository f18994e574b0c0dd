from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import urllib3

from edgeserve.contracts.documents import encode
from edgeserve.contracts.errors import DeviceError, InputError, NotFoundError, TrustError
from edgeserve.contracts.oci import GOLDEN_TYPE
from edgeserve.contracts.task import Task
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.contracts.variant import Precision, Selector, Tolerance, VariantContract
from edgeserve.golden import Golden
from edgeserve.release.build import ReleaseBuilder
from edgeserve_agent.serving.standalone import open_standalone

SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1, 4)),),
    outputs=(TensorSpec(name="y", datatype=Datatype.FP32, shape=(-1, 3)),),
)


def edgeserve(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgeserve", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


class Served:
    """`edgeserve serve` in the foreground of a process of its own."""

    def __init__(self, log: Path, *arguments: object) -> None:
        self._log = log
        with log.open("wb") as file:
            self.child = subprocess.Popen(
                [sys.executable, "-m", "edgeserve", "serve", *map(str, arguments), "--http", "127.0.0.1:0"],
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        end = time.monotonic() + 30
        while "Try:" not in self.said or not self.said.endswith("\n") or "  curl" not in self.said:
            assert self.child.poll() is None, self.said
            assert time.monotonic() < end, self.said
            time.sleep(0.02)

    @property
    def said(self) -> str:
        return self._log.read_text()

    @property
    def url(self) -> str:
        found = re.search(r"http://127\.0\.0\.1:\d+", self.said)
        assert found
        return found[0]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    served: list[Served] = []

    def start(*arguments: object) -> Served:
        served.append(Served(tmp_path / "served.log", *arguments))
        return served[-1]

    yield start
    for one in served:
        one.child.kill()
        one.child.wait()


@pytest.fixture
def null_model(tmp_path: Path) -> Path:
    path = tmp_path / "My Model.null.json"
    path.write_bytes(encode(SIGNATURE))
    return path


def release(tmp_path: Path, null_model: Path, *, architectures: tuple[str, ...] = (), shift: float = 0.0) -> Path:
    """A release of the null model; its golden outputs are wrong by `shift`."""
    contract = VariantContract(
        model="sums",
        target="null",
        precision=Precision.FP32,
        runtime="null",
        entry="m.null.json",
        signature=SIGNATURE,
        task=Task(),
        selector=Selector(architectures=architectures),
        tolerance=Tolerance(atol=0.01),
    )
    rows = np.arange(8, dtype=np.float32).reshape(2, 4)
    sums = np.repeat(rows.sum(axis=1, keepdims=True), 3, axis=1) + np.float32(shift)
    builder = ReleaseBuilder(name="sums", version="2.1", counter=1)
    builder.add_variant(contract, {"m.null.json": null_model})
    builder.add_evidence("golden.npz", GOLDEN_TYPE, Golden(inputs={"x": rows}, outputs={"y": sums}).dump())
    path = tmp_path / "release"
    builder.write(path)
    return path


def test_a_bare_model_is_served_until_ctrl_c_and_its_curl_example_works(serve, null_model: Path, tmp_path: Path):
    served = serve(null_model)
    assert "serving my-model 1 at" in served.said
    assert "unverified" in served.said
    _curl, url, _data, body = shlex.split(next(line for line in served.said.splitlines() if line.startswith("  curl")))
    answered = urllib3.request("POST", url, body=body.encode(), retries=False)
    assert (answered.status, answered.json()["outputs"][0]["data"]) == (200, [0.0] * 3)

    np.savez(tmp_path / "in.npz", x=np.ones((1, 4), np.float32), labels=np.array([1]))
    shown = edgeserve("infer", served.url, "my-model", "--input", tmp_path / "in.npz", "--output", tmp_path / "out.npz")
    assert shown.returncode == 0, shown.stderr
    assert "4, 4, 4" in shown.stdout
    assert np.load(tmp_path / "out.npz")["y"].tolist() == [[4.0] * 3]

    (tmp_path / "in.json").write_text('{"x": [[1, 2, 3, 4]]}')
    printed = edgeserve("infer", served.url, "my-model", "--input", tmp_path / "in.json", "--json", "--id", "r")
    document = json.loads(printed.stdout)
    assert document["outputs"] == {"y": [[10.0] * 3]}
    assert (document["model"], document["version"], document["id"]) == ("my-model", "1", "r")
    assert document["release"].startswith("sha256:")

    (tmp_path / "wrong.json").write_text('{"x": [[1, 2]]}')
    refused = edgeserve("infer", served.url, "my-model", "--input", tmp_path / "wrong.json")
    assert refused.returncode == 2
    assert "shape [1, 2]" in refused.stderr

    taken = edgeserve("serve", null_model, "--http", served.url.removeprefix("http://"))
    assert taken.returncode == 1
    assert "is in use" in taken.stderr

    served.child.send_signal(signal.SIGINT)
    assert served.child.wait(20) == 0


def test_a_release_is_verified_tried_on_its_golden_set_and_served(serve, null_model: Path, tmp_path: Path):
    served = serve(release(tmp_path, null_model), "--name", "other")
    assert "golden set reproduced" in served.said
    assert "serving other 2.1 at" in served.said
    assert "unverified" not in served.said
    served.child.send_signal(signal.SIGTERM)
    assert served.child.wait(20) == 0


def damage(path: Path) -> Path:
    blob = max((path / "blobs" / "sha256").iterdir(), key=lambda file: file.stat().st_size)
    data = blob.read_bytes()
    blob.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    return path


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        pytest.param(lambda tmp, _: tmp / "nothing", NotFoundError, "there is nothing at", id="nothing"),
        pytest.param(lambda tmp, _: written(tmp / "m.bin", b""), InputError, "not a kind of model", id="unknown kind"),
        pytest.param(lambda tmp, _: written(tmp / "m.onnx", b"junk"), InputError, "m.onnx", id="not a model"),
        pytest.param(
            lambda tmp, null: written(tmp / "_.null.json", null.read_bytes()), InputError, "model name", id="no name"
        ),
        pytest.param(lambda tmp, _: written(tmp / "r.tar", b"junk"), InputError, "r.tar", id="not a release"),
        pytest.param(lambda tmp, null: damage(release(tmp, null)), TrustError, "", id="flipped byte"),
        pytest.param(
            lambda tmp, null: release(tmp, null, architectures=("s390x",)), DeviceError, "s390x", id="other hardware"
        ),
        pytest.param(lambda tmp, null: release(tmp, null, shift=1.0), DeviceError, "golden set", id="wrong answers"),
    ],
)
def test_what_cannot_be_served_is_refused(null_model: Path, tmp_path: Path, make, error, says: str):
    with pytest.raises(error) as caught:
        open_standalone(make(tmp_path, null_model), name="", threads=1, scratch=tmp_path / "scratch")
    assert says in caught.value.message


def test_a_public_address_is_refused_before_anything_is_loaded(tmp_path: Path):
    ended = edgeserve("serve", tmp_path / "nothing.onnx", "--http", "0.0.0.0:0")
    assert ended.returncode == 2
    assert "--insecure-dev" in ended.stderr
