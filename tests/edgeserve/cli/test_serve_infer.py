from __future__ import annotations

import io
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
from PIL import Image

from edgeserve.cli.infer_files import send_all, shown
from edgeserve.client.inference import FileResult
from edgeserve.contracts.documents import encode
from edgeserve.contracts.errors import DeviceError, InputError, NotFoundError, TransientError, TrustError
from edgeserve.contracts.oci import GOLDEN_TYPE
from edgeserve.contracts.task import ImageInput, Task
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


def picture(level: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (9, 5), (level, level, level)).save(file, "PNG")
    return file.getvalue()


def picture_release(tmp_path: Path) -> Path:
    """A release of a null model that takes pictures of 2x2 pixels: each class scores the sum of them, 0..255."""
    signature = Signature(
        inputs=(TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1, 3, 2, 2)),), outputs=SIGNATURE.outputs
    )
    task = Task(inputs=(ImageInput(size=(2, 2), scale=1 / 12),), labels=("cat", "dog", "owl"))
    contract = VariantContract(
        model="animals", target="null", precision=Precision.FP32, runtime="null", entry="m.null.json",
        signature=signature, task=task, selector=Selector(), tolerance=Tolerance(atol=0.01),
    )  # fmt: skip
    (tmp_path / "m.null.json").write_bytes(encode(signature))
    golden = Golden(inputs={"x": np.zeros((1, 3, 2, 2), np.float32)}, outputs={"y": np.zeros((1, 3), np.float32)})
    builder = ReleaseBuilder(name="animals", version="1", counter=1)
    builder.add_variant(contract, {"m.null.json": tmp_path / "m.null.json"})
    builder.add_evidence("golden.npz", GOLDEN_TYPE, golden.dump())
    builder.write(tmp_path / "animals")
    return tmp_path / "animals"


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


def test_pictures_are_sent_as_they_are_and_a_folder_goes_on_past_a_bad_one(serve, tmp_path: Path):
    served = serve(picture_release(tmp_path))
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    for name, data in (("b.png", picture(200)), ("a.JPG", picture(100)), ("sub/c.png", picture(0))):
        (folder / name).write_bytes(data)
    (folder / "notes.txt").write_text("not a picture, and not sent")

    # What the server says that one can try.
    curl = next(line for line in served.said.splitlines() if line.startswith("  curl"))
    assert "--data-binary @FILE.jpg" in curl
    assert "Content-Type: image/jpeg" in curl

    one = edgeserve("infer", served.url, "animals", "--input", folder / "b.png")
    assert one.returncode == 0, one.stderr
    assert "b.png" in one.stdout
    assert "\n b.png   cat 200.00, dog 200.00, owl 200.00" in one.stdout

    every = edgeserve("infer", served.url, "animals", "--input", folder, "--json", "--output", tmp_path / "out.json")
    assert every.returncode == 0, every.stderr
    document = json.loads(every.stdout)
    assert document == json.loads((tmp_path / "out.json").read_text())
    assert [entry["file"] for entry in document["files"]] == ["a.JPG", "b.png", "sub/c.png"]
    assert [round(entry["predictions"][0]["classes"][0]["score"]) for entry in document["files"]] == [100, 200, 0]
    assert (document["model"], document["version"], document["failed"]) == ("animals", "1", 0)

    (folder / "broken.png").write_bytes(picture(1)[:40])
    some = edgeserve("infer", served.url, "animals", "--input", folder)
    assert some.returncode == 1
    assert [line.split()[0] for line in some.stdout.splitlines() if "cat" in line] == ["a.JPG", "b.png", "sub/c.png"]
    assert "error: broken.png: " in some.stderr
    assert "3 of 4 files were answered" in some.stderr
    alone = edgeserve("infer", served.url, "animals", "--input", folder / "broken.png")
    assert alone.returncode == 2
    assert alone.stderr.startswith("error: ")


