"""Makes the state directory of a device that serves the tiny model: `python device.py STATE_DIR MODEL.onnx`."""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path

from edgeserve.contracts.documents import encode
from edgeserve.contracts.task import Task
from edgeserve.contracts.variant import Precision, Selector, Tolerance, VariantContract
from edgeserve.runtimes.base import RuntimeOptions
from edgeserve.runtimes.variant import find_runtime
from edgeserve_agent import slots


def make(state_dir: Path, model: Path) -> None:
    signature = find_runtime("onnxruntime").load(model, RuntimeOptions()).signature
    contract = VariantContract(
        model="mlp",
        target="x86-cpu",
        precision=Precision.FP32,
        runtime="onnxruntime",
        entry="model.onnx",
        signature=signature,
        task=Task(),
        selector=Selector(),
        tolerance=Tolerance(),
    )
    digest = "sha256:" + hashlib.sha256(model.read_bytes()).hexdigest()
    slot = slots.Slot(release=digest, version="v1", variant=digest)
    folder = slot.folder(state_dir)
    folder.mkdir(parents=True)
    shutil.copy(model, folder / "model.onnx")
    (folder / "contract.json").write_bytes(encode(contract))
    slots.write(state_dir, slots.Slots(models=(slots.ModelSlots(model="mlp", active=slot),)))


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]))
