"""A small release, whole, and a forge for releases that are wrong in one place but consistent above it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeserve.contracts.oci import GOLDEN_TYPE, REPORT_TYPE
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.contracts.variant import Measured, Precision, Selector, Tolerance, VariantContract
from edgeserve.release.build import ReleaseBuilder

Edit = Callable[[dict[str, Any]], None]

MEASURED = Measured(
    metric="top1", rows=540, float_value=0.9815, value=0.9796, drop=0.0019, drop_low=-0.0037, drop_high=0.0074,
    latency_ms=0.042, float_latency_ms=0.055, size_bytes=5000, float_size_bytes=17000, host="Test CPU",
    host_architecture="amd64", executing_device="CPU",
)  # fmt: skip


def make_contract(target: str = "x86-cpu", architecture: str = "amd64", **changes: Any) -> VariantContract:
    signature = Signature(
        inputs=(TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1, 1, 8, 8)),),
        outputs=(TensorSpec(name="scores", datatype=Datatype.FP32, shape=(-1, 10)),),
    )
    fields: dict[str, Any] = {
        "model": "digits", "target": target, "precision": Precision.INT8, "runtime": "onnxruntime",
        "entry": "model.onnx", "signature": signature, "selector": Selector(architectures=(architecture,)),
        "tolerance": Tolerance(atol=0.01), "measured": MEASURED,
    }  # fmt: skip
    return VariantContract(**{**fields, **changes})


@pytest.fixture
def contract() -> Callable[..., VariantContract]:
    return make_contract


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    folder = tmp_path / "compiled"
    folder.mkdir()
    contents = {"model.onnx": b"the same graph" * 400, "x86.bin": b"weights for x86", "arm.bin": b"weights for arm"}
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return {name: folder / name for name in contents}


@pytest.fixture
def builder(files: dict[str, Path]) -> ReleaseBuilder:
    """Two variants that share a file, and evidence."""
    made = ReleaseBuilder(name="digits", version="1.0", counter=7)
    made.add_variant(make_contract(), {"model.onnx": files["model.onnx"], "w.bin": files["x86.bin"]})
    arm = make_contract("arm-cpu", "arm64")
    made.add_variant(arm, {"model.onnx": files["model.onnx"], "w.bin": files["arm.bin"]})
    made.add_evidence("report.json", REPORT_TYPE, b'{"rows": 540}')
    made.add_evidence("golden.npz", GOLDEN_TYPE, b"golden inputs and outputs")
    return made


@pytest.fixture
def layout(builder: ReleaseBuilder, tmp_path: Path) -> Path:
    builder.write(tmp_path / "release")
    return tmp_path / "release"


@pytest.fixture
def archive(builder: ReleaseBuilder, tmp_path: Path) -> Path:
    builder.write(tmp_path / "release.tar")
    return tmp_path / "release.tar"


class Forge:
    """Changes documents of a layout and names the new ones by their new digests, up to `index.json`."""

    def __init__(self, layout: Path) -> None:
        self.layout = layout

    def blob(self, digest: str) -> Path:
        return self.layout / "blobs" / "sha256" / digest.removeprefix("sha256:")

    def document(self, digest: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.blob(digest).read_bytes())
        return found

    @property
    def root(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.layout / "index.json").read_bytes())["manifests"][0]
        return found

    def store(self, data: bytes) -> dict[str, Any]:
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        self.blob(digest).write_bytes(data)
        return {"digest": digest, "size": len(data)}

    def __call__(
        self, *, config: Edit | None = None, manifest: Edit | None = None, index: Edit | None = None,
        root: Edit | None = None,
    ) -> Path:  # fmt: skip
        """Apply the edits to the first variant's documents, the release's index and the entry of `index.json`."""
        index_document = self.document(self.root["digest"])
        first = index_document["manifests"][0]
        manifest_document = self.document(first["digest"])
        config_document = self.document(manifest_document["config"]["digest"])
        if config:
            config(config_document)
            manifest_document["config"].update(self.store(json.dumps(config_document).encode()))
        if manifest:
            manifest(manifest_document)
        first.update(self.store(json.dumps(manifest_document).encode()))
        if index:
            index(index_document)
        entry = {**self.root, **self.store(json.dumps(index_document).encode())}
        if root:
            root(entry)
        whole = json.loads((self.layout / "index.json").read_bytes())
        (self.layout / "index.json").write_text(json.dumps({**whole, "manifests": [entry]}))
        return self.layout


@pytest.fixture
def forge(layout: Path) -> Forge:
    return Forge(layout)
