"""`handler.toml`: what is accepted, and what each mistake says."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.contracts.errors import InputError
from edgeserve.runtimes.handler_file import read_handler_file

SIDES = """
[[inputs]]
name = "x"
datatype = "FP32"
shape = [-1]
[[outputs]]
name = "y"
datatype = "FP32"
shape = [-1]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "handler.py").write_text("")
    (tmp_path / "net.bin").write_text("")
    (tmp_path / "net.onnx").write_text("")
    return tmp_path


def write(folder: Path, text: str) -> Path:
    path = folder / "handler.toml"
    path.write_text(text)
    return path


def test_what_is_not_said_has_a_default(folder: Path) -> None:
    handler = read_handler_file(write(folder, SIDES))
    assert (handler.module, handler.handler, handler.then) == ("handler.py", "Handler", "")
    assert [spec.name for spec in (*handler.signature.inputs, *handler.signature.outputs)] == ["x", "y"]


@pytest.mark.parametrize(
    ("top", "runtime"),
    [
        ('then = "net.onnx"', "onnxruntime"),
        ('then = "net.onnx"\nthen_runtime = "tensorrt"', "tensorrt"),
        ('then = "net.bin"\nthen_runtime = "litert"', "litert"),
    ],
)
def test_the_runtime_of_the_model_is_known_by_its_name_or_said(folder: Path, top: str, runtime: str) -> None:
    assert read_handler_file(write(folder, top + SIDES)).runtime_of_model == runtime


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('modul = "a.py"' + SIDES, "modul"),
        ('module = "../a.py"' + SIDES, "file name"),
        ('module = "handler.sh"' + SIDES, "not a Python file"),
        ('module = "other.py"' + SIDES, "'other.py', which is missing"),
        ('handler = "os.system"' + SIDES, "handler"),
        ('then = "/etc/passwd"' + SIDES, "file name"),
        ('then = "absent.onnx"' + SIDES, "'absent.onnx', which is missing"),
        ('then = "net.bin"' + SIDES, "does not tell what runs it"),
        ('then = "net.bin"\nthen_runtime = "python"' + SIDES, "cannot follow a handler"),
        ('then_runtime = "litert"' + SIDES, "no `then`"),
        (SIDES.replace("FP32", "FP31"), "FP31"),
        (SIDES.split("[[outputs]]")[0], "outputs"),
        (SIDES + "[limits]\nmemory_mib = 1", "memory_mib of 1"),
        (SIDES + "[limits]\nmemory_mib = 999999", "memory_mib of 999999"),
        (SIDES + "[limits]\ncall_s = 0.0", "call_s of 0"),
        (SIDES + "[limits]\ncall_s = nan", "call_s of nan"),
        (SIDES + "[limits]\nuser = 0", "user"),
    ],
)
def test_a_mistake_names_the_file_and_the_field(folder: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        read_handler_file(write(folder, text))
    assert "handler.toml" in raised.value.message


@pytest.mark.parametrize("name", ["handler.py", "net.onnx"])
def test_a_link_beside_it_is_not_followed(folder: Path, name: str) -> None:
    path = write(folder, 'then = "net.onnx"' + SIDES)
    (folder / name).unlink()
    (folder / name).symlink_to("/etc/passwd")
    with pytest.raises(InputError, match=name):
        read_handler_file(path)


@given(data=st.binary(max_size=300))
def test_any_bytes_are_a_handler_or_an_input_error(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(data)
    with pytest.raises(InputError):
        read_handler_file(path)
