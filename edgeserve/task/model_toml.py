"""`model.toml`: what a model is for, as its author writes it, read strictly and held against the model.

    kind = "classification"
    labels_file = "imagenet.txt"      # beside this file, a name a line; or labels = ["cat", "dog"]

    [[inputs]]
    type = "image"
    size = [224, 224]

The keys are the fields of `edgeserve.contracts.task`: those of `Task` at the top, `[[inputs]]` with type = "image" or
"audio", `[boxes]`, `[state]` and `[constants]`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from edgeserve.contracts.errors import InputError, NotFoundError
from edgeserve.contracts.limits import MAX_TASK_BYTES
from edgeserve.contracts.task import AudioInput, Boxes, Filter, ImageInput, Kind, Resize, Task
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.task import audio
from edgeserve.task.prepare import input_spec, row_shape

_LABELS_FILE: Final = "labels_file"
_TYPES: Final[dict[object, type[msgspec.Struct]]] = {"image": ImageInput, "audio": AudioInput}
_CHOICES: Final[dict[str, type[Enum]]] = {"kind": Kind, "resize": Resize, "filter": Filter}
_INTEGERS: Final = {Datatype.UINT8: (0, 255), Datatype.INT8: (-128, 127)}
_FLOATS: Final = (Datatype.FP16, Datatype.FP32, Datatype.FP64)
_ONE_OUTPUT: Final = (Kind.CLASSIFICATION, Kind.KEYWORDS, Kind.DETECTION, Kind.EMBEDDING, Kind.REGRESSION)
"""Kinds that decode one output; the others look at all of them."""


def read_task(path: Path) -> Task:
    """Read a task file.

    Raises:
        NotFoundError: There is no such file, or not the labels file that it names.
        InputError: Not TOML, too large; a key is unknown, or its value is wrong.
    """
    try:
        document = msgspec.toml.decode(_text(path), type=dict[str, Any])
    except (ValueError, msgspec.DecodeError, RecursionError) as error:
        raise InputError(f"{path} is not TOML: {str(error)[:200] or 'nested too deeply'}") from error
    _check_keys(document, Task, str(path), _LABELS_FILE)
    inputs = document.get("inputs")
    for number, table in enumerate(inputs if isinstance(inputs, list) else ()):
        kind = table.get("type") if isinstance(table, dict) else None
        if not isinstance(kind, str) or kind not in _TYPES:
            raise InputError(f"{path}: [[inputs]] number {number + 1} needs a type", hint='type = "image" or "audio"')
        _check_keys(table, _TYPES[kind], f"{path}: [[inputs]] number {number + 1}", "type")
    if isinstance(document.get("boxes"), dict):
        _check_keys(document["boxes"], Boxes, f"{path}: [boxes]")
    _check_numbers(document, path, ())
    if _LABELS_FILE in document:
        if "labels" in document:
            raise InputError(f"{path}: labels and {_LABELS_FILE} are both there", hint="keep one")
        document["labels"] = _labels(path, document.pop(_LABELS_FILE))
    try:
        return msgspec.convert(document, Task)
    except msgspec.ValidationError as error:
        text, key = _in_words(str(error))
        choices = _CHOICES.get(key.rpartition(".")[2], ())
        hint = f"use {', '.join(choice.value for choice in choices)}" if choices else "docs/task.md describes every key"
        raise InputError(f"{path}: {key}: {text}" if key else f"{path}: {text}", hint=hint) from error
    except InputError as error:
        raise InputError(f"{path}: {error.message}", hint=error.hint) from error


def check_task(task: Task, signature: Signature) -> Task:
    """Hold a task against a model, and fill in the names that it leaves to the model.

    Args:
        task: As its author wrote it.
        signature: Of the model. Constants may be there or folded into the graph already.

    Returns:
        The task with the name of each described input, and of the output where the kind decodes one.

    Raises:
        InputError: A name is not the model's, or a described input does not fit its shape and datatype.
    """
    inputs = {spec.name: spec for spec in signature.inputs}
    outputs = {spec.name: spec for spec in signature.outputs}
    for name, value in task.state.items():
        _known(name, inputs, "[state] names an input")
        _known(value, outputs, "[state] names an output")
        if inputs[name].datatype is not outputs[value].datatype or not _alike(inputs[name].shape, outputs[value].shape):
            raise InputError(
                f"[state]: output {value!r} {list(outputs[value].shape)} cannot become input {name!r} "
                f"{list(inputs[name].shape)}"
            )
    both = set(task.state) & set(task.constants)
    if both:
        raise InputError(f"input {min(both)[:80]!r} is in [state] and in [constants]", hint="keep one")
    entries = []
    for entry in task.inputs:
        spec = input_spec(entry, task, signature)
        check_input(entry, spec)
        if isinstance(entry, AudioInput) and bool(entry.chunk) != task.stateful:
            raise InputError(
                f"input {spec.name!r} has a chunk without [state]"
                if entry.chunk
                else f"input {spec.name!r} needs a chunk",
                hint="chunk and [state] belong together: sound becomes steps for a model that carries state",
            )
        entries.append(replace(entry, name=spec.name))
    if len({entry.name for entry in entries}) != len(entries):
        raise InputError("[[inputs]] describes an input of the model twice")
    task = replace(task, inputs=tuple(entries), output=_output(task, outputs))
    if task.boxes is not None:
        boxes = replace(task.boxes, output=task.boxes.output or task.output)
        _known(boxes.output, outputs, "[boxes] names an output")
        for key in ("scores", "classes"):
            if name := getattr(boxes, key):
                _known(name, outputs, f"{key} in [boxes] names an output")
        task = replace(task, boxes=boxes)
    return task


def check_input(entry: ImageInput | AudioInput, spec: TensorSpec) -> None:
    """Hold the description of an input against the model's input.

    Raises:
        InputError: The shape or the datatype does not fit.
    """
    if isinstance(entry, AudioInput):
        if spec.datatype not in _FLOATS:
            raise InputError(f"input {spec.name!r} takes {spec.datatype.value}, sound gives floats")
        row_shape(entry, audio.feature_shape(entry), spec)
        return
    channels = 1 if entry.color == "gray" else 3
    shape = (channels, *entry.size) if entry.layout == "nchw" else (*entry.size, channels)
    row_shape(entry, shape, spec)
    if spec.datatype in _FLOATS:
        return
    if spec.datatype not in _INTEGERS:
        raise InputError(f"input {spec.name!r} takes {spec.datatype.value}, which pictures are not turned into")
    low, high = _INTEGERS[spec.datatype]
    means = entry.mean or (0.0,)
    if entry.scale != 1 or any(value != 1 for value in entry.std) or any(value % 1 for value in means):
        raise InputError(
            f"input {spec.name!r} takes {spec.datatype.value}: scale and std must be 1, and mean whole numbers",
            hint="a quantized model takes pixels; leave scale, mean and std out (mean = [128, 128, 128] for INT8)",
        )
    if any(0 - value < low or 255 - value > high for value in means):
        raise InputError(
            f"input {spec.name!r} takes {spec.datatype.value}, {low} to {high}: pixels minus mean do not fit",
            hint="mean = [128, 128, 128] for INT8, none for UINT8",
        )


def _output(task: Task, outputs: Mapping[str, TensorSpec]) -> str:
    if task.output:
        return _known(task.output, outputs, "the task names an output")
    if task.kind not in _ONE_OUTPUT:
        return ""
    carried = set(task.state.values())
    return next((name for name in outputs if name not in carried), next(iter(outputs)))


def _known(name: str, specs: Mapping[str, TensorSpec], what: str) -> str:
    if name not in specs:
        raise InputError(f"{what} {name[:80]!r} that the model does not have", hint=f"it has {', '.join(specs)}")
    return name


def _alike(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return len(one) == len(other) and all(a == b or -1 in (a, b) for a, b in zip(one, other, strict=True))


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TASK_BYTES + 1)
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {path}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    if len(data) > MAX_TASK_BYTES:
        raise InputError(f"{path} is too large, at most {MAX_TASK_BYTES} bytes are allowed")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from error


def _check_keys(table: Mapping[str, Any], kind: type[msgspec.Struct], where: str, *more: str) -> None:
    known = [field.name for field in msgspec.structs.fields(kind)] + list(more)
    for key in table:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            guess = f"; did you mean {close[0]!r}?" if close else ""
            raise InputError(f"{where} has no key {key[:80]!r}{guess}", hint=f"the keys are {', '.join(known)}")


def _check_numbers(value: object, path: Path, keys: tuple[str, ...]) -> None:
    if isinstance(value, dict):
        for key, entry in value.items():
            _check_numbers(entry, path, (*keys, key))
    elif isinstance(value, list):
        for entry in value:
            _check_numbers(entry, path, keys)
    elif isinstance(value, int | float) and not (math.isfinite(value) and abs(value) < 2**63):
        raise InputError(f"{path}: {'.'.join(keys)} is not a number that can be used")


def _labels(path: Path, name: object) -> list[str]:
    if not isinstance(name, str) or not name or name != Path(name).name or "\0" in name:
        raise InputError(f"{path}: {_LABELS_FILE} {str(name)[:80]!r} is not the name of a file beside it")
    file = path.with_name(name)
    lines = [line.strip() for line in _text(file).rstrip().splitlines()]
    if not lines or not all(lines):
        empty = lines.index("") + 1 if lines else 1
        raise InputError(f"{file}: line {empty} is empty", hint="one label a line, from class 0 on")
    return lines


def _in_words(message: str) -> tuple[str, str]:
    """Text and key, as the file has it, of `Expected int, got str - at `$.boxes.most``; no key where it has none."""
    text, _, place = message.partition(" - at `$")
    return text, place.rstrip("`").lstrip(".")
