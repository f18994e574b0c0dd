"""PyTorch to ONNX. Tracing comes first: it takes a second and gives opset 17; what it cannot do, `torch.export` may.

Tracing writes down what happened with one example. Branches that depend on the data, and sizes that the code computed
in Python, would be frozen in; so every result is held against the module on other data and, if the batch varies, on
another batch.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import onnx
import torch

from edgeserve.contracts.errors import InputError
from edgeserve.runtimes.base import Tensor, Tensors
from edgeserve.runtimes.checks import first_line
from edgeserve_compilers.sources.agreement import SEEDS, require_agreement
from edgeserve_compilers.sources.opset import UPGRADED_OPSET
from edgeserve_compilers.sources.session import Session
from edgeserve_compilers.sources.torch_program import Program
from edgeserve_compilers.sources.walk import without_notes

_DYNAMO_OPSET: Final = 18
"""The oldest that the exporter of `torch.export` writes without a converter that was seen to fail."""
_HINT: Final = "branches that depend on the data belong outside of the model; or export it to ONNX yourself"

_COLOURS: Final = re.compile(r"\x1b\[[0-9;]*m")

Args = tuple[torch.Tensor, ...]


def export(program: Program, where: str) -> onnx.ModelProto:
    """Export and hold the result against PyTorch.

    Raises:
        InputError: The module fails on its example, cannot be exported, or the result computes something else.
    """
    with _quiet(), torch.no_grad():
        call = program.module.module() if _is_exported(program) else program.module
        try:
            first = _tensors(call(*program.args))
        except Exception as error:  # the user's module raises what it likes
            raise InputError(
                f"{where} fails on its own example: {type(error).__name__}: {first_line(error)}",
                hint="check the shapes of the example",
            ) from error
        larger = _larger_batch(call, program.args, first)
        trials = [program.args, *_others(program.args), *([larger] if larger else [])]
        reasons = []
        for attempt in (_traced, _dynamo):
            if attempt is _traced and _is_exported(program):
                continue
            try:
                model = attempt(program, first, varies=larger is not None)
                _verify(call, model, trials, where)
            except Exception as error:  # noqa: BLE001 - the exporters raise what they like
                reasons.append(_reason(attempt.__name__, error))
                continue
            return without_notes(model)
    raise InputError(f"{where} cannot be exported to ONNX ({'; '.join(reasons)})", hint=_HINT)


def _traced(program: Program, first: Mapping[str, torch.Tensor], *, varies: bool) -> onnx.ModelProto:
    outputs = list(program.outputs or first)
    batch = program.args[0].shape[0] if program.args[0].dim() else None
    axes = {name: {0: "batch"} for name, each in zip(program.inputs, program.args, strict=True) if _rows(each) == batch}
    axes |= {name: {0: "batch"} for name, each in zip(outputs, first.values(), strict=True) if _rows(each) == batch}
    with tempfile.TemporaryDirectory(prefix="edgeserve-") as folder:
        file = Path(folder) / "traced.onnx"
        torch.onnx.export(
            program.module,
            program.args,
            file,
            dynamo=False,
            opset_version=UPGRADED_OPSET,
            input_names=list(program.inputs),
            output_names=outputs,
            dynamic_axes=axes if varies else {},
        )
        model: onnx.ModelProto = onnx.ModelProto.FromString(file.read_bytes())
        return model


def _dynamo(program: Program, first: Mapping[str, torch.Tensor], *, varies: bool) -> onnx.ModelProto:
    arguments: dict[str, Any] = {"dynamo": True, "opset_version": _DYNAMO_OPSET, "verbose": False}
    arguments |= {"input_names": list(program.inputs), "output_names": list(program.outputs or first)}
    if _is_exported(program):
        result = torch.onnx.export(program.module, **arguments)
    else:
        batch = _rows(program.args[0])
        dimension = torch.export.Dim("batch")
        shapes = tuple({0: dimension} if varies and _rows(each) == batch else None for each in program.args)
        result = torch.onnx.export(program.module, program.args, dynamic_shapes=shapes, **arguments)
    assert result is not None  # it is only when a file is written
    model: onnx.ModelProto = onnx.ModelProto.FromString(result.model_proto.SerializeToString())
    return model


def _verify(call: Any, model: onnx.ModelProto, trials: Sequence[Args], where: str) -> None:  # noqa: ANN401
    names = [value.name for value in model.graph.input]
    session = Session(model.SerializeToString(), where)
    rows = [dict(zip(names, (each.detach().numpy() for each in args), strict=True)) for args in trials]

    def reference(inputs: Tensors) -> list[Tensor]:
        return [each.detach().numpy() for each in _tensors(call(*map(torch.from_numpy, inputs.values()))).values()]

    require_agreement(reference, session.run, rows, where=where)


def _larger_batch(call: Any, args: Args, first: Mapping[str, torch.Tensor]) -> Args | None:  # noqa: ANN401
    """The example with more rows, if the module takes it and answers with more rows."""
    batch = _rows(args[0])
    if not batch:
        return None
    larger = tuple(torch.cat([each, each, each[:1]]) if _rows(each) == batch else each for each in args)
    try:
        found = _tensors(call(*larger))
    except Exception:  # noqa: BLE001 - it does not take them
        return None
    grown = [_rows(new) == 2 * batch + 1 for old, new in zip(first.values(), found.values(), strict=True) if old.dim()]
    return larger if any(grown) else None


def _others(args: Args) -> Iterator[Args]:
    """Other data of the same shapes: floats ~ N(0, 1), the rest in another order (so that indices stay valid)."""
    for seed in SEEDS:
        generator = torch.Generator().manual_seed(seed)
        yield tuple(
            torch.randn(each.shape, generator=generator).to(each.dtype)
            if each.is_floating_point()
            else each.flip(0)
            if each.dim()
            else each
            for each in args
        )


def _tensors(answer: Any, name: str = "output") -> dict[str, torch.Tensor]:  # noqa: ANN401
    """The tensors of what a module returned, in the exporters' order, with names for them."""
    if isinstance(answer, torch.Tensor):
        return {name: answer}
    parts: list[tuple[str, Any]]
    if isinstance(answer, Mapping):
        parts = [(str(key), value) for key, value in answer.items()]
    elif isinstance(answer, (tuple, list)):
        parts = [(f"{name}_{number}" if len(answer) > 1 else name, value) for number, value in enumerate(answer)]
    else:
        raise TypeError(f"it returns {type(answer).__name__}, not tensors")
    found: dict[str, torch.Tensor] = {}
    for part, value in parts:
        found |= _tensors(value, part)
    return found


def _rows(tensor: torch.Tensor) -> int:
    return int(tensor.shape[0]) if tensor.dim() else 0


def _is_exported(program: Program) -> bool:
    return isinstance(program.module, torch.export.ExportedProgram)


def _reason(attempt: str, error: Exception) -> str:
    """What an exporter says about the model: `torch.export` wraps it into advice with colours."""
    telling = error.__cause__ if isinstance(error.__cause__, Exception) else error
    return f"{attempt.lstrip('_')}: {_COLOURS.sub('', first_line(telling))}"


@contextlib.contextmanager
def _discarded() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporters print, warn and log about themselves."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), _discarded():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
