"""Settings and fixtures of every test."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

# Deadlines of single examples measure the machine's load, not the code.
settings.register_profile("edgeserve", deadline=None)
settings.load_profile("edgeserve")

# What tests compile is kept apart from the cache of whoever runs them, and from one run to the next nothing is kept.
os.environ["EDGESERVE_CACHE"] = tempfile.mkdtemp(prefix="edgeserve-test-cache-")
atexit.register(shutil.rmtree, os.environ["EDGESERVE_CACHE"], ignore_errors=True)

_BESIDE = Path(__file__).resolve().parents[2] / "shared" / "realdata"


@pytest.fixture(scope="session")
def realdata() -> Path:
    """Folder with real models and labelled data (docs/testdata.md), which are not part of the project."""
    folder = Path(os.environ.get("EDGESERVE_TESTDATA") or _BESIDE)
    if folder.is_dir():
        return folder
    reason = f"there are no test data at {folder}: name their folder in EDGESERVE_TESTDATA"
    if os.environ.get("EDGESERVE_REQUIRE_TESTDATA"):
        pytest.fail(reason)
    pytest.skip(reason)
