"""What Intel's targets owe beyond the contract: sizes, names, mixed precision, a lint for a device that is not here."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgeserve.runtimes.base import RuntimeOptions, Tensors
from edgeserve.runtimes.openvino import OpenVinoRuntime
from edgeserve_compilers.spec import FLOAT, Candidate
from edgeserve_compilers.targets import openvino_graph
from edgeserve_compilers.targets.base import Form
from edgeserve_compilers.targets.intel import IntelCpu, IntelGpu, IntelNpu
from edgeserve_compilers.targets.npu_lint import OPERATIONS, TYPES, lint
from edgeserve_compilers.targets.openvino_mixed import with_float_layers
from tests.suites.compiler import float_outputs, job, noise
from tests.suites.models import branched_net, conv_net, images, mixed_range_net, model, recurrent_net, save

import openvino  # isort: skip - after the runtime, which turns its telemetry off
from openvino import opset13 as ops  # isort: skip

CPU, GPU, NPU = (target().forms[0] for target in (IntelCpu, IntelGpu, IntelNpu))


def candidate(recipe: str) -> Candidate:
    return next(candidate for candidate in CPU.candidates if candidate.recipe == recipe)


MIN_MAX = candidate("nncf mixed min-max")


@pytest.fixture(scope="module", params=[conv_net, branched_net, mixed_range_net], ids=["plain", "branched", "detector"])
def workshop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("net")
    return CPU.open(job(save(request.param(), folder / "net.onnx"), {"image": images(32)}, folder / "work"))


def run(graph, inputs: Tensors) -> np.ndarray:
    return openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(inputs)[0]


def graph_of(workshop, chosen: Candidate, folder: Path, floats: Sequence[str] = ()):
    """The product of a candidate as a graph, and what the form says of it."""
    folder.mkdir()
    mixed = Candidate(precision=chosen.precision, recipe=chosen.recipe, float_layers=tuple(sorted(floats)))
    product = workshop.produce(mixed, folder)
    return openvino.Core().read_model(folder / product.entry), product


@pytest.mark.parametrize("recipe", [candidate.recipe for candidate in CPU.candidates])
def test_with_every_layer_in_float_the_float_model_is_back(workshop, recipe: str, tmp_path: Path) -> None:
    inputs = {"image": images(16, seed=9)}
    expected = run(graph_of(workshop, FLOAT, tmp_path / "float")[0], inputs)
    whole, quantized = graph_of(workshop, candidate(recipe), tmp_path / "whole")
    assert noise(run(whole, inputs), expected) > 1e-9
    back, product = graph_of(workshop, candidate(recipe), tmp_path / "back", workshop.layers)
    np.testing.assert_array_equal(run(back, inputs), expected)
    assert product.quantized_nodes == 0
    assert product.placement == {"float": sum(quantized.placement.values())}
    assert not [node for node in back.get_ops() if node.get_type_name() == "FakeQuantize"]


def test_a_layer_alone_in_integers_costs_less_than_all(workshop, tmp_path: Path) -> None:
    inputs = {"image": images(16, seed=9)}
    expected = run(graph_of(workshop, FLOAT, tmp_path / "float")[0], inputs)
    whole = noise(run(graph_of(workshop, MIN_MAX, tmp_path / "whole")[0], inputs), expected)
    for number, layer in enumerate(workshop.layers):
        others = [name for name in workshop.layers if name != layer]
        mixed, product = graph_of(workshop, MIN_MAX, tmp_path / str(number), others)
        assert product.quantized_nodes == 1, layer
        assert 0 < noise(run(mixed, inputs), expected) < 1.5 * whole, layer


def test_the_order_in_which_candidates_are_made_does_not_matter(workshop, tmp_path: Path) -> None:
    layers = workshop.layers[:2]
    _, first = graph_of(workshop, MIN_MAX, tmp_path / "first", layers)
    graph_of(workshop, MIN_MAX, tmp_path / "other", workshop.layers[1:])
    graph_of(workshop, candidate("fp16 weights"), tmp_path / "half")
    _, again = graph_of(workshop, MIN_MAX, tmp_path / "again", layers)
    assert first == again
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_an_operation_without_weights_is_quantized_only_between_layers_that_are(tmp_path: Path) -> None:
    """Additions alone in integers cost accuracy and gain nothing: they go back with any layer beside them."""
    work = CPU.open(job(save(branched_net(), tmp_path / "net.onnx"), {"image": images(32)}, tmp_path / "work"))

    def quantized_adds(floats: Sequence[str], name: str) -> set[str]:
        graph, _ = graph_of(work, MIN_MAX, tmp_path / name, floats)
        return {
            node.get_friendly_name()
            for node in graph.get_ops()
            if node.get_friendly_name().startswith("residual")
            and any(map(openvino_graph.on_grid, openvino_graph.sources(node)))
        }

    assert quantized_adds([], "none") == {"residual", "residual2"}
    assert "residual" not in quantized_adds(["merge/WithoutBiases"], "one")
    assert quantized_adds(work.layers, "all") == set()


def test_a_layer_that_is_not_there_is_an_error(workshop, tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="wishful"):
        graph_of(workshop, MIN_MAX, tmp_path / "product", ["wishful thinking"])


def test_no_layer_in_float_is_the_quantized_graph_itself() -> None:
    graph = object()
    assert with_float_layers(graph, object(), ()) is graph


def test_the_head_is_not_among_the_layers_and_stays_float(tmp_path: Path) -> None:
    path = save(mixed_range_net(), tmp_path / "detector.onnx")
    work = CPU.open(job(path, {"image": images(32)}, tmp_path / "work"))
    graph, product = graph_of(work, MIN_MAX, tmp_path / "product")
    (join,) = (node for node in graph.get_ops() if node.get_type_name() == "Concat")
    assert not any(map(openvino_graph.on_grid, openvino_graph.sources(join)))
    assert len(work.layers) == product.compute_nodes == product.quantized_nodes == 4


@pytest.mark.parametrize(
    ("form", "batch", "expected"),
    [(CPU, "batch", -1), (GPU, "batch", -1), (NPU, "batch", 1), (CPU, 4, 4), (GPU, 1, 1), (NPU, 4, 1)],
)
def test_the_batch_varies_where_the_device_allows_it(
    form: Form, batch: int | str, expected: int, tmp_path: Path
) -> None:
    path = save(conv_net(batch=batch), tmp_path / "net.onnx")
    work = form.open(job(path, {"image": images(16)}, tmp_path / "work"))
    for number, chosen in enumerate((FLOAT, MIN_MAX)):
        graph, product = graph_of(work, chosen, tmp_path / str(number))
        assert [str(port.partial_shape) for port in graph.inputs] == [f"[{'?' if expected < 0 else expected},1,8,8]"]
        assert product.findings == ()


@pytest.mark.parametrize("form", [CPU, GPU, NPU], ids=["cpu", "gpu", "npu"])
@pytest.mark.parametrize("calibrated", [True, False])
def test_state_keeps_its_own_first_axis(form: Form, calibrated: bool, tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    rows = {
        "sound": random.standard_normal((8, 12)).astype(np.float32),
        "state": random.uniform(-1, 1, (8, 2, 1, 16)).astype(np.float32),
    }
    path = save(recurrent_net(), tmp_path / "recurrent.onnx")
    work = form.open(job(path, rows if calibrated else None, tmp_path / "work", state={"state": "next"}))
    graph, product = graph_of(work, FLOAT, tmp_path / "product")
    shapes = {port.get_any_name(): str(port.partial_shape) for port in graph.inputs}
    assert shapes == {"sound": "[1,12]", "state": "[2,1,16]"}
    assert product.findings == ()


def lstm_net() -> onnx.ModelProto:
    random = np.random.default_rng(4)
    weights = {
        "w": random.standard_normal((1, 64, 12)) * 0.2,
        "r": random.standard_normal((1, 64, 16)) * 0.2,
        "b": random.standard_normal((1, 128)) * 0.1,
        "wy": random.standard_normal((16, 1)) * 0.3,
    }
    nodes = [
        helper.make_node("Unsqueeze", ["sound", "axis0"], ["x"]),
        helper.make_node("Split", ["state"], ["h0", "c0"], axis=0),
        helper.make_node("LSTM", ["x", "w", "r", "b", "", "h0", "c0"], ["y", "h", "c"], name="lstm", hidden_size=16),
        helper.make_node("Squeeze", ["h", "axis0"], ["last"]),
        helper.make_node("MatMul", ["last", "wy"], ["score"], name="answer"),
        helper.make_node("Concat", ["h", "c"], ["next"], axis=0),
    ]
    return model(
        nodes,
        inputs={"sound": (TensorProto.FLOAT, ["batch", 12]), "state": (TensorProto.FLOAT, [2, "batch", 16])},
        outputs={"score": (TensorProto.FLOAT, ["batch", 1]), "next": (TensorProto.FLOAT, [2, "batch", 16])},
        weights={**{name: array.astype(np.float32) for name, array in weights.items()}, "axis0": np.array([0])},
    )


@pytest.mark.parametrize("form", [CPU, NPU], ids=["cpu", "npu"])
def test_an_lstm_stays_float_in_a_quantized_model(form: Form, tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    rows = {
        "sound": random.standard_normal((32, 12)).astype(np.float32),
        "state": random.uniform(-0.5, 0.5, (32, 2, 1, 16)).astype(np.float32),
    }
    path = save(lstm_net(), tmp_path / "lstm.onnx")
    work = form.open(job(path, rows, tmp_path / "work", state={"state": "next"}))
    assert len(work.layers) == 1, "the LSTM is not among them"
    one = {"sound": rows["sound"][:1], "state": rows["state"][0]}
    expected = float_outputs_of(path, one)
    for number, (chosen, floats, bound) in enumerate(
        [(FLOAT, (), 1e-9), (MIN_MAX, (), 0.05), (MIN_MAX, work.layers, 1e-9)]
    ):
        folder = tmp_path / str(number)
        graph_of(work, chosen, folder, floats)
        loaded = OpenVinoRuntime().load(folder / "model.xml", RuntimeOptions(device=form.runtime_device, simulate=True))
        found = loaded.run(one)
        loaded.close()
        assert max(noise(found[name], expected[name]) for name in expected) < bound


def float_outputs_of(path: Path, inputs: Tensors) -> Tensors:
    from edgeserve.runtimes.onnx import OnnxRuntime

    loaded = OnnxRuntime().load(path, RuntimeOptions())
    outputs = loaded.run(inputs)
    loaded.close()
    return outputs


@pytest.mark.parametrize(
    ("shape", "row", "is_state", "batch_of_one", "expected"),
    [
        ((-1, 3), (3,), False, False, (-1, 3)),
        ((-1, 3), (3,), False, True, (1, 3)),
        ((4, 3), (3,), False, False, (4, 3)),
        ((4, 3), (3,), False, True, (1, 3)),
        ((-1, -1), (7,), False, False, (-1, 7)),
        ((2, -1, 16), (2, 1, 16), True, True, (2, 1, 16)),
        ((2, -1, 16), (1, 16), True, True, (2, 1, 16)),
        ((-1, 16), (16,), True, True, (1, 16)),
    ],
)
def test_the_shape_of_an_input(
    shape: tuple[int, ...], row: tuple[int, ...], is_state: bool, batch_of_one: bool, expected: tuple[int, ...]
) -> None:
    found = openvino_graph.input_shape(shape, row, is_state=is_state, batch_of_one=batch_of_one)
    assert found == expected


@pytest.mark.parametrize("row", [None, (), (1, 2, 3)])
def test_rows_with_other_axes_than_the_input_are_an_error(row: tuple[int, ...] | None) -> None:
    with pytest.raises(ValueError, match="rows have shape"):
        openvino_graph.input_shape((-1, 3), row, is_state=False, batch_of_one=False)


def test_integer_inputs_keep_their_type(tmp_path: Path) -> None:
    net = model(
        [
            helper.make_node("Gather", ["table", "token"], ["e"]),
            helper.make_node("Flatten", ["e"], ["f"]),
            helper.make_node("MatMul", ["f", "w"], ["logits"]),
        ],
        inputs={"token": (TensorProto.INT64, ["batch", 4])},
        outputs={"logits": (TensorProto.FLOAT, ["batch", 10])},
        weights={
            "table": np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32),
            "w": np.random.default_rng(1).standard_normal((32, 10)).astype(np.float32),
        },
    )
    path = save(net, tmp_path / "tokens.onnx")
    rows = {"token": np.random.default_rng(2).integers(0, 50, (32, 4))}
    work = CPU.open(job(path, rows, tmp_path / "work"))
    graph, product = graph_of(work, MIN_MAX, tmp_path / "product")
    assert graph.input(0).element_type.get_type_name() == "i64"
    assert product.quantized_nodes == 1
    assert noise(run(graph, rows), float_outputs(path, rows)["logits"]) < 0.02


def test_an_ir_of_the_user_is_used_as_it_is(tmp_path: Path) -> None:
    path = save(conv_net(), tmp_path / "net.onnx")
    openvino.save_model(openvino.convert_model(path), tmp_path / "given.xml", compress_to_fp16=False)
    work = job(path, {"image": images(16)}, tmp_path / "work")
    path.unlink()  # the ONNX file may be absent
    shop = CPU.open(replace(work, originals={"openvino": tmp_path / "given.xml"}))
    _, product = graph_of(shop, MIN_MAX, tmp_path / "product")
    assert product.quantized_nodes == 3


def test_four_bits_without_a_product_of_matrices_are_said_to_be_eight(tmp_path: Path) -> None:
    work = CPU.open(job(save(mixed_range_net(), tmp_path / "net.onnx"), {"image": images(16)}, tmp_path / "work"))
    _, product = graph_of(work, candidate("int4 weights"), tmp_path / "product")
    assert "int4" not in product.placement
    assert ["8" in finding for finding in product.findings] == [True]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda x: ops.relu(x), ""),
        (lambda x: ops.is_nan(x), "IsNaN"),
        (lambda x: ops.convert(x, "f64"), "f64"),
        (lambda x: ops.fake_quantize(x, *map(np.float32, (0, 1, 0, 1)), 16), "16 levels"),
    ],
)
def test_the_lint_names_what_an_npu_may_refuse(make, says: str) -> None:
    parameter = ops.parameter([1, 3, 8], np.float32, name="x")
    parameter.output(0).set_names({"x"})
    found = lint(openvino.Model([make(parameter)], [parameter], "g"), quantized=False)
    assert len(found) == bool(says)
    assert says in "".join(found)


@pytest.mark.parametrize(
    ("shape", "whole", "says"),
    [
        ([-1, 3], (), "vary in size"),
        ([1, -1], (), "vary in size"),
        ([2, 3], (), "batch of 2"),
        ([2, 3], ("x",), ""),
        ([1, 3], (), ""),
    ],
)
def test_the_lint_wants_fixed_sizes_and_one_row(shape: list[int], whole: tuple[str, ...], says: str) -> None:
    parameter = ops.parameter(openvino.PartialShape(shape), np.float32, name="x")
    parameter.output(0).set_names({"x"})
    found = lint(openvino.Model([ops.relu(parameter)], [parameter], "g"), quantized=False, whole_rows=whole)
    assert len(found) == bool(says)
    assert says in "".join(found)


def test_the_lint_misses_quantizers_where_there_should_be_some() -> None:
    parameter = ops.parameter([1, 3], np.float32, name="x")
    parameter.output(0).set_names({"x"})
    graph = openvino.Model([ops.relu(parameter)], [parameter], "g")
    assert "no FakeQuantize" in "".join(lint(graph, quantized=True))
    assert lint(graph, quantized=False) == ()


def test_every_operation_in_the_table_of_the_npu_is_one_of_openvinos() -> None:
    known = {name.replace("_", "").lower() for name in dir(ops)}
    others = {"if", "assign", "result", "topk", "fakeconvert", "parameter", "constant", "nv12torgb", "nv12tobgr"}
    unknown = {name for name in OPERATIONS if name.lower() not in known | others}
    assert unknown == set()
    assert {"f32", "f16", "i8", "u8"} <= TYPES


@pytest.mark.parametrize("form", [GPU, NPU], ids=["gpu", "npu"])
def test_what_is_left_for_the_device_needs_no_tool_that_the_wheel_lacks(form: Form) -> None:
    todo = form.finalize
    assert todo is not None
    assert todo.action == "openvino-blob"
    assert set(todo.cache_key) == {"model", "openvino", "driver", "soc"}
    assert "CACHE_DIR" in todo.options
    assert not [step for step in todo.steps if "compile_tool" in step]
    assert any(f"EXECUTION_DEVICES is {form.runtime_device}" in step for step in todo.steps)
    assert CPU.finalize is None


@pytest.mark.parametrize(
    ("form", "architecture", "features", "native"),
    [
        (CPU, "amd64", ("avx512_vnni",), True),
        (CPU, "amd64", ("avx_vnni", "avx2"), True),
        (CPU, "amd64", ("avx2",), False),
        (CPU, "arm64", ("avx_vnni",), False),
    ],
)
def test_the_host_is_native_when_its_cpu_multiplies_as_the_devices(
    form: Form, architecture: str, features: tuple[str, ...], native: bool
) -> None:
    assert form.native(architecture, features) is native


QUIET = """
import sys
from pathlib import Path
import numpy as np
from edgeserve_compilers.spec import ModelSpec
from edgeserve_compilers.targets.base import Job
from edgeserve_compilers.targets.intel import IntelNpu
from edgeserve.runtimes.onnx import OnnxRuntime
from edgeserve.runtimes.base import RuntimeOptions
file, folder = Path(sys.argv[1]), Path(sys.argv[2])
signature = OnnxRuntime().load(file, RuntimeOptions()).signature
spec = ModelSpec(file="net.onnx", digest="", size_bytes=1, opset=17, nodes=1, signature=signature)
rows = np.random.default_rng(0).standard_normal((8, 1, 8, 8)).astype("float32")
form = IntelNpu.forms[0]
shapes = {"image": (1, 8, 8)}
shop = form.open(Job(model=spec, float_file=file, row_shapes=shapes, calibration={"image": rows}, folder=folder))
for number, candidate in enumerate(form.candidates):
    (folder / str(number)).mkdir()
    shop.produce(candidate, folder / str(number))
