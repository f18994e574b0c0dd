"""docs/bad-input.md names a test for every kind of bad input; each of them exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in (ROOT / "docs" / "bad-input.md").read_text().splitlines()
    if line.startswith("| ")
][1:]


def test_the_table_has_every_kind_of_bad_input() -> None:
    assert len(ROWS) >= 35
    assert {len(row) for row in ROWS} == {4}
    kinds = " ".join(row[0] for row in ROWS)
    for word in (
        "not a model", "truncated", "fixed rank", "calibration", "flipped byte", "missing blob", "longer than declared",
        "climbs out", "10 GB", "shape", "type", "name", "NaN", "1 GB", "not JSON", "too large", "badly signed",
        "older generation", "another device", "wildcard or markup", "disk", "port in use", "public address",
    ):  # fmt: skip
        assert word in kinds, word


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_test_of_a_row_exists(row: list[str]) -> None:
    match = re.fullmatch(r"(tests/[\w/]+\.py)::(test_\w+)", row[3])
    assert match, f"{row[3]!r} is not FILE::TEST"
    tree = ast.parse((ROOT / match[1]).read_text())
    assert match[2] in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
