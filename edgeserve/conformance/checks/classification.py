"""Area `classification`: the highest values of an output as texts (`extension_classification.md`)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import numpy as np

from edgeserve.conformance.check import Level, Skip, check
from edgeserve.conformance.http import Answer
from edgeserve.conformance.infer import outputs_of
from edgeserve.conformance.target import Target
from edgeserve.contracts.tensors import Datatype

EXTENSION: Final = "classification"
LABELS: Final = ("cat", "dog", "owl", "fox")
"""Of the model `classifier`, which returns its four inputs."""
_DOCUMENT: Final = "Triton, extension_classification"
_VALUES: Final = (1.0, 5.0, 10.0, 4.0)


@check("classification.top", level=Level.EXTENSION, source=_DOCUMENT, extension=EXTENSION)
def top(target: Target) -> None:
    """The parameter "classification" gives the highest values first, as BYTES "value:index" or "value:index:label"."""
    answer, found = _classify(target, 2)
    answer.must(_indices(answer, found) == [2, 1], "the classes 2 and 1", repr(found))


@check("classification.one", level=Level.EXTENSION, source=_DOCUMENT, extension=EXTENSION)
def one(target: Target) -> None:
    """The parameter "classification": 1 gives the highest value."""
    answer, found = _classify(target, 1)
    answer.must(_indices(answer, found) == [2], "the class 2", repr(found))


@check("classification.values", level=Level.EXTENSION, source=_DOCUMENT, extension=EXTENSION)
def values(target: Target) -> None:
    """The text before the first colon is the value."""
    answer, found = _classify(target, 4)
    numbers = [float(text.split(":")[0]) for text in found]
    answer.must(numbers == [10.0, 5.0, 4.0, 1.0], "the values 10, 5, 4, 1", repr(found))


@check("classification.more-than-classes", level=Level.EXTENSION, source=_DOCUMENT, extension=EXTENSION)
def more_than_classes(target: Target) -> None:
    """More classes than there are gives all of them, or is refused."""
    answer = _ask(target, 100)
    if answer.status != 200:
        answer.refused()
        return
    answer.must(len(_texts(target, answer)) == 4, "four classes")


@check("classification.batch", level=Level.EXTENSION, source=_DOCUMENT, extension=EXTENSION)
def batch(target: Target) -> None:
    """Each row of a batch has classes of its own, in the shape [rows, count]."""
    rows = np.array([_VALUES, (9.0, 1.0, 4.0, 5.0)], dtype=np.float32)
    answer = _ask(target, 2, rows=rows)
    output = next(iter(outputs_of(answer).values()))
    answer.must(output.shape == (2, 2), "the shape [2, 2]", f"{list(output.shape)}")
    found = [text.decode() for text in output.array.ravel().tolist()]
    answer.must(_indices(answer, found) == [2, 1, 0, 3], "the classes 2, 1 and 0, 3", repr(found))


@check("classification.labels", level=Level.EXTENSION, source=_DOCUMENT, extension=EXTENSION)
def labels(target: Target) -> None:
    """A model with labels has them behind the index."""
    answer, found = _classify(target, 2)
    if not any(text.count(":") > 1 for text in found):
        raise Skip("the server knows no labels for the model 'classifier'")
    answer.must([text.split(":")[2] for text in found] == [LABELS[2], LABELS[1]], "the labels owl and dog", repr(found))


@check(
    "classification.binary", level=Level.EXTENSION, source=f"{_DOCUMENT}; tritonclient asks both", extension=EXTENSION
)
def binary(target: Target) -> None:
    """Classes can be asked as bytes."""
    if "binary_tensor_data" not in target.extensions:
        raise Skip("the server does not list the extension 'binary_tensor_data'")
    answer = _ask(target, 2, binary_data=True)
    found = _texts(target, answer)
    answer.must(_indices(answer, found) == [2, 1], "the classes 2 and 1", repr(found))


@check("classification.not-a-number", level=Level.SHOULD, source=_DOCUMENT, extension=EXTENSION)
def not_a_number(target: Target) -> None:
    """A classification parameter that is a text or negative is refused."""
    for count in ("two", -1):
        _ask(target, count).refused()


def _ask(target: Target, count: object, *, rows: Any = None, binary_data: bool = False) -> Answer:  # noqa: ANN401
    model = target.named("classifier")
    array = np.array([_VALUES], dtype=np.float32) if rows is None else rows
    parameters: dict[str, Any] = {"classification": count}
    if binary_data:
        parameters["binary_data"] = True
    outputs = [{"name": model.outputs[0].name, "parameters": parameters}]
    return target.infer(model, [replace(model.givens()[0], array=array)], outputs=outputs)


def _classify(target: Target, count: int) -> tuple[Answer, list[str]]:
    answer = _ask(target, count)
    found = _texts(target, answer)
    answer.must(len(found) == count, f"{count} classes", repr(found))
    return answer, found


def _texts(target: Target, answer: Answer) -> list[str]:
    model = target.named("classifier")
    output = outputs_of(answer)[model.outputs[0].name]
    answer.must(output.datatype is Datatype.BYTES, "datatype BYTES", output.datatype.value)
    return [text.decode() for text in output.array.ravel().tolist()]


def _indices(answer: Answer, texts: list[str]) -> list[int]:
    parts = [text.split(":") for text in texts]
    well = all(len(part) in (2, 3) and part[1].isdigit() for part in parts)
    answer.must(well, 'texts "value:index" or "value:index:label"', repr(texts))
    return [int(part[1]) for part in parts]
