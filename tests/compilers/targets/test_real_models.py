"""Published networks under the ONNX forms; they need the real test data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import version_converter
from PIL import Image

from edgeserve_compilers.spec import Candidate
from edgeserve_compilers.targets.arm_cpu import ArmCpu
from edgeserve_compilers.targets.base import Form
from edgeserve_compilers.targets.x86_cpu import X86Cpu
from tests.suites.compiler import Bench, float_outputs, job, noise
from tests.suites.models import save
from tests.suites.yolox import decoded


def pictures(folder: Path, side: int, count: int, *, mean: float = 0, std: float = 1) -> np.ndarray:
    """Stretched pictures, blue first: f32 [count, 3, side, side]."""
    files = sorted((folder / "data/coco128/images").iterdir())[:count]
    stretched = [np.asarray(Image.open(file).convert("RGB").resize((side, side)), np.float32) for file in files]
    return np.stack([(array[:, :, ::-1].transpose(2, 0, 1) - mean) / std for array in stretched])


def bench(form: Form, net: onnx.ModelProto, rows: dict[str, np.ndarray], folder: Path) -> Bench:
    path = save(net, folder / "float.onnx")
    (folder / "products").mkdir()
    return Bench(form, form.open(job(path, rows, folder / "work")), folder / "products")


@pytest.mark.parametrize("form", [*X86Cpu.forms, ArmCpu.forms[0]], ids=["x86-any", "x86-vnni", "arm"])
def test_squeezenet_keeps_its_answers_in_a_third_of_the_size(form: Form, realdata: Path, tmp_path: Path) -> None:
    rows = {"input": pictures(realdata, 224, 24, mean=116, std=58)}
    work = bench(form, onnx.load(realdata / "models/squeezenet1_1.onnx"), rows, tmp_path)
    expected = float_outputs(tmp_path / "float.onnx", rows)["logits"]
    product, found = work.answers(form.candidates[0], rows)
    assert product.quantized_nodes == product.compute_nodes == 26
    assert product.placement["int8"] > 20 * product.placement["float"]
    assert noise(found["logits"], expected) < 0.003, "25 dB"
    size = sum(path.stat().st_size for path in (tmp_path / "products").rglob("model.onnx"))
    assert size < 0.3 * (tmp_path / "float.onnx").stat().st_size


@pytest.mark.parametrize("in_graph", [False, True], ids=["raw", "decoded"])
def test_the_head_of_yolox_stays_float_and_its_feature_maps_do_not(
    in_graph: bool, realdata: Path, tmp_path: Path
) -> None:
    net = version_converter.convert_version(onnx.load(realdata / "models/yolox_nano.onnx"), 17)
    net = decoded(net) if in_graph else net
    rows = {"images": pictures(realdata, 416, 4)}
    form = X86Cpu.forms[0]
    work = bench(form, net, rows, tmp_path)
    name = net.graph.output[0].name
    expected = float_outputs(tmp_path / "float.onnx", rows)[name]
    base = form.candidates[0]
    first = tuple(sorted(work.workshop.layers[:2]))  # their values reach 129 in one channel and 1 in the others
    product, folder = work.produce(Candidate(precision=base.precision, recipe=base.recipe, float_layers=first))
    built = onnx.load(folder / product.entry)
    quantized = {name for node in built.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    joins = [node for node in built.graph.node if node.op_type == "Concat"]
    assert [not quantized.isdisjoint(node.input) for node in joins].count(False) == (5 if in_graph else 4)
    assert len(joins) >= 17
    found = work.outputs(product, folder, rows)[name]
    assert noise(found[..., 4:], expected[..., 4:]) < 0.15
    assert noise(found[..., :4], expected[..., :4]) < 0.05
