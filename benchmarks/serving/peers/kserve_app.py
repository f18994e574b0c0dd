"""KServe's Python server: a custom predictor.

`python kserve_app.py REPOSITORY --http_port P --grpc_port P --workers N`
"""

import sys
from pathlib import Path

import onnx_session
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer


class OnnxModel(Model):
    """One of the models."""

    def __init__(self, name: str, path: str) -> None:
        super().__init__(name)
        self._path = path

    def load(self) -> bool:
        self._run = onnx_session.load(self._path).run
        self.ready = True
        return True

    # Its workers are spawned and get the models pickled; a session cannot be.
    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_run"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self.load()

    async def predict(self, payload: InferRequest, headers=None, response_headers=None) -> InferResponse:  # noqa: ARG002
        (y,) = self._run(["y"], {"x": payload.inputs[0].as_numpy()})
        output = InferOutput(name="y", shape=list(y.shape), datatype="FP32")
        output.set_data_from_numpy(y, binary_data=payload.from_grpc or bool(payload.request_outputs))
        return InferResponse(
            response_id=payload.id or "0",
            model_name=self.name,
            infer_outputs=[output],
            use_binary_outputs=payload.use_binary_outputs,
            requested_outputs=payload.request_outputs,
        )


if __name__ == "__main__":
    folder = Path(sys.argv.pop(1))
    models = [OnnxModel(one.name, str(one / "1" / "model.onnx")) for one in folder.iterdir()]
    for model in models:
        model.load()
    ModelServer().start(models)
