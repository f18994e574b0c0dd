"""The same mistake in every dialect: the status and the message that its own clients read."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from edgeserve.contracts.errors import DeviceError

DEPTH = 100_000
ROW = [1.0, 2.0, 3.0, 4.0]


@pytest.fixture(scope="module")
def dialects(tools) -> Iterator[Any]:
    """A server with `m`, `broken`, which fails, and `coming`, which is not there yet."""
    import uvloop

    from tests.agent.serving.conftest import ServerThread  # noqa: PLC0415

    raise NotImplementedError(uvloop, ServerThread)


def deep(before: str, after: str, opening: str = "[", closing: str = "]") -> bytes:
    return (before + opening * DEPTH + closing * DEPTH + after).encode()


def tensors(data: str) -> tuple[str, str]:
    return f'{{"inputs":[{{"name":"x","shape":[1,4],"datatype":"FP32",{data}', "}]}"


ENDPOINTS = {
    "/v2/models/m/infer": [
        ("", ""),
        tensors('"data":'),
        tensors('"data":[[1,2,3,4]],"parameters":'),
        tensors('"data":[[1,2,3,4]],"parameters":{"a":'),
        ('{"id":', ',"inputs":[]}'),
        ('{"inputs":[],"unknown":', "}"),
    ],
    "/v1/models/m:predict": [("", ""), ('{"instances":', "}"), ('{"inputs":', "}"), ('{"inputs":{"x":', "}}"), ('{"instances":[NaN,', "]}")],
    "/v1/models/m:classify": [("", ""), ('{"examples":', "}"), ('{"examples":[{"x":', "}]}"), ('{"context":', ',"examples":[{}]}')],
    "/v1/models/m:regress": [("", ""), ('{"examples":[{"x":[NaN,', "]}]}")],
    "/models/m/invoke": [("", ""), ('{"instances":', "}"), tensors('"data":')],
    "/models": [("", ""), ('{"model_name":', "}")],
    "/v2/models/m/feedback": [("", ""), ('{"id":"1","label":', "}"), ('[{"id":"1","label":1},', "]")],
    "/v2/repository/index": [("", ""), ('{"ready":', "}")],
    "/v2/repository/models/m/load": [("", ""), ('{"parameters":', "}"), ('{"parameters":{"config":', "}}")],
    "/v2/repository/models/m/unload": [("", ""), ('{"parameters":', "}")],
    "/v2/systemsharedmemory/region/r/register": [("", ""), ('{"key":', "}")],
    "/v2/trace/setting": [("", ""), ('{"trace_rate":', "}")],
    "/v2/models/m/trace/setting": [("", ""), ('{"trace_level":', "}")],
    "/v2/logging": [("", ""), ('{"log_info":', "}")],
}  # fmt: skip
