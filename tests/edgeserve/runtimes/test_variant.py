from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from edgeserve.contracts.documents import encode
from edgeserve.contracts.errors import DeviceError, InputError, NotFoundError
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.contracts.variant import Precision, Selector, Tolerance, VariantContract
from edgeserve.runtimes.variant import load_variant
from tests.suites.models import conv_net, images, save

SIGNATURE = Signature(
    inputs=(TensorSpec(name="image", datatype=Datatype.FP32, shape=(-1, 1, 8, 8)),),
    outputs=(TensorSpec(name="logits", datatype=Datatype.FP32, shape=(-1, 10)),),
)
CONTRACT = VariantContract(
    model="digits",
    target="x86-cpu",
    precision=Precision.FP32,
    runtime="onnxruntime",
    entry="model.onnx",
    signature=SIGNATURE,
    selector=Selector(),
    tolerance=Tolerance(),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(conv_net(), tmp_path / "model.onnx")
    (tmp_path / "contract.json").write_bytes(encode(CONTRACT))
    return tmp_path


def test_a_variant_loads_as_its_contract_says(folder: Path) -> None:
    contract, model = load_variant(folder, simulate=False, threads=2)
    assert contract == CONTRACT
    assert model.executing_device == "CPU"
    assert model.run({"image": images(2)})["logits"].shape == (2, 10)
    model.close()


def renamed(side: str, name: str) -> Signature:
    specs = getattr(SIGNATURE, side)
    return replace(SIGNATURE, **{side: (replace(specs[0], name=name),)})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"signature": renamed("inputs", "picture")}, InputError, "input 'image' FP32.* not 'picture'"),
        ({"signature": renamed("outputs", "scores")}, InputError, "output 'logits'"),
        (
            {"signature": replace(SIGNATURE, inputs=SIGNATURE.inputs + renamed("inputs", "b").inputs)},
            InputError,
            "not 2",
        ),
        ({"runtime": "tensorflow-js"}, NotFoundError, "tensorflow-js"),
        ({"runtime_device": "NPU"}, DeviceError, "NPU"),
        ({"entry": "other.onnx"}, NotFoundError, "other.onnx"),
    ],
    ids=["input name", "output name", "inputs", "runtime", "device", "entry"],
)
def test_a_contract_that_does_not_fit_is_refused(folder: Path, change, error, message: str) -> None:
    (folder / "contract.json").write_bytes(encode(replace(CONTRACT, **change)))
    with pytest.raises(error, match=message):
        load_variant(folder, simulate=False)


def test_a_device_that_is_absent_is_simulated_only_on_request(folder: Path) -> None:
    (folder / "contract.json").write_bytes(encode(replace(CONTRACT, runtime_device="NPU")))
    _, model = load_variant(folder, simulate=True)
    assert model.executing_device == "CPU (simulated)"
    model.close()


@pytest.mark.parametrize("content", [None, b"{", b"[]", b"{}"], ids=["absent", "cut", "list", "empty"])
def test_a_contract_that_cannot_be_read_is_refused(folder: Path, content: bytes | None) -> None:
    path = folder / "contract.json"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(InputError, match="contract"):
        load_variant(folder, simulate=False)
