"""What `make fuzz` does with a million inputs, with a few: the oracles are those of scripts/fuzz.

`EDGESERVE_FUZZ=100000` sets the number of examples.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts" / "fuzz"
EXAMPLES = int(os.environ.get("EDGESERVE_FUZZ", "200"))
TARGETS = {
    "http": ("target_http", "HttpTarget"),
    "bodies": ("target_bodies", "BodyTarget"),
    "h2": ("target_h2", "H2Target"),
    "grpc": ("target_grpc", "GrpcTarget"),
}
NEEDS = {"http": ["onnx"], "h2": ["onnx", "hpack", "google.protobuf"], "grpc": ["onnx", "google.protobuf"]}


@pytest.fixture(scope="module", params=TARGETS)
def target(request: pytest.FixtureRequest) -> Iterator[Any]:
    for needed in NEEDS.get(request.param, []):
        pytest.importorskip(needed)
    sys.path.insert(0, str(SCRIPTS))
    module, kind = TARGETS[request.param]
    made = getattr(import_module(module), kind)()
    yield made
    made.close()
    sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="module")
def blind(target: Any) -> Any:
    return import_module("mutations").mutate


def test_every_seed_is_taken_well(target: Any):
    assert len({target.check(seed) for seed in target.seeds}) > 2, "they differ in kind"


@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_what_mutations_make_of_requests_is_taken_well(target: Any, blind: Any, data: st.DataObject):
    pick = random.Random(data.draw(st.integers(0, 2**64)))
    seed = data.draw(st.sampled_from(target.seeds))
    target.check(getattr(target, "mutate", blind)(seed, pick, target.seeds))


@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=300))
def test_any_bytes_are_taken_well(target: Any, data: bytes):
    target.check(data)
