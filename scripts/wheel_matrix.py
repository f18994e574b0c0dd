"""What installs where: resolve `edgeserve[agent]` and each profile's runtimes from wheels alone, and write the table.

python scripts/wheel_matrix.py [--output docs/results/wheel-matrix.md] [--check]

Nothing is installed: `pip install --dry-run` resolves for a foreign system. Ends with 1 when a profile's `installable`
says something else than pip. `--check` compares and writes nothing.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from edgeserve_devices.profiles import Profile, load_profile, profile_names

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "docs" / "results" / "wheel-matrix.md"
MACHINES = {"amd64": "x86_64", "arm64": "aarch64", "arm": "armv7l"}
PACKAGES = {"onnxruntime": "onnxruntime", "openvino": "openvino", "litert": "ai-edge-litert"}
"""Runtimes that are on the package index; the others come with the board's system."""
OLDEST_PYTHON = "3.10"
OLDEST_GLIBC = {"x86_64": 5, "aarch64": 17, "armv7l": 17}
"""Minor number of the first glibc 2.x that wheels of a machine are tagged with (PEP 513, 599, 600)."""
SHOWN = ("onnxruntime", "openvino", "ai-edge-litert", "numpy", "uvloop")
RUN_PIP = """
import json, os, sys
import pip._vendor.packaging.markers as markers
here, there = markers.default_environment, json.loads(os.environ["EDGESERVE_MARKERS"])
markers.default_environment = lambda: {**here(), **there}
from pip._internal.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
"""pip evaluates `python_version` and `platform_machine` of the Python that runs it, not of the one it resolves for."""


class System(NamedTuple):
    """What decides which wheels install."""

    python: str
    glibc: str
    machine: str

    @property
    def words(self) -> str:
        return f"Python {self.python}, glibc {self.glibc}, {self.machine}"


class Request(NamedTuple):
    system: System
    runtimes: tuple[str, ...]
    """Requirements beside `edgeserve[agent]`, as pip writes them."""


@dataclass(frozen=True)
class Resolution:
    packages: dict[str, str]
    """Versions by name; empty when there is no way."""
    reason: str = ""
    """pip's words."""


OTHERS = {
    "Debian 13 and Raspberry Pi OS (trixie), 64-bit Arm": Request(
        System("3.13", "2.41", "aarch64"), ("onnxruntime", "ai-edge-litert")
    ),
    "Debian 13 (trixie), x86-64": Request(System("3.13", "2.41", "x86_64"), ("onnxruntime", "openvino")),
    "Debian 12 and Raspberry Pi OS (bookworm), 32-bit Arm": Request(System("3.11", "2.36", "armv7l"), ()),
}
"""Systems of no profile that people ask for."""


def request(profile: Profile) -> Request | None:
    """What to resolve for a profile; None when it does not say which Python and C library it has."""
    if not profile.python or not profile.glibc:
        return None
    wanted = tuple(f"{PACKAGES[name]}{versions}" for name, versions in profile.runtimes.items() if name in PACKAGES)
    return Request(System(profile.python, profile.glibc, MACHINES[profile.architecture]), wanted)


def with_newer_python(wanted: Request) -> Request | None:
    """The same with the oldest Python that edgeserve takes; None when the system's own is new enough."""
    number = tuple(map(int, wanted.system.python.split(".")))
    if number >= tuple(map(int, OLDEST_PYTHON.split("."))):
        return None
    return wanted._replace(system=wanted.system._replace(python=OLDEST_PYTHON))


def platforms(system: System) -> list[str]:
    """Platform tags of the wheels that run on a system, best first."""
    minor = int(system.glibc.removeprefix("2."))
    tags = [f"manylinux_2_{number}_{system.machine}" for number in range(minor, OLDEST_GLIBC[system.machine] - 1, -1)]
    return [*tags, f"manylinux2014_{system.machine}", f"linux_{system.machine}"]


def markers(system: System) -> dict[str, str]:
    """The environment markers of a system (PyPA, Dependency specifiers)."""
    return {
        "python_version": system.python,
        "python_full_version": f"{system.python}.0",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "platform_machine": system.machine,
        "platform_system": "Linux",
        "sys_platform": "linux",
        "os_name": "posix",
    }


def resolve(system: System, requirements: Sequence[str], options: Sequence[str] = ()) -> Resolution:
    """Ask pip which versions install there, from wheels alone.

    Args:
        system: Where.
        requirements: As pip takes them.
        options: More options of pip, such as `--find-links`.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [sys.executable, "-c", RUN_PIP, "install", "--dry-run", "--ignore-installed", "--only-binary=:all:"]
        command += ["--quiet", "--report", str(report), "--target", str(Path(folder, "target"))]
        command += ["--implementation", "cp", "--python-version", system.python]
        for tag in platforms(system):
            command += ["--platform", tag]
        environment = {
            **os.environ,
            "EDGESERVE_MARKERS": json.dumps(markers(system)),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_NO_INPUT": "1",
        }
        done = subprocess.run(
            [*command, *options, *requirements],
            env=environment, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        if done.returncode:
            return Resolution({}, reason(done.stderr))
        items = json.loads(report.read_text())["install"]
    found = {item["metadata"]["name"].lower().replace("_", "-"): item["metadata"]["version"] for item in items}
    return Resolution(dict(sorted(found.items())))


def reason(stderr: str) -> str:
    """pip's errors in one line, without the places that it looked in, and of long lists of versions the ends."""
    lines = [line.removeprefix("ERROR: ").strip() for line in stderr.splitlines() if line.startswith("ERROR: ")]
    text = " ".join(lines) or "pip gave no reason"
    text = re.sub(r"(?: @| from)? \(?[a-z+]+://\S+", "", text)
    return re.sub(r"(from versions: [^,()]+), [^()]+, ([^,()]+\))", r"\1, ..., \2", text)


