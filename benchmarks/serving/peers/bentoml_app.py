"""BentoML: one endpoint per model. `bentoml serve bentoml_app:Models`, with BENCH_REPOSITORY and BENCH_WORKERS."""

import os

import bentoml
import numpy as np
import onnx_session


@bentoml.service(workers=int(os.environ.get("BENCH_WORKERS", "1")), traffic={"timeout": 60})
class Models:
    """JSON `{"x": [...]}` in, `{"y": [...]}` out."""

    def __init__(self) -> None:
        self._models = onnx_session.load_all(os.environ["BENCH_REPOSITORY"])

    def _infer(self, name: str, x: list[float]) -> dict[str, list[float]]:
        session, shape = self._models[name]
        (y,) = session.run(["y"], {"x": np.array(x, np.float32).reshape(shape)})
        return {"y": y.ravel().tolist()}

    # On the event loop: cheaper than a thread each, and the workers take the cores.
    @bentoml.api
    async def mlp(self, x: list[float]) -> dict[str, list[float]]:
        return self._infer("mlp", x)

    @bentoml.api
    async def kws(self, x: list[float]) -> dict[str, list[float]]:
        return self._infer("kws", x)

    @bentoml.api
    async def cnn(self, x: list[float]) -> dict[str, list[float]]:
        return self._infer("cnn", x)
