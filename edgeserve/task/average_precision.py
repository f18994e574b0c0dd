"""Mean average precision as COCO defines it, prepared so that it is fast over any choice of pictures.

Lin et al., "Microsoft COCO: Common Objects in Context", 2014, and cocodataset.org/#detection-eval: IoU 0.50:0.05:0.95,
101 recall points, at most 100 boxes of a class in a picture; here without area ranges and crowd regions, over the
classes that are present in the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from edgeserve.task.answers import Detections
from edgeserve.task.boxes import claim, iou

Ints = npt.NDArray[np.int64]

_THRESHOLDS: Final = np.linspace(0.5, 0.95, 10)
_MOST: Final = 100


@dataclass(frozen=True, kw_only=True, eq=False)
class Matches:
    """Which boxes of which pictures found true ones: all that average precision depends on.

    Boxes are sorted by class, then from the best down. Precision changes for the better at hits only, so that a curve
    is known by its hits: they are sorted by class, then IoU threshold, then from the best down.
    """

    pictures: int
    box_picture: Ints
    """[boxes]"""
    hit_box: Ints
    """[hits]: place in `box_picture`."""
    hit_class: Ints
    """[hits]: place among the classes that occur."""
    hit_curve: Ints
    """[hits]: number of the class and threshold, not falling."""
    class_start: Ints
    """[classes]: place of its first box in `box_picture`."""
    truth_picture: Ints
    truth_class: Ints
    """[true boxes]"""

    def mean_average_precision(self, times: Ints) -> float:
        """Average over the classes that are true in some picture, 0..1.

        Args:
            times: [pictures] how often each counts. A picture that counts twice is two pictures with the same boxes.

        Returns:
            1 without any true box or answer, 0 with answers but no true box.
        """
        true = np.bincount(self.truth_class, weights=times[self.truth_picture], minlength=len(self.class_start)).astype(
            np.int64
        )
        counts = times[self.box_picture]
        if not true.any():
            return float(not counts.any())
        seen = np.concatenate([[0], counts.cumsum()])
        hits = counts[self.hit_box]
        found = hits.cumsum()
        first = np.searchsorted(self.hit_curve, self.hit_curve)
        found -= (found - hits)[first]
        precision = found / np.maximum(seen[self.hit_box + 1] - seen[self.class_start[self.hit_class]], 1)
        # Recall points k/100 up to found/true, exactly: the integers 0..100 found/true. The first hit also covers 0.
        of = np.maximum(true[self.hit_class], 1)
        covered = np.where(found > 0, 100 * found // of + 1, 0)
        before = np.where(found > hits, 100 * (found - hits) // of + 1, 0)
        total = float((self._envelope(precision) * (covered - before)).sum())
        return total / (101 * len(_THRESHOLDS) * int(np.count_nonzero(true)))

    def _envelope(self, precision: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Largest precision from each hit on, curve by curve: one running maximum, with the curves lifted apart."""
        lift = -self.hit_curve.astype(np.float64)
        rising = np.maximum.accumulate((precision + lift)[::-1])[::-1]
        result: npt.NDArray[np.float64] = rising - lift
        return result


def match(found: Sequence[Detections], truth: Sequence[Detections]) -> Matches:
    """Match the boxes of each of at least one picture with its true ones, by class and for every IoU threshold."""
    flags, scores, classes, pictures = [], [], [], []
    for picture, (ours, theirs) in enumerate(zip(found, truth, strict=True)):
        order = np.argsort(-ours.scores, kind="stable")
        order = order[_places_in_class(ours.classes[order]) < _MOST]
        overlaps = iou(ours.boxes[order], theirs.boxes)
        overlaps[ours.classes[order, None] != theirs.classes[None]] = 0.0
        flags.append(claim(overlaps, _THRESHOLDS) >= 0)
        scores.append(ours.scores[order])
        classes.append(ours.classes[order])
        pictures.append(np.full(len(order), picture, np.int64))
    truth_class = np.concatenate([theirs.classes for theirs in truth])
    names, numbers = np.unique(np.concatenate([*classes, truth_class]), return_inverse=True)
    box_class, truth_class = np.split(numbers.ravel().astype(np.int64), [len(numbers) - len(truth_class)])
    order = np.lexsort((-np.concatenate(scores), box_class))
    box_class = box_class[order]
    threshold, box = np.nonzero(np.concatenate(flags, axis=1)[:, order])
    curve = box_class[box] * len(_THRESHOLDS) + threshold
    by_curve = np.argsort(curve, kind="stable")
    return Matches(
        pictures=len(found),
        box_picture=np.concatenate(pictures)[order],
        hit_box=box[by_curve],
        hit_class=box_class[box[by_curve]],
        hit_curve=curve[by_curve],
        class_start=np.searchsorted(box_class, np.arange(len(names))),
        truth_picture=np.repeat(np.arange(len(truth)), [len(theirs) for theirs in truth]),
        truth_class=truth_class,
    )


def _places_in_class(classes: Ints) -> Ints:
    """How many of the same class come before each."""
    order = np.argsort(classes, kind="stable")
    places = np.empty_like(order)
    places[order] = np.arange(len(order)) - np.searchsorted(classes[order], classes[order])
    return places
