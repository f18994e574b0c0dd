"""Which variant of a release a device should run, and why not the others. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from edgeserve.contracts.device import DeviceFacts
from edgeserve.contracts.variant import Selector, VariantContract

_ACCELERATOR_RANK: Final = {"npu": 0, "gpu": 1, "cpu": 2}
_ANYWHERE_RANK: Final = 3
_BUILT_IN_RUNTIMES: Final = ("null",)


@dataclass(frozen=True)
class Choice:
    """The outcome of matching."""

    index: int | None
    """Position of the variant to run; None when none fits."""
    reasons: tuple[str, ...]
    """One line for each variant, in order: chosen, fits but comes later, or what it lacks."""
    alternatives: tuple[int, ...] = ()
    """Positions of the variants that only a measurement on the device can tell apart, best guess (`index`) first."""


def choose(contracts: Sequence[VariantContract], facts: DeviceFacts, *, targets: Sequence[str] = ()) -> Choice:
    """Choose the variant for a device.

    Of those that fit, the first by: order in `targets`, accelerators before the CPU, tied to an architecture before
    fit for any, latency measured on such hardware, position in the release.

    A latency that the compiling host only stood in for decides nothing: variants without another one that are equal
    in all that comes before latency are `alternatives`, and the device measures.

    Args:
        contracts: Variants of one release, in its order.
        facts: The device. `runtimes` are those of the machine that will run it, simulated or not.
        targets: The device profile's targets, best first; what is not named comes after what is.
    """
    lacks = [lacking(contract, facts) for contract in contracts]
    keys = {
        index: (_rank(contracts[index], targets), _latency(contracts[index]))
        for index, lack in enumerate(lacks)
        if not lack
    }
    ordered = sorted(keys, key=lambda index: keys[index])  # stable: equals stay in the order of the release
    best = ordered[0] if ordered else None
    alternatives = (
        *ordered[:1],
        *(index for index in ordered[1:] if keys[index] == (keys[ordered[0]][0], math.inf)),
    )
    reasons = []
    for index, (contract, lack) in enumerate(zip(contracts, lacks, strict=True)):
        if lack:
            verdict = f"does not fit: {lack}"
        elif index == best:
            verdict = "chosen"
        else:
            assert best is not None
            verdict = f"fits, but {title(contracts[best])} comes first"
            verdict += " unless the device measures this one to be faster" if index in alternatives else ""
        reasons.append(f"{title(contract)}: {verdict}")
    return Choice(best, tuple(reasons), alternatives)


class Needs(Protocol):
    """What a variant asks of a device: the part of its contract that the fleet manager keeps, too."""

    @property
    def selector(self) -> Selector:
        """Hardware."""

    @property
    def runtime(self) -> str:
        """Name of the runtime."""

    @property
    def memory_bytes(self) -> int:
        """Memory of loading and one call; 0 = not measured."""


def lacking(contract: Needs, facts: DeviceFacts) -> str:
    """What the device lacks for a variant; empty when it fits. What is not known of a device counts as lacking."""
    selector = contract.selector
    if selector.architectures and facts.architecture not in selector.architectures:
        return f"it is for {' or '.join(selector.architectures)}, the device is {facts.architecture or 'unknown'}"
    if lack := _lacking_accelerator(selector, facts):
        return lack
    missing = [wanted for wanted in selector.cpu_features if not set(wanted.split("|")) & set(facts.cpu_features)]
    named = ", ".join(wanted.replace("|", " or ") for wanted in missing)
    if missing and not facts.cpu_features:
        return f"it needs the CPU features {named}, those of the device are not known"
    if missing:
        return f"the CPU lacks {named}"
    if contract.runtime not in facts.runtimes and contract.runtime not in _BUILT_IN_RUNTIMES:
        return f"the runtime {contract.runtime} is not installed"
    memory = max(selector.min_memory_bytes, contract.memory_bytes)
    if 0 < facts.memory_bytes < memory:
        return f"it needs {_mebibytes(memory)} of memory, the device has {_mebibytes(facts.memory_bytes)}"
    return ""


def _lacking_accelerator(selector: Selector, facts: DeviceFacts) -> str:
    if selector.accelerator == "cpu":
        return ""
    present = [accelerator for accelerator in facts.accelerators if accelerator.kind == selector.accelerator]
    kind = selector.accelerator.upper()
    if not present:
        return f"the device has no {kind}"
    vendors = sorted({accelerator.vendor for accelerator in present})
    if selector.accelerator_vendor and selector.accelerator_vendor not in vendors:
        return f"it needs the {kind} of {selector.accelerator_vendor}, the device has that of {', '.join(vendors)}"
    return ""


def _rank(contract: VariantContract, targets: Sequence[str]) -> tuple[int, int]:
    named = targets.index(contract.target) if contract.target in targets else len(targets)
    selector = contract.selector
    rank = _ACCELERATOR_RANK.get(selector.accelerator, _ANYWHERE_RANK)
    if selector.accelerator == "cpu" and not selector.architectures:
        rank = _ANYWHERE_RANK
    return named, rank


def _latency(contract: VariantContract) -> float:
    """Milliseconds, as measured on the hardware that the variant is for; infinite when it never ran there."""
    return math.inf if contract.measured is None or contract.latency_is_proxy else contract.measured.latency_ms


def title(contract: VariantContract) -> str:
    """What people call a variant: target, precision and runtime."""
    return f"{contract.target} {contract.precision.value} ({contract.runtime})"


def _mebibytes(count: int) -> str:
    return f"{count / (1 << 20):.0f} MiB"
