"""Quantized ONNX files hold what was meant: numbers by formulas of our own, kernels as ONNX Runtime picks them."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from onnx import TensorProto, helper, numpy_helper

from edgeserve_compilers.targets.arm_cpu import ArmCpu
from edgeserve_compilers.targets.base import Product
from edgeserve_compilers.targets.onnx_form import OnnxForm, Recipe
from edgeserve_compilers.targets.x86_cpu import X86Cpu
from tests.suites.compiler import job
from tests.suites.models import model, save

Array = npt.NDArray[np.float64]

X86, ARM = (next(form for form in target.forms if form.name == "onnxruntime") for target in (X86Cpu, ArmCpu))
SIZE, CHANNELS = 8, 4


def produced(
    net: onnx.ModelProto, rows: dict[str, np.ndarray], form: OnnxForm, recipe: Recipe
) -> tuple[Product, bytes]:
    """What a form makes by a recipe, and its file."""
    form = replace(form, recipes=(recipe,))
    with tempfile.TemporaryDirectory() as name:
        work = job(save(net, Path(name) / "float.onnx"), rows, Path(name) / "work")
        (folder := Path(name) / "product").mkdir()
        product = form.open(work).produce(form.candidates[0], folder)
        return product, (folder / product.entry).read_bytes()


# Numbers -------------------------------------------------------------------------------------------


def convolved(x: Array, weights: Array, *, pad: int, stride: int, group: int) -> Array:
    """x [rows, inputs, height, width], weights [outputs, inputs / group, side, side]."""
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = sliding_window_view(padded, weights.shape[2:], axis=(2, 3))[:, :, ::stride, ::stride]
    parts = zip(np.split(windows, group, axis=1), np.split(weights, group), strict=True)
    return np.concatenate([np.einsum("nchwij,ocij->nohw", window, part) for window, part in parts], axis=1)


def channel(values: Array, rank: int) -> Array:
    """[channels] to [1, channels, 1, ...]."""
    return values.reshape([1, -1, *[1] * (rank - 2)])


class Grid:
    """Affine 8-bit grid: Krishnamoorthi, arXiv:1806.08342, section 2.1."""

    def __init__(self, seen: Array, lowest: int) -> None:
        low, high = min(seen.min(), 0.0), max(seen.max(), 0.0)
        self.lowest, self.scale = lowest, (high - low) / 255
        self.zero = lowest + round(-low / self.scale)

    def steps(self, values: Array) -> Array:
        return np.clip(np.rint(values / self.scale) + self.zero, self.lowest, self.lowest + 255)


class Integers:
    """A layer as integer arithmetic defines it; `run` is the sum of products of whatever it is given."""

    def __init__(self, weights: Array, bias: Array, *, outputs: int, largest: int, source: Grid) -> None:
        self.axes = tuple(axis for axis in range(weights.ndim) if axis != outputs)
        self.scales = np.abs(weights).max(axis=self.axes) / largest
        self.weights = np.rint(weights / np.expand_dims(self.scales, self.axes))
        self.scale, self.source = self.scales * source.scale, source
        self.bias = np.rint(bias / self.scale)

    def real(self, products: Array) -> Array:
        return (products + channel(self.bias, products.ndim)) * channel(self.scale, products.ndim)


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    group=st.sampled_from([1, 2, CHANNELS]),
    side=st.sampled_from([1, 3]),
    stride=st.sampled_from([1, 2]),
    pad=st.sampled_from([0, 1]),
    transposed=st.booleans(),
    offset=st.sampled_from([-3.0, 0.0, 3.0]),
)
@pytest.mark.parametrize("form", [X86, ARM], ids=["x86", "arm"])
def test_every_layer_computes_what_the_formulas_of_integer_arithmetic_say(
    form: OnnxForm, seed: int, group: int, side: int, stride: int, pad: int, transposed: bool, offset: float
) -> None:
    random = np.random.default_rng(seed)
    # Channels of very different weights: a scale of the wrong axis would show.
    spread = np.exp(random.uniform(-2, 2, 8))
    w1 = random.standard_normal((8, CHANNELS // group, side, side)) * spread[:, None, None, None]
    w2 = random.standard_normal((6, 8, 1, 1)) * 0.2
    x = (random.standard_normal((20, CHANNELS, SIZE, SIZE)) + offset).astype(np.float32).astype(np.float64)
    r1 = np.maximum(convolved(x, w1, pad=pad, stride=stride, group=group) + channel(b1 := spread, 4), 0)
    c2 = convolved(r1, w2, pad=0, stride=1, group=1) + channel(b2 := random.standard_normal(6), 4)
    flat = c2.reshape(len(x), -1)
    w3, b3 = random.standard_normal((5, flat.shape[1])) * 0.1, random.standard_normal(5)
    net = model(
        [
            helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], group=group, strides=[stride] * 2, pads=[pad] * 4),
            helper.make_node("Relu", ["c1"], ["r1"]),
            helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"]),
            helper.make_node("Flatten", ["c2"], ["flat"]),
            helper.make_node("Gemm", ["flat", "w3", "b3"], ["y"], transB=int(transposed)),
        ],
        inputs={"x": (TensorProto.FLOAT, ["batch", CHANNELS, SIZE, SIZE])},
        outputs={"y": (TensorProto.FLOAT, ["batch", 5])},
        weights={
            name: np.asarray(values, np.float32)
            for name, values in zip(
                ("w1", "b1", "w2", "b2", "w3", "b3"), (w1, b1, w2, b2, w3 if transposed else w3.T, b3), strict=True
            )
        },
    )
    product, content = produced(net, {"x": x.astype(np.float32)}, form, Recipe(calibrator="minmax", corrected=False))
    assert product.quantized_nodes == product.compute_nodes == 3
    # What the kernels themselves had in their hands: each layer is judged by the steps that it was given.
    found = _steps(content, x.astype(np.float32), ("x", "r1", "c2", "flat"), kernels=form is X86)

    largest, lowest = form.scheme.largest_weight, -128 if form.scheme.signed else 0
    on_x, on_r1, on_c2 = (Grid(seen, lowest) for seen in (x, r1, c2))
    first = Integers(w1, b1, outputs=0, largest=largest, source=on_x)
    second = Integers(w2, b2, outputs=0, largest=largest, source=on_r1)
    third = Integers(w3, b3, outputs=0, largest=largest, source=on_c2)
    _same_steps(found["x"], on_x.steps(x))
    products = convolved(found["x"] - on_x.zero, first.weights, pad=pad, stride=stride, group=group)
    _same_steps(found["r1"], on_r1.steps(np.maximum(first.real(products), 0)))
    products = convolved(found["r1"] - on_r1.zero, second.weights, pad=0, stride=1, group=1)
    _same_steps(found["c2"], on_c2.steps(second.real(products)))
    products = (found["flat"] - on_c2.zero) @ third.weights.T
    np.testing.assert_allclose(found["y"], third.real(products), rtol=1e-4, atol=float(2 * third.scale.max()))


def _same_steps(found: Array, expected: Array) -> None:
    """Halves may be rounded to either side, where the last bits of single precision decide; nothing else differs."""
    apart = np.abs(found - expected)
    assert apart.max() <= 1
    assert np.count_nonzero(apart) <= 0.01 * apart.size


def _steps(content: bytes, x: np.ndarray, tensors: tuple[str, ...], *, kernels: bool) -> dict[str, Array]:
    """Quantized tensors of a product, and its output `y`; by integer kernels or as the operations are defined."""
    built = onnx.load_model_from_string(content)
    steps = {node.input[0]: node.output[0] for node in built.graph.node if node.op_type == "QuantizeLinear"}
    built.graph.output.extend(onnx.ValueInfoProto(name=steps[name]) for name in tensors)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if not kernels:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(built.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = session.run([*(steps[name] for name in tensors), "y"], {"x": x})
    return dict(zip((*tensors, "y"), (np.asarray(value, np.float64) for value in values), strict=True))


# Kernels -------------------------------------------------------------------------------------------

FLOATS = {"Conv": 1, "FusedConv": 2, "Relu": 1, "Clip": 1, "HardSigmoid": 1, "Mul": 1, "Concat": 1}
"""Operations of the model that one float kernel of ONNX Runtime stands for: a fused one limits its result as well."""
LIMITS = (("Relu",), ("Clip", 0.0, 6.0), ("Clip", -1.0, 1.0), ("Clip", 0.5, 2.0), ("HardSwish",), ())


@st.composite
def nets(draw: st.DrawFn) -> onnx.ModelProto:
    """Convolutions with and without limits, joined here and there; some results are outputs of the graph besides."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    nodes, weights = [], {}
    outputs: dict[str, int] = {}
    alive = {"x": CHANNELS}

    def layer(place: str, limits: tuple[str | float, ...]) -> None:
        source = draw(st.sampled_from(sorted(alive)))
        weights[f"w{place}"] = random.standard_normal((4, alive[source], 3, 3)).astype(np.float32) * 0.4
        nodes.append(helper.make_node("Conv", [source, f"w{place}"], [f"c{place}"], pads=[1] * 4))
        result = f"c{place}"
        if limits:
            kind, *bounds = limits
            names = [f"{name}{place}" for name in ("low", "high")[: len(bounds)]]
            weights.update((name, np.float32(bound)) for name, bound in zip(names, bounds, strict=True))
            nodes.append(helper.make_node(str(kind), [result, *names], [f"l{place}"]))
            if draw(st.integers(0, 5)) == 0:
                outputs[result] = 4
            result = f"l{place}"
        alive[result] = 4

    for place in range(draw(st.integers(1, 4))):
        layer(str(place), draw(st.sampled_from(LIMITS)))
    if len(alive) > 2 and draw(st.booleans()):
        joined = draw(st.lists(st.sampled_from(sorted(set(alive) - {"x"})), min_size=2, max_size=3, unique=True))
        nodes.append(helper.make_node("Concat", joined, ["joined"], axis=1))
        alive["joined"] = sum(alive.pop(name) for name in joined)
    layer("last", ())
    read = {name for node in nodes for name in node.input}
    outputs |= {name: count for name, count in alive.items() if name not in read or draw(st.integers(0, 5)) == 0}
    outputs.pop("x", None)
    return model(
        nodes,
        inputs={"x": (TensorProto.FLOAT, ["batch", CHANNELS, SIZE, SIZE])},
        outputs={name: (TensorProto.FLOAT, ["batch", count, SIZE, SIZE]) for name, count in outputs.items()},
        weights=weights,
    )


