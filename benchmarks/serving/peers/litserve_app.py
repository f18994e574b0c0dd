"""LitServe: one API per model. `python litserve_app.py REPOSITORY PORT WORKERS`"""

import sys
from pathlib import Path

import litserve
import numpy as np
import onnx_session


class OnnxApi(litserve.LitAPI):
    """JSON `{"x": [...]}` in, `{"y": [...]}` out."""

    def __init__(self, path: str, **options) -> None:
        super().__init__(**options)
        self._path = path

    def setup(self, device: str) -> None:  # noqa: ARG002
        self._session = onnx_session.load(self._path)
        self._shape = self._session.get_inputs()[0].shape

    def decode_request(self, request: dict) -> np.ndarray:
        return np.array(request["x"], np.float32).reshape(self._shape)

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self._session.run(["y"], {"x": x})[0]

    def encode_response(self, y: np.ndarray) -> dict:
        return {"y": y.ravel().tolist()}


if __name__ == "__main__":
    folder, port, workers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    apis = [OnnxApi(str(one / "1" / "model.onnx"), api_path=f"/{one.name}") for one in sorted(Path(folder).iterdir())]
    # Its faster queue costs more CPU on one core and wins on several.
    server = litserve.LitServer(apis, accelerator="cpu", workers_per_device=workers, fast_queue=workers > 1)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning")
