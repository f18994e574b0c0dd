from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgeserve.contracts.variant import Precision
from edgeserve.runtimes.base import RuntimeOptions
from edgeserve.runtimes.onnx import OnnxRuntime
from edgeserve_compilers.spec import FLOAT, Candidate
from edgeserve_compilers.targets import onnx_graph, weights
from edgeserve_compilers.targets.arm_cpu import ArmCpu
from edgeserve_compilers.targets.onnx_form import CPU_RECIPES, OnnxForm, Recipe, WeightsOnly, counted
from edgeserve_compilers.targets.qdq import FLOAT_OUTPUTS, grid_of
from edgeserve_compilers.targets.ranges import CALIBRATORS, Statistics, measure
from edgeserve_compilers.targets.x86_cpu import X86Cpu
from tests.suites.compiler import Bench, float_outputs, job, noise
from tests.suites.models import conv_net, images, mixed_range_net, model, save

FORM = next(form for form in X86Cpu.forms if form.name == "vnni")
assert isinstance(FORM, OnnxForm)


def bench(folder: Path, net: onnx.ModelProto, rows: dict[str, np.ndarray], form: OnnxForm = FORM) -> Bench:
    path = save(net, folder / "float.onnx")
    (folder / "products").mkdir()
    return Bench(form, form.open(job(path, rows, folder / "work")), folder / "products")


def made(made_by: Bench, recipe: str, *float_layers: str) -> onnx.ModelProto:
    """The file of the form's candidate whose name begins so."""
    candidate = next(found for found in made_by.form.candidates if found.recipe.startswith(recipe))
    mixed = Candidate(precision=candidate.precision, recipe=candidate.recipe, float_layers=float_layers)
    product, folder = made_by.produce(mixed)
    built = onnx.load(folder / product.entry)
    onnx.checker.check_model(built)
    return built


def sources(built: onnx.ModelProto) -> dict[str, str]:
    """For each float input of each operation: the operation that makes it, or `stored`, or `input`."""
    by = {name: node.op_type for node in built.graph.node for name in node.output}
    by |= {tensor.name: "stored" for tensor in built.graph.initializer}
    return {
        f"{node.op_type}.{place}": by.get(name, "input")
        for node in built.graph.node
        for place, name in enumerate(node.input)
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear")
    }


# Ranges --------------------------------------------------------------------------------------------


def statistics(rows: np.ndarray, *, batch: int = 5) -> Statistics:
    found = Statistics()
    for start in range(0, len(rows), batch):
        found.add(rows[start : start + batch], len(rows[start : start + batch]), 1 if rows.ndim > 1 else None)
    return found


def test_extremes_means_and_channels_do_not_depend_on_the_batch() -> None:
    rows = (np.random.default_rng(0).standard_normal((37, 3, 4)) * [[[1], [10], [0.1]]]).astype(np.float32)
    for batch in (1, 5, 37):
        found = statistics(rows, batch=batch)
        assert (found.low, found.high) == (rows.min(), rows.max())
        lows, highs = found.cut("moving average", symmetric=False)
        assert lows == pytest.approx(rows.min(axis=(1, 2)).mean(), rel=1e-6)
        assert highs == pytest.approx(rows.max(axis=(1, 2)).mean(), rel=1e-6)
        np.testing.assert_allclose(found.channel_mean, rows.mean(axis=(0, 2)), rtol=1e-4)


def test_percentiles_are_those_of_the_values_however_the_range_grew() -> None:
    values = np.random.default_rng(1).standard_normal((200, 500)).astype(np.float32)
    values[120:] *= 30  # the histogram has to grow
    found = statistics(values)
    for share in (99.9, 99.99):
        expected = np.percentile(values, [(100 - share) / 2, (100 + share) / 2])
        low, high = found.cut(f"percentile {share}", symmetric=False)
        assert [low, high] == pytest.approx(expected, rel=0.03)


def test_least_error_cuts_outliers_and_leaves_what_is_even_alone() -> None:
    random = np.random.default_rng(2)
    even = random.uniform(-1, 1, (50, 1000)).astype(np.float32)
    low, high = statistics(even).cut("mse", symmetric=False)
    assert (low, high) == pytest.approx((-1, 1), abs=0.03)
    normal = random.standard_normal((500, 1000)).astype(np.float32)
    normal[0, 0] = 60.0
    for symmetric in (False, True):
        low, high = statistics(normal).cut("mse", symmetric=symmetric)
        assert 3 < high < 50
        error = [_rounding_error(normal, bounds) for bounds in ((low, high), (float(normal.min()), 60.0))]
        assert error[0] < error[1]


