"""Tiny models that tests build for themselves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASSES = 10
BOX_CHANNELS = 4


def conv_net(*, batch: int | str = "batch", opset: int = 17, seed: int = 0) -> onnx.ModelProto:
    """A small classifier: `image` f32 [batch, 1, 8, 8] to `logits` f32 [batch, 10], random weights."""
    random = np.random.default_rng(seed)
    weights = {
        "w1": random.standard_normal((8, 1, 3, 3)) * 0.4,
        "b1": random.standard_normal(8) * 0.1,
        "w2": random.standard_normal((16, 8, 3, 3)) * 0.15,
        "b2": random.standard_normal(16) * 0.1,
        "w3": random.standard_normal((CLASSES, 256)) * 0.1,
        "b3": random.standard_normal(CLASSES),
    }
    nodes = [
        helper.make_node("Conv", ["image", "w1", "b1"], ["c1"], pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], pads=[1] * 4),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("MaxPool", ["r2"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["logits"], transB=1),
    ]
    return model(
        nodes,
        inputs={"image": (TensorProto.FLOAT, [batch, 1, 8, 8])},
        outputs={"logits": (TensorProto.FLOAT, [batch, CLASSES])},
        weights={name: array.astype(np.float32) for name, array in weights.items()},
        opset=opset,
    )


def branched_net() -> onnx.ModelProto:
    """What a quantizer can travel through or end at: pooling, a join, two residuals, a depthwise layer."""
    random = np.random.default_rng(5)
    weights = {
        "w1": random.standard_normal((8, 1, 3, 3)) * 0.4,
        "wd": random.standard_normal((8, 1, 3, 3)) * 0.4,
        "wa": random.standard_normal((8, 8, 1, 1)) * 0.3,
        "wb": random.standard_normal((8, 8, 3, 3)) * 0.15,
        "wc": random.standard_normal((8, 16, 1, 1)) * 0.2,
        "wf": random.standard_normal((128, 10)) * 0.1,
        "b": random.standard_normal(8) * 0.2,
    }
    conv = [
        helper.make_node("Conv", ["image", "w1", "b"], ["c1"], name="stem", pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("MaxPool", ["r1"], ["p1"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p1", "wd", "b"], ["d1"], name="depthwise", group=8, pads=[1] * 4),
        helper.make_node("Conv", ["p1", "wa", "b"], ["a1"], name="narrow"),
        helper.make_node("Conv", ["p1", "wb", "b"], ["b1"], name="wide", pads=[1] * 4),
        helper.make_node("Relu", ["a1"], ["a2"]),
        helper.make_node("Relu", ["b1"], ["b2"]),
        helper.make_node("Concat", ["a2", "b2"], ["j"], name="join", axis=1),
        helper.make_node("Conv", ["j", "wc", "b"], ["c2"], name="merge"),
        helper.make_node("Add", ["c2", "d1"], ["sum1"], name="residual"),
        helper.make_node("Add", ["sum1", "p1"], ["sum2"], name="residual2"),
        helper.make_node("Flatten", ["sum2"], ["f"]),
        helper.make_node("MatMul", ["f", "wf"], ["logits"], name="classify"),
    ]
    return model(
        conv,
        inputs={"image": (TensorProto.FLOAT, ["batch", 1, 8, 8])},
        outputs={"logits": (TensorProto.FLOAT, ["batch", 10])},
        weights={name: array.astype(np.float32) for name, array in weights.items()},
    )


def mixed_range_net(*, batch: int | str = "batch", opset: int = 17, seed: int = 0) -> onnx.ModelProto:
    """A small detector: `image` f32 [batch, 1, 8, 8] to `boxes` f32 [batch, 4 + 10, 8, 8].

    Its head joins boxes in pixels (hundreds) with scores of 0 to 1: one scale for both leaves the scores no step.
    """
    random = np.random.default_rng(seed)
    weights = {
        "w1": random.standard_normal((16, 1, 3, 3)) * 0.4,
        "b1": random.standard_normal(16) * 0.1,
        "w2": random.standard_normal((16, 16, 3, 3)) * 0.1,
        "b2": random.standard_normal(16) * 0.1,
        "wbox": random.standard_normal((BOX_CHANNELS, 16, 1, 1)) * 0.4,
        "bbox": random.standard_normal(BOX_CHANNELS),
        "wscore": random.standard_normal((CLASSES, 16, 1, 1)) * 0.4,
        "bscore": random.standard_normal(CLASSES) - 1,
        "stride": np.array(64.0),
    }
    nodes = [
        helper.make_node("Conv", ["image", "w1", "b1"], ["c1"], name="stem", pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"], name="stem_relu"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], name="body", pads=[1] * 4),
        helper.make_node("Relu", ["c2"], ["r2"], name="body_relu"),
        helper.make_node("Conv", ["r2", "wbox", "bbox"], ["offset"], name="box"),
        helper.make_node("Mul", ["offset", "stride"], ["pixels"], name="box_scale"),
        helper.make_node("Conv", ["r2", "wscore", "bscore"], ["logit"], name="score"),
        helper.make_node("Sigmoid", ["logit"], ["probability"], name="score_sigmoid"),
        helper.make_node("Concat", ["pixels", "probability"], ["boxes"], name="join", axis=1),
    ]
    return model(
        nodes,
        inputs={"image": (TensorProto.FLOAT, [batch, 1, 8, 8])},
        outputs={"boxes": (TensorProto.FLOAT, [batch, BOX_CHANNELS + CLASSES, 8, 8])},
        weights={name: array.astype(np.float32) for name, array in weights.items()},
        opset=opset,
    )


def recurrent_net(*, seed: int = 0) -> onnx.ModelProto:
    """A small stateful model: `sound` f32 [batch, 12], `state` f32 [2, batch, 16] to `score` [batch, 1] and `next`.

    Batch is not the first axis of the state, as in ONNX's own LSTM.
    """
    random = np.random.default_rng(seed)
    weights = {
        "wx": random.standard_normal((12, 32)) * 0.3,
        "wh": random.standard_normal((16, 32)) * 0.3,
        "wy": random.standard_normal((32, 1)) * 0.3,
    }
    nodes = [
        helper.make_node("MatMul", ["sound", "wx"], ["x"]),
        helper.make_node("Split", ["state"], ["h0", "h1"], axis=0),
        helper.make_node("Squeeze", ["h0", "axis0"], ["h"]),
        helper.make_node("MatMul", ["h", "wh"], ["hx"]),
        helper.make_node("Add", ["x", "hx"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["t"]),
        helper.make_node("MatMul", ["t", "wy"], ["y"]),
        helper.make_node("Sigmoid", ["y"], ["score"]),
        helper.make_node("Split", ["t"], ["t0", "t1"], axis=1),
        helper.make_node("Unsqueeze", ["t0", "axis0"], ["n0"]),
        helper.make_node("Unsqueeze", ["t1", "axis0"], ["n1"]),
        helper.make_node("Concat", ["n0", "n1"], ["next"], axis=0),
    ]
    return model(
        nodes,
        inputs={"sound": (TensorProto.FLOAT, ["batch", 12]), "state": (TensorProto.FLOAT, [2, "batch", 16])},
        outputs={"score": (TensorProto.FLOAT, ["batch", 1]), "next": (TensorProto.FLOAT, [2, "batch", 16])},
        weights={**{name: array.astype(np.float32) for name, array in weights.items()}, "axis0": np.array([0])},
    )


def model(
    nodes: list[onnx.NodeProto],
    *,
    inputs: Mapping[str, tuple[int, list[int | str] | None]],
    outputs: Mapping[str, tuple[int, list[int | str] | None]],
    weights: Mapping[str, np.ndarray] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    """Any graph; a shape of None leaves the rank open."""
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    built.ir_version = 8
    return built


def save(built: onnx.ModelProto, path: Path) -> Path:
    onnx.save(built, path)
    return path


def images(rows: int, *, seed: int = 1) -> np.ndarray:
    """Random pictures that the net above classifies into several classes: f32 [rows, 1, 8, 8]."""
    random = np.random.default_rng(seed)
    return (random.standard_normal((rows, 1, 8, 8)) * random.uniform(0.2, 2, (rows, 1, 1, 1))).astype(np.float32)
