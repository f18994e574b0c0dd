"""Which device gets a release in which wave. Pure and deterministic: the same devices, order and seed give the same
waves in every run and in every replica of the manager."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from edgeserve.contracts.rollout import RolloutSpec


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What planning must know of a device."""

    device: str
    labels: Mapping[str, str]
    """With what can be selected by besides: `profile` and `device`."""
    reachable: bool
    """Online, or seen lately."""
    has_release: bool
    """It was assigned the release and reports that it serves it."""
    misfit: str = ""
    """Why it cannot run the release; empty when it can or when that is not known."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Who gets the release when, and why others do not."""

    waves: tuple[tuple[str, ...], ...]
    """Devices that join in each wave. A wave that would add none is left out."""
    already: tuple[str, ...]
    control: tuple[str, ...]
    """Selected, but beyond the last wave."""
    out: Mapping[str, str]
    """Devices that are not selected or do not fit, with the reason."""


def plan(candidates: Iterable[Candidate], spec: RolloutSpec, seed: str) -> Plan:
    """Assign devices to waves.

    Unreachable devices come last, so that a canary is one that answers; otherwise the order is that of a hash, so a
    device's place does not depend on its name, on who else there is, or on the release before.

    Args:
        candidates: Every enrolled device.
        spec: Its selector and wave sizes.
        seed: The release digest: cohorts are stable for one release and differ between releases.
    """
    out: dict[str, str] = {}
    already: list[str] = []
    chosen: list[Candidate] = []
    for candidate in candidates:
        reason = mismatch(spec.selector, candidate.labels) or candidate.misfit
        if reason:
            out[candidate.device] = reason
        elif candidate.has_release:
            already.append(candidate.device)
        else:
            chosen.append(candidate)
    chosen.sort(key=lambda candidate: (not candidate.reachable, _rank(seed, candidate.device), candidate.device))
    order = [candidate.device for candidate in chosen]
    waves: list[tuple[str, ...]] = []
    taken = 0
    for wave in spec.waves:
        size = wave.size(len(order))
        if size > taken:
            waves.append(tuple(order[taken:size]))
            taken = size
    return Plan(waves=tuple(waves), already=tuple(sorted(already)), control=tuple(order[taken:]), out=out)


def mismatch(selector: Mapping[str, str], labels: Mapping[str, str]) -> str:
    """Why `labels` do not match `selector`; empty when they do."""
    for key, wanted in sorted(selector.items()):
        have = labels.get(key)
        if have != wanted:
            return f"the selector asks for {key}={wanted}, the device has {f'{key}={have}' if have else f'no {key}'}"
    return ""


def _rank(seed: str, device: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{device}".encode()).digest()
