"""Processors: names, kinds of cores, instruction sets, clocks, and how many of them this process may use."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from typing import Final

import msgspec

from edgeserve.contracts.limits import MAX_PROBE_CPUS, MAX_PROBE_FEATURES
from edgeserve_devices.probes.arm_parts import arm_part
from edgeserve_devices.probes.cgroup import ControlGroup
from edgeserve_devices.probes.tree import Tree, cpu_list, integer, pairs, printable
from edgeserve_devices.profiles import x86_64_level

Blocks = list[dict[str, str]]
"""`/proc/cpuinfo`, one mapping for each paragraph."""

_NUMERIC: Final = re.compile(
    r"(?:sse|ssse|avx|amx|fma|f16c|bmi|popcnt|neon|vfp|asimd|fp\Z|fphp|sve|sme(?!p)|i8mm|bf16|half|crc32|atomics)"
)
"""Flags that matter to kernels of neural networks; all of them would make every report 1 KB longer."""
_MOST_FLAG_CHARS: Final = 24
_HYBRID: Final = {"cpu_core": "P-core", "cpu_atom": "E-core", "cpu_lowpower": "LP E-core"}
"""Performance monitoring units of a mixed Intel CPU (arch/x86/events/intel/core.c), in Intel's words for the cores."""
_POLICIES: Final = "sys/devices/system/cpu/cpufreq"


class CoreKind(msgspec.Struct, frozen=True, kw_only=True):
    """Cores of one design. Clocks are in MHz; None and empty = the kernel does not say."""

    name: str
    """`Cortex-A76`, `P-core`; the CPU's name where all are alike."""
    processors: int
    """Logical ones."""
    mhz: int | None = None
    """The fastest at this moment."""
    min_mhz: int | None = None
    max_mhz: int | None = None
    """What the hardware can do."""
    limit_mhz: int | None = None
    """What it is allowed to do now, by settings and thermal policy."""
    governor: str = ""


class Cpu(msgspec.Struct, frozen=True, kw_only=True):
    """All processors of the machine."""

    name: str
    kinds: tuple[CoreKind, ...]
    processors: int
    """Logical ones that are online; 0 = unknown."""
    cores: int | None
    """Physical ones, where the kernel says which processors share one."""
    features: tuple[str, ...]
    level: str
    """`x86-64-v2` to `x86-64-v4`; empty on others."""
    allowed: int | None
    """Processors that this process may run on: its affinity, which a cpuset bounds."""
    quota: float | None
    """Processors' worth of time that its control group gets."""
    usable: float | None
    """The least of these."""


def cpuinfo(tree: Tree) -> Blocks:
    """The paragraphs of `/proc/cpuinfo`."""
    return [pairs(paragraph, ":") for paragraph in tree.text("proc/cpuinfo").split("\n\n")[: MAX_PROBE_CPUS + 1]]


def cpu(tree: Tree, group: ControlGroup) -> Cpu:
    """All of it."""
    blocks = cpuinfo(tree)
    online = _online(blocks)
    allowed = cpu_list(pairs(tree.text("proc/self/status"), ":").get("Cpus_allowed_list", "")) & online
    bounds = [float(len(each)) for each in (allowed, online) if each] + ([group.cpu_quota] if group.cpu_quota else [])
    return Cpu(
        name=name(blocks),
        kinds=_kinds(tree, blocks),
        processors=processors(tree, blocks),
        cores=_cores(tree, online),
        features=features(blocks),
        level=level(blocks),
        allowed=len(allowed) or None,
        quota=group.cpu_quota,
        usable=min(bounds, default=None),
    )


def processors(tree: Tree, blocks: Blocks) -> int:
    """Logical processors that are online; 0 = unknown."""
    return len(_online(blocks)) or (os.cpu_count() or 0 if tree.is_this_machine else 0)


def name(blocks: Blocks) -> str:
    """Name of the CPU: in words on x86, by part numbers on Arm, ` + ` between all kinds of a mixed one."""
    for block in blocks:
        model = block.get("model name", "")
        if model and not model.lower().startswith("armv"):  # 32-bit Arm kernels say "ARMv7 Processor" here
            return printable(model)
    parts = {arm_part(block["CPU implementer"], block["CPU part"]) for block in blocks if _has_part(block)}
    return printable(" + ".join(sorted(parts))) if "" not in parts else ""


