"""Limits of control groups, in the layouts that containers and services meet."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeserve_devices.inventory import inventory
from edgeserve_devices.probes.cgroup import ControlGroup, control_group
from edgeserve_devices.probes.tree import Tree

G = "sys/fs/cgroup"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({}, ControlGroup(), id="none"),
        pytest.param(
            {"proc/self/cgroup": "0::/\n", f"{G}/memory.max": "max\n", f"{G}/memory.current": "5\n",
             f"{G}/cpu.max": "max 100000\n"},
            ControlGroup(version=2, memory_used_bytes=5),
            id="v2-without-limits",
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/\n", f"{G}/memory.max": "1000\n", f"{G}/memory.current": "5\n",
             f"{G}/memory.swap.max": "0\n", f"{G}/cpu.max": "150000 100000\n"},
            ControlGroup(version=2, memory_limit_bytes=1000, memory_used_bytes=5, swap_limit_bytes=0, cpu_quota=1.5),
            id="v2-container-with-a-namespace",
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/system.slice/agent.service\n", f"{G}/cgroup.controllers": "cpu memory\n",
             f"{G}/system.slice/memory.max": "800\n", f"{G}/system.slice/cpu.max": "50000 100000\n",
             f"{G}/system.slice/agent.service/memory.max": "900\n",
             f"{G}/system.slice/agent.service/memory.current": "7\n",
             f"{G}/system.slice/agent.service/cpu.max": "max 100000\n"},
            ControlGroup(version=2, memory_limit_bytes=800, memory_used_bytes=7, cpu_quota=0.5),
            id="v2-service-whose-slice-is-tighter",
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/system.slice/agent.service\n", f"{G}/cgroup.controllers": "cpu\n"},
            ControlGroup(version=2),
            id="v2-without-accounting-of-memory",
        ),
        pytest.param(
            {"proc/self/cgroup": "4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n",
             f"{G}/memory/memory.limit_in_bytes": "600\n", f"{G}/memory/memory.usage_in_bytes": "8\n",
             f"{G}/cpu,cpuacct/cpu.cfs_quota_us": "25000\n", f"{G}/cpu,cpuacct/cpu.cfs_period_us": "100000\n"},
            ControlGroup(version=1, memory_limit_bytes=600, memory_used_bytes=8, cpu_quota=0.25),
            id="v1-container-that-sees-its-group-as-the-root",
        ),
        pytest.param(
            {"proc/self/cgroup": "4:memory:/a/b\n3:cpu:/a\n", f"{G}/memory/a/memory.limit_in_bytes": "600\n",
             f"{G}/memory/a/b/memory.limit_in_bytes": "9223372036854771712\n",
             f"{G}/memory/a/b/memory.usage_in_bytes": "8\n", f"{G}/cpu/a/cpu.cfs_quota_us": "-1\n",
             f"{G}/cpu/a/cpu.cfs_period_us": "100000\n"},
            ControlGroup(version=1, memory_limit_bytes=600, memory_used_bytes=8),
            id="v1-without-a-limit-of-its-own",
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/u\n4:memory:/m\n", f"{G}/unified/u/cgroup.procs": "1\n",
             f"{G}/memory/m/memory.limit_in_bytes": "600\n", f"{G}/memory/m/memory.usage_in_bytes": "8\n"},
            ControlGroup(version=1, memory_limit_bytes=600, memory_used_bytes=8),
            id="both-versions-memory-in-v1",
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/../../../secret\n", "secret/memory.max": "1\n", f"{G}/memory.max": "2\n",
             f"{G}/memory.current": "1\n", f"{G}/cpu.max": "0 0\n"},
            ControlGroup(version=2, memory_limit_bytes=2, memory_used_bytes=1),
            id="a-path-that-climbs-out",
        ),
    ],
)  # fmt: skip
def test_the_tightest_limit_counts(tmp_path: Path, files: dict[str, str], expected: ControlGroup) -> None:
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert control_group(Tree(tmp_path)) == expected


@pytest.mark.parametrize(
    ("status", "cpu_max", "usable"),
    [
        ("", "", 8.0),
        ("Cpus_allowed_list:\t0-3\n", "", 4.0),
        ("Cpus_allowed_list:\t0-127\n", "", 8.0),
        ("Cpus_allowed_list:\t1,5-6\n", "max 100000", 3.0),
        ("Cpus_allowed_list:\t0-3\n", "250000 100000", 2.5),
        ("Cpus_allowed_list:\t0-1\n", "250000 100000", 2.0),
    ],
)
def test_usable_processors_are_the_least_of_affinity_quota_and_what_is_there(
    tmp_path: Path, status: str, cpu_max: str, usable: float
) -> None:
    cpuinfo = "\n\n".join(f"processor : {number}" for number in range(8))
    for name, content in {"proc/cpuinfo": cpuinfo, "proc/self/status": status, f"{G}/cpu.max": cpu_max}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert inventory(tmp_path).cpu.usable == usable
