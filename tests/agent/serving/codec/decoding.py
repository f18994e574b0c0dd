"""Decodes requests, and makes arrays to send."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve_agent.serving.codec.plan import Plan
from edgeserve_agent.serving.codec.request import RequestDecoder

NUMERIC = [datatype for datatype in Datatype if datatype not in (Datatype.BYTES, Datatype.BF16)]
SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1,)),),
    outputs=(TensorSpec(name="y", datatype=Datatype.FP32, shape=(-1,)),),
)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
NUMBERS = st.sampled_from(NUMERIC).flatmap(lambda kind: hnp.arrays(np.dtype(kind.numpy_name), SHAPES))
TEXTS = hnp.arrays(np.dtype(object), SHAPES, elements=st.binary(max_size=9))
X = {"name": "x", "datatype": "FP32", "shape": [2]}


class Decoded(NamedTuple):
    plan: Plan
    id: str
    inputs: dict[str, np.ndarray]


class Decoder:
    def __init__(self, signature: Signature) -> None:
        self._decoder = RequestDecoder(signature)

    def decode(self, body, head_length: int | None) -> Decoded:
        return Decoded(*self._decoder.decode(body, head_length))


def decoder(signature: Signature = SIGNATURE) -> Decoder:
    return Decoder(signature)
