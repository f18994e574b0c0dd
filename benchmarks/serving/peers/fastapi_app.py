"""FastAPI under uvicorn (uvloop, httptools), written by hand: what a team makes when it takes no server off the shelf.

`uvicorn fastapi_app:app`, with BENCH_REPOSITORY.
"""

import os

import numpy as np
import onnx_session
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel

app = FastAPI()
MODELS = onnx_session.load_all(os.environ["BENCH_REPOSITORY"])


class Input(BaseModel):
    """The numbers of the tensor."""

    x: list[float]


class Output(BaseModel):
    """The numbers of the result."""

    y: list[float]


# On the event loop: cheaper than a thread each, and the workers take the cores.
@app.post("/json/{name}")
async def as_json(name: str, body: Input) -> Output:
    session, shape = MODELS[name]
    (y,) = session.run(["y"], {"x": np.array(body.x, np.float32).reshape(shape)})
    return Output(y=y.ravel().tolist())


@app.post("/octets/{name}")
async def as_octets(name: str, request: Request) -> Response:
    session, shape = MODELS[name]
    (y,) = session.run(["y"], {"x": np.frombuffer(await request.body(), np.float32).reshape(shape)})
    return Response(y.tobytes(), media_type="application/octet-stream")
