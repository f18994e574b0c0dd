"""Bad input of `edgeserve compile`, as a user meets it: exit code, what is wrong, what to do, nothing written."""

from __future__ import annotations

import io
import pickle
import struct
import subprocess
import sys
import wave
import zlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from edgeserve.cli.main import main
from tests.suites.models import conv_net, images, model, save

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123456\n"
DATA = ["-t", "x86-cpu", "--validation", "val.npz"]
BOTH = [*DATA, "--calibration", "cal.npz"]
TASKS = {
    "key": 'kind = "classification"\nsoftmx = true\n',
    "kind": 'kind = "classifier"\n',
    "syntax": 'kind = "classification\n',
    "output": 'output = "scores"\n',
    "metric": 'metric = "f1"\n',
    "labels": 'labels = ["a", "b"]\n',
    "function": 'kind = "custom"\nfunction = "absent_module:decode"\n',
    "color": '[[inputs]]\ntype = "image"\nsize = [8, 8]\n',
    "std": '[[inputs]]\ntype = "image"\nsize = [8, 8]\ncolor = "gray"\nstd = [0.0]\n',
    "pictures": '[[inputs]]\ntype = "image"\nsize = [8, 8]\ncolor = "gray"\n',
    "sound": 'kind = "keywords"\n[[inputs]]\ntype = "audio"\nsamples = 64\n',
    "boxes": 'kind = "detection"\n[boxes]\nlayout = "grid"\n',
}


def png(width: int = 10, height: int = 10) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(width * height, dtype=np.uint8).reshape(height, width)).save(buffer, "PNG")
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG of 100 bytes that declares 3.6 billion pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")


def wav(rate: int) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(bytes(2 * 64))
    return buffer.getvalue()


def write_models() -> None:
    save(conv_net(), Path("tiny.onnx"))
    save(conv_net(seed=3), Path("other.onnx"))
    Path("lfs.onnx").write_bytes(LFS)
    Path("page.onnx").write_bytes(b"<!DOCTYPE html><html><body>Sign in</body></html>")
    Path("cut.onnx").write_bytes(Path("tiny.onnx").read_bytes()[:4000])
    Path("w.safetensors").write_bytes(struct.pack("<Q", 10) + b'{"a":{}}  ')
    Path("model.pkl").write_bytes(pickle.dumps({"weights": [1.0]}, protocol=4))
    Path("model.pt").write_bytes(pickle.dumps({"weights": [1.0]}, protocol=2))
    save(conv_net(batch=4), Path("batch4.onnx"))
    broken = conv_net()
    broken.graph.initializer[5].CopyFrom(numpy_helper.from_array(np.full(10, np.nan, np.float32), "b3"))
    save(broken, Path("nan.onnx"))
    custom = conv_net()
    custom.graph.node[1].domain, custom.graph.node[1].op_type = "com.mine", "Magic"
    custom.opset_import.append(helper.make_opsetid("com.mine", 1))
    save(custom, Path("custom.onnx"))
    onnx.save(conv_net(), "weights.onnx", save_as_external_data=True, location="weights.data", size_threshold=0)
    Path("weights.data").unlink()
    one = {"x": (TensorProto.FLOAT, ["batch", 4])}
    save(
        model(
            [helper.make_node("Add", ["x", "rate"], ["y"])],
            inputs=one | {"rate": (TensorProto.FLOAT, [])},
            outputs={"y": one["x"]},
        ),
        Path("scalar.onnx"),
    )
    text = (TensorProto.STRING, ["batch", 4])
    save(
        model([helper.make_node("Identity", ["x"], ["y"])], inputs={"x": text}, outputs={"y": text}), Path("text.onnx")
    )
    save(model([helper.make_node("Relu", ["x"], ["y"])], inputs=one, outputs={"y": one["x"]}), Path("relu.onnx"))
    weights = {"w": np.eye(4, dtype=np.float32)}
    small = model([helper.make_node("MatMul", ["x", "w"], ["y"])], inputs=one, outputs={"y": one["x"]}, weights=weights)
    save(small, Path("small.onnx"))


