"""Makes the three models, their inputs, and what the bare runtime makes of these.

    python benchmarks/serving/models.py FOLDER

FOLDER/repository/NAME/1/model.onnx is Triton's layout of a model repository; FOLDER/NAME.input and NAME.output hold
numbers, FOLDER/models.json the shapes. Weights are random, but the same in every run.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from raw import SHAPES, session

"""`mlp` is as small as models get; `kws` takes one second of sound as 98 frames of 40 bands, 16 KB; `cnn` is like a
MobileNetV2 of width 0.6: 602 KB in, 1000 classes out."""


class Graph:
    """Nodes and weights as they are added; each method returns the name of its result."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(0)

    def node(self, kind: str, *inputs: str, **attributes) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def weight(self, *shape: int, fan_in: int) -> str:
        """He's initialization keeps the values of a deep net in range."""
        return self.constant(self._random.normal(0, (2 / fan_in) ** 0.5, shape).astype(np.float32))

    def constant(self, value: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def conv(self, x: str, inputs: int, outputs: int, *, kernel: int, stride: int = 1, groups: int = 1) -> str:
        weight = self.weight(outputs, inputs // groups, kernel, kernel, fan_in=inputs // groups * kernel * kernel)
        bias = self.constant(np.zeros(outputs, np.float32))
        pad = kernel // 2
        return self.node(
            "Conv", x, weight, bias, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4, group=groups
        )

    def relu6(self, x: str) -> str:
        return self.node("Clip", x, self.constant(np.float32(0)), self.constant(np.float32(6)))

    def dense(self, x: str, inputs: int, outputs: int) -> str:
        return self.node(
            "Gemm", x, self.weight(inputs, outputs, fan_in=inputs), self.constant(np.zeros(outputs, np.float32))
        )

    def classes(self, x: str, inputs: int, outputs: int) -> str:
        return self.dense(self.node("Flatten", self.node("GlobalAveragePool", x)), inputs, outputs)

    def model(self, result: str, shape: tuple[int, ...], outputs: int) -> onnx.ModelProto:
        """With softmax at the end, input `x`, output `y`."""
        self.nodes.append(helper.make_node("Softmax", [result], ["y"], axis=-1))
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, outputs))
        graph = helper.make_graph(self.nodes, "model", [x], [y], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def mlp() -> onnx.ModelProto:
    graph = Graph()
    return graph.model(graph.dense("x", 4, 3), SHAPES["mlp"], 3)


def kws() -> onnx.ModelProto:
    """Depthwise separable convolutions, as in "Hello Edge: Keyword Spotting on Microcontrollers" (Zhang 2017)."""
    graph, channels = Graph(), 112
    x = graph.node("Relu", graph.conv("x", 1, channels, kernel=3, stride=2))
    for _ in range(4):
        x = graph.node("Relu", graph.conv(x, channels, channels, kernel=3, groups=channels))
        x = graph.node("Relu", graph.conv(x, channels, channels, kernel=1))
    return graph.model(graph.classes(x, channels, 12), SHAPES["kws"], 12)


def cnn() -> onnx.ModelProto:
    """Inverted residuals: the table of "MobileNetV2" (Sandler et al. 2018), about 0.6 wide."""
    graph, channels = Graph(), 16
    x = graph.relu6(graph.conv("x", 3, channels, kernel=3, stride=2))
    for expansion, outputs, repeats, stride in (
        (1, 16, 1, 1), (6, 16, 2, 2), (6, 24, 3, 2), (6, 40, 4, 2), (6, 64, 3, 1), (6, 96, 3, 2), (6, 192, 1, 1),
    ):  # fmt: skip
        for index in range(repeats):
            step, inner = (stride if index == 0 else 1), channels * expansion
            y = x if expansion == 1 else graph.relu6(graph.conv(x, channels, inner, kernel=1))
            y = graph.relu6(graph.conv(y, inner, inner, kernel=3, stride=step, groups=inner))
            y = graph.conv(y, inner, outputs, kernel=1)
            x = graph.node("Add", x, y) if step == 1 and channels == outputs else y
            channels = outputs
    x = graph.relu6(graph.conv(x, channels, 1280, kernel=1))
    return graph.model(graph.classes(x, 1280, 1000), SHAPES["cnn"], 1000)


def write(folder: Path) -> None:

    facts = {}
    for make in (mlp, kws, cnn):
        name = make.__name__
        path = folder / "repository" / name / "1" / "model.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        model = make()
        onnx.checker.check_model(model)
        path.write_bytes(model.SerializeToString())
        x = np.random.default_rng(1).random(SHAPES[name], np.float32)
        (y,) = session(path).run(["y"], {"x": x})
        assert np.isfinite(y).all()
        assert y.max() < 0.9, f"{name} says the same of everything: its answers would prove nothing"
        (folder / f"{name}.input").write_bytes(x.tobytes())
        (folder / f"{name}.output").write_bytes(y.tobytes())
        facts[name] = {"shape": x.shape, "output_shape": y.shape}
    (folder / "models.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    write(Path(sys.argv[1]))
