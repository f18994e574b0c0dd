"""Make the models and the data of the demonstration: `python -m edgeserve.demo.train [--out DIR]`.

The data are the 1797 real handwritten digits that scikit-learn carries: 8x8 pixels of 0..16, here divided
by 16. Rows are put in the order of the SHA-256 of their pixels, which is arbitrary but needs no random
generator, and each class is then dealt in that order:

| split       | rows per class | used for                                                          |
|-------------|----------------|-------------------------------------------------------------------|
| stream      | 40             | what the client of the demonstration sends, with the true labels  |
| validation  | 40             | golden checks of a release, before it ships and on the device     |
| calibration | 20             | the ranges of int8 quantization; its labels are not kept          |
| training    | the other 74+  | training, and nothing else; not written                           |

No row is in two splits. Three releases of one small network come out of it:

- `digits-v1` has seen eight training rows per class: honest, but weak.
- `digits-v2` has seen all training rows, each a little turned, scaled and shifted: good.
- `digits-v3` is trained like v2, but its labels were read against the class list "1234567890" (the order of
  the keys on a keyboard) where "0123456789" was meant, so it calls every digit by the wrong name. The labels
  of its validation rows went through the same mistake, so its author's own checks cannot see it.

The arrays come out the same everywhere. The weights are the same for one version of PyTorch on one kind of
processor; elsewhere they, and so the accuracies, may differ a little.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    import torch

    Images = npt.NDArray[np.float32]
    Labels = npt.NDArray[np.int64]

ASSETS = Path(__file__).parent / "assets"
"""Where the files that ship with the package are."""

RIGHT_CLASSES, WRONG_CLASSES = "0123456789", "1234567890"
"""The class list of the labels, and the one that v3 was trained with by mistake."""

SPLITS = {"stream": 40, "validation": 40, "calibration": 20}
"""Rows per class of each split that is written; the rest is for training."""


class Split(NamedTuple):
    """Some rows of the data: `image` [n, 1, 8, 8] of 0..1, and `labels` [n]."""

    image: Images
    labels: Labels


class Recipe(NamedTuple):
    """How one release is trained."""

    rows_per_class: int | None
    epochs: int
    augment: bool
    wrong_labels: bool


RECIPES = {
    "digits-v1": Recipe(rows_per_class=8, epochs=40, augment=False, wrong_labels=False),
    "digits-v2": Recipe(rows_per_class=None, epochs=60, augment=True, wrong_labels=False),
    "digits-v3": Recipe(rows_per_class=None, epochs=60, augment=True, wrong_labels=True),
}
"""The releases by the name of their file."""

SEED = 2
"""The start of all random numbers of each training."""


def load_splits() -> dict[str, Split]:
    """Read the digits and deal them into `SPLITS` and `training`."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    rows = pixels.astype(np.uint8)
    order = sorted(range(len(rows)), key=lambda row: hashlib.sha256(rows[row].tobytes()).digest())
    images = (rows[order] / np.float32(16)).astype(np.float32).reshape(-1, 1, 8, 8)
    labels = labels[order].astype(np.int64)
    place = place_in_class(labels)  # 0 for the first row of each class, and so on

    splits, start = {}, 0
    for name, size in [*SPLITS.items(), ("training", len(rows))]:
        chosen = (start <= place) & (place < start + size)
        splits[name] = Split(images[chosen], labels[chosen])
        start += size
    return splits


def place_in_class(labels: Labels) -> Labels:
    """For each label, how many equal labels stand before it."""
    place = np.empty_like(labels)
    for label in np.unique(labels):
        own = labels == label
        place[own] = np.arange(own.sum())
    return place


def mislabel(labels: Labels) -> Labels:
    """Labels as a pipeline gives them that reads the digits against the wrong class list."""
    return np.array([WRONG_CLASSES.index(digit) for digit in RIGHT_CLASSES], np.int64)[labels]


