"""The small ONNX models that let every check run, as a repository in Triton's layout. onnx is imported here, lazily."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from edgeserve.conformance.checks.classification import LABELS
from edgeserve.contracts.errors import ConflictError, MissingLibraryError
from edgeserve.contracts.tensors import Datatype

_OPSET: Final = 17
_IR_VERSION: Final = 8
"""Old enough for every runtime that is still in use."""
_ELEMENT: Final = {
    Datatype.BOOL: "BOOL", Datatype.UINT8: "UINT8", Datatype.UINT16: "UINT16", Datatype.UINT32: "UINT32",
    Datatype.UINT64: "UINT64", Datatype.INT8: "INT8", Datatype.INT16: "INT16", Datatype.INT32: "INT32",
    Datatype.INT64: "INT64", Datatype.FP16: "FLOAT16", Datatype.FP32: "FLOAT", Datatype.FP64: "DOUBLE",
    Datatype.BF16: "BFLOAT16", Datatype.BYTES: "STRING",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Tensor:
    name: str
    datatype: Datatype
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """One model: nodes as (operator, inputs, outputs)."""

    name: str
    inputs: tuple[_Tensor, ...]
    outputs: tuple[_Tensor, ...]
    nodes: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...]
    constants: tuple[tuple[str, tuple[float, ...]], ...] = ()
    max_batch_size: int = 0
    labels: tuple[str, ...] = ()


def _identity(name: str, datatype: Datatype, shape: tuple[int, ...]) -> _Plan:
    return _Plan(
        name=name,
        inputs=(_Tensor(name="INPUT0", datatype=datatype, shape=shape),),
        outputs=(_Tensor(name="OUTPUT0", datatype=datatype, shape=shape),),
        nodes=(("Identity", ("INPUT0",), ("OUTPUT0",)),),
    )


def _simple() -> _Plan:
    row = (-1, 16)
    return _Plan(
        name="simple",
        inputs=tuple(_Tensor(name=name, datatype=Datatype.INT32, shape=row) for name in ("INPUT0", "INPUT1")),
        outputs=tuple(_Tensor(name=name, datatype=Datatype.INT32, shape=row) for name in ("OUTPUT0", "OUTPUT1")),
        nodes=(("Add", ("INPUT0", "INPUT1"), ("OUTPUT0",)), ("Sub", ("INPUT0", "INPUT1"), ("OUTPUT1",))),
        max_batch_size=8,
    )


def _classifier() -> _Plan:
    row = (-1, len(LABELS))
    plan = _identity("classifier", Datatype.FP32, row)
    return _Plan(
        name=plan.name,
        inputs=plan.inputs,
        outputs=plan.outputs,
        nodes=plan.nodes,
        max_batch_size=8,
        labels=LABELS,
    )


def _nan_inf() -> _Plan:
    plan = _identity("nan_inf", Datatype.FP32, (1,))
    return _Plan(
        name=plan.name,
        inputs=plan.inputs,
        outputs=(_Tensor(name="OUTPUT0", datatype=Datatype.FP32, shape=(6,)),),
        nodes=(("Mul", ("INPUT0", "ZERO"), ("NOTHING",)), ("Add", ("NOTHING", "VALUES"), ("OUTPUT0",))),
        constants=(("ZERO", (0.0,)), ("VALUES", (float("nan"), float("inf"), float("-inf"), 1.0, 2.0, 3.0))),
    )


def _plans() -> list[_Plan]:
    identities = [
        _identity(f"identity_{datatype.value.lower()}", datatype, (-1,))
        for datatype in Datatype
        if datatype is not Datatype.BF16
    ]
    return [
        _simple(),
        *identities,
        _identity("identity_2d", Datatype.FP32, (-1, -1)),
        _identity("identity_bytes_1", Datatype.BYTES, (1,)),
        _identity("zero_size", Datatype.FP32, (-1, 8)),
        _identity("lifecycle", Datatype.FP32, (4,)),
        _classifier(),
        _nan_inf(),
    ]


def write_models(folder: Path) -> list[str]:
    """Write `NAME/1/model.onnx`, `NAME/config.pbtxt` and labels for each model; returns the names.

    Raises:
        ConflictError: `folder` has something in it.
        MissingLibraryError: onnx is not installed.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConflictError(f"{folder} is not an empty folder", hint="name one that does not exist yet")
    onnx = _onnx()
    plans = _plans()
    for plan in plans:
        place = folder / plan.name / "1"
        place.mkdir(parents=True)
        (place / "model.onnx").write_bytes(_model(onnx, plan).SerializeToString())
        (place.parent / "config.pbtxt").write_text(_config(plan))
        if plan.labels:
            (place.parent / "labels.txt").write_text("".join(f"{label}\n" for label in plan.labels))
    return [plan.name for plan in plans]


def _onnx() -> Any:  # noqa: ANN401 - onnx has no types
    try:
        return import_module("onnx")
    except ImportError as error:
        raise MissingLibraryError(
            "writing models needs the package onnx, which is not installed", hint="pip install 'edgeserve[compile]'"
        ) from error


def _model(onnx: Any, plan: _Plan) -> Any:  # noqa: ANN401
    helper = onnx.helper

    def described(tensors: Sequence[_Tensor]) -> list[Any]:
        return [
            helper.make_tensor_value_info(
                tensor.name,
                getattr(onnx.TensorProto, _ELEMENT[tensor.datatype]),
                [f"d{axis}" if size == -1 else size for axis, size in enumerate(tensor.shape)],
            )
            for tensor in tensors
        ]

    graph = helper.make_graph(
        [helper.make_node(operator, list(given), list(made)) for operator, given, made in plan.nodes],
        plan.name,
        described(plan.inputs),
        described(plan.outputs),
        [helper.make_tensor(name, onnx.TensorProto.FLOAT, [len(values)], values) for name, values in plan.constants],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)


def _config(plan: _Plan) -> str:
    lines = [
        f'name: "{plan.name}"',
        'backend: "onnxruntime"',
        'default_model_filename: "model.onnx"',
        f"max_batch_size: {plan.max_batch_size}",
    ]
    for side, tensors in (("input", plan.inputs), ("output", plan.outputs)):
        for tensor in tensors:
            dims = tensor.shape[1:] if plan.max_batch_size else tensor.shape
            labels = ' label_filename: "labels.txt"' if plan.labels and side == "output" else ""
            kind = "STRING" if tensor.datatype is Datatype.BYTES else tensor.datatype.value
            lines.append(f'{side} {{ name: "{tensor.name}" data_type: TYPE_{kind} dims: {list(dims)}{labels} }}')
    return "\n".join((*lines, "instance_group { kind: KIND_CPU count: 1 }", ""))
