"""What is read of recorded boards, and of this machine."""

from __future__ import annotations

import os
import platform
import re
import shutil
from pathlib import Path

import msgspec
import pytest

from edgeserve_devices.inventory import Inventory, inventory
from edgeserve_devices.probes.accelerators import AcceleratorDetails
from edgeserve_devices.probes.cpu import CoreKind
from edgeserve_devices.probes.jetson import Jetson
from edgeserve_devices.probes.power import Rail
from edgeserve_devices.probes.thermal import Temperature, Throttling

TREES = Path(__file__).parent / "trees"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


@pytest.mark.parametrize(
    ("tree", "kinds"),
    [
        (
            "orange-pi-5",
            (
                CoreKind(
                    name="Cortex-A55", processors=4, mhz=1800, min_mhz=408, max_mhz=1800, limit_mhz=1800,
                    governor="ondemand",
                ),
                CoreKind(
                    name="Cortex-A76", processors=4, mhz=1608, min_mhz=408, max_mhz=2400, limit_mhz=1608,
                    governor="ondemand",
                ),
            ),
        ),
        (
            "intel-core-ultra",
            (
                CoreKind(
                    name="P-core", processors=4, mhz=3100, min_mhz=400, max_mhz=4800, limit_mhz=4800,
                    governor="powersave",
                ),
                CoreKind(
                    name="E-core", processors=10, mhz=400, min_mhz=400, max_mhz=3800, limit_mhz=3800,
                    governor="powersave",
                ),
            ),
        ),
    ],
)  # fmt: skip
def test_a_mixed_cpu_is_told_apart_by_kinds_of_cores(tree: str, kinds: tuple[CoreKind, ...]) -> None:
    assert inventory(TREES / tree).cpu.kinds == kinds


def test_a_core_that_nobody_named_is_shown_by_its_numbers(tmp_path: Path) -> None:
    write(tmp_path, {"proc/cpuinfo": "processor: 0\nCPU implementer: 0x99\nCPU part: 0xabc\n"})
    cpu = inventory(tmp_path).cpu
    assert (cpu.name, [kind.name for kind in cpu.kinds]) == ("", ["implementer 0x99 part 0xabc"])


def test_threads_of_one_core_are_counted_as_one() -> None:
    cpu = inventory(TREES / "intel-core-ultra").cpu
    assert (cpu.processors, cpu.cores) == (14, 12)


def test_the_supply_rails_of_a_jetson_are_measured() -> None:
    assert inventory(TREES / "jetson-orin-nano").power.rails == (
        Rail(chip="ina3221", name="VDD_IN", power_w=9.250304, voltage_v=4.984, current_a=1.856),
        Rail(chip="ina3221", name="VDD_CPU_GPU_CV", power_w=3.38368, voltage_v=4.976, current_a=0.68),
        Rail(chip="ina3221", name="VDD_SOC", power_w=2.030208, voltage_v=4.976, current_a=0.408),
    )


@pytest.mark.parametrize(
    ("files", "rail"),
    [
        ({"name": "ina238", "power1_input": "12500000"},
         Rail(chip="ina238", name="power1", power_w=12.5, voltage_v=None, current_a=None)),
        ({"name": "amdgpu", "power1_average": "9000000", "power1_label": "PPT"},
         Rail(chip="amdgpu", name="PPT", power_w=9.0, voltage_v=None, current_a=None)),
        ({"name": "ina3221", "in1_label": "NC", "in1_input": "8", "curr1_input": "0"}, None),
        ({"name": "nct6775", "curr1_input": "100", "in1_input": "1000"}, None),
    ],
    ids=["a-chip-that-multiplies", "a-card", "not-connected", "unrelated-channels"],
)  # fmt: skip
def test_a_rail_is_what_one_sensor_measures_of_one_supply(tmp_path: Path, files: dict[str, str], rail: Rail) -> None:
    write(tmp_path / "sys/class/hwmon/hwmon0", files)
    assert inventory(tmp_path).power.rails == ((rail,) if rail else ())


def test_energy_counters_are_read_with_where_they_wrap_and_their_limits() -> None:
    package, core, uncore, psys = inventory(TREES / "intel-core-ultra").power.energy
    assert [domain.name for domain in (package, core, uncore, psys)] == ["package-0", "core", "uncore", "psys"]
    assert (package.energy_uj, package.wraps_at_uj) == (65532610987, 262143328850)
    assert package.limits_w == {"long_term": 15.0, "short_term": 57.0}


