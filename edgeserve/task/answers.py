"""What a model answers, one answer a row, and what is held to be true."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from edgeserve.contracts.errors import InputError


@dataclass(frozen=True, kw_only=True, eq=False)
class Detections:
    """Boxes of one picture, the best first."""

    boxes: npt.NDArray[np.float32]
    """[n, 4]: x1, y1, x2, y2 in pixels of the model's input."""
    scores: npt.NDArray[np.float32]
    """[n], 0..1; 1 for labelled truth."""
    classes: npt.NDArray[np.int64]
    """[n]: places in `Task.labels`."""

    def __post_init__(self) -> None:
        count = len(self.boxes)
        if self.boxes.shape != (count, 4) or self.scores.shape != (count,) or self.classes.shape != (count,):
            raise InputError(
                f"detections need boxes [n, 4], scores [n] and classes [n], not {list(self.boxes.shape)}, "
                f"{list(self.scores.shape)} and {list(self.classes.shape)}"
            )

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, score: float) -> Detections:
        """Those with at least `score`."""
        kept = self.scores >= score
        return Detections(boxes=self.boxes[kept], scores=self.scores[kept], classes=self.classes[kept])


Answer: TypeAlias = npt.NDArray[np.float64] | Detections | Any
"""Classification, keywords: scores [classes]. Detection: `Detections`. Embedding, regression: numbers of one row.
Tensors: every numeric output of the row by name. Custom: whatever the user's function returned."""

Answers: TypeAlias = list[Answer]
"""One a row; one a step, sequence by sequence, for stateful models."""

Truth: TypeAlias = npt.NDArray[np.int64] | npt.NDArray[np.float64] | list[Any]
"""Classification, keywords: class numbers int64 [rows]. Embedding, regression: float64 [rows, ...].
Detection: `Detections`, one a row. Tensors, custom: one object a row."""
