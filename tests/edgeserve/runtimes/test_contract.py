"""Every runtime under the one contract suite."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx.reference
import pytest

from edgeserve.contracts.documents import encode
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.runtimes.base import Tensors
from edgeserve.runtimes.null import NullRuntime
from edgeserve.runtimes.onnx import OnnxRuntime
from tests.suites.models import CLASSES, conv_net, save
from tests.suites.runtime import RuntimeCase, RuntimeContract


def signature(batch: int) -> Signature:
    return Signature(
        inputs=(TensorSpec(name="image", datatype=Datatype.FP32, shape=(batch, 1, 8, 8)),),
        outputs=(TensorSpec(name="logits", datatype=Datatype.FP32, shape=(batch, CLASSES)),),
    )


def by_reference(inputs: Tensors) -> Tensors:
    return dict(zip(["logits"], onnx.reference.ReferenceEvaluator(conv_net()).run(None, inputs), strict=True))


def row_sums(inputs: Tensors) -> Tensors:
    sums = inputs["image"].reshape(len(inputs["image"]), -1).sum(axis=1)
    return {"logits": np.repeat(sums[:, None], CLASSES, axis=1)}


def onnx_case(folder: Path, batch: int) -> RuntimeCase:
    path = save(conv_net(batch="batch" if batch == -1 else batch), folder / "model.onnx")
    return RuntimeCase(
        runtime=OnnxRuntime(), path=path, signature=signature(batch), answers=by_reference, absent_device="ACL"
    )


def openvino_case(folder: Path, batch: int) -> RuntimeCase:
    if find_spec("openvino") is None:
        pytest.skip("openvino is not installed: pip install 'edgeserve[openvino]'")
    from edgeserve.runtimes.openvino import OpenVinoRuntime  # first: it keeps the library from calling home

    import openvino  # isort: skip

    model = openvino.convert_model(save(conv_net(), folder / "source.onnx"))
    model.reshape({"image": [batch, 1, 8, 8]})
    openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
    return RuntimeCase(
        runtime=OpenVinoRuntime(),
        path=folder / "model.xml",
        signature=signature(batch),
        answers=by_reference,
        absent_device="NPU",
        companion=".bin",
    )


def null_case(folder: Path, batch: int) -> RuntimeCase:
    path = folder / "model.null.json"
    path.write_bytes(encode(signature(batch)))
    return RuntimeCase(runtime=NullRuntime(), path=path, signature=signature(batch), answers=row_sums)


CASES = {"onnxruntime": onnx_case, "openvino": openvino_case, "null": null_case}


@pytest.fixture(
    scope="module", params=[(name, batch) for name in CASES for batch in (-1, 1)], ids=lambda p: f"{p[0]} batch {p[1]}"
)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RuntimeCase:
    name, batch = request.param
    return CASES[name](tmp_path_factory.mktemp(name), batch)


class TestRuntimes(RuntimeContract):
    pass
