"""Runtimes are asked in processes of their own: one that crashes, hangs or babbles harms nobody."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from edgeserve_devices.probes.runtimes import ask_runtimes, package_versions

STRANGERS = """
import os, signal, sys, time

class Crash:
    def __init__(self):
        print("driver: no device", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)

class Hang:
    def __init__(self):
        time.sleep(600)

class Raise:
    def version(self):
        raise RuntimeError("no such ioctl")

class Babble:
    def version(self):
        print("Loading plugins ...", flush=True)
        os.system("echo '{\\"name\\": \\"forged\\"}'")
        return "3.1"
"""


@pytest.fixture
def strangers(tmp_path: Path, monkeypatch) -> None:
    """Runtimes of a package that is installed for child processes only."""
    (tmp_path / "strangers.py").write_text(STRANGERS)
    info = tmp_path / "strangers-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: strangers\nVersion: 1\n")
    names = ("Crash", "Hang", "Raise", "Babble")
    points = "".join(f"{name.lower()} = strangers:{name}\n" for name in names)
    (info / "entry_points.txt").write_text(f"[edgeserve.runtimes]\n{points}")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.mark.usefixtures("strangers")
@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("crash", "it crashed (SIGSEGV): driver: no device"),
        ("raise", "it ended with status 1: RuntimeError: no such ioctl"),
        ("nobody", "no runtime is named 'nobody'"),
    ],
)
def test_a_runtime_that_fails_is_said_to(name: str, problem: str) -> None:
    (answer,) = ask_runtimes((name,))
    assert (answer.name, answer.version, answer.problem) == (name, "", problem)


@pytest.mark.usefixtures("strangers")
def test_a_runtime_that_hangs_is_ended() -> None:
    (answer,) = ask_runtimes(("hang",), timeout_s=3)
    assert answer.problem == "it did not answer within 3 s: a driver may hang, see dmesg"


@pytest.mark.usefixtures("strangers")
def test_what_a_library_prints_is_not_taken_for_its_answer() -> None:
    (answer,) = ask_runtimes(("babble",))
    assert (answer.name, answer.version, answer.problem) == ("babble", "3.1", "")


def test_the_runtimes_here_name_their_devices_and_leave_no_file(tmp_path: Path, monkeypatch) -> None:
    if find_spec("openvino") is None:
        pytest.skip("openvino is not installed: pip install 'edgeserve[openvino]'")
    monkeypatch.setenv("HOME", str(tmp_path))
    onnx, openvino = ask_runtimes(("onnxruntime", "openvino"))
    assert "CPUExecutionProvider" in onnx.devices
    assert [device for device in openvino.devices if device.startswith("CPU: ")]
    assert (onnx.problem, openvino.problem) == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_versions_are_read_without_importing() -> None:
    before = set(sys.modules)
    versions = package_versions()
    here = {name for name in ("onnxruntime", "openvino") if find_spec(name)}
    assert "onnxruntime" in here
    assert here <= versions.keys()
    assert not {"onnxruntime", "openvino"} & (set(sys.modules) - before)
