"""What the README promises first."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgeserve.demo.processes import wait_until

pytestmark = pytest.mark.system


def demo(folder: Path, output: Path) -> subprocess.Popen[bytes]:
    with output.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "edgeserve", "demo", "--folder", str(folder)],
            stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def processes_of(folder: Path) -> list[str]:
    """Command lines of the processes that name the folder."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line:
            lines.append(line)
    return lines


@pytest.mark.timeout(300)
def test_the_demo_keeps_its_promises(short_folder: Path) -> None:
    output = short_folder / "output.txt"
    process = demo(short_folder / "demo", output)
    code = process.wait(timeout=280)
    text = output.read_text()
    assert code == 0, text
    assert "requests failed: 0" in text
    assert "NOT AS PROMISED" not in text
    assert processes_of(short_folder / "demo") == []


@pytest.mark.timeout(120)
def test_ctrl_c_ends_the_demo_and_every_process_of_it(short_folder: Path) -> None:
    process = demo(short_folder / "demo", short_folder / "output.txt")
    state = short_folder / "demo" / "devices" / "camera-1" / "state"
    wait_until("agent of the demo", (state / "addresses.json").exists, timeout_s=90)
    assert len(processes_of(short_folder / "demo")) > 2
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=20) == 130
    assert processes_of(short_folder / "demo") == []
