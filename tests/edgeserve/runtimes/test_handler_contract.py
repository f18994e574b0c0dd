"""Handlers under the contract suite of all runtimes: one alone, one around a model; each in a real process."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx.reference
import pytest

from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.runtimes.base import Tensors
from edgeserve.runtimes.handler import PythonHandlerRuntime
from tests.suites.models import CLASSES, conv_net, save
from tests.suites.runtime import RuntimeCase, RuntimeContract

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="handlers need Linux")

TENSORS = """
[[inputs]]
name = "image"
datatype = "FP32"
shape = [{batch}, 1, 8, 8]

[[outputs]]
name = "logits"
datatype = "FP32"
shape = [{batch}, 10]
"""
ALONE = """
import numpy as np

class Handler:
    def run(self, inputs):
        sums = inputs["image"].sum(axis=(1, 2, 3))
        return {"logits": np.repeat(sums[:, None], 10, axis=1)}
"""
AROUND = """
class Handler:
    def preprocess(self, inputs):
        return {"image": inputs["image"] / 2}

    def postprocess(self, outputs):
        return {"logits": outputs["logits"] + 1}
"""


def row_sums(inputs: Tensors) -> Tensors:
    sums = inputs["image"].sum(axis=(1, 2, 3))
    return {"logits": np.repeat(sums[:, None], CLASSES, axis=1)}


def halved_and_raised(inputs: Tensors) -> Tensors:
    evaluator = onnx.reference.ReferenceEvaluator(conv_net())
    return {"logits": evaluator.run(None, {"image": inputs["image"] / 2})[0] + 1}


@pytest.fixture(scope="module", params=[("alone", -1), ("alone", 1), ("around a model", -1)], ids=str)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RuntimeCase:
    form, batch = request.param
    folder = tmp_path_factory.mktemp("handler")
    chained = form != "alone"
    path = folder / "handler.toml"
    path.with_suffix(".py").write_text(AROUND if chained else ALONE)
    path.write_text(('then = "net.onnx"\n' if chained else "") + TENSORS.format(batch=batch))
    if chained:
        save(conv_net(), folder / "net.onnx")
    return RuntimeCase(
        runtime=PythonHandlerRuntime([tmp_path_factory.getbasetemp()]),
        path=path,
        signature=Signature(
            inputs=(TensorSpec(name="image", datatype=Datatype.FP32, shape=(batch, 1, 8, 8)),),
            outputs=(TensorSpec(name="logits", datatype=Datatype.FP32, shape=(batch, CLASSES)),),
        ),
        answers=halved_and_raised if chained else row_sums,
        companion=".py",
    )


class TestHandlers(RuntimeContract):
    @staticmethod
    def _copy(case: RuntimeCase, folder: Path) -> Path:
        for path in case.path.parent.iterdir():
            if path.suffix != ".toml" and path.is_file():
                (folder / path.name).write_bytes(path.read_bytes())
        return RuntimeContract._copy(case, folder)
