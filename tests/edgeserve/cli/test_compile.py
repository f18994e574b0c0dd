from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgeserve.cli.main import main
from edgeserve.release.layout import open_release
from tests.suites.models import conv_net, images, save


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a user who has a model and data."""
    save(conv_net(), tmp_path / "tiny.onnx")
    np.savez(tmp_path / "calibration.npz", image=images(64, seed=4))
    rows = images(200, seed=5)
    np.savez(tmp_path / "validation.npz", image=rows, labels=np.arange(200) % 10)
    monkeypatch.chdir(tmp_path)
    return tmp_path


DATA = ["--calibration", "calibration.npz", "--validation", "validation.npz"]


def run(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["compile", *arguments])
    text = capsys.readouterr()
    return int(ended.value.code or 0), text.out, text.err


def test_three_targets_in_one_go_and_the_home_folder_stays_empty(folder: Path) -> None:
    home = folder / "home"
    home.mkdir()
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("ORT_", "XDG_"))}
    arguments = ["tiny.onnx", "-t", "x86-cpu", "-t", "arm-cpu", "-t", "intel-npu", *DATA, "--max-accuracy-drop", "0.05"]
    arguments += ["--no-cache", "--labels", "a,b,c,d,e,f,g,h,i,j"]
    done = subprocess.run(
        [sys.executable, "-m", "edgeserve", "compile", *arguments],
        env=environment | {"HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert {line.partition(":")[0] for line in done.stderr.splitlines()} <= {"warning"}
    for target in ("x86-cpu", "arm-cpu", "intel-npu"):
        assert f"{target}: " in done.stdout
    assert "(host)" in done.stdout
    release = open_release(folder / "tiny-1")
    assert release.digest in done.stdout
    assert {variant.contract.target for variant in release.variants} == {"x86-cpu", "arm-cpu", "intel-npu"}
    assert list(home.rglob("*")) == []


def test_json_is_the_whole_of_stdout(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(
        "tiny.onnx", "-t", "arm-cpu", *DATA, "--max-accuracy-drop", "0.05", "--name", "digits", "--version", "v7",
        "--labels", "a,b,c,d,e,f,g,h,i, j", "-o", "out/r.tar", "--json", capsys=capsys,
    )  # fmt: skip
    assert (code, err) == (0, "")
    document = json.loads(out)
    release = open_release(folder / "out" / "r.tar")
    assert document["release"] == {"path": "out/r.tar", "digest": release.digest}
    assert (release.identity.name, release.identity.version, release.identity.counter) == ("digits", "v7", 7)
    assert release.variants[0].contract.task.labels == tuple("abcdefghij")
    assert document["report"]["targets"][0]["verdict"]["kept"]["precision"] == "int8"


def test_a_missed_bound_ends_with_4_shows_what_was_tried_and_writes_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(
        "tiny.onnx", "-t", "x86-cpu", "--calibration", "calibration.npz", "--precision", "int8",
        "--max-accuracy-drop", "0", "-o", "r", capsys=capsys,
    )  # fmt: skip
    assert code == 4
    assert out.count("refused: u8s8") >= 3
    assert "best found: " in out
    assert "error: no variant for x86-cpu" in err
    assert "--max-accuracy-drop" in err
    assert not (folder / "r").exists()


def test_a_device_stands_for_its_targets(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(
        "tiny.onnx", "-d", "raspberry-pi-5", "-d", "raspberry-pi-4", *DATA, "--precision", "fp32", "--json",
        capsys=capsys,
    )  # fmt: skip
    assert code == 0
    assert {target["target"] for target in json.loads(out)["report"]["targets"]} == {"arm-cpu"}


def test_doubts_go_to_stderr(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run("tiny.onnx", "-t", "x86-cpu", *DATA[:2], "--precision", "fp32", capsys=capsys)
    assert code == 0
    assert "warning: no --validation" in err
    assert "warning: 64 rows are few" in err
    assert "sqnr on 64 rows of calibration.npz" in out


OWN = """
import numpy as np

def share(answers, truth):
    return float(np.mean([answer.argmax() == label for answer, label in zip(answers, truth)]))

def build():
    return 1 / 0

def boxes(outputs):
    return 1 / 0