assert sys.modules.get("openvino_telemetry") is None
"""


def test_nothing_is_printed_and_nothing_is_written_into_the_home_folder(tmp_path: Path) -> None:
    (home := tmp_path / "home").mkdir()
    (work := tmp_path / "work").mkdir()
    path = save(conv_net(), tmp_path / "net.onnx")
    done = subprocess.run(
        [sys.executable, "-c", QUIET, str(path), str(work)],
        env={**os.environ, "HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(home.rglob("*")) == []


def test_squeezenet_keeps_its_accuracy(realdata: Path, tmp_path: Path) -> None:
    """A network without tricks, on photographs: the candidate that comes first must do, and ranking must be cheap."""
    from time import perf_counter

    from PIL import Image

    def photographs(split: str) -> np.ndarray:
        rows = (line.split(",") for line in (realdata / "data/imagenet500/labels.csv").read_text().splitlines()[1:])
        files = [realdata / "data/imagenet500" / row[0] for row in rows if row[-1] == split][:48]
        pixels = np.stack([np.asarray(Image.open(file).convert("RGB"), np.float32) for file in files])
        scaled = (pixels[:, 16:240, 16:240] / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2), np.float32)

    path = realdata / "models/squeezenet1_1.onnx"
    work = CPU.open(job(path, {"input": photographs("calib")}, tmp_path / "work"))
    shown = {"input": photographs("eval")}
    expected = run(graph_of(work, FLOAT, tmp_path / "float")[0], shown)
    whole, product = graph_of(work, CPU.candidates[0], tmp_path / "whole")
    assert product.quantized_nodes == product.compute_nodes == 26
    assert noise(run(whole, shown), expected) < 0.002  # 27 dB
    agreement = (run(whole, shown).argmax(axis=1) == expected.argmax(axis=1)).mean()
    assert agreement > 0.9
    started = perf_counter()
    for layer in work.layers:
        with_float_layers(
            work._base(CPU.candidates[0].recipe), work._float, [name for name in work.layers if name != layer]
        )
    assert perf_counter() - started < 26.0, "a candidate takes well under a second"
