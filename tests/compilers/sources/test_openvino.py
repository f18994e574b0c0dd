from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeserve.contracts.errors import InputError, NotFoundError
from edgeserve.runtimes.base import RuntimeOptions
from edgeserve.runtimes.onnx import OnnxRuntime
from edgeserve_compilers.load import load
from tests.suites.models import conv_net, images, save
from tests.suites.source import SourceCase, SourceContract

pytest.importorskip("openvino", reason="openvino is not installed: pip install 'edgeserve[openvino]'")


@pytest.fixture(scope="module")
def ir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import edgeserve.runtimes.openvino  # noqa: F401 - turns telemetry off

    import openvino  # isort: skip

    folder = tmp_path_factory.mktemp("ir")
    path = folder / "m.xml"
    openvino.save_model(openvino.convert_model(save(conv_net(), folder / "m.onnx")), path, compress_to_fp16=False)
    return path


class TestOpenVinoSource(SourceContract):
    @pytest.fixture
    def case(self, ir: Path) -> SourceCase:
        rows = {"image": images(3)}
        expected = OnnxRuntime().load(ir.with_suffix(".onnx"), RuntimeOptions()).run(rows)
        return SourceCase(
            source="openvino",
            path=ir,
            rows=rows,
            answers=list(expected.values()),
            library="openvino",
            extra="openvino",
            companion=".bin",
        )


def test_the_author_s_own_files_are_all_that_can_be_compiled(ir: Path) -> None:
    model = load(ir)
    assert model.content == b""
    assert model.originals == {"openvino": ir}
    assert model.spec.opset == 0
    assert model.spec.size_bytes == ir.stat().st_size + ir.with_suffix(".bin").stat().st_size


def test_missing_weights_are_named(ir: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.xml"
    path.write_bytes(ir.read_bytes())
    with pytest.raises(NotFoundError, match="weights") as raised:
        load(path)
    assert "m.bin" in raised.value.hint


def test_truncated_weights_are_refused(ir: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.xml"
    path.write_bytes(ir.read_bytes())
    path.with_suffix(".bin").write_bytes(ir.with_suffix(".bin").read_bytes()[:-100])
    with pytest.raises(InputError, match=r"m\.xml"):
        load(path)


def test_a_quantized_ir_is_refused_with_what_to_give_instead(ir: Path, tmp_path: Path) -> None:
    import openvino
    from openvino import opset13

    data = opset13.parameter([1, 4], np.float32, name="x")
    low, high = (opset13.constant(np.float32(value)) for value in (-1, 1))
    quantized = opset13.fake_quantize(data, low, high, low, high, 256)
    quantized.output(0).set_names({"y"})
    data.output(0).set_names({"x"})
    path = tmp_path / "q.xml"
    openvino.save_model(openvino.Model([quantized], [data], "q"), path)
    with pytest.raises(InputError, match="already quantized") as raised:
        load(path)
    assert "float IR" in raised.value.hint