def features(blocks: Blocks) -> tuple[str, ...]:
    """Flags that matter for inference and that all processors have, in the first one's order."""
    common = all_flags(blocks)
    listed = dict.fromkeys(_flag_words(next((block for block in blocks if "processor" in block), {})))
    kept = (flag for flag in listed if flag in common and len(flag) <= _MOST_FLAG_CHARS and _NUMERIC.match(flag))
    return tuple(kept)[:MAX_PROBE_FEATURES]


def all_flags(blocks: Blocks) -> frozenset[str]:
    """Flags that every processor has."""
    lists = [frozenset(_flag_words(block)) for block in blocks if "processor" in block]
    return lists[0].intersection(*lists[1:]) if lists else frozenset()


def level(blocks: Blocks) -> str:
    """The highest level of the x86-64 psABI that every processor reaches; empty = below `x86-64-v2`, or not known."""
    return x86_64_level(all_flags(blocks))


def _online(blocks: Blocks) -> frozenset[int]:
    numbers = (integer(block["processor"]) for block in blocks if "processor" in block)
    return frozenset(number for number in numbers if number is not None)


def _flag_words(block: dict[str, str]) -> list[str]:
    return (block.get("flags") or block.get("Features") or "").split()


def _has_part(block: dict[str, str]) -> bool:
    return "CPU implementer" in block and "CPU part" in block


def _kinds(tree: Tree, blocks: Blocks) -> tuple[CoreKind, ...]:
    """Kinds of cores in the order of their first processor, with the clocks of their frequency domains."""
    named = {
        number: printable(title)
        for unit, title in _HYBRID.items()
        for number in cpu_list(tree.text(f"sys/devices/{unit}/cpus"))
    }
    kind_of = {
        number: named.get(number) or _kind(block)
        for block in blocks
        if "processor" in block and (number := integer(block["processor"])) is not None
    }
    policies = [(cpu_list(tree.text(f"{folder}/related_cpus")), folder) for folder in _policies(tree)]
    counts = Counter(kind_of.values())
    kinds = []
    for title, count in counts.items():
        mine = {number for number, kind in kind_of.items() if kind == title}
        folders = [folder for members, folder in policies if members & mine]
        listed = [round(float(block["cpu MHz"])) for block in blocks if _is_clock(block.get("cpu MHz", ""))]
        kinds.append(
            CoreKind(
                name=title,
                processors=count,
                mhz=_most(tree, folders, "scaling_cur_freq") or (max(listed) if listed and len(counts) == 1 else None),
                min_mhz=_least(tree, folders, "cpuinfo_min_freq"),
                max_mhz=_most(tree, folders, "cpuinfo_max_freq"),
                limit_mhz=_most(tree, folders, "scaling_max_freq"),
                governor=" ".join(
                    sorted({word for folder in folders if (word := tree.line(f"{folder}/scaling_governor"))})
                ),
            )
        )
    return tuple(kinds)


def _kind(block: dict[str, str]) -> str:
    if _has_part(block):
        implementer, part = printable(block["CPU implementer"]), printable(block["CPU part"])
        return arm_part(implementer, part) or f"implementer {implementer} part {part}"
    return printable(block.get("model name") or block.get("uarch") or "unknown")


def _is_clock(text: str) -> bool:
    return re.fullmatch(r"[0-9]{1,5}\.[0-9]{1,6}", text) is not None


def _policies(tree: Tree) -> tuple[str, ...]:
    return tuple(f"{_POLICIES}/{policy}" for policy in tree.names(_POLICIES, "policy"))


def _clocks(tree: Tree, folders: Iterable[str], file: str) -> list[int]:
    found = (tree.integer(f"{folder}/{file}") for folder in folders)  # kHz
    return [round(clock / 1000) for clock in found if clock is not None and clock > 0]


def _most(tree: Tree, folders: Iterable[str], file: str) -> int | None:
    return max(_clocks(tree, folders, file), default=None)


def _least(tree: Tree, folders: Iterable[str], file: str) -> int | None:
    return min(_clocks(tree, folders, file), default=None)


def _cores(tree: Tree, online: frozenset[int]) -> int | None:
    """Physical cores, by the threads that share each."""
    groups = {
        cpu_list(text)
        for number in sorted(online)
        if (text := tree.text(f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list"))
    }
    return len(groups) or None
