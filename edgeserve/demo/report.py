"""How the demo ends: one table, and the list of promises that were or were not kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from edgeserve.cli.output import print_table
from edgeserve.demo.traffic import MODEL, Accuracy, Traffic

GOOD, BAD = "v2", "v3"


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """One rollout of the demo as it went; times are `time.monotonic`."""

    version: str
    release: str
    state: str
    began: float
    ended: float
    touched: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """All that the demo measured."""

    devices: tuple[dict[str, Any], ...]
    rollouts: tuple[Rollout, ...]
    traffic: Traffic
    seconds: float

    def rollout(self, version: str) -> Rollout:
        """The rollout of one version."""
        return next(rollout for rollout in self.rollouts if rollout.version == version)

    def before_and_after(self, rollout: Rollout) -> tuple[Accuracy, Accuracy]:
        """Accuracy of the whole fleet before a rollout began and after it ended (to the start of the next)."""
        position = self.rollouts.index(rollout)
        earlier = self.rollouts[position - 1].ended if position else 0.0
        later = self.rollouts[position + 1].began if position + 1 < len(self.rollouts) else float("inf")
        return (
            self.traffic.accuracy(since=earlier, until=rollout.began),
            self.traffic.accuracy(since=rollout.ended, until=later),
        )

    def seconds_to_safety(self) -> float:
        """From the start of the bad release to the last answer of it anywhere."""
        bad = self.rollout(BAD)
        return max(
            (
                answer.at - bad.began
                for tally in self.traffic.tallies.values()
                for answer in tally.answers
                if answer.release == bad.release
            ),
            default=0.0,
        )

    def broken(self) -> list[str]:
        """Promises that were not kept; empty when the demo succeeded."""
        good, bad = self.rollout(GOOD), self.rollout(BAD)
        before, after = self.before_and_after(good)
        wrong = [device["device"] for device in self.devices if active(device) != good.release]
        failures = {name: tally.failures[0] for name, tally in self.traffic.tallies.items() if tally.failures}
        promises = [
            (good.state == "succeeded", f"v2 should have succeeded, its rollout is {good.state}"),
            (bad.state == "rolled-back", f"v3 should have been rolled back, its rollout is {bad.state}"),
            (bad.release in self.traffic.releases(), "v3 never answered a request, so nothing was caught"),
            (len(bad.touched) < len(self.devices), "v3 reached the whole fleet"),
            (not wrong, f"not on v2 at the end: {', '.join(wrong)}"),
            (not failures, f"requests failed: {failures}"),
            (after.value > before.value, f"v2 did not answer better than v1: {before} before, {after} after"),
        ]
        return [message for kept, message in promises if not kept]


def active(device: Mapping[str, Any]) -> str:
    """Release digest that a device reports as active for the demo's model."""
    return str(digits(device).get("active", ""))


def digits(device: Mapping[str, Any]) -> dict[str, Any]:
    """What a device reports of the demo's model; empty when it reports none."""
    return next((model for model in device["models"] if model["model"] == MODEL), {})


def show(outcome: Outcome) -> None:
    """Print the final tables and whether every promise was kept."""
    versions = {rollout.release: rollout.version for rollout in outcome.rollouts}
    rows = []
    for device in outcome.devices:
        name = device["device"].partition(".")[2]
        tally = outcome.traffic.tallies[name]
        model = digits(device)
        rows.append(
            [
                name,
                device.get("profile", ""),
                model.get("target", ""),
                model.get("executing_device", ""),
                versions.get(model.get("active", ""), "-"),
                tally.sent,
                len(tally.failures),
                *(outcome.traffic.accuracy(device=name, release=release) for release in versions),
            ]
        )
    typer.echo()
    headers = ["device", "profile", "variant", "runs on", "version", "requests", "failed"]
    print_table([*headers, *(f"acc. {version}" for version in versions.values())], rows, title="Devices")
    print_table(
        ["rollout", "ended as", "devices touched", "accuracy before", "after", "seconds"],
        [
            [
                rollout.version,
                rollout.state,
                f"{len(rollout.touched)} of {len(outcome.devices)}",
                *outcome.before_and_after(rollout),
                f"{rollout.ended - rollout.began:.1f}",
            ]
            for rollout in outcome.rollouts
        ],
        title="Rollouts",
    )
    typer.echo(f"requests sent: {outcome.traffic.sent}")
    typer.secho(f"requests failed: {outcome.traffic.failed}", bold=True)
    typer.echo(f"from the start of v3 to the last device back on v2: {outcome.seconds_to_safety():.1f} s")
    typer.echo(f"the whole story: {outcome.seconds:.0f} s")
    for message in outcome.broken():
        typer.secho(f"NOT AS PROMISED: {message}", fg="red", err=True)


def show_addresses(manager_url: str, addresses: Mapping[str, str], folder: Path) -> None:
    """Print where everything listens, for `--keep`."""
    typer.echo(f"\nfleet manager  {manager_url}  (token: {folder / 'fleet' / 'operator.token'})")
    for name, url in addresses.items():
        typer.echo(f"{name:<14} {url}")
    typer.echo("Ctrl-C ends every process")
