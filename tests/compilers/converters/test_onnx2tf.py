"""The isolated converter: how its environment is found and made, and what comes of conversions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from edgeserve.contracts.errors import DeviceError, InputError
from edgeserve.runtimes.base import RuntimeOptions
from edgeserve.runtimes.litert import LiteRtRuntime
from edgeserve_compilers.converters import onnx2tf
from tests.suites.models import conv_net, images, model, save


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without the environment, and with no Python but those that a test puts on its PATH."""
    monkeypatch.delenv(onnx2tf.PYTHON_VARIABLE, raising=False)
    monkeypatch.setenv("EDGESERVE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path


@pytest.fixture(scope="module")
def converter() -> Path:
    """Python of a ready environment."""
    ready = onnx2tf.find()
    if ready is None:
        pytest.skip("onnx2tf is not there: scripts/onnx2tf.sh makes its environment")
    return ready


def test_a_named_environment_comes_first_and_must_be_there(nowhere: Path, monkeypatch) -> None:
    assert onnx2tf.find() is None
    python = script(nowhere / "named", "exit 0")
    monkeypatch.setenv(onnx2tf.PYTHON_VARIABLE, str(python))
    assert onnx2tf.find() == onnx2tf.prepare() == python
    monkeypatch.setenv(onnx2tf.PYTHON_VARIABLE, str(nowhere / "missing"))
    with pytest.raises(DeviceError, match="missing, which cannot be run") as raised:
        onnx2tf.find()
    assert onnx2tf.VERSION in raised.value.hint


def test_without_an_environment_the_option_that_makes_one_is_said_and_no_folder(nowhere: Path) -> None:
    with pytest.raises(DeviceError, match="not there yet") as raised:
        onnx2tf.convert(nowhere / "m.onnx", nowhere)
    assert "--install-converters" in raised.value.hint
    assert onnx2tf.PYTHON_VARIABLE in raised.value.hint
    assert str(nowhere) not in raised.value.message + raised.value.hint, "it ends in the report of a release"


def test_the_commands_by_hand_are_whole(nowhere: Path) -> None:
    hint = onnx2tf.how_to_get()
    assert f"-m venv {nowhere}/cache/converters/onnx2tf-{onnx2tf.VERSION}" in hint
    assert f"pip install onnx2tf=={onnx2tf.VERSION}" in hint
    assert onnx2tf.PYTHON_VARIABLE in hint


@pytest.mark.parametrize(
    ("place", "answer", "found"),
    [
        pytest.param("bin/python3.12", "echo 3 12", True, id="on the path"),
        pytest.param("bin/python3", "echo 3 13", True, id="by its general name"),
        pytest.param("pyenv/versions/3.12.1/bin/python3.12", "echo 3 12", True, id="of pyenv"),
        pytest.param("bin/python3", "echo 3 11", False, id="too old"),
        pytest.param("bin/python3.12", "echo version 3.12 is not installed; exit 127", False, id="a shim that fails"),
        pytest.param("bin/python3.13", "exit 1", False, id="without venv"),
    ],
)
@pytest.mark.skipif(sys.version_info[:2] >= onnx2tf.OLDEST_PYTHON, reason="this Python is new enough itself")
def test_a_python_that_is_new_enough_is_found(nowhere: Path, place: str, answer: str, found: bool) -> None:
    python = script(nowhere / place, answer)
    assert onnx2tf.base_python() == (python if found else None)


@pytest.mark.skipif(sys.version_info[:2] >= onnx2tf.OLDEST_PYTHON, reason="this Python is new enough itself")
def test_without_a_python_it_is_said_what_to_install(nowhere: Path) -> None:
    with pytest.raises(DeviceError, match=r"needs Python 3\.12") as raised:
        onnx2tf.prepare()
    assert "apt install python3.12-venv" in raised.value.hint


FAKE_PYTHON = """
case "$*" in
  *sys.version_info*) echo 3 12 ;;
  *"-m venv"*) echo made >> "{log}"; /bin/mkdir -p "$3/bin"; /bin/cp "$0" "$3/bin/python" ;;
  *"-m pip"*) /bin/sleep 0.2; {pip} ;;
esac
"""


@pytest.mark.skipif(sys.version_info[:2] >= onnx2tf.OLDEST_PYTHON, reason="this Python is new enough itself")
def test_the_environment_is_made_once_by_whoever_comes_first(nowhere: Path, capsys) -> None:
    log = nowhere / "log"
    script(nowhere / "bin/python3.12", FAKE_PYTHON.format(log=log, pip="exit 0"))
    program = "from edgeserve_compilers.converters import onnx2tf; print(onnx2tf.prepare())"
    running = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    ended = [(*process.communicate(timeout=60), process.returncode) for process in running]
    assert {code for _, _, code in ended} == {0}, ended
    assert {out.strip() for out, _, _ in ended} == {str(onnx2tf.environment() / "bin/python")}
    assert log.read_text() == "made\n"
    assert sum("preparing onnx2tf" in err for _, err, _ in ended) == 1
    assert onnx2tf.prepare() == onnx2tf.find()
    assert capsys.readouterr().err == "", "nothing is left to do"


@pytest.mark.skipif(sys.version_info[:2] >= onnx2tf.OLDEST_PYTHON, reason="this Python is new enough itself")
def test_an_installation_that_fails_leaves_nothing_behind(nowhere: Path) -> None:
    script(nowhere / "bin/python3.12", FAKE_PYTHON.format(log=nowhere / "log", pip="echo no network >&2; exit 1"))
    with pytest.raises(DeviceError, match="no network") as raised:
        onnx2tf.prepare()
    assert "-m venv" in raised.value.hint
    assert onnx2tf.find() is None
    assert [path.name for path in onnx2tf.environment().parent.iterdir()] == [f"onnx2tf-{onnx2tf.VERSION}.lock"]


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        ("echo oops >&2; exit 3", DeviceError, "code 3 and without an answer: oops"),
        ("kill -9 $$", DeviceError, "without an answer"),
        ('echo \'{"ok": false, "error": "KeyError: Frobnicate", "seconds": 1}\'', InputError, "Frobnicate"),
        ('echo \'{"ok": true, "error": "", "seconds": 1, "file": "gone.tflite"}\'', DeviceError, "not there"),
    ],
    ids=["fails", "is killed", "refuses", "lies"],
)
def test_what_the_converter_does_wrong_becomes_an_error(
    nowhere: Path, monkeypatch, answer: str, error: type[Exception], message: str
) -> None:
    monkeypatch.setenv(onnx2tf.PYTHON_VARIABLE, str(script(nowhere / "python", answer)))
    with pytest.raises(error, match=message):
        onnx2tf.convert(nowhere / "m.onnx", nowhere)


