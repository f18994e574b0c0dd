from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeserve.contracts.variant import Precision
from edgeserve_compilers.targets.base import Form
from edgeserve_compilers.targets.x86_cpu import X86Cpu
from tests.suites.compiler import Bench, job, opened
from tests.suites.models import conv_net, images, save

FORMS = {form.name: form for form in X86Cpu.forms}


def integers(folder: Path, form: Form, kind: int) -> list[np.ndarray]:
    """Weights (or zero points) of the form's first candidate that have this type."""
    path = save(conv_net(), folder / "float.onnx")
    (folder / "products").mkdir()
    bench = Bench(form, opened(form, job(path, {"image": images(32)}, folder / "work")), folder / "products")
    product, made = bench.produce(form.candidates[0])
    tensors = onnx.load(made / product.entry).graph.initializer
    return [onnx.numpy_helper.to_array(tensor) for tensor in tensors if tensor.data_type == kind]


@pytest.mark.parametrize(("name", "largest"), [("onnxruntime", 64), ("vnni", 127)])
def test_weights_have_the_bits_that_the_instructions_add_without_overflow(
    name: str, largest: int, tmp_path: Path
) -> None:
    found = integers(tmp_path, FORMS[name], onnx.TensorProto.INT8)
    assert max(int(np.abs(array.astype(int)).max()) for array in found) == largest
    assert all(not array.any() for array in found if array.ndim < 2), "zero points of weights"


def test_activations_are_unsigned(tmp_path: Path) -> None:
    assert integers(tmp_path, FORMS["vnni"], onnx.TensorProto.UINT8)


def test_the_form_for_every_cpu_is_the_required_one() -> None:
    assert FORMS["onnxruntime"].required
    assert FORMS["onnxruntime"].float_fallback
    assert FORMS["onnxruntime"].selector.cpu_features == ()
    assert not FORMS["vnni"].required
    assert not FORMS["vnni"].float_fallback
    assert all(form.must_be_faster and form.auto == (Precision.INT8,) for form in FORMS.values())


@pytest.mark.parametrize(
    ("architecture", "features", "expected"),
    [
        ("amd64", ("avx2",), {"onnxruntime"}),
        ("amd64", ("avx2", "avx_vnni"), {"onnxruntime", "vnni"}),
        ("amd64", ("avx512_vnni",), {"onnxruntime", "vnni"}),
        ("arm64", ("asimddp",), set()),
    ],
)
def test_a_host_runs_natively_what_its_cpu_can(
    architecture: str, features: tuple[str, ...], expected: set[str]
) -> None:
    assert {name for name, form in FORMS.items() if form.native(architecture, features)} == expected
