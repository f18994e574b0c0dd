"""Feed the server's parsers with inputs that nobody would send, and stop at the first that they do not take well.

By coverage with atheris where it is installed (`scripts/fuzz.sh`), else by the kinds of answers. Inputs that showed
something new are kept in a corpus from one run to the next; one that broke something is written beside it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import random
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from mutations import MAX_BYTES, mutate

TARGETS = {
    "http": ("target_http", "HttpTarget", 0.25),
    "bodies": ("target_bodies", "BodyTarget", 0.4),
    "h2": ("target_h2", "H2Target", 0.1),
    "grpc": ("target_grpc", "GrpcTarget", 0.25),
}
"""Module, class, and part of all inputs."""
MAX_CORPUS = 20_000


def target(name: str) -> Any:
    """Make one."""
    module, kind, _ = TARGETS[name]
    return getattr(import_module(module), kind)()


def rss_kib() -> int:
    """Private memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "VmSwap")))


class Corpus:
    """Inputs worth changing further: the seeds and those that showed something new."""

    def __init__(self, folder: Path, seeds: list[bytes]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.inputs = [*seeds, *(path.read_bytes() for path in sorted(folder.iterdir())[:MAX_CORPUS])]

    def keep(self, data: bytes) -> None:
        """Keep one."""
        if len(self.inputs) < MAX_CORPUS:
            self.inputs.append(data)
            (self._folder / hashlib.sha1(data, usedforsecurity=False).hexdigest()).write_bytes(data)


def by_answers(name: str, count: int, folder: Path, seed: int) -> dict[str, Any]:
    """Fuzz one target; the figures of the run. A finding is raised."""
    under_test = target(name)
    pick, change = random.Random(seed), getattr(under_test, "mutate", mutate)
    corpus = Corpus(folder / name, list(under_test.seeds))
    seen: set[object] = set()
    for data in list(corpus.inputs):
        seen.add(_try(under_test, name, data, folder))
    began, memory = time.monotonic(), []
    for number in range(count):
        data = change(pick.choice(corpus.inputs), pick, corpus.inputs)
        shown = _try(under_test, name, data, folder)
        if shown not in seen:
            seen.add(shown)
            corpus.keep(data)
        if number % max(1, count // 8) == 0:
            memory.append(rss_kib())
    memory.append(rss_kib())
    took = time.monotonic() - began
    return {
        "target": name,
        "inputs": count,
        "seconds": round(took, 1),
        "kinds of answers": len(seen),
        "corpus": len(corpus.inputs),
        "KiB after each eighth": memory,
    }


def by_coverage(name: str, count: int, folder: Path, seed: int) -> None:
    """Fuzz one target with atheris, which ends the process."""
    import atheris

    with atheris.instrument_imports(include=["edgeserve_agent.serving", "edgeserve.client"]):
        under_test = target(name)
    corpus = folder / name
    corpus.mkdir(parents=True, exist_ok=True)
    for data in under_test.seeds:
        (corpus / hashlib.sha1(data, usedforsecurity=False).hexdigest()).write_bytes(data)
    pick = random.Random(seed)

    def change(data: bytes, _most: int, changed: int) -> bytes:
        pick.seed(changed)
        return bytes(getattr(under_test, "mutate", mutate)(data, pick, under_test.seeds))

    options = [f"-runs={count}", f"-max_len={MAX_BYTES}", f"-seed={seed}", "-rss_limit_mb=2048", "-verbosity=0"]
    options += ["-print_final_stats=1", f"-artifact_prefix={folder}/{name}-found-"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], under_test.check, custom_mutator=change)
    atheris.Fuzz()


def _try(under_test: Any, name: str, data: bytes, folder: Path) -> object:
    try:
        return under_test.check(data)
    except BaseException:
        path = folder / f"{name}-found-{hashlib.sha1(data, usedforsecurity=False).hexdigest()}"
        path.write_bytes(data)
        print(f"{name}: {data[:2000]!r} is not taken well; kept as {path}", file=sys.stderr)
        raise


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000, help="inputs, all targets together")
    parser.add_argument("--target", choices=[*TARGETS, "all"], default="all")
    parser.add_argument("--engine", choices=["answers", "coverage"], default="answers")
    parser.add_argument("--corpus", type=Path, default=Path(".cache/fuzz"))
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--again", type=Path, metavar="FILE", help="check this one input of --target")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    if options.target == "all":
        command = [sys.executable, __file__, "--engine", options.engine, "--corpus", str(options.corpus)]
        for name, (_, _, part) in TARGETS.items():
            more = ["--target", name, "--count", str(int(options.count * part)), "--seed", str(options.seed)]
            ended = subprocess.run([*command, *more], check=False, env=os.environ)
            if ended.returncode:
                return ended.returncode
        return 0
    if options.again is not None:
        print(target(options.target).check(options.again.read_bytes()))
    elif options.engine == "coverage":
        by_coverage(options.target, options.count, options.corpus, options.seed)
    else:
        print(json.dumps(by_answers(options.target, options.count, options.corpus, options.seed)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
