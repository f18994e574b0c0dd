"""Graphs of OpenVINO: stable names, ranges, counting by numeric form. The only module of the compiler that opens them.

A friendly name is unique in a graph after `name_by_place`, and NNCF keeps it, so it says which operation of a quantized
graph is which of the float one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgeserve.runtimes import openvino as _telemetry_is_off  # noqa: F401 - before the library itself

import openvino  # isort: skip
from openvino._offline_transformations import compress_model_transformation  # isort: skip

from edgeserve.runtimes.base import Tensor, Tensors
from edgeserve_compilers.heads import Node
from edgeserve_compilers.targets.base import silenced

Graph = Any
"""An `openvino.Model`; the library has no types."""
Port = Any
"""An `openvino.Output`: one output of an operation."""

_WEIGHT_PORTS: Final[Mapping[str, tuple[int, ...]]] = {
    "Convolution": (1,),
    "ConvolutionBackpropData": (1,),
    "GroupConvolution": (1,),
    "GroupConvolutionBackpropData": (1,),
    "GRUCell": (2, 3),
    "GRUSequence": (3, 4),
    "LSTMCell": (3, 4),
    "LSTMSequence": (4, 5),
    "MatMul": (1,),
    "RNNCell": (2, 3),
    "RNNSequence": (3, 4),
}
"""Operations that multiply matrices, and which inputs are the weights; input 0 is always the data."""
_MOVES: Final = """
BatchToSpace Broadcast Concat DepthToSpace Gather GatherElements GatherND MaxPool Pad ReduceMax Reshape ShuffleChannels
Slice SpaceToBatch SpaceToDepth Split Squeeze StridedSlice Tile Transpose Unsqueeze VariadicSplit
"""
COMPUTE: Final = frozenset(_WEIGHT_PORTS)
PASSING: Final = frozenset(_MOVES.split())
"""Operations that only move values or pick some: what was on a quantization grid stays on it. NNCF lets its
quantizers travel through them."""
RECURRENT: Final = COMPUTE - {kind for kind in COMPUTE if "Conv" in kind} - {"MatMul"}
"""Recurrent layers stay float: the 8-bit kernels of OpenVINO 2026.4 for the CPU were seen to answer noise (of 1.3 times
the signal's power), though only after the graph had been written and read again."""
JOINS: Final = frozenset({"Concat"})
_SCALING: Final = frozenset({"Convert", "Multiply", "Reshape", "Subtract", "Transpose"})
"""What lies between stored weights and the operation that uses them."""
_UNCOUNTED: Final = frozenset({"Assign", "Constant", "Convert", "FakeQuantize", "Parameter", "ReadValue", "Result"})
_FORMS: Final = {"i8": "int8", "u8": "int8", "i4": "int4", "u4": "int4", "f16": "fp16"}
_INTEGER: Final = frozenset({"int8", "int4"})
_FLOATS: Final = frozenset({"f16", "f32", "f64", "bf16"})
_AUTOMATIC_NAME: Final = re.compile(r"[A-Za-z]+_[0-9]+")


def convert(file: Path, shapes: Mapping[str, Sequence[int]]) -> Graph:
    """Read an ONNX file or an IR as a float graph with stable names.

    Args:
        file: `.onnx`, or `.xml` with its `.bin`.
        shapes: Of each input; -1 = any. They are known before anything is translated, as operations inside `If` need.

    Raises:
        Exception: OpenVINO cannot read it, knows no translation of an operation, or it cannot have these sizes.
    """
    wanted = {name: openvino.PartialShape(list(shape)) for name, shape in shapes.items()}
    with silenced():
        if file.suffix == ".xml":
            graph = openvino.Core().read_model(file)
            graph.reshape(wanted)
        else:
            graph = openvino.convert_model(file, input=wanted)
    name_by_place(graph)
    return graph


def input_shape(
    shape: Sequence[int], row: tuple[int, ...] | None, *, is_state: bool, batch_of_one: bool
) -> tuple[int, ...]:
    """Shape of an input with the sizes of the user's rows; only the batch may go on varying (-1).

    Args:
        shape: As the model has it; -1 = any.
        row: One row of the user's; with as many axes as the input (state whose batch is not its first axis), it is the
            whole shape.
        is_state: The first axis is a batch only where it varies.
        batch_of_one: One row is all that a call takes.

    Raises:
        ValueError: The rows have another number of axes.
    """
    if row is None or len(shape) - len(row) not in (0, 1):
        raise ValueError(f"rows have shape {row}, an input has {list(shape)}")
    if len(row) == len(shape):
        return row
    first = 1 if batch_of_one and not (is_state and shape[0] > 0) else shape[0]
    return (first, *row)


def save(graph: Graph, file: Path) -> None:
    """Write `file` (`.xml`) and its `.bin`. Weights keep their type: what is rounded must have been measured so."""
    openvino.save_model(graph, file, compress_to_fp16=False)


def half(graph: Graph) -> Graph:
    """A copy with weights stored as half floats."""
    copy = graph.clone()
    compress_model_transformation(copy)
    name_by_place(copy)
    return copy


def calls(graph: Graph, data: Mapping[str, Tensor]) -> list[Tensors]:
    """Cut calibration data, [rows, ...] by input, into what one call of the graph takes.

    Rows go one by one, or as many at once as the graph takes; a row with as many axes as its input is fed as it is.
    """
    ranks = {input_name(port): len(port.partial_shape) for port in graph.inputs}
    cut = [port for port in graph.inputs if data[input_name(port)].ndim == len(port.partial_shape)]
    step = max([1, *(port.partial_shape[0].get_length() for port in cut if port.partial_shape[0].is_static)])
    rows = len(next(iter(data.values())))
    return [
        {
            name: np.ascontiguousarray(array[row : row + step] if array.ndim == ranks[name] else array[row])
            for name, array in data.items()
        }
        for row in range(0, rows - step + 1, step)
    ]


def input_name(port: Port) -> str:
    """Name of an input, as the runtime gives it."""
    return str(min(port.get_names()))


def name_by_place(graph: Graph) -> None:
    """Make names unique, and replace those that count the operations of this process.

    The same input then gives the same file. The author's own names stay wherever they can be told from counted ones.
    """
    taken: set[str] = set()
    counted = []
    for place, node in enumerate(graph.get_ordered_ops()):
        name = node.get_friendly_name()
        if name in taken or _is_counted(node):
            counted.append((place, node))
        taken.add(name)
        for body in _bodies(node):
            name_by_place(body)
    taken -= {node.get_friendly_name() for _, node in counted if _is_counted(node)}
    for place, node in counted:
        # Names of tensors come from the model's file; there are none on what the library inserted.
        name = (
            min(_tensor_names(node), default=f"{node.get_type_name()}{place}")
            if _is_counted(node)
            else node.get_friendly_name()
        )
        while name in taken:
            name += "'"
        taken.add(name)
        node.set_friendly_name(name)


def _is_counted(node: Any) -> bool:  # noqa: ANN401
    name = node.get_friendly_name()
    return (
        _AUTOMATIC_NAME.fullmatch(name) is not None
        and node.get_type_name() not in ("Parameter", "Result")
        and name not in _tensor_names(node)
    )


def _tensor_names(node: Any) -> set[str]:  # noqa: ANN401
    return {name for port in node.outputs() for name in port.get_names()}


def layers_of(graph: Graph, kinds: frozenset[str]) -> list[str]:
    """Names of the operations of `kinds`, in order of execution. Bodies of `If` and `Loop` are not looked into."""
    return [node.get_friendly_name() for node in graph.get_ordered_ops() if node.get_type_name() in kinds]


def has_attention(graph: Graph) -> bool:
    """Whether a softmax feeds a product of matrices."""
    waiting = [node for node in graph.get_ops() if node.get_type_name() == "Softmax"]
    while waiting:
        for target in _consumers(waiting.pop()):
            if target.get_type_name() == "MatMul":
                return True
            if target.get_type_name() in PASSING:
                waiting.append(target)
    return any(node.get_type_name() == "ScaledDotProductAttention" for node in graph.get_ops())


def nodes(graph: Graph) -> list[Node]:
    """The graph in words of `edgeserve_compilers.heads`, in order of execution; constants are left out."""
    constant = constant_names(graph)
    return [
        Node(
            name=node.get_friendly_name(),
            op=node.get_type_name(),
            inputs=tuple(tensor(port) for port in sources(node) if port.get_node().get_friendly_name() not in constant),
            outputs=tuple(tensor(port) for port in node.outputs()),
        )
        for node in graph.get_ordered_ops()
        if node.get_friendly_name() not in constant and node.get_type_name() not in ("Parameter", "Result")
    ]


def output_tensors(graph: Graph) -> list[str]:
    """Names, as in `nodes`, of what the graph answers."""
    return [tensor(result.input_value(0)) for result in graph.get_results()]


def joined_ranges(graph: Graph, rows: Sequence[Tensors]) -> dict[str, tuple[float, float]]:
    """Smallest and largest value, over `rows`, of every float tensor that a join takes. One run of the float graph."""
    constant = constant_names(graph)
    joined = {
        tensor(port): port
        for node in graph.get_ordered_ops()
        if node.get_type_name() in JOINS
        for port in sources(node)
        if port.get_node().get_friendly_name() not in constant and port.get_element_type().get_type_name() in _FLOATS
    }
    if not joined or not rows:
        return {}
    watched = graph.clone()
    copies = {node.get_friendly_name(): node for node in watched.get_ops()}
    watched.add_outputs(
        [copies[port.get_node().get_friendly_name()].output(port.get_index()) for port in joined.values()]
    )
    places = {name: place for place, name in enumerate(output_tensors(watched)) if name in joined}
    compiled = openvino.Core().compile_model(watched, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    ranges = dict.fromkeys(places, (np.inf, -np.inf))
    for row in rows:
        found = compiled(row)
        for name, place in places.items():
            low, high = ranges[name]
            ranges[name] = (min(low, float(found[place].min())), max(high, float(found[place].max())))
    return ranges


def placement(graph: Graph) -> tuple[int, int, dict[str, int]]:
    """Count operations by numeric form.

    An operation with weights has the form of these where they are stored as integers or half floats, and is `int8` when
    all its operands come from FakeQuantize. The others are `int8` when what they take is on a quantization grid. Biases
    belong to their operation; what computes shapes, and what scales weights back, is not counted.

    Returns:
        Operations of `COMPUTE`, those of them in integers, and all operations by form.
    """
    constant = constant_names(graph)
    forms: Counter[str] = Counter()
    compute = quantized = 0
    for node in _all_ops(graph):
        kind = node.get_type_name()
        if kind in COMPUTE:
            form = _weighted_form(node)
            compute += 1
            quantized += form in _INTEGER
            forms[form] += 1
        elif kind not in _UNCOUNTED and node.get_friendly_name() not in constant and _computes(node, constant):
            data = [port for port in sources(node) if port.get_node().get_friendly_name() not in constant]
            forms["int8" if data and all(map(on_grid, data)) else "float"] += 1
    return compute, quantized, dict(forms)


def on_grid(port: Port) -> bool:
    """Whether values come from FakeQuantize, and were only moved since."""
    node = port.get_node()
    if node.get_type_name() == "FakeQuantize":
        return True
    if node.get_type_name() not in PASSING:
        return False
    data = sources(node)[: None if node.get_type_name() == "Concat" else 1]
    return all(on_grid(source) for source in data)


def sources(node: Any) -> list[Port]:  # noqa: ANN401
    """What each input of an operation is connected to."""
    return [port.get_source_output() for port in node.inputs()]


def tensor(port: Port) -> str:
    """Name of one output of an operation."""
    return f"{port.get_node().get_friendly_name()}:{port.get_index()}"


def weight_ports(node: Any) -> tuple[int, ...]:  # noqa: ANN401
    """Which inputs of an operation of `COMPUTE` are its weights."""
    return _WEIGHT_PORTS[node.get_type_name()]


def constant_names(graph: Graph) -> frozenset[str]:
    """Operations that do not depend on any input or state."""
    found: set[str] = set()
    for node in graph.get_ordered_ops():
        kind = node.get_type_name()
        given = sources(node)
        if kind == "Constant" or (
            given and kind != "Result" and all(port.get_node().get_friendly_name() in found for port in given)
        ):
            found.add(node.get_friendly_name())
    return frozenset(found)


def _weighted_form(node: Any) -> str:  # noqa: ANN401
    given = sources(node)
    stored = {_stored(given[index]) for index in weight_ports(node)}
    if len(stored) == 1 and (form := _FORMS.get(stored.pop())):
        return form
    return "int8" if all(on_grid(given[index]) for index in (0, *weight_ports(node))) else "float"


def _stored(port: Port) -> str:
    """Type in which weights are stored, or an empty string where they are computed."""
    while port.get_node().get_type_name() in _SCALING:
        port = port.get_node().input_value(0)
    return str(port.get_element_type().get_type_name()) if port.get_node().get_type_name() == "Constant" else ""


def _computes(node: Any, constant: frozenset[str]) -> bool:  # noqa: ANN401
    """Whether it makes float values, and is not the bias of the operation before it."""
    if not node.outputs() or node.output(0).get_element_type().get_type_name() not in _FLOATS:
        return False
    given = sources(node)
    biased = node.get_type_name() == "Add" and any(port.get_node().get_friendly_name() in constant for port in given)
    return not (biased and any(port.get_node().get_type_name() in COMPUTE for port in given))


def _all_ops(graph: Graph) -> Iterator[Any]:
    for node in graph.get_ordered_ops():
        yield node
        for body in _bodies(node):
            yield from _all_ops(body)


def _bodies(node: Any) -> list[Graph]:  # noqa: ANN401
    kind = node.get_type_name()
    if kind == "If":
        return [node.get_function(0), node.get_function(1)]
    return [node.get_function()] if kind in ("Loop", "TensorIterator") else []


def _consumers(node: Any) -> list[Any]:  # noqa: ANN401
    return [port.get_node() for output in node.outputs() for port in output.get_target_inputs()]
