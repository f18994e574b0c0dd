"""tritonserver: a model of its Python backend. Copied into the repository as `NAME/1/model.py`."""

import os
import sys
from pathlib import Path

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """One of the models; the file lies beside this one."""

    def initialize(self, args: dict) -> None:
        sys.path.insert(0, os.environ["BENCH_PEERS"])
        import onnx_session

        folder = Path(args["model_repository"], args["model_version"])
        self._run = onnx_session.load(folder / "model.onnx").run

    def execute(self, requests: list) -> list:
        responses = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            (y,) = self._run(["y"], {"x": x})
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", y)]))
        return responses
