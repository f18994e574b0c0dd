"""A network that int8 is hard for: MobileNetV3-like, then rescaled channel by channel with the same float function.

Trained on scikit-learn's digits (UCI "Optical Recognition of Handwritten Digits"), enlarged to 32x32 and distorted.
Each linear bottleneck (a convolution without an activation after it) has its output channels multiplied by 2^U(-4, 4),
and whatever reads them divided by the same: the weights of one layer and the channels of one tensor then differ by a
factor of up to 256, as folded batch normalisation does to real MobileNets.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

CALIBRATION_ROWS, VALIDATION_ROWS, TEST_COPIES = 256, 1024, 6
_EPOCHS = 14


def make(folder: Path) -> dict[str, Path]:
    """Train, rescale and write `hard.onnx` with its data, unless they are there.

    Returns:
        `model`, `calibration`, `validation` and `test` (.npz). No training ever saw the originals of the test rows;
        those of calibration and validation were trained on.
    """
    names = {"model": "hard.onnx", "calibration": "calibration.npz", "validation": "validation.npz", "test": "test.npz"}
    files = {what: folder / name for what, name in names.items()}
    if all(path.exists() for path in files.values()):
        return files
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.set_num_threads(2)
    random = np.random.default_rng(0)
    digits = load_digits()
    order = random.permutation(len(digits.images))
    held_out, trained = order[:500], order[500:]
    images = torch.from_numpy(digits.images.astype(np.float32) / 16)[:, None]
    labels = torch.from_numpy(digits.target.astype(np.int64))
    net = train(images[trained], labels[trained])

    def write(what: str, rows: np.ndarray, seed: int) -> None:
        torch.manual_seed(seed)
        pictures = distort(images[rows]).numpy()
        np.savez(files[what], image=pictures, labels=labels[rows].numpy())

    write("calibration", random.choice(trained, CALIBRATION_ROWS), 1)
    write("validation", random.choice(trained, VALIDATION_ROWS), 2)
    write("test", np.repeat(held_out, TEST_COPIES), 3)
    example = torch.from_numpy(np.load(files["calibration"])["image"][:64])
    net.eval()
    with torch.no_grad():
        before = net(example)
        rescale(net, random)
        assert torch.allclose(before, net(example), atol=1e-4), "rescaling must not change the function"
    torch.onnx.export(
        net, (example[:1],), str(files["model"]), dynamo=False, opset_version=17, input_names=["image"],
        output_names=["logits"], dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
    )  # fmt: skip
    onnx.checker.check_model(str(files["model"]))
    return files


def distort(pictures: torch.Tensor) -> torch.Tensor:
    """8x8 to 32x32 with random rotation, scale, shift, shear and noise: f32 [rows, 1, 32, 32]."""
    rows = len(pictures)
    angle = (torch.rand(rows) - 0.5) * 0.7
    size = 1 + (torch.rand(rows) - 0.5) * 0.4
    shear = (torch.rand(rows) - 0.5) * 0.4
    cos, sin = torch.cos(angle) / size, torch.sin(angle) / size
    shift = (torch.rand(rows, 2) - 0.5) * 0.4
    theta = torch.stack([torch.stack([cos, -sin + shear, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)
    grid = functional.affine_grid(theta, [rows, 1, 32, 32], align_corners=False)
    large = functional.interpolate(pictures, size=(32, 32), mode="bilinear", align_corners=False)
    return functional.grid_sample(large, grid, align_corners=False) + torch.randn(rows, 1, 32, 32) * 0.25


def train(images: torch.Tensor, labels: torch.Tensor) -> Net:
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-3)
    steps = _EPOCHS * (len(images) * 6 // 128)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(len(images), (128,))
        loss = functional.cross_entropy(net(distort(images[rows])), labels[rows], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net


class Block(nn.Module):
    """Inverted residual with squeeze and excitation, its last convolution linear (Howard et al. 2019, section 5.3)."""

    def __init__(self, inside: int, hidden: int, outside: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(inside, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.Hardswish())
        self.depthwise = nn.Sequential(
            nn.Conv2d(hidden, hidden, kernel, stride, kernel // 2, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.Hardswish(),
        )
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(hidden, hidden // 4, 1), nn.ReLU(), nn.Conv2d(hidden // 4, hidden, 1),
            nn.Sigmoid(),
        )  # fmt: skip
        self.project = nn.Sequential(nn.Conv2d(hidden, outside, 1, bias=False), nn.BatchNorm2d(outside))
        self.residual = stride == 1 and inside == outside

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.depthwise(self.expand(x))
        out = self.project(inner * self.squeeze(inner))
        return x + out if self.residual else out


class Net(nn.Module):
    """About 160 000 parameters: f32 [rows, 1, 32, 32] to logits [rows, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16))
        self.blocks = nn.Sequential(
            Block(16, 48, 24, 3, 2), Block(24, 72, 24, 3, 1), Block(24, 96, 40, 5, 2), Block(40, 120, 40, 5, 1),
            Block(40, 160, 48, 3, 1),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Conv2d(48, 192, 1, bias=False), nn.BatchNorm2d(192), nn.Hardswish())
        self.classify = nn.Linear(192, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.head(self.blocks(self.stem(x)))
        return self.classify(x.mean((2, 3)))


def rescale(net: Net, random: np.random.Generator) -> None:
    """Multiply the output channels of every linear bottleneck, divide in whatever reads them.

    A residual adds to the tensor that it reads, so all bottlenecks of one width that are joined so share their factors.
    """
    writers: list[nn.Sequential] = [net.stem]
    for block in net.blocks:
        if not block.residual:
            readers = _readers(net, block)
            _scale(writers, readers, random)
            writers = []
        writers.append(block.project)
    _scale(writers, [*_readers(net, None)], random)


def _readers(net: Net, until: Block | None) -> list[nn.Conv2d]:
    """First convolutions of the blocks since the last change of width, up to `until` and with it."""
    blocks = list(net.blocks)
    end = len(blocks) if until is None else blocks.index(until)
    start = end
    while start > 0 and blocks[start - 1].residual:
        start -= 1
    last = net.head[0] if until is None else until.expand[0]
    return [*(block.expand[0] for block in blocks[start:end]), last]


def _scale(writers: list[nn.Sequential], readers: list[nn.Conv2d], random: np.random.Generator) -> None:
    channels = writers[0][1].num_features
    factors = torch.from_numpy(2 ** random.uniform(-4, 4, channels)).float()
    for _convolution, norm in writers:
        norm.weight.mul_(factors)
        norm.bias.mul_(factors)
    for reader in readers:
        reader.weight.div_(factors.reshape(1, -1, 1, 1))