def test_a_conversion_keeps_names_and_layout_of_the_inputs(converter: Path, tmp_path: Path) -> None:
    path = save(conv_net(batch=1), tmp_path / "float.onnx")
    results = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        results.append(onnx2tf.convert(path, tmp_path / name))
    assert results[0].read_bytes() == results[1].read_bytes()
    loaded = LiteRtRuntime().load(results[0], RuntimeOptions())
    assert loaded.signature.inputs[0].name == "image"
    assert loaded.signature.inputs[0].shape == (1, 1, 8, 8)
    assert loaded.run({"image": images(1)})["logits"].shape == (1, 10)
    loaded.close()


def test_an_operation_that_it_passes_on_as_its_own_is_refused_by_the_runtime(converter: Path, tmp_path: Path) -> None:
    built = model(
        [helper.make_node("Frobnicate", ["x"], ["y"], domain="nobody")],
        inputs={"x": (TensorProto.FLOAT, [1, 4])},
        outputs={"y": (TensorProto.FLOAT, [1, 4])},
    )
    built.opset_import.append(helper.make_opsetid("nobody", 1))
    (tmp_path / "out").mkdir()
    result = onnx2tf.convert(save(built, tmp_path / "m.onnx"), tmp_path / "out")
    with pytest.raises(InputError, match=r"(?i)frobnicate"):
        LiteRtRuntime().load(result, RuntimeOptions())


def test_the_float16_file_that_it_also_writes_is_never_used(converter: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    result = onnx2tf.convert(save(conv_net(batch=1), tmp_path / "float.onnx"), tmp_path / "out")
    assert (tmp_path / "out/model_float16.tflite").exists(), "the trap is still there"
    assert result.name == "model_float32.tflite"
