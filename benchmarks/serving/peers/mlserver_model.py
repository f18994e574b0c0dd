"""MLServer: a custom runtime, as its documentation shows. Run by `mlserver start`."""

import onnx_session
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class OnnxModel(MLModel):
    """One of the models."""

    async def load(self) -> bool:
        self._run = onnx_session.load(self.settings.parameters.uri).run
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        x = NumpyCodec.decode_input(payload.inputs[0])
        (y,) = self._run(["y"], {"x": x})
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("y", y)])