def build_wheel(folder: Path) -> str:
    """Build edgeserve's own wheel; the requirement of it with what the agent needs."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("edgeserve-*.whl")
    return f"edgeserve[agent] @ {wheel.as_uri()}"


def resolve_all(wanted: Iterable[Request], ours: str) -> dict[Request, Resolution]:
    """Resolve each distinct request once, with a line of progress for each."""
    distinct = list(dict.fromkeys(wanted))
    found = {}
    for number, each in enumerate(distinct, start=1):
        started = time.monotonic()
        found[each] = resolve(each.system, [ours, *each.runtimes])
        if each.runtimes and not found[each].packages:  # edgeserve alone may say more plainly what is wrong
            alone = resolve(each.system, [ours])
            found[each] = found[each] if alone.packages else alone
        outcome = f"{len(found[each].packages)} packages" if found[each].packages else f"no: {found[each].reason}"
        extra = f" with {', '.join(each.runtimes)}" if each.runtimes else ""
        seconds = time.monotonic() - started
        print(f"[{number}/{len(distinct)}] {each.system.words}{extra}: {outcome} ({seconds:.0f} s)", flush=True)
    return found


def disagreements(profiles: Iterable[Profile], found: dict[Request, Resolution]) -> list[str]:
    """One line for each profile whose `installable` is not what pip says."""
    lines = []
    for profile in profiles:
        wanted = request(profile)
        seen = None if wanted is None else bool(found[wanted].packages)
        if profile.installable is not seen:
            said, is_so = (
                str(value).lower() if value is not None else "nothing" for value in (profile.installable, seen)
            )
            lines.append(f"{profile.name}.toml says installable = {said}, pip says {is_so}")
    return lines


def page(profiles: Sequence[Profile], found: dict[Request, Resolution], *, date: str) -> str:
    """The document."""
    known = [(profile, wanted) for profile in profiles if (wanted := request(profile)) is not None]
    yes = sum(bool(found[wanted].packages) for _profile, wanted in known)
    lines = [
        "# What installs where",
        "",
        f"Written by `make wheel-matrix` (`scripts/wheel_matrix.py`) on {date}. For the Python, C library and machine",
        "of every device profile pip resolved `edgeserve[agent]` and the profile's runtimes from wheels alone, without",
        "building or installing anything: a device needs no compiler where the answer is yes. Nothing was run on the",
        "devices. Each cell is the version that pip chose. TensorRT is not on the package index: it comes with JetPack",
        "or from NVIDIA.",
        "",
        f"{yes} of {len(known)} profiles can be installed on their system's own Python.",
        "",
        *table(
            ("profile", "system", "Python", "glibc", "machine", "installs", *SHOWN),
            ((profile.name, profile.os, *wanted.system, *outcome(found[wanted])) for profile, wanted in known),
        ),
        "",
        "## What does not install, and the way out",
        "",
    ]  # fmt: skip
    for profile, wanted in known:
        if not found[wanted].packages:
            lines += [
                f"- **{profile.name}** ({wanted.system.words}). pip: `{found[wanted].reason}`",
                *way_out(wanted, found),
            ]
    lines += ["", "## Systems of no profile", ""]
    lines += table(
        ("system", "Python", "glibc", "machine", "installs", *SHOWN),
        ((title, *each.system, *outcome(found[each])) for title, each in OTHERS.items()),
    )
    lines += ["", *(f"- {title}. pip: `{found[each].reason}`" for title, each in OTHERS.items() if found[each].reason)]
    lines += ["", "## Everything that pip chose", ""]
    for each, resolution in found.items():
        if resolution.packages:
            runtimes = f" with {', '.join(f'`{name}`' for name in each.runtimes)}" if each.runtimes else ""
            packages = " ".join(f"{name} {version}," for name, version in resolution.packages.items()).rstrip(",")
            lines += [f"- {each.system.words}{runtimes}: {packages}"]
    return "\n".join(lines) + "\n"


def way_out(wanted: Request, found: dict[Request, Resolution]) -> list[str]:
    """What to do where the system's Python is too old."""
    newer = with_newer_python(wanted)
    if newer is None:
        return []
    old = f"  edgeserve needs Python {OLDEST_PYTHON} or newer. With one of its own, beside the system's,"
    if not found[newer].packages:
        return [f"{old} neither. pip: `{found[newer].reason}`"]
    chosen = (f"{name} {found[newer].packages[name]}" for name in SHOWN if name in found[newer].packages)
    return [f"{old} it installs: {', '.join(chosen)}."]


def outcome(resolution: Resolution) -> tuple[str, ...]:
    return ("yes" if resolution.packages else "**no**", *(resolution.packages.get(name, "") for name in SHOWN))


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (headers, ["---"] * len(headers), *rows)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--check", action="store_true", help="compare with the profiles, write nothing")
    arguments = parser.parse_args()
    os.environ.pop("EDGESERVE_PROFILES", None)  # the page is about the shipped ones
    profiles = [load_profile(name) for name in profile_names()]
    wanted = [each for each in map(request, profiles) if each is not None]
    newer = [each for each in map(with_newer_python, wanted) if each is not None]
    with tempfile.TemporaryDirectory() as folder:
        print("building the wheel of edgeserve", flush=True)
        found = resolve_all([*wanted, *newer, *OTHERS.values()], build_wheel(Path(folder)))
    if not arguments.check:
        date = dt.datetime.now(tz=dt.timezone.utc).date().isoformat()
        arguments.output.write_text(page(profiles, found, date=date))
        print(f"wrote {arguments.output}")
    wrong = disagreements(profiles, found)
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
