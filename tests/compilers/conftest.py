from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from edgeserve.runtimes.base import RuntimeOptions
from edgeserve.runtimes.onnx import OnnxRuntime
from tests.suites.models import conv_net, images, save


@dataclass(frozen=True)
class Inputs:
    """What a user has: a model, calibration rows, and other rows with labels that the model gets right mostly."""

    model: Path
    calibration: Path
    validation: Path


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    model = save(conv_net(), tmp_path / "tiny.onnx")
    rows = images(200, seed=5)
    loaded = OnnxRuntime().load(model, RuntimeOptions())
    labels = loaded.run({"image": rows})["logits"].argmax(axis=1)
    loaded.close()
    assert len(set(labels.tolist())) > 3
    labels[::10] = (labels[::10] + 1) % 10
    np.savez(tmp_path / "calibration.npz", image=images(64, seed=4))
    np.savez(tmp_path / "validation.npz", image=rows, labels=labels)
    return Inputs(model, tmp_path / "calibration.npz", tmp_path / "validation.npz")
