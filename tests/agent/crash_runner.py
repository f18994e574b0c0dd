"""Lets an installation die by SIGKILL at its n-th step, for every n, and lives on until it ends by itself.

A program of its own, since it forks and must have no threads: `python crash_runner.py SPEC.json` prints one JSON line.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import sys
from collections import deque
from pathlib import Path
from typing import Any

import msgspec

from edgeserve.contracts.desired import Desired
from edgeserve_agent import slots
from edgeserve_agent.config import AgentConfig, build
from edgeserve_agent.deployer import Deployer, Job
from edgeserve_agent.deployment import Event, EventKind
from edgeserve_agent.hardware import device_facts
from edgeserve_agent.installer import Installer
from edgeserve_agent.journal import JournalFile
from edgeserve_agent.sweep import clear_leftovers

known_facts = functools.cache(device_facts)
"""Asked once before the first fork: it reads the metadata of every installed package."""
TRIAL = """
import pathlib, sys
folder = pathlib.Path(sys.argv[sys.argv.index("--folder") + 1])
print('{"passed": true, "latency_ms": %d}' % (1000 - (folder / "weights.bin").stat().st_size))
"""
"""Of several variants the one with the largest file is the fastest."""
MOST_LIVES = 50


def live(config: AgentConfig, desired: Desired, proof: EventKind, on_effect: Any) -> None:
    """One life of the agent, as `Daemon` leads it but on one thread and without a serving process."""
    clear_leftovers(config.folder)
    facts, targets = known_facts(config.device)
    journal = JournalFile(config.folder)
    journal.begin()
    jobs: deque[Job] = deque()
    installer = Installer(
        config=config, facts=facts, targets=targets, journal=lambda: journal.value, serving=None,
        on_effect=on_effect, trial_command=(sys.executable, "-S", "-c", TRIAL),
    )  # fmt: skip
    deployer = Deployer(config=config, journal=journal, installer=installer, submit=jobs.append)
    deployer.restart()
    if journal.value.gen_seen < desired.gen:
        journal.save(journal.value.with_desired(desired, "sha256:" + "0" * 64))
        deployer.reconcile()
    while jobs or deployer.on_probation():
        if jobs:
            job = jobs.popleft()
            deployer.finished(job, installer.perform(job.effect, job.entry, job.stop))
        else:
            deployer.happened(
                deployer.on_probation()[0].record.model, Event(kind=proof, blame=proof is EventKind.FAILED)
            )


def fork(config: AgentConfig, desired: Desired, proof: EventKind, kill_at: Any) -> tuple[bool, str]:
    """Lead one life in a child; whether it was killed, and the last step it announced."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        count = 0

        def on_effect(step: str) -> None:
            nonlocal count
            os.write(writer, step.encode() + b"\n")
            if kill_at in (count, step):
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1

        code = 1
        try:
            live(config, desired, proof, on_effect)
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as lines:
        steps = lines.read().split()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (0, -signal.SIGKILL):
        raise SystemExit(f"a life ended with {code} after {steps}")
    return code != 0, steps[-1] if steps else ""


def served(config: AgentConfig) -> str:
    """Version whose files `slots.json` names, read from the files themselves; empty when there is none."""
    active = slots.read(config.folder).of("digits").active
    if active is None:
        return ""
    folder = active.folder(config.folder)
    json.loads((folder / "contract.json").read_bytes())
    json.loads((folder / "model.null.json").read_bytes())
    version = (folder / "weights.bin").read_bytes().rstrip(b"\0").decode()
    return version if version == active.version else f"{active.version} with the files of {version}"


def main(spec: dict[str, Any]) -> None:
    config = build(spec["config"], "spec")
    template = Path(spec["template"])
    known_facts(config.device)
    results = []
    for desired in spec["prepare"]:
        fork(config, msgspec.convert(desired, Desired), EventKind.PROVEN, None)
    shutil.copytree(config.folder, template)
    desired = msgspec.convert(spec["desired"], Desired)
    proof = EventKind(spec["proof"])
    for kill_at in spec["kill_at"] or range(1000):
        shutil.rmtree(config.folder)
        shutil.copytree(template, config.folder)
        was_killed, step = fork(config, desired, proof, kill_at)
        seen = [served(config)]
        lives = 1
        killed = was_killed
        while killed and lives < MOST_LIVES:
            killed, _step = fork(config, desired, proof, kill_at if spec["every_life"] else None)
            seen.append(served(config))
            lives += 1
        entry = JournalFile(config.folder).value.entry("digits")
        state, reason = (entry.record.state.value, entry.record.reason) if entry else ("", "")
        results.append({"step": step, "seen": seen, "state": state, "reason": reason, "lives": lives})
        if not was_killed:
            break
    print(json.dumps(results))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
