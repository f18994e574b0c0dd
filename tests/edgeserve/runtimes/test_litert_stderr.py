"""What LiteRT says on standard error is left out once, and nothing else is."""

from __future__ import annotations

import subprocess
import sys

import pytest

SPEAKER = """
import os, sys, threading
from edgeserve.runtimes.litert_stderr import hush

class Speaker:
    '''An interpreter that says something when it lays out its memory; so does another thread meanwhile.'''

    def __init__(self, content):
        assert content[4:8] == b"TFL3"
        print("opened", flush=True)

    def allocate_tensors(self):
        os.write(2, b"INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\\n")
        other = threading.Thread(target=os.write, args=(2, b"of another thread\\n"))
        other.start()
        other.join()
        os.write(2, b"ERROR: of the library\\n")
        if len(sys.argv) > 1:
            raise RuntimeError("cannot")

for _ in range(2):
    try:
        hush(Speaker)
    except RuntimeError:
        print("raised", flush=True)
"""
REAL = """
import sys
from ai_edge_litert.interpreter import Interpreter
from edgeserve.runtimes.litert_stderr import hush
made = []
hush(lambda content: made.append(Interpreter(model_content=content)) or made[0])
made[0].invoke()
print(*(detail["shape"] for detail in made[0].get_input_details()))
"""


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60, check=True
    )


def test_information_is_left_out_and_the_rest_is_written_in_order() -> None:
    done = run(SPEAKER)
    assert done.stderr == "of another thread\nERROR: of the library\n"
    assert done.stdout == "opened\n", "once in a process"


def test_standard_error_is_given_back_when_the_library_fails() -> None:
    done = run(SPEAKER, "fail")
    assert done.stderr == "of another thread\nERROR: of the library\n" * 2
    assert done.stdout == "opened\nraised\n" * 2


def test_the_model_that_it_is_shown_is_one() -> None:
    pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed: pip install 'edgeserve[litert]'")
    done = run(REAL)
    assert (done.stdout, done.stderr) == ("[1]\n", "")


def test_a_process_without_standard_error_loads_models_all_the_same() -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, SPEAKER],
        stdout=subprocess.PIPE, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "opened" in done.stdout
