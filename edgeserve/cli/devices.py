"""`edgeserve devices`: profiles, this machine, and which variant of a release runs where."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeserve.cli.output import print_json, print_table
from edgeserve.contracts.errors import DeviceError

if TYPE_CHECKING:
    from edgeserve.contracts.device import Accelerator, DeviceFacts

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
            f"{profile.memory_bytes >> 20} MiB",
            _accelerators(profile.accelerators),
            " ".join(profile.targets),
            "yes" if profile.verified else "no",
        )
        for profile in known
    ]
    print_table(("profile", "architecture", "cores", "memory", "accelerators", "targets, best first", "verified"), rows)


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
    rows = [
        ("profile", known.name),
        ("title", known.title),
        *_rows(known.facts()),
        ("targets", " ".join(known.targets)),
    ]
    print_table(("", ""), [*rows, ("verified", "yes" if known.verified else "no: nobody ran edgeserve on one yet")])


@app.command("probe")
def probe_machine(as_json: Json = False) -> None:
    """Show what this machine is, as an agent on it would report."""
    from edgeserve_devices.probe import probe

    facts = probe()
    if as_json:
        print_json(facts)
        return
    print_table(("", ""), [("profile", facts.profile or "none fits"), *_rows(facts), ("python", facts.python)])


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
        rows = zip(marks, *zip(*(reason.split(": ", 1) for reason in choice.reasons), strict=True), strict=True)
        print_table(("", "variant", "verdict"), rows)
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


def _accelerators(accelerators: tuple[Accelerator, ...]) -> str:
    return ", ".join(f"{each.vendor} {each.kind} {each.name}".strip() for each in accelerators) or "none"
