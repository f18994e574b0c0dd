"""Boxes in numpy: formats, intersection over union, non-maximum suppression, greedy matching."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]

_YXYX: Final = [1, 0, 3, 2]


def to_corners(boxes: Floats, layout: str) -> Floats:
    """Turn boxes [..., 4] of a `Boxes.format` into x1, y1, x2, y2."""
    if layout == "xyxy":
        return boxes
    if layout == "yxyx":
        return boxes[..., _YXYX]
    place, size = boxes[..., :2], boxes[..., 2:]
    first = place - size / 2 if layout == "cxcywh" else place
    return np.concatenate([first, first + size], axis=-1)


def iou(first: Floats, second: Floats) -> npt.NDArray[np.float64]:
    """Intersection over union of every box of `first` [n, 4] with every box of `second` [m, 4], both as corners.

    Returns:
        float64 [n, m], 0..1; 0 where both boxes have no area. A box whose corners are swapped has no area.
    """
    ours, theirs = first.astype(np.float64)[:, None], second.astype(np.float64)[None, :]
    sides = np.minimum(ours[..., 2:], theirs[..., 2:]) - np.maximum(ours[..., :2], theirs[..., :2])
    shared = np.prod(np.maximum(sides, 0.0), axis=-1)
    both = area(ours) + area(theirs) - shared
    result: npt.NDArray[np.float64] = np.divide(shared, both, out=np.zeros_like(shared), where=both > 0)
    return result


def area(boxes: Floats) -> Floats:
    """Area of boxes [..., 4] given as corners; 0 where they are swapped."""
    result: Floats = np.prod(np.maximum(boxes[..., 2:] - boxes[..., :2], 0.0), axis=-1)
    return result


def suppress(
    boxes: Floats, scores: Floats, classes: npt.NDArray[np.int64], *, overlap: float, most: int
) -> npt.NDArray[np.int64]:
    """Class-wise non-maximum suppression: of two boxes of a class that overlap more than `overlap`, the better stays.

    Greedy from the best down (of equals the first), as in Felzenszwalb et al., "Object Detection with Discriminatively
    Trained Part Based Models", 2010, section 5.2.

    Args:
        boxes: [n, 4] corners.
        scores: [n].
        classes: [n].
        overlap: Largest IoU that two kept boxes of a class have.
        most: Boxes to keep at most.

    Returns:
        Places of the kept boxes, the best first. O(n log n + kept n).
    """
    order = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while len(order) and len(kept) < most:
        best, order = order[0], order[1:]
        kept.append(int(best))
        rivals = np.flatnonzero(classes[order] == classes[best])
        beaten = rivals[iou(boxes[best][None], boxes[order[rivals]])[0] > overlap]
        order = np.delete(order, beaten)
    return np.array(kept, np.int64)


def claim(overlaps: npt.NDArray[np.float64], thresholds: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Give each box, the best first, the free counterpart that it overlaps most: COCO's greedy matching.

    Args:
        overlaps: IoU [boxes, counterparts], rows from the best box down; 0 where a pair is ruled out.
        thresholds: [t] smallest IoU of a match, above 0; each is matched by itself.

    Returns:
        int64 [t, boxes]: place of the counterpart, -1 = none.
    """
    count, partners = overlaps.shape
    claimed = np.full((len(thresholds), count), -1, np.int64)
    if not partners:
        return claimed
    free = np.ones((len(thresholds), partners), bool)
    every = np.arange(len(thresholds))
    # Most boxes at low scores overlap nothing enough: only the others cost a step in Python.
    for box in np.flatnonzero(overlaps.max(axis=1) >= thresholds.min()):
        open_to_it = np.where(free, overlaps[box], -1.0)
        best = open_to_it.argmax(axis=1)
        found = open_to_it[every, best] >= thresholds
        claimed[found, box] = best[found]
        free[every[found], best[found]] = False
    return claimed