@settings(max_examples=60, deadline=None)
@given(net=nets())
@pytest.mark.parametrize("operators", ["all", "compute"])
def test_as_many_operations_compute_in_float_as_the_report_says(operators: str, net: onnx.ModelProto) -> None:
    rows = np.random.default_rng(0).standard_normal((8, CHANNELS, SIZE, SIZE)).astype(np.float32)
    product, content = produced(net, {"x": rows}, X86, Recipe(calibrator="minmax", operators=operators))
    used = _kernels(content)
    assert sum(FLOATS.get(kind, 0) * count for kind, count in used.items()) == product.placement.get("float", 0), used


def _kernels(content: bytes) -> Counter[str]:
    """Operations that ONNX Runtime makes of a file on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = f"{folder}/optimized.onnx"
        onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


def test_a_channel_of_dead_weights_and_a_dead_tensor_break_nothing() -> None:
    random = np.random.default_rng(0)
    w1 = random.standard_normal((4, CHANNELS, 1, 1)).astype(np.float32)
    w1[1:] = 1e-44
    net = model(
        [
            helper.make_node("Conv", ["x", "w1"], ["c1"]),
            helper.make_node("Slice", ["c1", "one", "end", "one"], ["dead"]),
            helper.make_node("Conv", ["dead", "w2", "b2"], ["y"]),
        ],
        inputs={"x": (TensorProto.FLOAT, ["batch", CHANNELS, SIZE, SIZE])},
        outputs={"y": (TensorProto.FLOAT, ["batch", 2, SIZE, SIZE])},
        weights={
            "w1": w1,
            "w2": random.standard_normal((2, 3, 1, 1)).astype(np.float32) * np.float32(1e-44),
            "b2": np.array([0.0, 1.0], np.float32),
            "one": np.array([1], np.int64),
            "end": np.array([4], np.int64),
        },
    )
    rows = {"x": random.standard_normal((8, CHANNELS, SIZE, SIZE)).astype(np.float32)}
    for calibrator, corrected in (("mse", True), ("percentile 99.9", True), ("minmax", False)):
        _, content = produced(net, rows, X86, Recipe(calibrator=calibrator, corrected=corrected))
        for tensor in onnx.load_model_from_string(content).graph.initializer:
            if tensor.name.endswith("_scales"):
                assert (numpy_helper.to_array(tensor) > np.finfo(np.float32).tiny).all(), tensor.name
        (found,) = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run(["y"], rows)
        np.testing.assert_allclose(found[:, 0], 0, atol=1e-6)
        np.testing.assert_allclose(found[:, 1], 1, atol=1e-6)
