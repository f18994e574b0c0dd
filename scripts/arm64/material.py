"""What the containers serve and are asked, and what this machine answers to the same."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgeserve.release.layout import open_release

ROOT = Path(__file__).resolve().parents[2]
ASK = [sys.executable, str(Path(__file__).with_name("ask.py"))]
EDGESERVE = [sys.executable, "-m", "edgeserve"]
TARGETS = {"arm64": "arm-cpu", "amd64": "x86-cpu"}
DIGITS_PER_CLASS, CLIPS_PER_CLASS = 10, 5


@dataclass(kw_only=True)
class Material:
    """Files in a folder of their own."""

    release: Path
    """Folder of `kws:1`, a keyword spotter in int8 for the image's processor."""
    models: Path
    """`NAME/VERSION/model.onnx`: that one, and digits in float."""
    rows: Path
    """`.npz` with an array for each model, rows first."""
    labels: dict[str, npt.NDArray[np.int64]]
    expected: dict[str, list[int]] = field(default_factory=dict)
    """Classes that the same files give on this machine; filled by `answer_here`."""

    @classmethod
    def make(cls, data: Path, arch: str, folder: Path) -> Material:
        """Compile the real model and pick rows, the same number of each class.

        Args:
            data: The folder that docs/testdata.md describes.
            arch: `arm64` or `amd64`.
            folder: Where the files go.
        """
        target = TARGETS[arch]
        release, models, rows = folder / "release", folder / "models", folder / "rows.npz"
        clips = data / "data/kws_mfcc_even.npz"
        _compile(data / "models/kws_dscnn_float32.tflite", clips, target, release)
        sources = {"digits": ROOT / "edgeserve/demo/assets/digits-v2.onnx", "kws": _int8_model(release, target)}
        for name, source in sources.items():
            (models / name / "1").mkdir(parents=True)
            (models / name / "1/model.onnx").write_bytes(source.read_bytes())
        with np.load(ROOT / "edgeserve/demo/assets/stream.npz") as digits, np.load(clips) as sounds:
            few = _evenly(digits["labels"], DIGITS_PER_CLASS)
            judged = np.flatnonzero(~sounds["is_calib"])
            heard = judged[_evenly(sounds["y"][judged], CLIPS_PER_CLASS)]
            np.savez(rows, digits=digits["image"][few], kws=sounds["x"][heard])
            labels = {"digits": digits["labels"][few], "kws": sounds["y"][heard]}
        return cls(release=release, models=models, rows=rows, labels=labels)

    def answer_here(self) -> None:
        """Serve the same files on this machine, and ask for the same rows."""
        command = [*EDGESERVE, "serve", str(self.models), "--http", "127.0.0.1:0", "--json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
            assert server.stdout is not None
            try:
                url = json.loads("".join(_until("}\n", server.stdout)))["http"]
                asked = [*ASK, url, str(self.rows), *self.labels]
                self.expected = json.loads(
                    subprocess.run(asked, stdout=subprocess.PIPE, timeout=120, check=True).stdout
                )
            finally:
                server.terminate()


def _compile(model: Path, clips: Path, target: str, release: Path) -> None:
    subprocess.run(
        [*EDGESERVE, "compile", str(model), "--target", target, "--precision", "int8",
         "--task", str(ROOT / "benchmarks/tasks/kws-mfcc.toml"),
         "--calibration", f"{clips}#calib", "--validation", f"{clips}#eval",
         "--name", "kws", "--version", "1", "-o", str(release)],
        stdout=subprocess.DEVNULL, check=True,
    )  # fmt: skip


def _int8_model(release: Path, target: str) -> Path:
    """The ONNX file of the release's int8 variant for ONNX Runtime."""
    found = [
        variant.files["model.onnx"].digest
        for variant in open_release(release).variants
        if (variant.contract.target, variant.contract.runtime) == (target, "onnxruntime")
        and variant.contract.precision == "int8"
    ]
    return release / "blobs" / found[0].replace(":", "/")


def _evenly(labels: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """Indices of the first `count` rows of each class."""
    return np.concatenate([np.flatnonzero(labels == label)[:count] for label in np.unique(labels)])


def _until(last: str, lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        yield line
        if line == last:
            return
