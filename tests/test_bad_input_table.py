"""docs/bad-input.md names a test for every kind of bad input; each of them exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEADER = ["what is wrong", "what the user sees", "outcome", "test"]
ROWS = [
    row
    for line in (ROOT / "docs" / "bad-input.md").read_text().splitlines()
    if line.startswith("| ") and (row := [cell.strip() for cell in line.strip("|").split(" | ")]) != HEADER
]
ALWAYS = (
    "not a model", "truncated", "fixed rank", "calibration", "flipped byte", "missing blob", "longer than declared",
    "climbs out", "10 GB", "shape", "type", "name", "NaN", "1 GB", "not JSON", "too large", "badly signed",
    "older generation", "another device", "wildcard or markup", "disk", "port in use", "public address",
)  # fmt: skip
COMPILER = (
    "path where nothing is", "Git LFS pointer in the place of the model", "web page", "a pickle", "bare `.pt`",
    "`.pt2`", "Lambda", "weights alone", "safetensors", "external weights", "already quantized, ONNX",
    "already quantized, TFLite", "operator that no runtime has", "built in", "scalar", "strings",
    "float model that answers NaN", "opset", "`module:function`", "unknown key", "unknown value",
    "output that the model does not have", "preprocessing", "labels that do not fit", "metric of another kind",
    "metric that needs labels", "NaN or infinity in the data", "unknown split", "labels beyond", "image bomb",
    "broken picture", "Git LFS pointer in the place of a picture", "climbs out of the data", "sampling rate", "COCO",
    "Ultralytics", "(overlap)", "no validation", "nothing to measure", "int8 without calibration",
    "precision that the target lacks", "unknown target", "`--baseline` of another kind", "`--check` with other data",
    "`--check` with another model", "`--check` of a release whose files differ", "4-bit",
    "nothing was quantized, and no error", "larger than float", "over the bound", "NaN in a product",
    "loses all boxes", "different ranges", "at random", "ends with 0 and wrote garbage", "float16 product",
    "slower than float", "would ignore without a word", "given to TensorRT", "an NPU may refuse",
    "package that an option needs", "package that a source needs", "quantizer is missing", "libraries that print",
    "tflite-runtime with numpy 2", "onnx2tf among our packages", "onnx2tf's environment", "no Python 3.12",
    "onnxruntime twice", "tensorrt from PyPI", "onnxruntime-gpu from PyPI on a Jetson",
    "NPU compiler is missing (VCL)", "another NPU compiler", "no NPU (or GPU) device", "`AUTO:NPU,CPU`",
)  # fmt: skip
"""Every trap that was met when models were compiled by hand, and every file that users bring instead of a model."""


def test_the_table_has_every_kind_of_bad_input() -> None:
    assert len(ROWS) >= 130
    assert {len(row) for row in ROWS} == {4}
    kinds = [row[0] for row in ROWS]
    assert len(set(kinds)) == len(kinds)
    text = " ".join(kinds)
    assert [word for word in (*ALWAYS, *COMPILER) if word not in text] == []


def test_every_row_says_what_the_user_sees_and_what_comes_of_it() -> None:
    assert [row[0] for row in ROWS if not all(row)] == []
    assert [row[0] for row in ROWS if "exit 2, nothing written" in row[2] and "`error: " not in row[1]] == []


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_test_of_a_row_exists(row: list[str]) -> None:
    match = re.fullmatch(r"(tests/[\w/]+\.py)::(test_\w+)", row[3])
    assert match, f"{row[3]!r} is not FILE::TEST"
    assert match[2] in functions(ROOT / match[1])


@cache
def functions(path: Path) -> frozenset[str]:
    """Names of all functions and methods of a file."""
    return frozenset(node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef))