def write_data() -> None:
    np.savez("cal.npz", image=images(64, seed=4))
    np.savez("val.npz", image=images(120, seed=5), labels=np.arange(120) % 10)
    np.savez("bare.npz", image=images(60, seed=6))
    np.savez("x.npz", x=np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32))
    np.savez("split.npz", image=images(6), labels=np.arange(6), is_calib=np.arange(6) < 3)
    np.savez("high.npz", image=images(3), labels=np.array([0, 1, 10]))
    np.savez("infinite.npz", image=np.full((3, 1, 8, 8), np.inf, np.float32))
    Path("cut.npz").write_bytes(Path("cal.npz").read_bytes()[:1000])
    Path("broken.json").write_text("{")
    for name, text in TASKS.items():
        Path(f"{name}.toml").write_text(text)
    for name, files, table in (
        ("bomb", {"a.png": png(), "b.png": bomb()}, ""),
        ("broken", {"a.png": png(), "b.png": png()[:-30]}, ""),
        ("pointers", {"a.png": LFS}, ""),
        ("absent", {"a.png": png()}, "file,label\na.png,0\nb.png,1\n"),
        ("climbs", {"a.png": png()}, "file,label\n../tiny.onnx,0\n"),
        ("named", {"a.png": png()}, "file,label\na.png,zebra\n"),
        ("fast", {"a.wav": wav(44_100)}, ""),
        ("empty", {}, ""),
    ):
        Path(name).mkdir()
        for file, content in files.items():
            (Path(name) / file).write_bytes(content)
        if table:
            (Path(name) / "labels.csv").write_text(table)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a user may have lying about, and a release of `tiny.onnx`."""
    folder = tmp_path_factory.mktemp("bad")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_models()
        write_data()
        with pytest.raises(SystemExit) as ended:
            main(["compile", "tiny.onnx", *BOTH, "--precision", "fp32", "-o", "release"])
        assert not ended.value.code
    return folder


def task(name: str, data: str = "val.npz") -> list[str]:
    return ["tiny.onnx", "-t", "x86-cpu", "--task", f"{name}.toml", "--validation", data]


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["absent.onnx", *DATA], "there is no model file absent.onnx", "check the path"),
        (["lfs.onnx", *DATA], "lfs.onnx is a Git LFS pointer, not the model that it stands for", "git lfs pull"),
        (["page.onnx", *DATA], "page.onnx is a web page, not a model: the download has failed", "'raw' link"),
        (["cut.onnx", *DATA], "cut.onnx is not an ONNX model, or is truncated", "compare its size"),
        (["model.pkl", *DATA], "model.pkl is a Python pickle, which can execute code", "to_onnx(model"),
        (["model.pt", *DATA], "model.pt is a PyTorch file (pickle), which can execute code", "torch.onnx.export(model"),
        (["w.safetensors", *DATA], "w.safetensors is weights without a graph", "module:function"),
        (["cal.npz", *DATA], "cal.npz is an archive of arrays (.npz), not a model", "MODEL is the network"),
        (["custom.onnx", *DATA], "custom.onnx uses the operator com.mine:Magic", "without custom operators"),
        (["weights.onnx", *DATA], "the weights 'weights.data' of weights.onnx are missing", "beside the model"),
        (["batch4.onnx", *DATA], "input 'image' has shape [4, 1, 8, 8]: the first axis must", "a batch of 1"),
        (["nan.onnx", *DATA], "the float model itself answers NaN on 120 rows of val.npz", "scale of the data"),
        (["scalar.onnx", *DATA], "input 'rate' is a scalar", "[constants] rate = VALUE"),
        (["text.onnx", *DATA], "input 'x' takes strings", "the part of the model after them"),
        (["absent_module:net", *DATA], "absent_module:net cannot be imported on this machine", "PYTHONPATH"),
        (task("key"), "key.toml has no key 'softmx'; did you mean 'softmax'?", "the keys are kind,"),
        (task("kind"), "kind.toml: kind: Invalid enum value 'classifier'", "use classification, detection, keywords"),
        (task("syntax"), "syntax.toml is not TOML: ", ""),
        (task("output"), "the task names an output 'scores' that the model does not have", "it has logits"),
        (task("metric"), "metric.toml: metric 'f1' does not judge classification", "use top1, top5, agreement"),
        (task("labels"), "2 labels are given, the model scores 10 classes", "name every class"),
        (task("function"), "absent_module:decode cannot be imported on this machine", "PYTHONPATH"),
        (task("color"), "[[inputs]] gives rows of shape [3, 8, 8], input 'image' of the model takes", "must fit"),
        (task("std"), "std.toml: [[inputs]] (image): std must not be 0", ""),
        (task("boxes"), "val.npz: array 'labels' has dtype int64 and shape [120], expected boxes", "detection"),
        (task("absent"), "there is no file absent.toml", ""),
        (task("pictures", "bomb"), "bomb/b.png has more than 100000000 pixels", "make the picture smaller"),
        (task("pictures", "broken"), "broken/b.png cannot be read as a picture", "take it out of the data"),
        (task("pictures", "pointers"), "pointers/a.png is a Git LFS pointer, not the file that", "git lfs pull"),
        (task("pictures", "absent"), "absent/labels.csv: line 3: there is no file absent/b.png", ""),
        (task("pictures", "climbs"), "climbs/labels.csv: line 2: file '../tiny.onnx' leads out", "below the data"),
        (task("pictures", "empty"), "empty holds no pictures or WAV files", "looked for .bmp"),
        (task("pictures", "absent#test"), "absent/labels.csv has no split 'test'", "leave # and the name out"),
        (task("pictures", "broken.json"), "broken.json is not COCO JSON", ""),
        (task("sound", "fast"), "fast/a.wav has 44100 samples a second, the task takes 16000", "ffmpeg -i"),
        (["tiny.onnx", *DATA[:3], "named"], "named holds files, and the task does not say how", "[[inputs]]"),
        (["tiny.onnx", *DATA[:3], "cut.npz"], "cut.npz is not an npz file, or is damaged", "numpy.savez"),
        (["tiny.onnx", *DATA[:3], "high.npz"], "high.npz: labels go up to 10, the model scores 10", "from 0"),
        (["tiny.onnx", *DATA[:3], "infinite.npz"], "holds NaN or infinity in 3 of 3 rows", "drop these rows"),
        (["tiny.onnx", *DATA[:3], "split.npz#val"], "split.npz has no split 'val'", "choose #calib, #eval"),
        (["tiny.onnx", *DATA[:3], "split.npz#calib,eval"], "#calib,eval chooses more than one split", ""),
        (["tiny.onnx", *DATA[:3], "tiny.onnx"], "tiny.onnx is not data that can be read", "an .npz file, a folder"),
        (["tiny.onnx", *DATA[:3], "bare.npz", "--metric", "top1"], "--metric top1: bare.npz has no labels", "--task"),
        (["tiny.onnx", *DATA[:3], "bare.npz", "--metric", "my:f1"], "--metric my:f1: bare.npz has no labels", "--task"),
        (["tiny.onnx", *DATA, "--metric", "map"], "metric 'map' does not judge classification", "use top1, top5"),
        (["tiny.onnx", *DATA, "--precision", "int8"], "int8 needs calibration data", "about 200 typical rows"),
        (["tiny.onnx", *BOTH, "--precision", "fp16"], "target x86-cpu has no fp16 form", "--precision auto"),
        (["tiny.onnx", *DATA, "--task", "key.toml", "--labels", "a"], "are for models without --task", "key.toml"),
        (["tiny.onnx", *DATA, "--report", "r.pdf"], "--report r.pdf is neither .html nor .json", ""),
        (["tiny.onnx", *DATA, "--report", "absent/r/x.html"], "--report absent/r/x.html: there is no folder", ""),
        (["tiny.onnx", *DATA, "--counter", "-1"], "release counter -1 must be from 0", ""),
        (["tiny.onnx", *DATA, "--baseline", "empty"], "empty has no oci-layout", "give a release"),
        (["relu.onnx", "-t", "x86-cpu", "--validation", "x.npz", "--baseline", "release"],
         "release tiny 1 is for classification, the new model for tensors", "compile it without --baseline"),
        (["tiny.onnx", *BOTH, "--check", "empty"], "empty has no oci-layout", "give a release"),
        (["other.onnx", *BOTH, "--check", "release"], "other.onnx is not the model of the release", "was compiled"),
        (["tiny.onnx", *DATA, "--check", "release"], "--calibration is not what the release was made with: nothing",
         "the same data as then"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_it_ends_with_2_says_what_is_wrong_and_what_to_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], message: str, hint: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(folder)
    before = set(folder.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        main(["compile", *arguments])
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    first, *rest = err.splitlines()
    assert first.startswith("error: ")
    assert message in first
    assert hint in "\n".join(line for line in rest if line.startswith("hint: "))
    assert "Traceback" not in err
    assert set(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["small.onnx", "--precision", "int8"], "it is not smaller than float: "),
        (["relu.onnx", "--precision", "int8"], "no convolution or matrix product was quantized"),
        (["relu.onnx", "--precision", "int4"], "the model has no matrix that is large enough to be stored in 4 bits"),
    ],
    ids=["larger than float", "nothing to quantize", "nothing for 4 bits"],
)
def test_a_useless_product_ends_with_4_and_its_reason(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], reason: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(folder)
    before = set(folder.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        main(["compile", *arguments, "-t", "x86-cpu", "--calibration", "x.npz"])
    out, err = capsys.readouterr()
    assert ended.value.code == 4
    assert reason in out
    assert "error: no variant for x86-cpu may be packed, nothing was written" in err
    assert set(folder.rglob("*")) == before


def test_a_library_that_is_missing_ends_with_1_and_the_command_that_installs_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Float is not packed in the place of what the library would have made."""
    monkeypatch.chdir(folder)
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(SystemExit) as ended:
        main(["compile", "tiny.onnx", "-t", "intel-cpu", *BOTH[2:], "-o", "intel", "--no-cache"])
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (1, "")
    assert "error: quantization for OpenVINO needs nncf, which cannot be imported" in err
    assert "hint: pip install 'edgeserve[openvino]'" in err
    assert not Path("intel").exists()


def test_libraries_print_nothing_among_our_own_words(folder: Path) -> None:
    """LiteRT writes a line of information to standard error from C++, NNCF draws progress bars."""
    pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed: pip install 'edgeserve[litert]'")
    from tests.suites.litert import dense_net

    (folder / "dense.tflite").write_bytes(dense_net(-1))
    done = subprocess.run(
        [sys.executable, "-m", "edgeserve", "compile", "dense.tflite", "-t", "arm-cpu", "-t", "intel-cpu", *BOTH[2:],
         "--max-accuracy-drop", "0.2", "-o", "quiet"],
        cwd=folder, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {line.partition(":")[0] for line in done.stderr.splitlines()} == {"warning"}
    assert "━" not in done.stdout
    assert "arm-cpu (litert)" in done.stdout
