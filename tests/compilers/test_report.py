"""What a report says of the machine that made it."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeserve_compilers.report import without_folders

HOME, TEMPORARY = Path("/home/alice"), Path("/tmp/edgeserve-compile-x1")


@pytest.mark.parametrize(
    ("said", "public"),
    [
        ("cannot read /home/alice/acme/deal/m.onnx: no space", "cannot read m.onnx: no space"),
        ("/home/alice/python, which cannot be run", "python, which cannot be run"),
        ("No module 'x' (/home/alice/lib/x.py)", "No module 'x' (x.py)"),
        ("two: '/home/alice/a' and /tmp/edgeserve-compile-x1/products/3/model.onnx", "two: 'a' and model.onnx"),
        ("the folder /home/alice is full", "the folder ... is full"),
        ("the folder /home/alice/ is full", "the folder ... is full"),
        ("of her namesake: /home/alice2/m", "of her namesake: /home/alice2/m"),
        ("layer /model.0/conv/Conv loses 3 dB", "layer /model.0/conv/Conv loses 3 dB"),
        ("nothing to hide", "nothing to hide"),
    ],
)
def test_files_are_named_without_the_folders_of_this_machine(said: str, public: str) -> None:
    assert without_folders(said, [HOME, TEMPORARY, Path("/")]) == public