def test_what_a_jetson_writes_down_of_itself_is_read() -> None:
    assert inventory(TREES / "jetson-orin-nano").jetson == Jetson(l4t="36.4.3", jetpack="6", power_mode="25W")
    assert inventory(TREES / "raspberry-pi-5").jetson is None


@pytest.mark.parametrize(
    ("line", "l4t", "jetpack"),
    [
        ("# R32 (release), REVISION: 7.1, GCID: 29818004, BOARD: t210ref", "32.7.1", "4"),
        ("# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref", "35.4.1", "5"),
        ("# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic", "38.2.0", "7"),
        ("# R99 (release), REVISION: 1.0, GCID: 1", "99.1.0", ""),
    ],
)
def test_the_series_of_jetpack_follows_from_that_of_jetson_linux(
    tmp_path: Path, line: str, l4t: str, jetpack: str
) -> None:
    found = inventory(write(tmp_path, {"etc/nv_tegra_release": line, "var/lib/nvpmodel/status": "pmode:0002"})).jetson
    assert found == Jetson(l4t=l4t, jetpack=jetpack, power_mode="2")


@pytest.mark.parametrize(
    ("bits", "now", "since_start"),
    [
        ("0", set(), set()),
        ("50005", {"under-voltage", "throttled"}, {"under-voltage", "throttled"}),
        ("e0008", {"soft temperature limit"}, {"frequency capped", "throttled", "soft temperature limit"}),
        ("0x20000", set(), {"frequency capped"}),
    ],
)
@pytest.mark.parametrize("folder", ["soc/soc:firmware", "soc@107c000000/soc@107c000000:firmware"])
def test_the_bits_of_a_raspberry_pi_say_why_it_is_slow(
    tmp_path: Path, folder: str, bits: str, now: set[str], since_start: set[str]
) -> None:
    thermal = inventory(write(tmp_path, {f"sys/devices/platform/{folder}/get_throttled": f"{bits}\n"})).thermal
    assert {each.reason for each in thermal.throttling if each.now} == now
    assert {each.reason for each in thermal.throttling if each.events} == since_start
    assert thermal.is_throttled == bool(now)


@pytest.mark.parametrize(
    ("tree", "throttled", "what"),
    [
        ("raspberry-pi-5", True, Throttling(source="supply", reason="under-voltage", now=False, events=None)),
        ("jetson-orin-nano", False,
         Throttling(source="soctherm", reason="instantaneous over-current", now=None, events=27)),
        ("intel-core-ultra", False, Throttling(source="cpu package 0", reason="too hot", now=None, events=12)),
        ("orange-pi-5", True, Throttling(source="thermal-cpufreq-1", reason="thermal policy", now=True, events=None)),
        ("container-cgroup-v2", None, None),
    ],
)  # fmt: skip
def test_each_board_says_in_its_own_way_whether_it_throttles(
    tree: str, throttled: bool | None, what: Throttling | None
) -> None:
    thermal = inventory(TREES / tree).thermal
    assert thermal.is_throttled is throttled
    assert what in thermal.throttling if what else not thermal.throttling


def test_temperatures_come_with_their_thresholds_and_each_sensor_once() -> None:
    assert inventory(TREES / "raspberry-pi-5").thermal.temperatures == (
        Temperature(name="cpu-thermal", celsius=82.65, high_c=None, critical_c=110.0),
        Temperature(name="rp1_adc temp1", celsius=53.729, high_c=None, critical_c=None),
    )
    zones = inventory(TREES / "jetson-orin-nano").thermal.temperatures
    assert [zone.name for zone in zones] == ["cpu-thermal", "gpu-thermal", "soc0-thermal", "tj-thermal"]
    assert (zones[3].high_c, zones[3].critical_c) == (99.0, 104.5)


@pytest.mark.parametrize("reading", ["-274000", "999999999", "", "warm"])
def test_a_sensor_that_is_not_connected_has_no_temperature(tmp_path: Path, reading: str) -> None:
    write(tmp_path, {"sys/class/thermal/thermal_zone0/temp": reading, "sys/class/thermal/thermal_zone0/type": "x"})
    assert inventory(tmp_path).thermal.temperatures == ()


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ("intel-core-ultra",
         AcceleratorDetails(kind="npu", vendor="intel", name="Intel NPU", driver="intel_vpu", driver_version="",
                            firmware="Sep  9 2024*MTL_CLIENT_SILICON-release*2214", node="dev/accel/accel0", mhz=0,
                            max_mhz=1400)),
        ("orange-pi-5",
         AcceleratorDetails(kind="npu", vendor="rockchip", name="RKNPU", driver="rknpu", driver_version="0.9.8",
                            firmware="", node="dev/dri/renderD129", mhz=1000, max_mhz=1000)),
        ("jetson-orin-nano",
         AcceleratorDetails(kind="gpu", vendor="nvidia", name="tegra234", driver="nvgpu", driver_version="",
                            firmware="", node="dev/nvgpu/igpu0", mhz=306, max_mhz=1020)),
    ],
)  # fmt: skip
def test_an_accelerator_is_shown_with_driver_firmware_and_clock(tree: str, expected: AcceleratorDetails) -> None:
    assert inventory(TREES / tree).accelerators[0] == expected


