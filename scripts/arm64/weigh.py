"""What an image weighs: each layer unpacked and as it is downloaded, and the packages in it."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

MOST_SHOWN = 12


def weigh_layers(layout: Path, dockerfile: Path) -> int:
    """Print a table; returns the bytes of the layers above the base, unpacked, as tars.

    Args:
        layout: The image as an OCI layout; its base has one layer, as scripts/arm64/prepare.sh makes them.
        dockerfile: What it was built from; each COPY of its last stage is a layer.
    """
    index = json.loads((layout / "index.json").read_text())
    layers = json.loads(_blob(layout, index["manifests"][0]["digest"]).read_text())["layers"]
    last_stage = dockerfile.read_text().rpartition("\nFROM ")[2].splitlines()
    steps = [line for line in last_stage if line.startswith(("COPY", "ADD", "RUN"))]
    _row("layer", "unpacked", "download")
    above_unpacked = above_download = 0
    for step, layer in zip(["", *steps], layers, strict=True):
        unpacked = _unpacked_bytes(_blob(layout, layer["digest"]))
        _row(step or "base: a stand-in for python:3.11-slim", _mb(unpacked), _mb(layer["size"]))
        if step:
            above_unpacked += unpacked
            above_download += layer["size"]
    _row("above the base", _mb(above_unpacked), _mb(above_download))
    return above_unpacked


def weigh_packages(folder: Path) -> None:
    """Print what the heaviest packages weigh; `NAME.libs`, a wheel's shared libraries, counts as `NAME`."""
    sizes = Counter[str]()
    for path in folder.rglob("*"):
        if path.is_file():
            sizes[path.relative_to(folder).parts[0].removesuffix(".libs")] += path.stat().st_size
    shown = sizes.most_common(MOST_SHOWN)
    for name, size in shown:
        _row(f"  {name}", _mb(size))
    _row("  the rest", _mb(sizes.total() - sum(size for _name, size in shown)))


def _row(name: str, *columns: str) -> None:
    print(f"  {name[:70]:<71}{''.join(f'{column:>11}' for column in columns)}")


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / digest.replace(":", "/")


def _unpacked_bytes(layer: Path) -> int:
    with gzip.open(layer) as tar:
        return sum(len(chunk) for chunk in iter(lambda: tar.read(1 << 20), b""))
