"""Rules of the repository that no linter knows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "edgeserve": ROOT / "edgeserve",
    "edgeserve_agent": ROOT / "agent" / "edgeserve_agent",
    "edgeserve_compilers": ROOT / "compilers" / "edgeserve_compilers",
    "edgeserve_devices": ROOT / "devices" / "edgeserve_devices",
    "edgeserve_fleet": ROOT / "fleet" / "edgeserve_fleet",
}
SOURCES = sorted(path for folder in PACKAGES.values() for path in folder.rglob("*.py"))
MAX_LINES = 400
LIMITS = "edgeserve/contracts/limits.py"
"""Every bound in one file is worth more than a short file."""
OWNER = {
    "ai_edge_litert": ["edgeserve/runtimes/litert.py", "compilers/edgeserve_compilers/"],
    "ai_edge_quantizer": ["compilers/edgeserve_compilers/targets/"],
    "httptools": ["agent/edgeserve_agent/serving/"],
    "nncf": ["compilers/edgeserve_compilers/"],
    "onnx": ["compilers/edgeserve_compilers/"],
    "onnxruntime": ["edgeserve/runtimes/onnx.py", "compilers/edgeserve_compilers/", "edgeserve/demo/train.py"],
    "openvino": ["edgeserve/runtimes/openvino.py", "compilers/edgeserve_compilers/"],
    "paho": ["edgeserve/link/mqtt.py"],
    "securesystemslib": ["edgeserve/trust/"],
    "tensorrt": ["edgeserve/runtimes/tensorrt.py"],
    "PIL": ["compilers/edgeserve_compilers/html/pictures.py", "edgeserve/task/image.py"],
    "sqlalchemy": ["fleet/edgeserve_fleet/"],
    "tensorflow": ["compilers/edgeserve_compilers/sources/"],
    "torch": ["compilers/edgeserve_compilers/sources/", "edgeserve/demo/train.py"],
}


def names(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [path for path in SOURCES if names(path) != LIMITS], ids=names)
def test_a_module_is_short_enough_to_be_one_thing(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize("library", OWNER)
def test_a_heavy_library_is_imported_in_its_own_place_only(library: str) -> None:
    pattern = re.compile(rf"^\s*(?:import|from) {library}\b", re.MULTILINE)
    users = [names(path) for path in SOURCES if pattern.search(path.read_text())]
    assert users, f"nothing imports {library}: drop the rule"
    assert [user for user in users if not any(user.startswith(owner) for owner in OWNER[library])] == []


def test_no_module_is_a_drawer_for_everything() -> None:
    assert [names(path) for path in SOURCES if path.stem in {"utils", "util", "helpers", "common", "misc"}] == []


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("edgeserve_agent.daemon", {"numpy", "onnx", "onnxruntime", "openvino", "typer", "rich", "sqlalchemy"}),
        ("edgeserve.contracts.reported", {"numpy", "securesystemslib", "urllib3"}),
        ("edgeserve_fleet.service", {"onnx", "onnxruntime", "openvino", "typer"}),
        ("edgeserve.client.inference", {"onnx", "onnxruntime", "openvino", "typer"}),
    ],
)
def test_a_part_does_not_load_what_it_does_not_need(module: str, unwanted: set[str]) -> None:
    program = f"import sys, {module}; sys.exit(' '.join({unwanted!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.strip() == ""


def test_the_outer_folders_are_no_packages() -> None:
    assert [name for name in ("agent", "compilers", "devices", "fleet") if (ROOT / name / "__init__.py").exists()] == []