def _rounding_error(values: np.ndarray, bounds: tuple[float, float]) -> float:
    grid = grid_of(bounds, signed=False, symmetric=False)
    steps = np.clip(np.rint(values / grid.scale) + grid.zero, 0, 255)
    return float(np.square((steps - grid.zero) * grid.scale - values).mean())


@pytest.mark.parametrize("calibrator", CALIBRATORS)
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_a_constant_tensor_has_a_range(calibrator: str, value: float) -> None:
    low, high = statistics(np.full((4, 8), value, np.float32)).cut(calibrator, symmetric=False)
    assert low <= value <= high or high == pytest.approx(value)


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        statistics(np.array([[1.0, np.inf]], np.float32))


def test_whole_inputs_are_fed_where_the_rows_have_an_axis_more(tmp_path: Path) -> None:
    net = conv_net()
    found = measure(
        net,
        ["image", "r1"],
        {"image": images(6)[:, None]},
        channels={},
        one_by_one=True,
        fixed=None,
        ranks={"image": 4},
    )
    assert found["image"].low == images(6).min()
    assert found["r1"].low == 0


@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4), st.booleans(), st.booleans())
def test_zero_is_on_every_grid_and_the_range_within_half_a_step(
    low: float, high: float, signed: bool, symmetric: bool
) -> None:
    low, high = min(low, high), max(low, high)
    grid = grid_of((low, high), signed=signed, symmetric=symmetric)
    lowest = -127 if symmetric else -128 if signed else 0
    highest = 127 if signed or symmetric else 255
    assert grid.scale > 0
    assert lowest <= grid.zero <= highest
    assert (lowest - grid.zero) * float(grid.scale) <= min(low, 0) + float(grid.scale) * 0.51
    assert (highest - grid.zero) * float(grid.scale) >= max(high, 0) - float(grid.scale) * 0.51


# Weights -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "bound"), [(8, 0.006), (4, 0.1)])
def test_blocks_are_what_matmulnbits_computes_with(bits: int, bound: float) -> None:
    matrix = np.random.default_rng(0).standard_normal((70, 9)).astype(np.float32)
    steps, scales = weights.blocks(matrix, bits)
    node = helper.make_node(
        "MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", K=70, N=9, bits=bits, block_size=weights.BLOCK
    )
    net = model(
        [node],
        inputs={"x": (TensorProto.FLOAT, ["rows", 70])},
        outputs={"y": (TensorProto.FLOAT, ["rows", 9])},
        weights={"w": steps, "s": scales},
    )
    net.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    import onnxruntime

    session = onnxruntime.InferenceSession(net.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {"x": np.eye(70, dtype=np.float32)})[0]
    assert np.abs(found - matrix).max() < bound * np.abs(matrix).max() + 1e-6


def test_a_channel_of_almost_nothing_leaves_its_bias_room() -> None:
    scales = np.array([1e-12, 0.01], np.float32)
    bias = np.array([3.0, 3.0], np.float32)
    wide = weights.room_for_bias(scales, bias, 0.02)
    assert np.abs(bias / (wide * 0.02)).max() < 2**31
    assert wide[1] == scales[1]


def test_bias_correction_takes_the_mean_error_out(tmp_path: Path) -> None:
    """Inputs that are all positive make the error of each weight count the same way."""
    rows = {"image": np.abs(images(64)) + 2}
    expected = float_outputs(save(conv_net(), tmp_path / "reference.onnx"), rows)["logits"]
    lost = {}
    for corrected in (False, True):
        (folder := tmp_path / str(corrected)).mkdir()
        form = OnnxForm(
            name="seven bits", scheme=X86Cpu.forms[0].scheme, selector=FORM.selector, required=False,
            recipes=[Recipe(calibrator="minmax", corrected=corrected)], float_fallback=False, runs=FORM.runs,
        )  # fmt: skip
        found = bench(folder, conv_net(), rows, form).answers(form.candidates[0], rows)[1]["logits"]
        lost[corrected] = float(np.abs((found - expected).mean(axis=0)).mean())
    assert lost[True] < 0.7 * lost[False]


# What is quantized ---------------------------------------------------------------------------------