"""


@pytest.mark.parametrize("way", ["option", "task"])
def test_a_metric_of_the_users_own_is_found_in_the_current_folder(
    folder: Path, way: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (folder / f"own_{way}.py").write_text(OWN)
    (folder / "model.toml").write_text(f'metric = "own_{way}:share"')
    named = ["--metric", f"own_{way}:share"] if way == "option" else ["--task", "model.toml"]
    code, out, _ = run("tiny.onnx", "-t", "x86-cpu", *DATA, "--precision", "fp32", *named, capsys=capsys)
    assert code == 0
    assert f"own_{way}:share on 200 rows" in out


@pytest.mark.parametrize(
    ("arguments", "function"),
    [
        (["own_model:build", "-t", "x86-cpu"], "own_model:build"),
        (["tiny.onnx", "-t", "x86-cpu", *DATA, "--precision", "fp32", "--task", "custom.toml"], "own_model:boxes"),
    ],
    ids=["model", "custom"],
)
def test_functions_of_the_current_folder_are_called(
    folder: Path,
    arguments: list[str],
    function: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own_model", raising=False)
    (folder / "own_model.py").write_text(OWN)
    (folder / "custom.toml").write_text('kind = "custom"\nfunction = "own_model:boxes"')
    code, _, err = run(*arguments, capsys=capsys)
    assert code == 2
    assert f"{function} raised ZeroDivisionError" in err
    assert sys.path.index(str(folder)) == len(sys.path) - 1, "nothing there takes the place of a library"


def test_without_such_a_function_nothing_of_the_current_folder_is_importable(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = list(sys.path)
    save(conv_net(), folder / "a:b")  # a file that looks like a function
    for name in ("tiny.onnx", "a:b"):
        run(name, "-t", "toaster", *DATA, "--metric", "top1", capsys=capsys)
    assert sys.path == before


def corrupt(folder: Path) -> None:
    (folder / "text.onnx").write_text("hello")
    whole = (folder / "tiny.onnx").read_bytes()
    (folder / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    rankless = conv_net()
    rankless.graph.input[0].type.tensor_type.ClearField("shape")
    save(rankless, folder / "rank.onnx")
    np.savez(folder / "shape.npz", image=np.zeros((4, 1, 8, 7), np.float32))
    np.savez(folder / "name.npz", picture=images(4))
    np.savez(folder / "nan.npz", image=np.full((4, 1, 8, 8), np.nan, np.float32))
    np.savez(folder / "pickle.npz", image=np.array([{"a": 1}], object))
    np.savez(folder / "labels.npz", image=images(4), labels=np.array([0, 1, 2, 10]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.onnx", "-t", "x86-cpu", *DATA], "no model file absent.onnx"),
        (["text.onnx", "-t", "x86-cpu", *DATA], "text.onnx is not an ONNX model"),
        (["cut.onnx", "-t", "x86-cpu", *DATA], "cut.onnx"),
        (["rank.onnx", "-t", "x86-cpu", *DATA], "rank.onnx: input 'image' has no fixed rank"),
        (["tiny.onnx", *DATA], "nothing to compile for"),
        (["tiny.onnx", "-t", "toaster", *DATA], "toaster"),
        (["tiny.onnx", "-d", "toaster", *DATA], "toaster"),
        (["tiny.onnx", "-t", "x86-cpu"], "not measured"),
        (
            ["tiny.onnx", "-t", "x86-cpu", "--calibration", "shape.npz"],
            "shape.npz: array 'image' has shape [4, 1, 8, 7]",
        ),
        (["tiny.onnx", "-t", "x86-cpu", "--calibration", "name.npz"], "name.npz has no array 'image', it has picture"),
        (["tiny.onnx", "-t", "x86-cpu", "--calibration", "absent.npz"], "there are no data at absent.npz"),
        (["tiny.onnx", "-t", "x86-cpu", "--calibration", "nan.npz"], "holds NaN"),
        (["tiny.onnx", "-t", "x86-cpu", "--calibration", "pickle.npz"], "pickle"),
        (["tiny.onnx", "-t", "x86-cpu", "--validation", "labels.npz"], "labels go up to 10"),
        (["tiny.onnx", "-t", "x86-cpu", *DATA, "--labels", "a,b"], "2 labels are given"),
        (["tiny.onnx", "-t", "x86-cpu", *DATA, "--precision", "int2"], "--precision 'int2'"),
        (["tiny.onnx", "-t", "x86-cpu", *DATA, "--max-accuracy-drop", "5"], "--max-accuracy-drop 5.0"),
        (["tiny.onnx", "-t", "x86-cpu", *DATA, "--version", "final"], "no number that could order releases"),
        (["tiny.onnx", "-t", "x86-cpu", *DATA, "--name", "Tiny!"], "model name 'Tiny!'"),
        (["tiny.onnx", "-t", "x86-cpu", *DATA, "-o", "tiny.onnx"], "exists already"),
        (["tiny.onnx", "-t", "null", "-t", "x86-cpu", *DATA], "null"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_of_the_user_ends_with_2_and_a_sentence(
    folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    corrupt(folder)
    before = set(folder.rglob("*"))
    code, out, err = run(*arguments, capsys=capsys)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert set(folder.rglob("*")) == before


def test_the_cache_keeps_releases_in_a_folder_of_its_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "cache/converters").mkdir(parents=True)
    monkeypatch.setenv("EDGESERVE_CACHE", str(folder / "cache"))
    code, _, _ = run("tiny.onnx", "-t", "null", *DATA, "-o", "first", capsys=capsys)
    assert code == 0
    assert {path.name for path in (folder / "cache").iterdir()} == {"compile", "converters"}
    code, out, _ = run("tiny.onnx", "-t", "null", *DATA, "-o", "second", capsys=capsys)
    assert code == 0
    assert "taken from the cache" in out
