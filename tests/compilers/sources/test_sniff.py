from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.contracts.errors import InputError, NotFoundError
from edgeserve_compilers.load import load
from edgeserve_compilers.sources.sniff import HINTS, Content, by_bytes, sniff

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 12345\n"
HTML = b"\n<!DOCTYPE html><html><head><title>404</title></head></html>"


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, x=np.zeros(3))
    return buffer.getvalue()


def archive(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in names:
            file.writestr(name, b"x")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message", "hint"),
    [
        ("m.onnx", b"", "empty", "repeat"),
        ("m.onnx", LFS, "Git LFS pointer", "git lfs pull"),
        ("m.tflite", LFS, "Git LFS pointer", "git lfs pull"),
        ("m.onnx", HTML, "web page", "download it again"),
        ("m.pt", HTML, "web page", "download it again"),
        ("m.xml", b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "no OpenVINO IR", "save_model"),
        ("m.onnx.data", b"\x01\x02\x03\x04" * 20, "weights without a graph", r"\.onnx"),
        ("m.bin", b"\x01\x02\x03\x04" * 20, "weights without a graph", r"\.xml"),
        ("m.onnx", npz(), "archive of arrays", "--calibration"),
        ("m.npy", b"\x93NUMPY\x01\x00", "archive of arrays", "--calibration"),
        ("m.safetensors", (64).to_bytes(8, "little") + b'{"w":{}}', "weights without a graph", "module:function"),
        ("m.onnx", archive("readme.txt"), "zip archive", "ONNX"),
        ("m.onnx", archive("m/data.pkl", "m/version"), "PyTorch file", "--trust-pickle"),
        ("m.onnx", pickle.dumps({"a": 1}), "Python pickle", "--trust-pickle"),
        ("m.txt", b"hello", "no format that is known", "ONNX"),
    ],
)
def test_what_is_no_model_is_called_by_its_name_with_a_way_out(
    tmp_path: Path, name: str, content: bytes, message: str, hint: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as raised:
        load(path)
    assert str(path) in raised.value.message
    assert __import__("re").search(hint, raised.value.hint)


def test_a_folder_without_a_saved_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"x")
    with pytest.raises(InputError, match=r"folder without saved_model\.pb") as raised:
        load(tmp_path)
    assert "name the model file" in raised.value.hint


@pytest.mark.parametrize("name", ["absent.onnx", "nowhere/absent.pt", "absent", "C:absent.onnx"])
def test_what_is_not_there_is_not_found(tmp_path: Path, name: str) -> None:
    with pytest.raises(NotFoundError, match=r"absent"):
        load(tmp_path / name)


def test_the_content_counts_more_than_the_name(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    for head, content in {
        b"\x1c\0\0\0TFL3": Content.LITERT,
        b"\x89HDF\r\n\x1a\n": Content.HDF5,
        b"tree\nversion=v4\n": Content.LIGHTGBM,
        b'{"learner":{': Content.XGBOOST,
        b"<?xml version='1.0'?>\n<net name='n'>": Content.OPENVINO,
        b"\x80\x04\x95": Content.PICKLE,
    }.items():
        path.write_bytes(head)
        assert sniff(path) is content


def test_what_no_source_reads_has_a_hint() -> None:
    read_by_a_source = {
        Content.ONNX, Content.LITERT, Content.SAVED_MODEL, Content.KERAS, Content.HDF5, Content.TORCH_PICKLE,
        Content.TORCH_SCRIPT, Content.TORCH_EXPORT, Content.OPENVINO, Content.PICKLE, Content.SKOPS, Content.XGBOOST,
        Content.LIGHTGBM, Content.OTHER,
    }  # fmt: skip
    assert set(HINTS) == set(Content) - read_by_a_source


@given(st.binary(max_size=200))
def test_any_bytes_are_looked_at_without_an_error(head: bytes) -> None:
    assert by_bytes(head) is None or isinstance(by_bytes(head), Content)
    assert (by_bytes(head) is Content.EMPTY) == (not head)
