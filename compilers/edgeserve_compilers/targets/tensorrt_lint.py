"""What TensorRT will say of an ONNX file, as far as that can be known without a GPU.

The table of operations is curated from NVIDIA's own (https://github.com/onnx/onnx-tensorrt, docs/operators.md) and
unverified: no one here has run the parser. On the device it is the first step of finalizing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from edgeserve.contracts.errors import InputError

NEWEST_OPSET: Final = 17
SUPPORTED: Final = frozenset(
    """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast Ceil Celu
    Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace DequantizeLinear Div
    Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor Gather GatherElements GatherND Gemm
    GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample GRU HardSigmoid HardSwish
    Identity If InstanceNormalization IsInf IsNaN LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax
    Loop LRN LSTM LpNormalization LpPool MatMul Max MaxPool Mean Min Mod Mul Neg NonMaxSuppression NonZero Not
    OneHot Or Pad Pow PRelu QuantizeLinear RandomUniform RandomUniformLike Range Reciprocal ReduceL1 ReduceL2
    ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu
    Reshape Resize ReverseSequence RNN RoiAlign Round Scan ScatterElements ScatterND Selu Shape Sigmoid Sign
    Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh
    ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor
    """.split()  # noqa: SIM905 - a table, not a list of quoted words
)


def lint(model: onnx.ModelProto) -> tuple[str, ...]:
    """What TensorRT may refuse, one line each."""
    unknown = sorted({node.op_type for node in model.graph.node if not node.domain and node.op_type not in SUPPORTED})
    found = [f"TensorRT's table of ONNX operations does not have {name} (unverified)" for name in unknown]
    if any(tensor.data_type == TensorProto.DOUBLE for tensor in model.graph.initializer):
        found.append("TensorRT computes double precision as float (unverified)")
    return tuple(found)


def require_strict(model: onnx.ModelProto) -> None:
    """Refuse what TensorRT certainly does not take.

    Raises:
        InputError: Names all that was found.
    """
    wrong = sorted(set(_violations(model)))
    if wrong:
        raise InputError(
            f"TensorRT does not take this model: {'; '.join(wrong)}",
            hint=f"export it with opset {NEWEST_OPSET} or older and standard operations only",
        )


def _violations(model: onnx.ModelProto) -> Iterator[str]:
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx") and entry.version > NEWEST_OPSET:
            yield f"operator set {entry.version} is newer than {NEWEST_OPSET}"
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            yield f"{node.op_type} is an operation of {node.domain}"
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            yield from _quantizer(node, stored)


def _quantizer(node: Any, stored: dict[str, Any]) -> Iterator[str]:  # noqa: ANN401
    zero = stored.get(node.input[2]) if len(node.input) > 2 else None
    if zero is None:
        yield f"{node.op_type} has no stored zero point, so its values are unsigned"
        return
    if zero.data_type == TensorProto.INT32:
        yield "a bias is quantized to 32 bits"
    elif zero.data_type != TensorProto.INT8:
        yield f"{node.op_type} has values that are not int8"
    elif np.any(numpy_helper.to_array(zero)):
        yield f"{node.op_type} has a zero point that is not 0"
    if node.input[1] not in stored:
        yield f"{node.op_type} has a scale that is computed"