def test_compressed_swap_says_what_it_holds_and_what_it_takes() -> None:
    memory = inventory(TREES / "raspberry-pi-5").memory
    (zram,) = memory.zram
    assert (zram.algorithm, zram.size_bytes, zram.stored_bytes) == ("zstd", 512 << 20, 128 << 20)
    assert zram.memory_bytes == 42467328
    assert memory.swap_total_bytes == 524272 * 1024


def test_pressure_is_read_for_each_resource() -> None:
    cpu, memory, io = inventory(TREES / "raspberry-pi-5").pressure
    assert (cpu.resource, cpu.some.avg10, cpu.some.avg300, cpu.some.total_us) == ("cpu", 12.5, 4.02, 98211342)
    assert (memory.resource, io.resource) == ("memory", "io")
    assert io.full is not None
    assert io.full.avg10 == 1.2


def test_an_old_kernel_tells_no_full_pressure_of_the_cpu(tmp_path: Path) -> None:
    write(tmp_path, {"proc/pressure/cpu": "some avg10=1.00 avg60=0.50 avg300=0.25 total=7\n"})
    (cpu,) = inventory(tmp_path).pressure
    assert cpu.full is None


def test_of_an_empty_folder_everything_is_unknown(tmp_path: Path) -> None:
    found = inventory(tmp_path)
    assert found.problems == {}
    assert (found.cpu.processors, found.cpu.usable, found.memory.total_bytes, found.memory.usable_bytes) == (
        0,
        None,
        None,
        0,
    )
    assert (found.accelerators, found.jetson, found.pressure, found.packages) == ((), None, (), {})
    assert (found.system.architecture, found.system.virtual_machine, found.system.storage) == ("", None, ())


def test_a_record_is_only_read(tmp_path: Path) -> None:
    copy = shutil.copytree(TREES / "jetson-orin-nano", tmp_path / "tree")
    before = {path: (path.lstat().st_mtime_ns, path.lstat().st_size) for path in copy.rglob("*")}
    inventory(copy)
    assert {path: (path.lstat().st_mtime_ns, path.lstat().st_size) for path in copy.rglob("*")} == before


@pytest.fixture(scope="module")
def here() -> Inventory:
    return inventory()


def test_this_machine_has_the_processors_that_python_sees(here: Inventory) -> None:
    assert here.cpu.processors == os.cpu_count()
    assert here.cpu.allowed == len(os.sched_getaffinity(0))
    assert here.cpu.usable is not None
    assert 0 < here.cpu.usable <= here.cpu.processors
    assert sum(kind.processors for kind in here.cpu.kinds) == here.cpu.processors


def test_this_machine_has_the_memory_that_the_kernel_says(here: Inventory) -> None:
    fields = dict(re.findall(r"^(\w+): +(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE))
    assert here.memory.total_bytes == int(fields["MemTotal"]) * 1024
    assert here.memory.swap_total_bytes == int(fields["SwapTotal"]) * 1024
    assert here.memory.available_bytes is not None
    assert 0 < here.memory.available_bytes <= here.memory.total_bytes


def test_this_machine_has_the_software_that_runs_this_test(here: Inventory) -> None:
    assert (here.system.kernel, here.system.python) == (platform.release(), platform.python_version())
    root = next(each for each in here.system.storage if each.path == "/")
    assert root.total_bytes == os.statvfs("/").f_blocks * os.statvfs("/").f_frsize
    assert here.packages["onnxruntime"]


def test_this_machine_has_pressure_where_its_kernel_tells(here: Inventory) -> None:
    told = [name for name in ("cpu", "memory", "io") if os.access(f"/proc/pressure/{name}", os.R_OK)]
    assert [each.resource for each in here.pressure] == [name for name in told if name not in here.problems]


def test_all_of_it_is_a_document(here: Inventory) -> None:
    assert msgspec.json.decode(msgspec.json.encode(here), type=Inventory) == here
