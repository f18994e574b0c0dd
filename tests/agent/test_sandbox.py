from __future__ import annotations

import os
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from edgeserve.contracts.limits import TRIAL_TIMED_CALLS
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.release.unpack import unpack_variant
from edgeserve.runtimes.base import ONE_DEVICE
from edgeserve_agent.download import StoppedError
from edgeserve_agent.sandbox import TrialError, run_trial
from edgeserve_agent.supervisor import is_alive
from edgeserve_agent.trial import latency_ms, one_call


@pytest.fixture
def unpacked(tmp_path):
    def make(release):
        unpack_variant(release.blobs, release.variants[0], tmp_path / "variant")
        return tmp_path / "variant", release.blobs.path(release.evidence["golden.npz"].digest)

    return make


def attempt(folder: Path, golden: Path, **changes):
    fields = {"simulate": False, "threads": 1, "stop": threading.Event(), **changes}
    return run_trial(folder, golden, **fields)


def program(text: str) -> tuple[str, ...]:
    """A candidate that does something to its process, in the place of the trial."""
    return (sys.executable, "-c", text)


def test_a_sound_variant_reproduces_its_golden_set(unpacked, releases):
    answer = attempt(*unpacked(releases.make("1")), simulate=True)
    assert (answer.passed, answer.rows, answer.agreement) == (True, 2, 1.0)
    assert answer.executing_device == "null (simulated)"
    assert 0 < answer.latency_ms < 1000


def test_a_variant_that_computes_something_else_does_not_pass(unpacked, releases):
    with pytest.raises(TrialError, match="golden set is not reproduced"):
        attempt(*unpacked(releases.make("1", good=False)))


def test_a_variant_that_cannot_be_loaded_does_not_pass(unpacked, releases):
    folder, golden = unpacked(releases.make("1"))
    (folder / "model.null.json").unlink()
    with pytest.raises(TrialError, match="cannot read"):
        attempt(folder, golden)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("import os; os._exit(3)", "exit code 3"),
        ("print('hello')", "no answer"),
        (r"import os; os.write(1, b'{\"passed\": true, \"reason\": \"\xff\"}')", "no answer"),
        ("import os; os.write(1, b'[' * 60000)", "no answer"),
        ("raise MemoryError('all of it')", "MemoryError: all of it"),
        ("import sys; sys.stderr.write('x' * 1000000); sys.exit(1)", "exit code 1"),
    ],
    ids=[
        "crash",
        "exit",
        "prints something else",
        "prints invalid UTF-8",
        "prints deep nesting",
        "raises",
        "much on stderr",
    ],
)
def test_a_candidate_that_takes_its_process_down_does_not_pass(tmp_path, text, words):
    with pytest.raises(TrialError, match=words):
        attempt(tmp_path, tmp_path, command=program(text))


def test_a_candidate_that_does_not_end_is_ended(tmp_path):
    pid = tmp_path / "pid"
    endless = f"import os; open({str(pid)!r}, 'w').write(str(os.getpid()))\nwhile True: pass"
    with pytest.raises(TrialError, match="longer than"):
        attempt(tmp_path, tmp_path, command=program(endless), timeout_s=0.5)
    if pid.exists():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid.read_text()), 0)


def test_of_endless_output_only_the_end_is_kept(tmp_path):
    talking = "import os\nfor _ in range(300): os.write(2, b'x' * 99999 + b'\\n')\nos.write(2, b'the end')"
    tracemalloc.start()
    try:
        with pytest.raises(TrialError, match="the end"):
            attempt(tmp_path, tmp_path, command=program(talking))
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
    finally:
        tracemalloc.stop()


def test_nothing_that_a_candidate_started_outlives_its_trial(tmp_path, eventually):
    pid = tmp_path / "pid"
    text = f"import subprocess; open({str(pid)!r}, 'w').write(str(subprocess.Popen(['sleep', '600']).pid))"
    with pytest.raises(TrialError, match="no answer"):
        attempt(tmp_path, tmp_path, command=program(text))
    eventually(lambda: not is_alive(int(pid.read_text())))


def test_a_trial_that_is_not_wanted_any_more_is_ended(tmp_path):
    stop = threading.Event()
    stop.set()
    with pytest.raises(StoppedError):
        attempt(tmp_path, tmp_path, command=program("while True: pass"), stop=stop)


class Counting:
    """A model that counts its calls and takes as long as the test says."""

    executing_device = "simulator"
    fallback = ""
    placement = ONE_DEVICE

    def __init__(self, *shapes: tuple[int, ...], seconds: float = 0.0) -> None:
        specs = tuple(
            TensorSpec(name=name, datatype=Datatype.FP32, shape=shape)
            for name, shape in zip("xs", shapes, strict=False)
        )
        self.signature = Signature(inputs=specs, outputs=specs[:1])
        self.calls = 0
        self._seconds = seconds

    def run(self, inputs):
        self.calls += 1
        time.sleep(self._seconds)
        return {"x": inputs["x"]}

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("shapes", "given", "expected"),
    [
        pytest.param([(-1, 2)], (5, 2), [[0, 1]], id="any-batch"),
        pytest.param([(1, 2)], (5, 2), [[0, 1]], id="batch-of-1"),
        pytest.param([(3, 2)], (6, 2), [[0, 1], [2, 3], [4, 5]], id="batch-of-3"),
        pytest.param([(1, 2), (1, 1)], (4, 7, 2), [[0, 1]], id="first-step-of-the-first-sequence"),
        pytest.param([(1, 3)], (5, 2), [[0, 0, 0]], id="what-does-not-fit"),
    ],
)
def test_a_row_is_timed_with_the_smallest_call_that_the_model_takes(shapes, given, expected):
    model = Counting(*shapes)
    inputs = one_call(model, {"x": np.arange(np.prod(given), dtype=np.float64).reshape(given)})
    assert inputs["x"].tolist() == expected
    assert {array.dtype.name for array in inputs.values()} == {"float32"}
    assert all(spec.accepts(inputs[spec.name].shape) for spec in model.signature.inputs)


def test_a_quick_model_is_timed_by_many_calls_and_a_slow_one_by_few():
    quick, slow = Counting((1, 1)), Counting((1, 1), seconds=0.5)
    assert latency_ms(quick, one_call(quick, {})) < 100
    assert quick.calls == TRIAL_TIMED_CALLS + 1
    assert 500 <= latency_ms(slow, one_call(slow, {})) < 1000
    assert 2 <= slow.calls <= 6
