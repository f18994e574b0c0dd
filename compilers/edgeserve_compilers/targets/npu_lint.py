"""What Intel's NPU may refuse, told without one.

Nothing here has been checked on an NPU: **unverified**. The operations are those that the importer of Intel's NPU
compiler translates (openvinotoolkit/npu_plugin, `src/vpux_compiler/src/frontend/IE.cpp`, a version of 2024), and those
that OpenVINO's common transformations rewrite into them first. Types are that importer's, too; that sizes must be fixed
and a batch is best 1 is from OpenVINO's documentation of the NPU device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from typing import Final

from edgeserve_compilers.targets.openvino_graph import Graph, input_name

_IMPORTED: Final = """
Constant Parameter Result Convert FakeConvert FakeQuantize Assign ReadValue ShapeOf If TensorIterator

Convolution ConvolutionBackpropData GroupConvolution GroupConvolutionBackpropData MatMul
LSTMCell LSTMSequence GRUCell GRUSequence

AvgPool MaxPool AdaptiveAvgPool AdaptiveMaxPool ROIPooling PSROIPooling DeformablePSROIPooling ROIAlign
BatchNormInference MVN NormalizeL2 LRN GRN Softmax LogSoftmax

Relu PRelu Elu Selu Gelu Clamp Sigmoid HardSigmoid HSigmoid HSwish Swish Mish SoftPlus Tanh
Abs Negative Sign Exp Log Sqrt Erf Floor Ceiling Round Power
Sin Cos Tan Sinh Cosh Asin Acos Atan Asinh Acosh Atanh
Add Subtract Multiply Divide Minimum Maximum Mod FloorMod SquaredDifference
Equal NotEqual Less LessEqual Greater GreaterEqual LogicalAnd LogicalOr LogicalXor LogicalNot Select
BitwiseAnd BitwiseOr BitwiseXor BitwiseNot
ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceL1 ReduceL2 ReduceLogicalAnd ReduceLogicalOr

Concat Split Reshape Squeeze Unsqueeze Transpose Tile Broadcast Pad StridedSlice Roll ReverseSequence
Gather GatherElements GatherND GatherTree ScatterUpdate ScatterElementsUpdate ScatterNDUpdate
ShuffleChannels DepthToSpace SpaceToDepth BatchToSpace SpaceToBatch ExtractImagePatches
Interpolate GridSample OneHot Eye Bucketize CumSum TopK NonZero RandomUniform

RegionYolo ReorgYolo DetectionOutput Proposal NonMaxSuppression CTCGreedyDecoder CTCGreedyDecoderSeqLen
EmbeddingBagOffsetsSum EmbeddingBagPackedSum EmbeddingSegmentsSum
NV12toRGB NV12toBGR I420toRGB I420toBGR DFT IDFT RDFT IRDFT
"""
_REWRITTEN: Final = "ConvertLike Slice SoftSign VariadicSplit"
_TYPES: Final = "bf16 boolean f16 f32 i4 i8 i16 i32 i64 u4 u8 u16 u32 u64"

OPERATIONS: Final = frozenset(_IMPORTED.split()) | frozenset(_REWRITTEN.split())
"""Imported by the compiler, or rewritten into such by OpenVINO before the compiler sees them."""
TYPES: Final = frozenset(_TYPES.split())
"""Element types of tensors. The hardware computes in f16 and 8-bit integers; it has no 64-bit floats."""

LEVELS: Final = frozenset({255, 256})
"""Steps of FakeQuantize that are 8 bits: symmetric weights leave one out."""


def lint(graph: Graph, *, quantized: bool, whole_rows: Collection[str] = ()) -> tuple[str, ...]:
    """What the NPU may refuse, in words for the report.

    Args:
        graph: The graph as it is packed.
        quantized: Whether integers are expected in it.
        whole_rows: Inputs whose first axis does not count rows (state).
    """
    return (*_operations(graph), *_sizes(graph, whole_rows), *_types(graph), *_quantizers(graph, quantized=quantized))


def _operations(graph: Graph) -> Iterator[str]:
    kinds = Counter(node.get_type_name() for node in graph.get_ops())
    for kind in sorted(kinds.keys() - OPERATIONS):
        yield f"{kind} ({kinds[kind]} times) is not known to Intel's NPU compiler (unverified): it may refuse the model"


def _sizes(graph: Graph, whole_rows: Collection[str]) -> Iterator[str]:
    varying = [
        node.get_friendly_name()
        for node in graph.get_ordered_ops()
        if any(port.get_partial_shape().is_dynamic for port in node.outputs())
    ]
    if varying:
        yield f"{len(varying)} tensors vary in size, the first is made by {varying[0]!r}: the NPU takes fixed sizes"
    for port in graph.inputs:
        shape = port.partial_shape
        name = input_name(port)
        if name not in whole_rows and len(shape) and shape[0].is_static and shape[0].get_length() != 1:
            yield f"input {name!r} has a batch of {shape[0].get_length()}: the NPU is best with 1"


def _types(graph: Graph) -> Iterator[str]:
    kinds = Counter(port.get_element_type().get_type_name() for node in graph.get_ops() for port in node.outputs())
    for kind in sorted(kinds.keys() - TYPES):
        yield f"{kinds[kind]} tensors are of type {kind}, which the NPU does not compute in"


def _quantizers(graph: Graph, *, quantized: bool) -> Iterator[str]:
    found = [node for node in graph.get_ops() if node.get_type_name() == "FakeQuantize"]
    if quantized and not found:
        yield "there is no FakeQuantize in it: the NPU computes it in f16, not in integers"
    levels = {node.get_attributes()["levels"] for node in found} - LEVELS
    if levels:
        yield f"FakeQuantize with {', '.join(map(str, sorted(levels)))} levels is not 8 bits"
