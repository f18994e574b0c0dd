"""The child process that tries a candidate: load it, reproduce the golden set, time a row, print one JSON line.

Loading includes what the device builds of a variant first (`Finalize`); lines before the last say how far that is.
Without a golden set that is all it does. Whatever a candidate does to the process (crash, endless loop, all memory) it
does to this one. `sandbox` starts it.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import logging
import os
import resource
import signal
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from edgeserve.contracts.errors import EdgeServeError
from edgeserve.contracts.limits import MAX_REASON_CHARS, TRIAL_TIMED_CALLS, TRIAL_TIMED_S, TRIAL_TIMEOUT_S
from edgeserve_agent.sandbox import TrialAnswer, TrialProgress

if TYPE_CHECKING:
    from edgeserve.runtimes.base import LoadedModel, Tensor, Tensors

_PR_SET_PDEATHSIG: Final = 1


def main(arguments: list[str]) -> int:
    """Try the variant that the arguments name and print a `TrialAnswer`."""
    parser = argparse.ArgumentParser(prog="python -m edgeserve_agent.trial")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--golden", type=Path, help="none = load only, which builds what is not built yet")
    parser.add_argument("--cache", type=Path, help="keeps what is built")
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=TRIAL_TIMEOUT_S, help="seconds")
    options = parser.parse_args(arguments)
    confine(options.timeout)
    # Libraries write to stdout as they like; the answer gets a descriptor of its own.
    answer_to = os.dup(1)
    os.dup2(2, 1)
    log = logging.getLogger("edgeserve.runtimes")
    log.setLevel(logging.INFO)
    log.addHandler(_ProgressHandler(answer_to))
    try:
        answer = attempt(
            options.folder, options.golden, simulate=options.simulate, threads=options.threads, cache=options.cache
        )
    except EdgeServeError as error:
        answer = TrialAnswer(passed=False, reason=error.message, blame=not _is_short_of_space(error))
    except Exception as error:  # noqa: BLE001 - a stranger's runtime raises what it likes
        answer = TrialAnswer(passed=False, reason=f"{type(error).__name__}: {error}")
    with os.fdopen(answer_to, "wb") as out:
        out.write(msgspec.json.encode(answer) + b"\n")
    return 0


class _ProgressHandler(logging.Handler):
    """Sends what the runtimes log to whoever waits for the answer."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(logging.INFO)
        self._descriptor = descriptor

    def emit(self, record: logging.LogRecord) -> None:
        line = msgspec.json.encode(TrialProgress(progress=record.getMessage()[:MAX_REASON_CHARS])) + b"\n"
        with contextlib.suppress(OSError):
            os.write(self._descriptor, line)


def attempt(
    folder: Path, golden: Path | None, *, simulate: bool, threads: int, cache: Path | None = None
) -> TrialAnswer:
    """Load the variant in `folder`, hold it against the golden set and measure the latency of one row.

    Args:
        folder: Holds the variant.
        golden: The golden set; None = the variant is only loaded.
        simulate: Run on the nearest device here when the contract's device is absent.
        threads: Inside one call.
        cache: Keeps what is built; None = nothing is kept.

    Raises:
        EdgeServeError: It cannot be loaded here or computes something else.
    """
    from edgeserve.golden import Golden, reproduce
    from edgeserve.runtimes.variant import load_variant

    began = time.monotonic()
    contract, model = load_variant(folder, simulate=simulate, threads=threads, cache=cache)
    loaded = time.monotonic()
    try:
        if golden is None:
            return TrialAnswer(
                passed=True,
                executing_device=model.executing_device,
                fallback=model.fallback,
                load_s=round(loaded - began, 3),
            )
        expected = Golden.load(golden)
        result = reproduce(model, expected, contract.tolerance, contract.task)
        ran = time.monotonic()
        return TrialAnswer(
            passed=True,
            executing_device=model.executing_device,
            fallback=model.fallback,
            rows=result.rows,
            agreement=result.agreement,
            load_s=round(loaded - began, 3),
            run_s=round(ran - loaded, 3),
            latency_ms=latency_ms(model, one_call(model, expected.inputs)),
        )
    finally:
        model.close()


def one_call(model: LoadedModel, rows: Mapping[str, Tensor]) -> Tensors:
    """Inputs of the smallest call that the model takes: the first row of `rows`, or as many as its batch has.

    Args:
        model: Decides on the shapes.
        rows: By input, [rows, ...], or [sequences, steps, ...] of a stateful model, of which the first step is taken.

    Returns:
        One array for each input; zeros where `rows` has none that fits, such as for state.
    """
    from edgeserve_agent.serving.opened import zeros

    inputs = zeros(model.signature)
    for spec in model.signature.inputs:
        if spec.name not in rows or not spec.shape:
            continue
        batch = max(1, spec.shape[0])
        given = rows[spec.name]
        of_row = given[:batch] if given.ndim == len(spec.shape) else given[0, :batch]
        if spec.accepts(of_row.shape):
            inputs[spec.name] = of_row.astype(inputs[spec.name].dtype, order="C", copy=False)
    return inputs


def latency_ms(model: LoadedModel, inputs: Tensors) -> float:
    """Median duration of warm calls with the same inputs, milliseconds."""
    model.run(inputs)
    timed: list[float] = []
    began = time.perf_counter()
    while len(timed) < TRIAL_TIMED_CALLS and (not timed or time.perf_counter() - began < TRIAL_TIMED_S):
        start = time.perf_counter()
        model.run(inputs)
        timed.append((time.perf_counter() - start) * 1e3)
    return statistics.median(timed)


def _is_short_of_space(error: EdgeServeError) -> bool:
    """Whether it is the disk that failed, for which no release is to blame."""
    from edgeserve.runtimes.engine_cache import NoSpaceError

    return isinstance(error, NoSpaceError)


def confine(timeout_s: float = TRIAL_TIMEOUT_S) -> None:
    """Bound what this process can do to the device: it yields, dies first when memory ends, and with its parent.

    Address space is not limited: runtimes reserve many times what they use.
    """
    cores = os.cpu_count() or 1
    resource.setrlimit(resource.RLIMIT_CPU, (int(timeout_s * cores), int(timeout_s * cores) + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(5)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