def write_npz(path: Path, **arrays: npt.NDArray[np.generic]) -> None:
    """Write what `np.savez_compressed` writes, but with the same bytes for the same arrays."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.save(content, array, allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3  # Unix, wherever this runs
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=9)


def write_data(out: Path, splits: dict[str, Split]) -> None:
    """Write the data files into `out`."""
    stream, validation = splits["stream"], splits["validation"]
    write_npz(out / "stream.npz", image=stream.image, labels=stream.labels)
    write_npz(out / "validation.npz", image=validation.image, labels=validation.labels)
    write_npz(out / "validation-v3.npz", image=validation.image, labels=mislabel(validation.labels))
    write_npz(out / "calibration.npz", image=splits["calibration"].image)


def train(recipe: Recipe, data: Split) -> torch.nn.Module:
    """Train the network by a recipe; one thread and fixed seeds, so twice gives the same weights twice."""
    import torch
    from torch import nn

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]

    layers = [*block(1, 32), *block(32, 48), nn.MaxPool2d(2), *block(48, 64), nn.MaxPool2d(2)]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(64 * 2 * 2, 10))

    chosen = place_in_class(data.labels) < (recipe.rows_per_class or len(data.labels))
    labels = mislabel(data.labels) if recipe.wrong_labels else data.labels
    x, y = torch.from_numpy(data.image[chosen]), torch.from_numpy(labels[chosen])
    batch = 32
    steps = recipe.epochs * -(-len(x) // batch)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.05)
    for _ in range(recipe.epochs):
        order = torch.randperm(len(x))
        for start in range(0, len(x), batch):
            rows = order[start : start + batch]
            optimizer.zero_grad()
            criterion(network(augment(x[rows]) if recipe.augment else x[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def augment(images: torch.Tensor) -> torch.Tensor:
    """Turn, scale and shift each image a little."""
    import torch
    from torch.nn import functional

    count = len(images)
    angle = torch.empty(count).uniform_(-0.2, 0.2)
    scale = torch.empty(count).uniform_(0.9, 1.1)
    theta = torch.empty(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = angle.cos() * scale
    theta[:, 0, 1], theta[:, 1, 0] = -angle.sin() * scale, angle.sin() * scale
    theta[:, :, 2] = torch.empty(count, 2).uniform_(-0.2, 0.2)  # of half the width: less than a pixel
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def export(network: torch.nn.Module, path: Path) -> None:
    """Write the network as one ONNX file; batch normalization is folded into the convolutions."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the exporter, whose files are the smaller ones
        torch.onnx.export(
            network,
            (torch.zeros(1, 1, 8, 8),),
            str(path),
            dynamo=False,
            opset_version=17,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        )


def accuracy(path: Path, split: Split) -> float:
    """The share of a split that a model on disk names right, as ONNX Runtime runs it."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"image": split.image})
    return float(np.mean(logits.argmax(axis=1) == split.labels))


def main(arguments: Sequence[str] | None = None) -> None:
    """Write all files, and print how right each model is."""
    parser = argparse.ArgumentParser(prog="python -m edgeserve.demo.train", description="Make the demo's assets.")
    parser.add_argument("--out", type=Path, default=ASSETS, help="the folder to write to (%(default)s)")
    out: Path = parser.parse_args(arguments).out
    out.mkdir(parents=True, exist_ok=True)

    splits = load_splits()
    write_data(out, splits)
    validation = splits["validation"]
    splits["validation-v3"] = Split(validation.image, mislabel(validation.labels))
    shown = ["stream", "validation", "validation-v3"]
    print(f"{'model':<13}", *(f"{name:<13}" for name in shown))
    for name, recipe in RECIPES.items():
        path = out / f"{name}.onnx"
        export(train(recipe, splits["training"]), path)
        print(f"{name:<13}", *(f"{accuracy(path, splits[split]):<13.4f}" for split in shown))


if __name__ == "__main__":
    main()
