"""Model repository folders that tests make for themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from edgeserve.contracts.documents import encode
from edgeserve.contracts.task import Task
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.contracts.variant import Precision, Selector, Tolerance, VariantContract
from edgeserve.release.build import ReleaseBuilder
from tests.suites.models import model, save

ROW = np.array([[1, 2, 3, 4]], np.float32)


def put_version(root: Path, name: str, number: int, *, adds: float, file: str = "model.onnx") -> Path:
    """A real model, `x` f32 [rows, 4] to `y` of the same shape: what it adds tells which one it is."""
    folder = root / name / str(number)
    folder.mkdir(parents=True, exist_ok=True)
    net = model(
        [helper.make_node("Add", ["x", "c"], ["y"])],
        inputs={"x": (TensorProto.FLOAT, ["rows", 4])},
        outputs={"y": (TensorProto.FLOAT, ["rows", 4])},
        weights={"c": np.array([adds], np.float32)},
    )
    return save(net, folder / file)


def put_release(path: Path, *, counter: int, classes: int = 3) -> Path:
    """A release of a null model: `x` f32 [rows, 4] to `y` f32 [rows, classes]."""
    signature = Signature(
        inputs=(TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1, 4)),),
        outputs=(TensorSpec(name="y", datatype=Datatype.FP32, shape=(-1, classes)),),
    )
    contract = VariantContract(
        model="sums", target="null", precision=Precision.FP32, runtime="null", entry="m.null.json",
        signature=signature, task=Task(), selector=Selector(), tolerance=Tolerance(),
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    source = path.parent / ".m.null.json"
    source.write_bytes(encode(signature))
    builder = ReleaseBuilder(name="sums", version="2.1", counter=counter)
    builder.add_variant(contract, {"m.null.json": source})
    builder.write(path)
    return path


def put_variant(folder: Path, *, adds: float) -> Path:
    """An unpacked variant of the model of `put_version`, as a device holds it."""
    put_version(folder.parent, folder.name, 1, adds=adds)
    (folder / "1" / "model.onnx").rename(folder / "model.onnx")
    (folder / "1").rmdir()
    signature = Signature(
        inputs=(TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1, 4)),),
        outputs=(TensorSpec(name="y", datatype=Datatype.FP32, shape=(-1, 4)),),
    )
    contract = VariantContract(
        model="m", target="x86-cpu", precision=Precision.FP32, runtime="onnxruntime", entry="model.onnx",
        signature=signature, task=Task(), selector=Selector(), tolerance=Tolerance(), runtime_device="CPU",
    )  # fmt: skip
    (folder / "contract.json").write_bytes(encode(contract))
    return folder
