"""Which recent request was answered how, so that the true label can be counted for the release that answered. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import FEEDBACK_RING, MAX_FEEDBACK_ROWS, MAX_REQUEST_ID_CHARS
from edgeserve.contracts.task import Task
from edgeserve.contracts.tensors import Signature
from edgeserve.runtimes.base import Tensor

Label = int | str
Labels = Label | list[Label]
R = TypeVar("R")


class Verdict(str, Enum):
    """What became of one piece of feedback."""

    COUNTED = "counted"
    UNKNOWN = "unknown"
    """The id was never seen, had no id or class, or is too old."""
    DUPLICATE = "duplicate"
    """The id was judged before: it is not counted twice."""


class Classifier:
    """Reads predictions and labels of one release, as its task says."""

    def __init__(self, task: Task, signature: Signature) -> None:
        self._task = task
        self._output = task.output or signature.outputs[0].name
        if self._output not in {spec.name for spec in signature.outputs}:
            raise InputError(f"the task's output {self._output!r} is not one of the model's")
        self._numbers = {label: number for number, label in enumerate(task.labels)}

    def predict(self, outputs: Mapping[str, Tensor]) -> tuple[list[int], int]:
        """The class of each row and the number of classes; no rows where the answer is not a class."""
        from edgeserve.task.classes import CLASSIFIERS, predictions  # most devices have no use for it at start

        found = outputs[self._output]
        if self._task.kind not in CLASSIFIERS or not found.ndim or not found.size or len(found) > MAX_FEEDBACK_ROWS:
            return [], 0
        try:
            return predictions(self._task, outputs).tolist(), found.shape[-1] - self._task.first_class
        except InputError:
            return [], 0

    def number(self, label: Label, classes: int) -> int:
        """Class index of a label.

        Raises:
            InputError: It is neither a class index nor one of the task's labels.
        """
        if isinstance(label, str):
            number = self._numbers.get(label)
            if number is None:
                raise InputError(f"label {label[:80]!r} is not one of the task's {len(self._numbers)} labels")
            return number
        if not 0 <= label < classes:
            raise InputError(f"label {label} is not a class index: 0 to {classes - 1}")
        return label


@dataclass(slots=True)
class _Answer(Generic[R]):
    release: R
    classifier: Classifier
    predicted: Sequence[int]
    classes: int
    judged: bool = False


@dataclass(frozen=True, slots=True)
class Judgement(Generic[R]):
    """One piece of feedback, applied."""

    verdict: Verdict
    release: R | None = None
    rows: int = 0
    correct: int = 0


class FeedbackRing(Generic[R]):
    """The last `size` answers of a model by request id; the oldest is forgotten first."""

    def __init__(self, size: int = FEEDBACK_RING) -> None:
        self._answers: OrderedDict[str, _Answer[R]] = OrderedDict()
        self._size = size

    def remember(self, request_id: str, release: R, classifier: Classifier, outputs: Mapping[str, Tensor]) -> None:
        """Keep what `release` answered; an id that comes again stands for its latest answer."""
        if not request_id or len(request_id) > MAX_REQUEST_ID_CHARS:
            return
        predicted, classes = classifier.predict(outputs)
        if not predicted:
            return
        self._answers.pop(request_id, None)
        if len(self._answers) >= self._size:
            self._answers.popitem(last=False)
        self._answers[request_id] = _Answer(release, classifier, predicted, classes)

    def judge(self, given: Sequence[tuple[str, Labels]]) -> list[Judgement[R]]:
        """Compare labels with what was answered; all or nothing.

        Args:
            given: Request id and true label, one for each row of that request.

        Raises:
            InputError: A label is no class of the release that answered, or there is not one for each row.
        """
        judgements: list[Judgement[R]] = []
        judged: dict[str, _Answer[R]] = {}
        for request_id, labels in given:
            answer = self._answers.get(request_id)
            if answer is None:
                judgements.append(Judgement(Verdict.UNKNOWN))
                continue
            numbers = _numbers(answer, request_id, labels)
            if answer.judged or request_id in judged:
                judgements.append(Judgement(Verdict.DUPLICATE))
                continue
            judged[request_id] = answer
            correct = sum(label == found for label, found in zip(numbers, answer.predicted, strict=True))
            judgements.append(Judgement(Verdict.COUNTED, answer.release, len(numbers), correct))
        for answer in judged.values():
            answer.judged = True
        return judgements


def _numbers(answer: _Answer[R], request_id: str, labels: Labels) -> list[int]:
    given = labels if isinstance(labels, list) else [labels]
    rows = len(answer.predicted)
    if len(given) != rows:
        raise InputError(
            f"feedback for {request_id[:80]!r} has {len(given)} labels, the request had {rows} rows",
            hint="give a list with one label for each row",
        )
    return [answer.classifier.number(label, answer.classes) for label in given]
