from __future__ import annotations

from pathlib import Path

import pytest

from edgeserve.doctor import environment
from edgeserve.doctor.environment import extras_of, read_environment, try_imports
from edgeserve.doctor.findings import Requirement


def test_extras_are_read_from_the_package_metadata() -> None:
    lines = [
        "msgspec>=0.19",
        'numpy>=1.26; extra == "onnx"',
        "securesystemslib[crypto]>=1.3; extra == 'fleet'",
        "uvloop>=0.20; (sys_platform != 'win32') and extra == 'agent'",
        "Jinja2; extra == 'fleet'",
        "typer==0.29.2; extra == 'dev'",
        "pack.age_name<2,>=1.5; extra == 'agent'",
    ]
    assert extras_of(lines) == {
        "onnx": (Requirement(package="numpy", minimum="1.26"),),
        "fleet": (Requirement(package="securesystemslib", minimum="1.3"), Requirement(package="jinja2")),
        "agent": (
            Requirement(package="uvloop", minimum="0.20", conditional=True),
            Requirement(package="pack-age-name", minimum="1.5"),
        ),
    }


def test_this_machine_is_read(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(environment, "_MODULES", {"numpy": "numpy"})
    read = read_environment(tmp_path)
    assert read.packages["msgspec"]
    assert {"agent", "compile", "fleet", "onnx", "openvino"} <= set(read.extras)
    assert read.import_errors == {}
    assert read.mosquitto.startswith("2."), "these tests fail without mosquitto, they are never skipped"
    assert read.folder == str(tmp_path)
    assert read.free_bytes > 0
    assert read.now > read.installed_at


def test_the_converters_environment_is_looked_at(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(environment, "_MODULES", {})
    for text, version, error in (
        ("echo 2.6.9", "2.6.9", ""),
        ("echo 1.28.8", "", "has onnx2tf 1.28.8, 2.6.9 is needed"),
        ("exit 1", "", "has no onnx2tf, 2.6.9 is needed"),
    ):
        python = tmp_path / "python"
        python.write_text(f"#!/bin/sh\n{text}\n")
        python.chmod(0o755)
        monkeypatch.setenv("EDGESERVE_ONNX2TF_PYTHON", str(python))
        read = read_environment(tmp_path)
        if "ai-edge-quantizer" not in read.packages:
            pytest.skip("ai-edge-quantizer is not installed")
        assert read.onnx2tf == version
        assert read.onnx2tf_error.endswith(error)
        assert bool(read.onnx2tf_error) == bool(error)


def test_a_library_that_fails_or_takes_the_process_down_is_named(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "noisy.py").write_text('print(\'["noisy", "not json of ours\')\n')
    (tmp_path / "missing_library.py").write_text("raise ImportError('libx.so.1: cannot open shared object file')\n")
    (tmp_path / "crashing.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert try_imports({"a": "noisy", "b": "missing_library", "c": "json"}) == {
        "b": "ImportError: libx.so.1: cannot open shared object file"
    }
    assert try_imports({"a": "json", "c": "crashing", "d": "json"}) == {"c": "the process ended with code -11"}


def test_a_library_that_hangs_is_given_up(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "hanging.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(environment, "_TRY_S", 1.0)
    assert "did not finish" in try_imports({"a": "json", "h": "hanging"})["h"]
