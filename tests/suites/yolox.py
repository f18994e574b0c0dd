"""YOLOX with its decoding in the graph: boxes in pixels beside scores of 0 to 1, the head that int8 destroys."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

STRIDES = (8, 16, 32)


def decoded(model: onnx.ModelProto, side: int = 416) -> onnx.ModelProto:
    """Append grid, strides and exp to a raw YOLOX: f32 [1, cells, 5 + classes] becomes `decoded`, cxcywh in pixels."""
    cells, strides = [], []
    for stride in STRIDES:
        rows, columns = np.meshgrid(np.arange(side // stride), np.arange(side // stride), indexing="ij")
        cells.append(np.stack([columns.ravel(), rows.ravel()], axis=1))
        strides.append(np.full((rows.size, 1), stride))
    constants = {
        "decode_grid": np.concatenate(cells)[None].astype(np.float32),
        "decode_strides": np.concatenate(strides)[None].astype(np.float32),
        "decode_axis": np.array([2]),
        **{f"decode_{value}": np.array([value]) for value in (0, 2, 4, 1 << 30)},
    }
    raw = model.graph.output[0].name
    nodes = [
        helper.make_node(
            "Slice", [raw, f"decode_{start}", f"decode_{stop}", "decode_axis"], [name], name=f"decode_{name}"
        )
        for name, start, stop in (("xy", 0, 2), ("wh", 2, 4), ("scores", 4, 1 << 30))
    ]
    nodes += [
        helper.make_node("Add", ["xy", "decode_grid"], ["centre_cells"], name="decode_add"),
        helper.make_node("Mul", ["centre_cells", "decode_strides"], ["centre"], name="decode_centre"),
        helper.make_node("Exp", ["wh"], ["size_cells"], name="decode_exp"),
        helper.make_node("Mul", ["size_cells", "decode_strides"], ["size"], name="decode_size"),
        helper.make_node("Concat", ["centre", "size", "scores"], ["decoded"], axis=2, name="decode_join"),
    ]
    built = onnx.ModelProto()
    built.CopyFrom(model)
    built.graph.node.extend(nodes)
    built.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    shape = [entry.dim_value for entry in model.graph.output[0].type.tensor_type.shape.dim]
    del built.graph.output[:]
    built.graph.output.append(helper.make_tensor_value_info("decoded", onnx.TensorProto.FLOAT, shape))
    return built
