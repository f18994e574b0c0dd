"""`edgeserve devices`: profiles, this machine, and which variant of a release runs where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from edgeserve.cli.output import print_json, print_table
from edgeserve.contracts.errors import DeviceError, NotFoundError

if TYPE_CHECKING:
    from edgeserve.contracts.device import Accelerator, DeviceFacts
    from edgeserve_devices.profiles import Profile

_WIDTH = 100
_GAP = 4
_LEAST = 40
"""Columns of the screen: of a table, between two of its columns, of the last one at least."""

app = typer.Typer(no_args_is_help=True)

Profiles = Annotated[
    Path | None,
    typer.Option("--profiles", help="Folder with more profiles.", envvar="EDGESERVE_PROFILES", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_profiles(profiles: Profiles = None, as_json: Json = False) -> None:
    """List the device profiles."""
    from edgeserve_devices.profiles import load_profile, profile_names

    known = [load_profile(name, folder=profiles) for name in profile_names(folder=profiles)]
    if as_json:
        print_json(known)
        return
    rows = [
        (
            profile.name,
            profile.architecture,
            profile.cores,
            f"{profile.memory_bytes / (1 << 30):.3g} GiB",
            " ".join(dict.fromkeys(word for each in profile.accelerators for word in (each.vendor, each.kind))),
            profile.targets[0],
            _answer(profile.installable),
            "yes" if profile.verified else "unverified",
        )
        for profile in known
    ]
    print_table(("profile", "arch", "cores", "memory", "accelerators", "target", "wheels", "verified"), rows)


@app.command("show")
def show(
    profile: Annotated[str, typer.Argument(metavar="PROFILE", help="Name, as in `devices list`.")],
    profiles: Profiles = None,
    as_json: Json = False,
) -> None:
    """Show one device profile."""
    from edgeserve_devices.profiles import load_profile

    known = load_profile(profile, folder=profiles)
    if as_json:
        print_json(known)
        return
    rows = [("profile", known.name), ("title", known.title), *_rows(known.facts()), *_more_rows(known)]
    print_table(("", ""), _wrapped(rows))


@app.command("probe")
def probe_machine(
    as_json: Json = False,
    root: Annotated[
        Path, typer.Option("--root", metavar="DIR", help="Read a recorded tree of proc, sys, dev and etc instead.")
    ] = Path("/"),
    runtimes: Annotated[
        bool, typer.Option("--runtimes", help="Also ask each runtime for its devices, in a process of its own.")
    ] = False,
) -> None:
    """Show what this machine says of itself: what an agent on it reports, and how it is at this moment."""
    from edgeserve.cli.inventory import rows
    from edgeserve_devices.inventory import inventory
    from edgeserve_devices.probe import probe
    from edgeserve_devices.probes.runtimes import ask_runtimes

    if not root.is_dir():
        raise NotFoundError(
            f"{root} is not a folder", hint="give one that holds proc, sys, dev and etc; without --root: this machine"
        )
    facts, found = probe(root), inventory(root, runtimes=ask_runtimes() if runtimes else None)
    if as_json:
        print_json({**msgspec.to_builtins(facts), "inventory": found})
        return
    print_table(("", "", ""), rows(facts, found), words=True)


@app.command("match")
def match(
    release: Annotated[Path, typer.Argument(metavar="RELEASE", help="Directory or .tar of a release.")],
    device: Annotated[str, typer.Option("--device", metavar="PROFILE", help="A profile; default: this machine.")] = "",
    profiles: Profiles = None,
    as_json: Json = False,
) -> None:
    """Say which variant of a release a device runs, and why not the others; exit 1 when none fits."""
    from edgeserve.release.layout import open_release
    from edgeserve_devices.match import choose
    from edgeserve_devices.probe import probe
    from edgeserve_devices.profiles import load_profile

    contracts = [variant.contract for variant in open_release(release).variants]
    facts = load_profile(device, folder=profiles).facts() if device else probe()
    targets = load_profile(facts.profile, folder=profiles).targets if facts.profile else ()
    choice = choose(contracts, facts, targets=targets)
    if as_json:
        print_json({"device": facts, **asdict(choice)})
    else:
        marks = ["*" if index == choice.index else "" for index in range(len(contracts))]
        reasons = [reason.split(": ", 1) for reason in choice.reasons]
        rows = [(mark, variant, verdict) for mark, (variant, verdict) in zip(marks, reasons, strict=True)]
        print_table(("", "variant", "verdict"), _wrapped(rows))
    if choice.index is None:
        raise DeviceError(
            f"no variant of {release} runs on {device or 'this machine'}",
            hint="compile for it: edgeserve compile MODEL --device PROFILE",
        )


def _rows(facts: DeviceFacts) -> list[tuple[str, str]]:
    return [
        ("architecture", facts.architecture),
        ("cpu", facts.cpu or "unknown"),
        ("cpu features", " ".join(facts.cpu_features) or "unknown"),
        ("cores", str(facts.cores)),
        ("memory", f"{facts.memory_bytes >> 20} MiB"),
        ("accelerators", _accelerators(facts.accelerators)),
        ("runtimes", " ".join(facts.runtimes) or "none"),
        ("os", facts.os or "unknown"),
    ]


def _more_rows(profile: Profile) -> list[tuple[str, str]]:
    """What a profile knows beside the facts that a machine can tell."""
    thermal = profile.thermal
    limits = [("clocks fall from", thermal.throttle_c), ("limit", thermal.critical_c)]
    versions = ", ".join(f"{name} {versions or '(any)'}" for name, versions in profile.runtimes.items())
    installs = _answer(profile.installable)
    if profile.installable is False:
        installs = f"no, not with the system's own Python {profile.python}: see docs/results/wheel-matrix.md"
    return [
        ("python", profile.python or "unknown"),
        ("glibc", profile.glibc or "unknown"),
        ("versions", versions or "none"),
        ("installs", installs),
        ("thermal", ", ".join(f"{words} {value:g} C" for words, value in limits if value is not None) or "unknown"),
        ("first choice", ", ".join(_first_choice(profile)) or "none"),
        ("targets", " ".join(profile.targets)),
        ("verified", "yes" if profile.verified else "unverified: nobody ran edgeserve on one yet"),
    ]


def _first_choice(profile: Profile) -> list[str]:
    threads = f"{profile.threads} thread{'s' if profile.threads > 1 else ''}" if profile.threads else ""
    return [words for words in (profile.precision.value if profile.precision else "", threads) if words]


def _answer(value: bool | None) -> str:
    return "unknown" if value is None else "yes" if value else "no"


def _wrapped(rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The rows with a last column that goes on below itself where they would be wider than the screen wants them."""
    from textwrap import wrap

    before = sum(max(len(row[column]) for row in rows) + _GAP for column in range(len(rows[0]) - 1)) if rows else 0
    lines: list[tuple[str, ...]] = []
    for row in rows:
        first, *more = wrap(row[-1], max(_WIDTH - before, _LEAST), break_long_words=False, break_on_hyphens=False) or [
            ""
        ]
        lines += [(*row[:-1], first), *((*("" for _cell in row[:-1]), line) for line in more)]
    return lines


def _accelerators(accelerators: tuple[Accelerator, ...]) -> str:
    return ", ".join(f"{each.vendor} {each.kind} {each.name}".strip() for each in accelerators) or "none"
