"""What a file or folder holds, by its first bytes and, where those say nothing, by its name. Reads nothing else."""

from __future__ import annotations

import zipfile
from enum import Enum
from pathlib import Path
from typing import Final

_HEAD_BYTES: Final = 4096


class Content(str, Enum):
    """Kinds of content; the value finishes the sentence "PATH is ..."."""

    NOTHING = "absent"
    EMPTY = "empty"
    FOLDER = "a folder without saved_model.pb"
    SPECIAL = "neither a file nor a folder"
    LFS_POINTER = "a Git LFS pointer, not the model that it stands for"
    HTML = "a web page, not a model: the download has failed"
    ONNX = "an ONNX model"
    ONNX_WEIGHTS = "a file of weights without a graph"
    LITERT = "a TFLite / LiteRT model"
    SAVED_MODEL = "a TensorFlow SavedModel"
    KERAS = "a Keras model (.keras)"
    HDF5 = "an HDF5 file (Keras .h5)"
    TORCH_PICKLE = "a PyTorch file (pickle)"
    TORCH_SCRIPT = "a TorchScript archive"
    TORCH_EXPORT = "an exported PyTorch program (.pt2)"
    OPENVINO = "an OpenVINO IR"
    PICKLE = "a Python pickle"
    SKOPS = "a skops file"
    XGBOOST = "an XGBoost model"
    LIGHTGBM = "a LightGBM model"
    XML = "XML, but no OpenVINO IR"
    ARRAYS = "an archive of arrays (.npz), not a model"
    SAFETENSORS = "weights without a graph (safetensors)"
    ZIP = "a zip archive that is no model, or is damaged"
    OTHER = "no format that is known"


HINTS: Final = {
    Content.NOTHING: "check the path",
    Content.EMPTY: "the export or the copy has failed: repeat it",
    Content.FOLDER: "name the model file, or the folder with saved_model.pb in it",
    Content.SPECIAL: "name the model file itself",
    Content.LFS_POINTER: "run 'git lfs pull' in the repository that it came from",
    Content.HTML: "download it again, and look at the address: it may need a login or the 'raw' link",
    Content.ONNX_WEIGHTS: "name the .onnx or .xml file that belongs to it; the weights stay beside it",
    Content.XML: "name the .xml file that openvino.save_model wrote",
    Content.ARRAYS: "arrays are given with --calibration and --validation; MODEL is the network",
    Content.SAFETENSORS: "give the network as ONNX, or as module:function that builds it and loads these weights",
    Content.ZIP: "export the model again as ONNX, or compare the file's size with the original",
}
"""What to do about content that no source reads."""

_NAMES: Final = {
    ".onnx": Content.ONNX,
    ".tflite": Content.LITERT,
    ".lite": Content.LITERT,
    ".keras": Content.KERAS,
    ".h5": Content.HDF5,
    ".hdf5": Content.HDF5,
    ".pt2": Content.TORCH_EXPORT,
    ".pt": Content.TORCH_PICKLE,
    ".pth": Content.TORCH_PICKLE,
    ".ckpt": Content.TORCH_PICKLE,
    ".xml": Content.OPENVINO,
    ".joblib": Content.PICKLE,
    ".pkl": Content.PICKLE,
    ".pickle": Content.PICKLE,
    ".skops": Content.SKOPS,
    ".ubj": Content.XGBOOST,
    ".data": Content.ONNX_WEIGHTS,
    ".weights": Content.ONNX_WEIGHTS,
    ".bin": Content.ONNX_WEIGHTS,
}
"""What a name promises; asked when the first bytes are not telling, so that the right reader says what is wrong."""


TORCH_SUFFIXES: Final = (".pt", ".pth", ".pt2", ".ckpt")
"""A pickle of such a name is PyTorch's."""


def sniff(path: Path) -> Content:
    """Tell what `path` holds. What cannot be read is `OTHER`."""
    try:
        if not path.exists():
            return Content.NOTHING
        if path.is_dir():
            return Content.SAVED_MODEL if (path / "saved_model.pb").is_file() else Content.FOLDER
        if not path.is_file():
            return Content.SPECIAL
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return Content.OTHER
    return by_bytes(head) or (_by_archive(path) if head.startswith(b"PK") else None) or _by_name(path)


def by_bytes(head: bytes) -> Content | None:
    """What the first bytes of a file (up to 4096) give away; None = nothing."""
    if not head:
        return Content.EMPTY
    if head.startswith(b"version https://git-lfs"):
        return Content.LFS_POINTER
    if head[4:8] == b"TFL3":
        return Content.LITERT
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return Content.HDF5
    if head.startswith(b"tree\n") and b"version=" in head[:64]:
        return Content.LIGHTGBM
    if (head.startswith(b"{") and b'"learner"' in head) or (head.startswith(b"{L\0\0\0") and b"learner" in head):
        return Content.XGBOOST
    if head.startswith(b"\x93NUMPY"):
        return Content.ARRAYS
    if head[8:10] == b'{"' and int.from_bytes(head[:8], "little") < 1 << 27:
        return Content.SAFETENSORS
    if _is_pickle(head):
        return Content.PICKLE
    return _markup(head)


def _markup(head: bytes) -> Content | None:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return Content.HTML
    if text.startswith((b"<?xml", b"<net")):
        if b"<html" in text:
            return Content.HTML
        return Content.OPENVINO if b"<net" in text else Content.XML
    return None


def _is_pickle(head: bytes) -> bool:
    """Protocol 2 and later begin with PROTO; protocol 4 goes on with a FRAME, older ones with an object
    (PyTorch's old format: with a long number)."""
    return (
        head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and head[2:3] in b"\x95c}]()\x8a\x8c"
    )


def _by_archive(path: Path) -> Content:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError):
        named = _by_name(path)
        return named if named in _ARCHIVES else Content.ZIP
    inside = {name.partition("/")[2] for name in names}
    if {"metadata.json", "config.json"} <= set(names):
        return Content.KERAS
    if "schema.json" in names:
        return Content.SKOPS
    if "archive_format" in inside or "archive_version" in inside or "serialized_exported_program.json" in names:
        return Content.TORCH_EXPORT
    if "constants.pkl" in inside and any(name.startswith("code/") for name in inside):
        return Content.TORCH_SCRIPT
    if "data.pkl" in inside:
        return Content.TORCH_PICKLE
    if names and all(name.endswith(".npy") for name in names):
        return Content.ARRAYS
    return Content.ZIP


_ARCHIVES: Final = {Content.KERAS, Content.SKOPS, Content.TORCH_EXPORT, Content.TORCH_PICKLE}


def _by_name(path: Path) -> Content:
    return _NAMES.get(path.suffix.lower(), Content.OTHER)