def residual_net() -> onnx.ModelProto:
    """Two convolutions with a sum around the second, its Relu, a gate by Sigmoid, and a classifier."""
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["image", "w1", "b1"], ["c1"], name="first", pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"], name="first_relu"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], name="second", pads=[1] * 4),
        helper.make_node("Add", ["c2", "r1"], ["sum"], name="sum"),
        helper.make_node("Relu", ["sum"], ["r2"], name="sum_relu"),
        helper.make_node("Conv", ["r2", "w3", "b3"], ["c3"], name="third", pads=[1] * 4),
        helper.make_node("Sigmoid", ["c3"], ["gate"], name="gate"),
        helper.make_node("Mul", ["c3", "gate"], ["silu"], name="silu"),
        helper.make_node("GlobalAveragePool", ["silu"], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="flat"),
        helper.make_node("Gemm", ["flat", "w4"], ["logits"], name="last", transB=1),
    ]
    values = {
        "w1": (8, 1, 3, 3),
        "b1": (8,),
        "w2": (8, 8, 3, 3),
        "b2": (8,),
        "w3": (8, 8, 3, 3),
        "b3": (8,),
        "w4": (10, 8),
    }
    return model(
        nodes,
        inputs={"image": (TensorProto.FLOAT, ["batch", 1, 8, 8])},
        outputs={"logits": (TensorProto.FLOAT, ["batch", 10])},
        weights={name: (random.standard_normal(shape) * 0.3).astype(np.float32) for name, shape in values.items()},
    )


def test_every_operation_between_layers_gets_integers_where_all_operators_are_asked_for(tmp_path: Path) -> None:
    built = made(bench(tmp_path, residual_net(), {"image": images(32)}), "u8s8 minmax, all")
    found = sources(built)
    assert {
        found[key] for key in ("Add.0", "Add.1", "Mul.0", "Mul.1", "Sigmoid.0", "GlobalAveragePool.0", "Gemm.0")
    } == {"DequantizeLinear"}
    assert counted(built, float_outputs=FLOAT_OUTPUTS).placement == {"int8": 11}


def test_compute_operators_leave_arithmetic_in_float(tmp_path: Path) -> None:
    built = made(bench(tmp_path, residual_net(), {"image": images(32)}), "u8s8 minmax, compute")
    product = counted(built, float_outputs=FLOAT_OUTPUTS)
    assert product.quantized_nodes == product.compute_nodes == 4
    assert product.placement["float"] >= 4, "sum, gate, product and pooling"


def test_what_only_float_operations_read_is_not_quantized(tmp_path: Path) -> None:
    work = bench(tmp_path, residual_net(), {"image": images(32)})
    built = made(work, "u8s8 minmax, all", "first", "second", "third")
    quantizers = [node for node in built.graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantizers) == 1, "the input of the one layer that is left"
    assert sources(built)["Add.0"] == "Conv"
    untouched = made(work, "u8s8 minmax, all", "first", "second", "third", "last")
    assert not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in untouched.graph.node}


def test_a_relu_is_part_of_the_grid_of_what_it_limits(tmp_path: Path) -> None:
    found = sources(made(bench(tmp_path, conv_net(), {"image": images(32)}), "u8s8 minmax, all"))
    assert found["Relu.0"] == "Conv"
    assert found["MaxPool.0"] == "DequantizeLinear"


def test_joined_tensors_share_the_grid_of_the_joined_one(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["a"], name="a"),
        helper.make_node("Conv", ["image", "w2"], ["b"], name="b"),
        helper.make_node("Concat", ["a", "b"], ["joined"], name="join", axis=1),
        helper.make_node("Conv", ["joined", "w3"], ["boxes"], name="last"),
    ]
    net = model(
        nodes,
        inputs={"image": (TensorProto.FLOAT, ["batch", 1, 8, 8])},
        outputs={"boxes": (TensorProto.FLOAT, ["batch", 2, 8, 8])},
        weights={
            "w1": random.standard_normal((4, 1, 1, 1)).astype(np.float32),
            "w2": random.standard_normal((4, 1, 1, 1)).astype(np.float32) * 2,
            "w3": random.standard_normal((2, 8, 1, 1)).astype(np.float32),
        },
    )
    built = made(bench(tmp_path, net, {"image": images(32)}), "u8s8 minmax, all")
    scales = {node.input[0]: node.input[1] for node in built.graph.node if node.op_type == "QuantizeLinear"}
    assert scales["a"] == scales["b"] == scales["joined"] != scales["image"]


def test_a_head_of_different_ranges_stays_float_and_its_convolutions_answer_in_float(tmp_path: Path) -> None:
    found = sources(made(bench(tmp_path, mixed_range_net(), {"image": images(32)}), "u8s8 minmax, all"))
    assert found["Sigmoid.0"] == "Conv"
    assert {found["Concat.0"], found["Concat.1"]} == {"Conv", "Sigmoid"}


def test_gates_need_no_steps_where_sigmoid_is_flat(tmp_path: Path) -> None:
    net = residual_net()
    next(tensor for tensor in net.graph.initializer if tensor.name == "b3").raw_data = np.linspace(
        -90, 20, 8, dtype=np.float32
    ).tobytes()
    built = made(bench(tmp_path, net, {"image": images(32)}), "u8s8 minmax, all")
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in built.graph.initializer}
    pair = next(node for node in built.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "c3")
    assert -8.2 < -int(values[pair.input[2]]) * float(values[pair.input[1]]) < -7.8


