from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.contracts.limits import DESCRIPTORS_KEPT, MAX_CONNECTIONS
from edgeserve_agent.serving.descriptors import connections_of

SCRIPT = """
import json, resource, sys
soft, hard = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
from edgeserve_agent.serving.descriptors import connection_limit, raise_descriptor_limit
from edgeserve_agent.serving.http_server import HttpLimits
before = connection_limit()
said = raise_descriptor_limit()
print(json.dumps([before, said, resource.getrlimit(resource.RLIMIT_NOFILE), HttpLimits().connections]))
"""


@pytest.mark.parametrize(
    ("soft", "hard", "before", "after", "connections"),
    [
        pytest.param(1024, 1024, 384, 1024, 384, id="no more is allowed"),
        pytest.param(256, 1024, 64, 1024, 384, id="more is allowed"),
        pytest.param(100, 100, 64, 100, 64, id="hardly any"),
    ],
)
def test_a_server_takes_the_descriptors_it_may_have_and_as_many_connections_as_fit(
    soft: int, hard: int, before: int, after: int, connections: int
):
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(soft), str(hard)], capture_output=True, text=True, check=True, timeout=60
    )
    assert json.loads(ended.stdout) == [before, after, [after, hard], connections]


@given(st.integers(0, 1 << 31))
def test_connections_leave_descriptors_for_everything_else(descriptors: int):
    found = connections_of(descriptors)
    assert 64 <= found <= MAX_CONNECTIONS
    assert found == 64 or found + DESCRIPTORS_KEPT <= descriptors
    assert connections_of(descriptors + 1) >= found
