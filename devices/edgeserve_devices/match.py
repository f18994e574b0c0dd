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


def choose(contracts: Sequence[VariantContract], facts: DeviceFacts, *, targets: Sequence[str] = ()) -> Choice:
    """Choose the variant for a device.

    Of those that fit, the first by: order in `targets`, accelerators before the CPU, tied to an architecture before
    fit for any, measured latency, position in the release.

    Args:
        contracts: Variants of one release, in its order.
        facts: The device. `runtimes` are those of the machine that will run it, simulated or not.
        targets: The device profile's targets, best first; what is not named comes after what is.
    """
    lacks = [lacking(contract, facts) for contract in contracts]
    fitting = [index for index, lack in enumerate(lacks) if not lack]
    best = min(fitting, key=lambda index: _preference(contracts[index], index, targets), default=None)
    reasons = []
    for index, (contract, lack) in enumerate(zip(contracts, lacks, strict=True)):
        if lack:
            verdict = f"does not fit: {lack}"
        elif index == best:
            verdict = "chosen"
        else:
            assert best is not None
            verdict = f"fits, but {_title(contracts[best])} comes first"
        reasons.append(f"{_title(contract)}: {verdict}")
    return Choice(best, tuple(reasons))


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
    missing = [feature for feature in selector.cpu_features if feature not in facts.cpu_features]
    if missing and not facts.cpu_features:
        return f"it needs the CPU features {', '.join(missing)}, those of the device are not known"
    if missing:
        return f"the CPU lacks {', '.join(missing)}"
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


def _preference(contract: VariantContract, index: int, targets: Sequence[str]) -> tuple[int, int, float, int]:
    named = targets.index(contract.target) if contract.target in targets else len(targets)
    latency = contract.measured.latency_ms if contract.measured is not None else math.inf
    selector = contract.selector
    rank = _ACCELERATOR_RANK.get(selector.accelerator, _ANYWHERE_RANK)
    if selector.accelerator == "cpu" and not selector.architectures:
        rank = _ANYWHERE_RANK
    return named, rank, latency, index


def _title(contract: VariantContract) -> str:
    return f"{contract.target} {contract.precision.value} ({contract.runtime})"


def _mebibytes(count: int) -> str:
    return f"{count / (1 << 20):.0f} MiB"
