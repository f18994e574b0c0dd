"""A data argument of the command line to a data set: `PATH` or `PATH#NAME`, the reader chosen by what PATH is."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Protocol

from edgeserve.contracts.errors import InputError, NotFoundError
from edgeserve.contracts.task import Task
from edgeserve.contracts.tensors import Signature
from edgeserve_compilers.data import coco, folder, npz, ultralytics
from edgeserve_compilers.data.dataset import Dataset


class Reader(Protocol):
    """Reads one form of data."""

    def __call__(self, path: Path, split: str, signature: Signature, task: Task) -> Dataset:
        """Read `path`; `split` is what stands behind the `#`, or empty."""


_READERS: Final[dict[str, Reader]] = {
    ".npz": npz.load,
    ".json": coco.load,
    ".yaml": ultralytics.load,
    ".yml": ultralytics.load,
}


def load(path: Path, signature: Signature, task: Task) -> Dataset:
    """Read data for a model.

    Args:
        path: An .npz file, a folder of pictures or WAV files, a COCO .json or an Ultralytics data.yaml; `#NAME`
        behind it
            chooses a split: a value of the column `split`, `calib` or `eval` of `is_calib`, a key of data.yaml.
        signature: Of the model; arrays are needed for its inputs besides state and constants.
        task: As from `edgeserve.task.model_toml.check_task`.

    Raises:
        NotFoundError: There is nothing at `path`.
        InputError: Not such data, too large, not for this model or task, or no such split.
        DeviceError: A library is missing that reads it.
    """
    split = ""
    if not path.exists() and "#" in path.name:
        name, _, split = path.name.rpartition("#")
        path = path.with_name(name) if name else path.parent
    if path.is_dir():
        return folder.load(path, split, signature, task)
    if not path.exists():
        raise NotFoundError(f"there are no data at {path}")
    reader = _READERS.get(path.suffix.lower())
    if reader is None or not path.is_file():
        raise InputError(
            f"{path} is not data that can be read",
            hint="give an .npz file, a folder of pictures or WAV files, a COCO .json or an Ultralytics data.yaml",
        )
    return reader(path, split, signature, task)
