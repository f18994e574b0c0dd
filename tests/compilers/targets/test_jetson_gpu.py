from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.variant import Precision
from edgeserve_compilers.spec import FLOAT
from edgeserve_compilers.targets.jetson_gpu import LARGEST_BATCH, PROFILE, JetsonGpu
from edgeserve_compilers.targets.tensorrt_lint import NEWEST_OPSET, lint, require_strict
from edgeserve_compilers.targets.x86_cpu import X86Cpu
from tests.compilers.targets.test_qdq import residual_net
from tests.suites.compiler import Bench, job, noise, opened
from tests.suites.models import conv_net, images, model, recurrent_net, save

FORMS = {form.name: form for form in JetsonGpu.forms}
INT8, FP16 = FORMS["int8"], FORMS["fp16"]


def bench(folder: Path, net: onnx.ModelProto, form, rows=None, **more) -> Bench:
    path = save(net, folder / "float.onnx")
    (folder / "products").mkdir()
    return Bench(
        form, opened(form, job(path, rows or {"image": images(32)}, folder / "work", **more)), folder / "products"
    )


def test_int8_is_what_tensorrt_calls_explicit_quantization(tmp_path: Path) -> None:
    work = bench(tmp_path, conv_net(), INT8)
    for candidate in INT8.candidates:
        product, folder = work.produce(candidate)
        built = onnx.load(folder / product.entry)
        types = {tensor.data_type for tensor in built.graph.initializer}
        assert types <= {TensorProto.FLOAT, TensorProto.INT8, TensorProto.INT64}, "no int32 bias, nothing unsigned"
        assert {entry.domain for entry in built.opset_import} == {""}
        assert built.opset_import[0].version <= NEWEST_OPSET
        assert product.findings == ()


def test_integers_are_counted_as_tensorrt_places_them(tmp_path: Path) -> None:
    """Convolutions may answer in float there; what then computes in float is not counted as integer."""
    product, folder = bench(tmp_path, residual_net(), INT8).produce(INT8.candidates[0])
    assert product.quantized_nodes == product.compute_nodes == 4
    assert product.placement == {"int8": 7, "float": 4}, "gate, product, pooling and flattening"
    built = onnx.load(folder / product.entry)
    gate = next(node for node in built.graph.node if node.op_type == "Sigmoid")
    assert gate.input[0] in {node.output[0] for node in built.graph.node if node.op_type == "Conv"}


def test_a_newer_operator_set_is_converted_down(tmp_path: Path) -> None:
    for form in FORMS.values():
        (folder := tmp_path / form.name).mkdir()
        work = bench(folder, conv_net(opset=19), form)
        for candidate in (FLOAT, form.candidates[0]):
            product, made = work.produce(candidate)
            assert onnx.load(made / product.entry).opset_import[0].version <= NEWEST_OPSET


def test_what_has_no_older_form_is_refused(tmp_path: Path) -> None:
    net = model(
        [helper.make_node("Gelu", ["x"], ["y"])],
        inputs={"x": (TensorProto.FLOAT, ["rows", 4])},
        outputs={"y": (TensorProto.FLOAT, ["rows", 4])},
        opset=20,
    )
    with pytest.raises(InputError):
        bench(tmp_path, net, INT8, {"x": np.ones((4, 4), np.float32)}).produce(FLOAT)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_profile_has_the_shapes_of_every_input(form, tmp_path: Path) -> None:
    _, folder = bench(tmp_path, conv_net(), form).produce(FLOAT)
    assert json.loads((folder / PROFILE).read_text()) == {
        "image": {"min": [1, 1, 8, 8], "opt": [1, 1, 8, 8], "max": [LARGEST_BATCH, 1, 8, 8]}
    }


def test_a_stateful_model_has_a_profile_of_one_row(tmp_path: Path) -> None:
    rows = {"sound": np.ones((8, 12), np.float32), "state": np.zeros((8, 2, 1, 16), np.float32)}
    _, folder = bench(tmp_path, recurrent_net(), FP16, rows, state={"state": "next"}).produce(FLOAT)
    profile = json.loads((folder / PROFILE).read_text())
    assert profile["sound"]["max"] == [1, 12]
    assert profile["state"] == {bound: [2, 1, 16] for bound in ("min", "opt", "max")}


def test_half_precision_keeps_inputs_and_outputs_and_what_would_overflow(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Mul", ["x", "million"], ["wide"], name="widen"),
        helper.make_node("Mul", ["wide", "millionth"], ["narrow"], name="narrow"),
        helper.make_node("MatMul", ["narrow", "w"], ["y"], name="product"),
    ]
    net = model(
        nodes,
        inputs={"x": (TensorProto.FLOAT, ["rows", 4])},
        outputs={"y": (TensorProto.FLOAT, ["rows", 4])},
        weights={
            "million": np.array([1e6], np.float32),
            "millionth": np.array([1e-6], np.float32),
            "w": np.eye(4, dtype=np.float32),
        },
    )
    rows = {"x": np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)}
    product, found = bench(tmp_path, net, FP16, rows).answers(FP16.candidates[0], rows)
    assert noise(found["y"], rows["x"]) < 1e-5
    assert product.placement == {"float": 2, "fp16": 1}
    assert product.compute_nodes == 1


def test_forms_say_what_is_left_to_do_on_the_device() -> None:
    for form in FORMS.values():
        assert form.finalize is not None
        assert form.finalize.action == "tensorrt-engine"
        assert form.finalize.cache_key == ("model", "tensorrt", "cuda", "driver", "soc")
        assert "OnnxParser" in form.finalize.steps[0]
        assert any(step.startswith("trtexec --onnx=model.onnx") for step in form.finalize.steps)
        assert form.selector.accelerator_vendor == "nvidia"
        assert not form.native("arm64", ("asimddp",))
    assert (INT8.required, INT8.float_fallback, FP16.required) == (False, False, True)
    assert FP16.auto == (Precision.FP16,)


def test_the_lint_refuses_what_is_right_for_a_cpu(tmp_path: Path) -> None:
    cpu = X86Cpu.forms[0]
    product, folder = bench(tmp_path, conv_net(), cpu).produce(cpu.candidates[0])
    with pytest.raises(InputError, match="bias is quantized to 32 bits") as caught:
        require_strict(onnx.load(folder / product.entry))
    assert "not int8" in caught.value.message


@pytest.mark.parametrize(
    ("node", "opset", "message"),
    [
        (helper.make_node("Relu", ["x"], ["y"]), 18, "operator set 18 is newer"),
        (helper.make_node("FusedThing", ["x"], ["y"], domain="com.microsoft"), 17, "operation of com.microsoft"),
    ],
)
def test_the_lint_names_what_is_wrong(node: onnx.NodeProto, opset: int, message: str) -> None:
    net = model([node], inputs={"x": (TensorProto.FLOAT, [1])}, outputs={"y": (TensorProto.FLOAT, [1])}, opset=opset)
    with pytest.raises(InputError, match=message):
        require_strict(net)


def test_an_operation_that_is_not_in_the_table_is_a_finding() -> None:
    net = model(
        [helper.make_node("Det", ["x"], ["y"])],
        inputs={"x": (TensorProto.FLOAT, [1, 2, 2])},
        outputs={"y": (TensorProto.FLOAT, [1])},
    )
    assert lint(net) == ("TensorRT's table of ONNX operations does not have Det (unverified)",)
    assert lint(conv_net()) == ()
