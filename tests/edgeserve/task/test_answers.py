from __future__ import annotations

import numpy as np
import pytest

from edgeserve.contracts.errors import InputError
from edgeserve.task.answers import Detections

BOXES = np.array([[0, 0, 2, 2], [1, 1, 3, 3], [5, 5, 6, 6]], np.float32)


def test_boxes_above_a_score_stay_in_order() -> None:
    found = Detections(boxes=BOXES, scores=np.array([0.9, 0.5, 0.1], np.float32), classes=np.array([2, 0, 1]))
    kept = found.above(0.5)
    assert (len(found), len(kept)) == (3, 2)
    np.testing.assert_array_equal(kept.classes, [2, 0])
    np.testing.assert_array_equal(kept.boxes, BOXES[:2])


@pytest.mark.parametrize(
    ("boxes", "scores", "classes"), [(BOXES[:, :3], 3, 3), (BOXES, 2, 3), (BOXES, 3, 2), (BOXES[0], 4, 4)]
)
def test_detections_that_do_not_belong_together_are_refused(boxes, scores: int, classes: int) -> None:
    with pytest.raises(InputError, match=r"boxes \[n, 4\]"):
        Detections(boxes=boxes, scores=np.zeros(scores, np.float32), classes=np.zeros(classes, np.int64))
