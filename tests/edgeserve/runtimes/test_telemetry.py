"""No library that a runtime brings may write to the home folder of whoever runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

RUN = """
import sys
from pathlib import Path
from edgeserve.runtimes.base import RuntimeOptions
from edgeserve.runtimes.variant import find_runtime
model = find_runtime(sys.argv[1]).load(Path(sys.argv[2]), RuntimeOptions())
import numpy
model.run({"image": numpy.zeros((1, 1, 8, 8), "float32")})
model.close()
assert sys.modules.get("openvino_telemetry") is None
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from edgeserve.contracts.documents import encode
    from edgeserve.runtimes.onnx import OnnxRuntime
    from tests.suites.models import conv_net, save

    folder = tmp_path_factory.mktemp("models")
    onnx_file = save(conv_net(), folder / "m.onnx")
    if find_spec("openvino") is not None:
        from edgeserve.runtimes import openvino as _telemetry_is_off  # noqa: F401 - before the library itself

        import openvino  # isort: skip

        openvino.save_model(openvino.convert_model(onnx_file), folder / "m.xml")
    from edgeserve.runtimes.base import RuntimeOptions

    (folder / "m.null.json").write_bytes(encode(OnnxRuntime().load(onnx_file, RuntimeOptions()).signature))
    return {"onnxruntime": onnx_file, "openvino": folder / "m.xml", "null": folder / "m.null.json"}


needs_openvino = pytest.mark.skipif(
    find_spec("openvino") is None, reason="openvino is not installed: pip install 'edgeserve[openvino]'"
)


@pytest.mark.parametrize("name", ["onnxruntime", pytest.param("openvino", marks=needs_openvino), "null"])
def test_the_home_folder_stays_empty(name: str, models: dict[str, Path], tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("ORT_", "XDG_"))}
    done = subprocess.run(
        [sys.executable, "-c", RUN, name, str(models[name])],
        env=environment | {"HOME": str(home)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert list(home.rglob("*")) == []
