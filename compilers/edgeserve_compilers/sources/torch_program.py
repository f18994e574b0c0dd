"""What is to be exported from PyTorch: a module with an example of its arguments."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import torch

from edgeserve.contracts.errors import InputError
from edgeserve.runtimes.checks import first_line
from edgeserve_compilers.sources.base import SourceOptions
from edgeserve_compilers.sources.sniff import Content, sniff

_TRIAL_BATCH: Final = 2
_CONTRACT: Final = (
    "return (module, args) or (module, args, {'inputs': [...], 'outputs': [...]}): an nn.Module, and a tensor or tuple "
    "of tensors as example"
)
_NAMES: Final = ("inputs", "outputs")


@dataclass(frozen=True, kw_only=True)
class Program:
    """A module in evaluation mode and an example of its positional arguments."""

    module: Any
    """`nn.Module`, `ScriptModule` or `torch.export.ExportedProgram`."""
    args: tuple[torch.Tensor, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...] = ()
    """Empty = chosen by the exporter."""


def from_answer(answer: object, where: str) -> Program:
    """The program that the user's function returned.

    Raises:
        InputError: It returned something else.
    """
    if not isinstance(answer, tuple) or len(answer) not in (2, 3) or not isinstance(answer[0], torch.nn.Module):
        raise InputError(f"{where} returned {type(answer).__name__}, not a module with an example", hint=_CONTRACT)
    module, args = answer[0], answer[1]
    args = (args,) if isinstance(args, torch.Tensor) else tuple(args) if isinstance(args, (tuple, list)) else ()
    if not args or not all(isinstance(each, torch.Tensor) for each in args):
        raise InputError(f"the example of {where} is not a tensor or a tuple of tensors", hint=_CONTRACT)
    names = answer[2] if len(answer) == 3 else {}
    if not isinstance(names, Mapping) or set(names) - set(_NAMES):
        raise InputError(f"the names that {where} returned are not a dict with {' and '.join(_NAMES)}", hint=_CONTRACT)
    inputs = tuple(names.get("inputs", ())) or _parameters(module, len(args))
    if len(inputs) != len(args):
        raise InputError(f"{where} names {len(inputs)} inputs for an example of {len(args)}", hint=_CONTRACT)
    return Program(module=_ready(module), args=args, inputs=inputs, outputs=tuple(names.get("outputs", ())))


def from_file(path: Path, options: SourceOptions) -> Program:
    """Read a file that the user trusts.

    Raises:
        InputError: It is damaged, needs classes that are not here, or holds no module.
    """
    content = sniff(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if content is Content.TORCH_EXPORT:
                return _exported(torch.export.load(path), path)
            if content is Content.TORCH_SCRIPT:
                found = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
            else:
                found = torch.load(str(path), map_location="cpu", weights_only=False)
    except InputError:
        raise
    except (ModuleNotFoundError, AttributeError) as error:
        raise InputError(
            f"{path} needs a class that is not here: {first_line(error)}",
            hint="name the folder of its code in PYTHONPATH, or export the model where it was trained",
        ) from error
    except Exception as error:  # unpickling raises what it likes
        raise InputError(
            f"{path} cannot be read by PyTorch {torch.__version__}: {first_line(error)}",
            hint="it is damaged, or of another version: save it again",
        ) from error
    if isinstance(found, tuple):
        return from_answer(found, str(path))
    if isinstance(found, Mapping) and isinstance(found.get("model"), torch.nn.Module):
        found = found["model"].float()  # a training checkpoint
    if not isinstance(found, torch.nn.Module):
        raise InputError(
            f"{path} holds {_described(found)}, not a model",
            hint="weights alone cannot be compiled: write a function that builds the module, loads them with "
            "load_state_dict and returns (module, example), and give it as module:function",
        )
    return _with_example(found, path, options.row_shapes)


def _exported(program: Any, path: Path) -> Program:  # noqa: ANN401 - an ExportedProgram
    example = program.example_inputs
    if example is None or example[1] or not all(isinstance(each, torch.Tensor) for each in example[0]):
        raise InputError(
            f"{path} was saved without an example of its inputs, or with keyword arguments",
            hint="export it with positional tensors: torch.export.export(model, (example,))",
        )
    names = tuple(program.graph_signature.user_inputs)
    return Program(module=program, args=tuple(example[0]), inputs=tuple(str(name) for name in names))


def _with_example(module: Any, path: Path, row_shapes: Mapping[str, tuple[int, ...]]) -> Program:  # noqa: ANN401
    names = _parameters(module, len(row_shapes))
    if not row_shapes or (set(names) != set(row_shapes) and len(row_shapes) > 1):
        known = ", ".join(_parameters(module, 1))
        raise InputError(
            f"{path} does not say what shape its inputs ({known}) have",
            hint="give --calibration with an array of that name for each, or a module:function that returns "
            "(module, example)",
        )
    shapes = [row_shapes[name] for name in names] if set(names) == set(row_shapes) else list(row_shapes.values())
    generator = torch.Generator().manual_seed(0)
    args = tuple(torch.randn((_TRIAL_BATCH, *shape), generator=generator) for shape in shapes)
    return Program(module=_ready(module), args=args, inputs=names)


def _parameters(module: Any, count: int) -> tuple[str, ...]:  # noqa: ANN401
    """Names of the first `count` parameters of `forward`."""
    if isinstance(module, torch.jit.ScriptModule):
        names = [argument.name for argument in cast("Any", module).forward.schema.arguments[1:]]
    else:
        parameters = inspect.signature(module.forward).parameters.values()
        names = [each.name for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    names += [f"input_{number}" for number in range(len(names), count)]
    return tuple(names[:count])


def _ready(module: Any) -> Any:  # noqa: ANN401
    return module.eval().to("cpu")


def _described(found: object) -> str:
    if isinstance(found, Mapping) and found and all(isinstance(each, torch.Tensor) for each in found.values()):
        return f"the weights of a model (a state_dict of {len(found)} tensors)"
    if isinstance(found, (Sequence, Mapping)):
        return f"a {type(found).__name__} of {len(found)}"
    return f"a {type(found).__name__}"
