"""Answers as clients and people read them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edgeserve.contracts.task import Kind, Task
from edgeserve.task.answers import Answer, Detections
from edgeserve.task.classes import CLASSIFIERS, INVALID, softmax

if TYPE_CHECKING:
    from edgeserve.task.prepare import Geometry

_SHOWN: Final = 5
"""Classes shown of a classifier's answer, and numbers of a vector in a report."""
_WORDS: Final = 60
"""Characters of an answer in a report."""


def present(task: Task, answer: Answer, geometry: Geometry | None) -> dict[str, Any]:
    """An answer for clients: only types of JSON, numbers that are not finite as None.

    Args:
        task: What the answer means.
        answer: One of `decode`.
        geometry: Of the picture, so that boxes are in its pixels; None leaves them in pixels of the model's input.

    Returns:
        Classification, keywords: `classes`, the best five, each with `label`, `index` and `score` (their softmax when
        the task says that the scores are logits); empty when a score is NaN. Detection: `boxes` of at least
        `task.boxes.score`, each with `label`, `index`, `score` and `box` [x1, y1, x2, y2]. Embedding: `vector`.
        Regression: `values`. Tensors: `outputs` by name. Custom: `answer`, as the user's function returned it.
    """
    if task.kind in CLASSIFIERS:
        return {"classes": _best(task, answer)}
    if task.kind is Kind.DETECTION:
        return {"boxes": _boxes(task, answer, geometry)}
    if task.kind is Kind.EMBEDDING:
        return {"vector": _plain(np.asarray(answer))}
    if task.kind is Kind.REGRESSION:
        return {"values": _plain(np.asarray(answer))}
    if task.kind is Kind.TENSORS:
        return {"outputs": _plain(answer)}
    return {"answer": _plain(answer)}


def describe(task: Task, answer: Answer) -> str:
    """An answer in a few words: `cat 0.93`, `3 boxes: 2 person, 1 dog`, `0.53`."""
    if task.kind in CLASSIFIERS:
        best = _best(task, answer)[:1]
        return f"{best[0]['label']} {best[0]['score']:.2f}" if best else "no class: a score is NaN"
    if task.kind is Kind.DETECTION:
        return _count(task, answer)
    return _short(answer)


def describe_truth(task: Task, truth_row: Any) -> str:  # noqa: ANN401 - of any kind, as `Truth`
    """The truth of one row in a few words: `cat`, `2 boxes: 2 person`, `0.5`."""
    if task.kind in CLASSIFIERS:
        number = int(truth_row)
        return "no class" if number == INVALID else label(task, number)
    if task.kind is Kind.DETECTION:
        return _count(task, truth_row)
    return _short(truth_row)


def label(task: Task, number: int) -> str:
    """Name of a class; its number where the task has no name for it."""
    return task.labels[number] if 0 <= number < len(task.labels) else f"class {number}"


def _best(task: Task, answer: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - scores, as the kind says
    if np.isnan(answer).any():
        return []
    shown = softmax(answer) if task.softmax else answer
    order = np.argsort(-answer, kind="stable")[:_SHOWN]
    return [{"label": label(task, int(place)), "index": int(place), "score": _plain(shown[place])} for place in order]


def _boxes(task: Task, answer: Any, geometry: Geometry | None) -> list[dict[str, Any]]:  # noqa: ANN401 - detections
    seen = _visible(task, answer)
    corners = seen.boxes.astype(np.float64) if geometry is None else np.asarray(geometry.to_picture(seen.boxes))
    return [
        {"label": label(task, int(number)), "index": int(number), "score": float(score), "box": _plain(box)}
        for number, score, box in zip(seen.classes, seen.scores, corners, strict=True)
    ]


def _visible(task: Task, answer: Detections) -> Detections:
    return answer.above(task.boxes.score) if task.boxes else answer


def _count(task: Task, boxes: Any) -> str:  # noqa: ANN401 - detections
    numbers = Counter(_visible(task, boxes).classes.tolist()).most_common()
    total = sum(count for _, count in numbers)
    named = [f"{count} {label(task, number)}" for number, count in numbers[:_SHOWN]]
    more = ["..."] if len(numbers) > _SHOWN else []
    return f"{total} box{'' if total == 1 else 'es'}" + (f": {', '.join(named + more)}" if named else "")


def _short(answer: object) -> str:
    """Numbers to four digits, and no more than a line of them."""
    if isinstance(answer, dict):
        text = ", ".join(f"{name} {_short(value)}" for name, value in answer.items())
    elif isinstance(answer, np.ndarray | float | np.floating):
        values = np.asarray(answer).ravel()
        text = ", ".join(f"{value:.4g}" for value in values[:_SHOWN])
        text = text if values.size == 1 else f"[{text}{', ...' if values.size > _SHOWN else ''}]"
    else:
        text = str(answer)
    return text if len(text) <= _WORDS else text[: _WORDS - 3] + "..."


def _plain(value: Any) -> Any:  # noqa: ANN401 - a user's function returns what it likes
    """Numpy's types as Python's; what is not finite becomes None, which JSON can hold."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value
