"""Measures the model server beside the bare runtime and its peers; writes docs/results/serving.md.

    python benchmarks/serving/run.py [--quick] [--rounds N] [--only mlp cnn alone] [--no-peers | --peers NAME ...]

A full run takes about 20 minutes on two cores, --quick about one, without peers and without writing the page.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime as dt
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import peers as all_peers
import results
from alone import memory_and_rest, raw_memory, scratch_folder, starts
from bench import FULL, QUICK, ROOT, Bench, prepare
from findings import Findings
from rounds import RawProcess, Stage, one_round
from servers import GRPC, Edgeserve, NotStartedError, Server

PAGE = ROOT / "docs" / "results" / "serving.md"
LIMIT_S = 25 * 60
PARTS = ("mlp", "cnn", "alone")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="about a minute, no peers, the page is not written")
    parser.add_argument("--rounds", type=int, help="9 are needed for an interval that means something")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="alone: memory, rest and starts")
    parser.add_argument("--peers", nargs="+", metavar="NAME", help=", ".join(one.name for one in all_peers.ALL))
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--output", type=Path, help="of the page; a partial run only prints it otherwise")
    options = parser.parse_args()
    began = time.monotonic()
    durations = QUICK if options.quick else FULL
    if options.rounds:
        durations = dataclasses.replace(durations, rounds=options.rounds)
    bench = prepare(scratch_folder(ROOT), durations)
    findings = Findings(facts=facts())
    wanted = [] if options.quick or options.no_peers else list(all_peers.ALL)
    if options.peers:
        wanted = [one for one in all_peers.ALL if one.name in options.peers]
    makers = obtain(bench, findings, wanted)
    if "alone" in options.only:
        alone(bench, findings, makers)
    models = [part for part in options.only if part != "alone"]
    if models:
        rounds(bench, findings, makers, models, began)
    shutil.rmtree(bench.sockets, ignore_errors=True)
    findings.facts["Took"] = f"{(time.monotonic() - began) / 60:.0f} minutes"
    findings.save(bench.folder / "findings.json")
    text = results.page(findings, [make(bench).name for make in makers])
    print(text)
    whole = not options.quick and set(options.only) == set(PARTS) and (wanted == list(all_peers.ALL))
    if options.output or whole:
        (options.output or PAGE).write_text(text)
    return 0


def obtain(bench: Bench, findings: Findings, wanted: Sequence[type[all_peers.Peer]]) -> list[type[all_peers.Peer]]:
    """Install the peers; those that cannot be had are written down."""
    makers, versions = [], []
    for make in wanted:
        say(f"peer {make.name}")
        try:
            all_peers.install(make.name)
            versions.append(f"{make.distribution or make.name} {make(bench).version()}")
            makers.append(make)
        except NotStartedError as reason:
            findings.lack(make.name, "", str(reason))
    if wanted:
        for name, reason in all_peers.NOT_OBTAINABLE.items():
            findings.lack(name, "", reason)
        findings.facts["Peers"] = ", ".join(versions)
    return makers


def alone(bench: Bench, findings: Findings, makers: Sequence[Callable[[Bench], Server]]) -> None:
    """Memory, rest and starts, one server at a time."""
    repeats = bench.durations.memories
    say("memory and CPU at rest")
    raw_memory(bench, findings, repeats)
    memory_and_rest(bench, findings, Edgeserve(bench, grpc=False), results.NO_GRPC, repeats)
    with_grpc = Edgeserve(bench)
    if GRPC in with_grpc.missing:
        for row in ("memory", "rest"):
            findings.lack(Edgeserve.name, row, with_grpc.missing[GRPC])
    else:
        memory_and_rest(bench, findings, with_grpc, Edgeserve.name, repeats)
    for make in makers:
        memory_and_rest(bench, findings, make(bench), make(bench).name, 1)
    say("starts")
    starts(bench, findings, [lambda make=make: make(bench) for make in makers])
    findings.round = 0


def rounds(
    bench: Bench,
    findings: Findings,
    makers: Sequence[Callable[[Bench], Server]],
    models: Sequence[str],
    began: float,
) -> None:
    """Start everything, measure in rounds as long as there is time, stop everything."""
    raws = [RawProcess(bench, cores) for cores in (bench.server_cores, bench.all_cores)]
    findings.facts["Runtime"] = f"onnxruntime {raws[0].versions['onnxruntime']}, numpy {raws[0].versions['numpy']}"
    sides: list[list[Server]] = [[], []]
    try:
        for side, cores in zip(sides, (bench.server_cores, bench.all_cores), strict=True):
            for make in (Edgeserve, *makers):
                server = make(bench)
                say(f"starting {server.name} on cores {cores}")
                try:
                    server.start(cores)
                except NotStartedError as reason:
                    if isinstance(server, Edgeserve):
                        raise SystemExit(f"error: edgeserve serve does not start: {reason}") from reason
                    findings.lack(server.name, "", f"did not start on {len(cores)} cores: {reason}")
                    continue
                side.append(server)
                if isinstance(server, Edgeserve):
                    findings.facts |= server.facts()
                server.pause()
        stage = Stage(
            bench=bench, findings=findings, raw=raws[0], raw_wide=raws[1], narrow=sides[0], wide=sides[1], models=models
        )
        longest = 0.0
        for findings.round in range(bench.durations.rounds):
            if time.monotonic() - began + longest > LIMIT_S:
                findings.lack("rounds", "", f"stopped after {findings.round}: the run may take {LIMIT_S // 60} minutes")
                break
            say(f"round {findings.round + 1} of {bench.durations.rounds}")
            start = time.monotonic()
            one_round(stage)
            longest = max(longest, time.monotonic() - start)
            findings.save(bench.folder / "findings.json")
        findings.facts["Rounds"] = str(findings.round + 1)
    finally:
        for server in (*sides[0], *sides[1]):
            server.stop()
        for raw in raws:
            raw.stop()


def facts() -> dict[str, str]:
    """Of the machine and of what is measured."""
    found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "Day": f"{dt.datetime.now(dt.timezone.utc):%Y-%m-%d}",
        "Machine": f"{found[1] if found else 'unknown CPU'}, {os.cpu_count()} cores, {memory:.0f} GiB, "
        f"Linux {platform.release().partition('-')[0]}",
        "Python": platform.python_version(),
        "Commit": commit,
        "Load average before": f"{os.getloadavg()[0]:.1f}",
    }


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    # So that servers are ended, the paused ones too, when the run is.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
