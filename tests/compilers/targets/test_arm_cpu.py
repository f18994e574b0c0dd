from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from edgeserve_compilers.targets.arm_cpu import ArmCpu
from tests.compilers.targets.test_x86_cpu import integers

FORM = ArmCpu.forms[0]


def test_activations_are_signed_and_not_symmetric(tmp_path: Path) -> None:
    found = integers(tmp_path, FORM, onnx.TensorProto.INT8)
    assert any(int(array) == -128 for array in found if array.ndim == 0), "the zero of what a Relu limits"


def test_nothing_is_unsigned(tmp_path: Path) -> None:
    assert not integers(tmp_path, FORM, onnx.TensorProto.UINT8)


@pytest.mark.parametrize(("architecture", "native"), [("arm64", True), ("amd64", False), ("arm", False)])
def test_it_is_native_on_64_bit_arm(architecture: str, native: bool) -> None:
    assert FORM.native(architecture, ("asimddp",)) is native
    assert FORM.selector.architectures == ("arm64",)