def test_an_id_given_with_a_picture_is_what_feedback_refers_to(serve, tmp_path: Path):
    served = serve(picture_release(tmp_path))
    (tmp_path / "p.png").write_bytes(picture(9))
    sent = edgeserve("infer", served.url, "animals", "--input", tmp_path / "p.png", "--id", "shelf 7", "--json")
    assert json.loads(sent.stdout)["files"][0]["id"] == "shelf 7"
    url = f"{served.url}/v2/models/animals/feedback"
    answered = urllib3.request("POST", url, json={"id": "shelf 7", "label": "cat"}, retries=False)
    assert answered.json() == {"counted": 1, "unknown": 0, "duplicate": 0}


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        pytest.param(["animals", "--input", "gone.png"], 2, "there is no file", id="no-file"),
        pytest.param(["animals", "--input", "."], 2, "no picture or WAV", id="empty-folder"),
        pytest.param(["plants", "--input", "p.png"], 2, "unknown model 'plants'", id="no-model"),
        pytest.param(["animals", "--input", "p.png", "--output", "o.npz"], 2, "not a .json", id="output"),
        pytest.param(["animals", "--input", ".", "--id", "x"], 2, "--id names one request", id="one-id-for-many"),
        pytest.param(["animals", "--input", "p.wav"], 2, "takes image files, not audio", id="sound-for-pictures"),
        pytest.param(["animals", "--input", "p.gif"], 2, "nor a picture", id="another-kind"),
    ],
)
def test_what_cannot_be_sent_is_refused(serve, tmp_path: Path, monkeypatch, arguments, code: int, says: str):
    served = serve(picture_release(tmp_path))
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    if "p.png" in arguments:
        (folder / "p.png").write_bytes(picture(1))
    (folder / "p.gif").write_bytes(b"GIF89a")
    if "p.wav" in arguments:
        (folder / "p.wav").write_bytes(b"RIFF\x00\x00\x00\x00WAVE")
    ended = edgeserve("infer", served.url, *arguments)
    assert ended.returncode == code, ended.stderr
    assert says in ended.stderr


@pytest.mark.parametrize(
    ("predictions", "words"),
    [
        ([{"classes": [{"label": "cat", "score": 0.987}, {"label": "dog", "score": None}]}], "cat 0.99, dog"),
        ([{"classes": []}], "no class"),
        ([{"boxes": []}], "0 boxes"),
        ([{"boxes": [{"label": "cat", "score": 0.5}]}], "1 box: cat 0.50"),
        ([{"boxes": [{"label": "cat", "score": 0.5}] * 4}], "4 boxes: cat 0.50, cat 0.50, cat 0.50, ..."),
        ([{"values": [1.5, None]}], "values [1.5,null]"),
        ([{"vector": [0.25] * 99}], "vector [" + "0.25," * 17 + "0.25..."),
        ([{"values": [1]}, {"values": [2]}], "2 steps, the last: values [2]"),
        ([], "nothing"),
    ],
)
def test_answers_are_shown_in_a_few_words(predictions, words: str):
    assert shown(predictions) == words


@pytest.mark.parametrize(
    ("alive", "tried", "not_sent"), [(True, ["a", "b", "c"], 0), (False, ["a", "b"], 1)], ids=["busy", "gone"]
)
def test_a_server_that_is_gone_ends_a_folder_and_one_that_is_busy_does_not(alive: bool, tried, not_sent: int):
    seen = []

    def send(path: Path) -> FileResult:
        seen.append(path.name)
        if path.name == "b":
            raise TransientError("no answer")
        return FileResult(predictions=[], model_name="m", model_version="1", request_id="", release="")

    outcome = send_all([Path("f", name) for name in "abc"], Path("f"), send, lambda: alive)
    assert (seen, outcome.not_sent) == (tried, not_sent)
    assert [name for name, _ in outcome.errors] == ["b"]
    assert [name for name, _ in outcome.answers] == [name for name in tried if name != "b"]


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
