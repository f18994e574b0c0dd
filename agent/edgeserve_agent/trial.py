"""The child process that tries a candidate: load it, reproduce the golden set, print one JSON line.

Whatever a candidate does to the process (crash, endless loop, all memory) it does to this one. `sandbox` starts it.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Final

import msgspec

from edgeserve.contracts.errors import EdgeServeError
from edgeserve.contracts.limits import TRIAL_TIMEOUT_S
from edgeserve_agent.sandbox import TrialAnswer

_PR_SET_PDEATHSIG: Final = 1


def main(arguments: list[str]) -> int:
    """Try the variant that the arguments name and print a `TrialAnswer`."""
    parser = argparse.ArgumentParser(prog="python -m edgeserve_agent.trial")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--golden", type=Path, required=True)
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    confine()
    # Libraries write to stdout as they like; the answer gets a descriptor of its own.
    answer_to = os.dup(1)
    os.dup2(2, 1)
    try:
        answer = attempt(options.folder, options.golden, simulate=options.simulate, threads=options.threads)
    except EdgeServeError as error:
        answer = TrialAnswer(passed=False, reason=error.message)
    except Exception as error:  # noqa: BLE001 - a stranger's runtime raises what it likes
        answer = TrialAnswer(passed=False, reason=f"{type(error).__name__}: {error}")
    with os.fdopen(answer_to, "wb") as out:
        out.write(msgspec.json.encode(answer) + b"\n")
    return 0


def attempt(folder: Path, golden: Path, *, simulate: bool, threads: int) -> TrialAnswer:
    """Load the variant in `folder` and hold it against the golden set.

    Raises:
        EdgeServeError: It cannot be loaded here or computes something else.
    """
    from edgeserve.golden import Golden, reproduce
    from edgeserve.runtimes.variant import load_variant

    began = time.monotonic()
    contract, model = load_variant(folder, simulate=simulate, threads=threads)
    loaded = time.monotonic()
    try:
        result = reproduce(model, Golden.load(golden), contract.tolerance, contract.task)
        return TrialAnswer(
            passed=True,
            executing_device=model.executing_device,
            rows=result.rows,
            agreement=result.agreement,
            load_s=round(loaded - began, 3),
            run_s=round(time.monotonic() - loaded, 3),
        )
    finally:
        model.close()


def confine() -> None:
    """Bound what this process can do to the device: it yields, dies first when memory ends, and with its parent.

    Address space is not limited: runtimes reserve many times what they use.
    """
    cores = os.cpu_count() or 1
    resource.setrlimit(resource.RLIMIT_CPU, (int(TRIAL_TIMEOUT_S * cores), int(TRIAL_TIMEOUT_S * cores) + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(5)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
