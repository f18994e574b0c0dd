"""Every target under the one contract suite, and what is each one's own."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from edgeserve import plugins
from edgeserve.runtimes.base import RuntimeOptions
from edgeserve.runtimes.variant import find_runtime
from edgeserve_compilers.spec import FLOAT
from edgeserve_compilers.targets.base import Target
from tests.suites.compiler import TargetContract, produce


@pytest.fixture(scope="module", params=plugins.names(plugins.TARGETS))
def target(request: pytest.FixtureRequest) -> Target:
    return plugins.find(plugins.TARGETS, request.param)()


class TestTargets(TargetContract):
    pass


def _quantization(path: Path) -> tuple[set[int], set[int], set[int]]:
    """Types of activation zero points, types of weights, and values of weight zero points of Conv and Gemm."""
    graph = onnx.load(path).graph
    values = {tensor.name: tensor for tensor in graph.initializer}
    sources = {node.output[0]: node for node in graph.node}
    activations, weights, zeros = set(), set(), set()
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm"):
            data, weight = sources[node.input[0]], sources[node.input[1]]
            activations.add(values[data.input[2]].data_type)
            weights.add(values[weight.input[0]].data_type)
            zeros |= set(onnx.numpy_helper.to_array(values[weight.input[2]]).ravel().tolist())
            assert values[weight.input[1]].dims, "one scale for each channel"
    return activations, weights, zeros


@pytest.mark.parametrize(
    ("name", "activation", "largest"),
    [("x86-cpu", onnx.TensorProto.UINT8, 64), ("arm-cpu", onnx.TensorProto.INT8, 127)],
)
def test_a_cpu_gets_the_signedness_and_range_of_its_instructions(
    name: str, activation: int, largest: int, tmp_path: Path
) -> None:
    target = plugins.find(plugins.TARGETS, name)()
    product, folder = produce(tmp_path, target, target.candidates[0])
    activations, weights, zeros = _quantization(folder / product.entry)
    assert (activations, weights, zeros) == ({activation}, {onnx.TensorProto.INT8}, {0})
    most = max(
        abs(int(value))
        for tensor in onnx.load(folder / product.entry).graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1
        for value in onnx.numpy_helper.to_array(tensor).ravel()
    )
    assert most == largest


def test_the_npu_gets_a_batch_of_one_and_no_varying_size(tmp_path: Path) -> None:
    product, folder = produce(tmp_path, plugins.find(plugins.TARGETS, "intel-npu")(), FLOAT)
    loaded = find_runtime("openvino").load(folder / product.entry, RuntimeOptions(device="NPU", simulate=True))
    assert loaded.signature.inputs[0].shape == (1, 1, 8, 8)
    assert loaded.executing_device == "CPU (simulated)"
    loaded.close()