def test_a_square_beside_a_gate_keeps_its_range(tmp_path: Path) -> None:
    """Sigmoid is flat far below zero, x * x is not."""
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["c"], name="first"),
        helper.make_node("Sigmoid", ["c"], ["gate"], name="gate"),
        helper.make_node("Mul", ["c", "c"], ["square"], name="square"),
        helper.make_node("Add", ["gate", "square"], ["sum"], name="sum"),
        helper.make_node("Conv", ["sum", "w2"], ["boxes"], name="last"),
    ]
    net = model(
        nodes,
        inputs={"image": (TensorProto.FLOAT, ["batch", 1, 8, 8])},
        outputs={"boxes": (TensorProto.FLOAT, ["batch", 2, 8, 8])},
        weights={
            "w1": np.full((4, 1, 1, 1), -30.0, np.float32),
            "w2": random.standard_normal((2, 4, 1, 1)).astype(np.float32),
        },
    )
    work = bench(tmp_path, net, {"image": images(32)})
    built = made(work, "u8s8 minmax, all")
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in built.graph.initializer}
    pair = next(node for node in built.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "c")
    lowest = -30 * float(images(32).max())
    assert lowest < -20
    assert -int(values[pair.input[2]]) * float(values[pair.input[1]]) == pytest.approx(lowest, rel=0.02)


def test_weights_alone_shrink_the_file_and_leave_activations_alone(tmp_path: Path) -> None:
    work = bench(tmp_path, conv_net(), {"image": images(32)})
    built = made(work, "weights only, 8")
    assert "QuantizeLinear" not in {node.op_type for node in built.graph.node}
    assert "MatMulNBits" in {node.op_type for node in built.graph.node}
    float_layer = made(work, "weights only, 8", work.workshop.layers[-1])
    assert "MatMulNBits" not in {node.op_type for node in float_layer.graph.node}


def test_four_bits_without_a_matrix_are_refused(tmp_path: Path) -> None:
    work = bench(tmp_path, mixed_range_net(), {"image": images(16)})
    with pytest.raises(ValueError, match="4 bits"):
        made(work, "weights only, 4")


def test_a_layer_that_is_not_there_is_refused(tmp_path: Path) -> None:
    work = bench(tmp_path, conv_net(), {"image": images(16)})
    with pytest.raises(ValueError, match="no layers nonsense"):
        made(work, "u8s8", "nonsense")


def test_recipes_of_the_cpu_forms_cover_calibrators_operators_and_weights() -> None:
    assert {recipe.calibrator for recipe in CPU_RECIPES if isinstance(recipe, Recipe)} == set(CALIBRATORS)
    assert {recipe.bits for recipe in CPU_RECIPES if isinstance(recipe, WeightsOnly)} == {4, 8}
    assert len(CPU_RECIPES) <= 10
    assert [candidate.precision for candidate in FORM.candidates].count(Precision.INT4) == 1


# The file ------------------------------------------------------------------------------------------


def test_a_large_model_keeps_its_weights_beside_the_graph(tmp_path: Path) -> None:
    wide = np.random.default_rng(0).standard_normal((2100, 2100)).astype(np.float32)
    net = model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        inputs={"x": (TensorProto.FLOAT, ["rows", 2100])},
        outputs={"y": (TensorProto.FLOAT, ["rows", 2100])},
        weights={"w": wide},
    )
    rows = {"x": wide[:4]}
    work = bench(tmp_path, net, rows)
    product, folder = work.produce(FLOAT)
    assert {path.name for path in folder.iterdir()} == {onnx_graph.ENTRY, onnx_graph.WEIGHTS}
    assert (folder / product.entry).stat().st_size < 10_000
    found = OnnxRuntime().load(folder / product.entry, RuntimeOptions()).run(rows)["y"]
    assert noise(found, wide[:4] @ wide) < 1e-9


def test_what_is_newer_than_the_oldest_runtime_is_lowered(tmp_path: Path) -> None:
    net = conv_net(opset=22)
    net.ir_version = 11
    work = bench(tmp_path, net, {"image": images(16)})
    for candidate in (FLOAT, work.form.candidates[0]):
        product, folder = work.produce(candidate)
        built = onnx.load(folder / product.entry)
        assert built.ir_version <= onnx_graph.NEWEST_IR
        assert built.opset_import[0].version <= onnx_graph.NEWEST_OPSET


def test_the_arm_form_comes_before_those_of_another_library() -> None:
    assert ArmCpu.forms[0].runtime == "onnxruntime"
