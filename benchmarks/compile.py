"""The compiler on real models: accuracy, size and time of every variant against float, and beside the libraries alone.

    python benchmarks/compile.py [--only NAME ...] [--data FOLDER]    # --only measures these anew, the rest stays

Calibrates on the `calib` rows only; chooses among candidates and scores on the `eval` rows. Float and variant answer
the same rows, so the interval of the drop is paired. Peers get the same calibration rows and are scored by the same
code. Writes docs/results/compile.md. The data and models are not part of the project (docs/testdata.md).
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from pathlib import Path

import compile_hard
from compile_measure import HERE, measure, section
from compile_models import CASES

RESULTS = HERE.parent / "docs" / "results" / "compile.md"
HEAD = """# The compiler on real models

Written by `make bench-compile` (`benchmarks/compile.py`). `float` and `value` are the metric of the float model and of
the product on the same held-out rows, `drop [95 %]` their difference with its paired interval, `size` the file over the
float file, `s` the seconds of the whole compilation of that target on 2 shared cores. Rows named `... alone` are the
libraries' own defaults on the same calibration rows, scored by the same code. The products of `arm-cpu`, `jetson-gpu`
and `intel-npu` were run here, on an x86 CPU, as simulations.

Nothing was calibrated on the rows that score, but the search chose among its candidates on them, as it does on a user's
validation rows; the libraries alone chose nothing. So these figures flatter edgeserve a little, most on small data. The
seconds were taken while other work ran, except in the last section.

In the last section each product was chosen on validation rows and is scored here on rows that nothing saw; `held` there
means: at least as accurate as NNCF's accuracy control with the same bound, in less than half its time.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[])
    beside = HERE.parents[1] / "shared" / "realdata"
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("EDGESERVE_TESTDATA") or beside))
    options = parser.parse_args()
    sections, failed = [], []
    for case in CASES:
        if options.only and case.name not in options.only:
            continue
        print(f"{case.name} ...", file=sys.stderr, flush=True)
        try:
            rows = measure(case, options.data)
        except Exception:  # noqa: BLE001 - the other models are measured all the same
            traceback.print_exc()
            failed.append(case.name)
            continue
        text = section(case.name, rows)
        print(text, flush=True)
        sections.append(text)
    if not options.only or compile_hard.NAME in options.only:
        sections.append(compile_hard.hard())
        print(sections[-1], flush=True)
    update(sections)
    return 1 if failed else 0


def update(sections: list[str]) -> None:
    """Put sections into the results in place of those of the same name; the others stay."""
    order = [case.name for case in CASES] + [compile_hard.NAME]
    found = {title_of(text): text for text in RESULTS.read_text().split("\n## ")[1:]} if RESULTS.is_file() else {}
    found |= {title_of(text): text for text in sections}
    kept = [found[name].removeprefix("## ").strip() for name in order if name in found]
    RESULTS.write_text("\n".join([HEAD, *(f"## {text}\n" for text in kept)]))


def title_of(text: str) -> str:
    return text.removeprefix("## ").partition("\n")[0].strip()


if __name__ == "__main__":
    sys.exit(main())
