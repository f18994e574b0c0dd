"""`edgeserve compile`: what the user wants to a request, what came of it to a table."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeserve.cli.output import print_json, print_table
from edgeserve.contracts.errors import AccuracyError, InputError

if TYPE_CHECKING:
    from edgeserve_compilers.report import Report, TargetReport
    from edgeserve_compilers.spec import Trial

HEADERS = ("target", "precision", "accuracy", "drop [95 %]", "KB float", "KB", "ms float", "ms", "verdict")


def command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX file.", show_default=False)],
    target: Annotated[
        list[str] | None,
        typer.Option("--target", "-t", metavar="TARGET", help="Runtime and accelerator; may be repeated."),
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(
            "--device", "-d", metavar="PROFILE", help="Device profile whose targets to compile for; may be repeated."
        ),
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help=".npz with typical rows, from which int8 ranges are taken.")
    ] = None,
    validation: Annotated[
        Path | None, typer.Option(help=".npz with other rows and `labels`, on which accuracy is measured.")
    ] = None,
    precision: Annotated[str, typer.Option(help="auto, fp32 or int8.")] = "auto",
    max_accuracy_drop: Annotated[
        float, typer.Option(help="Largest loss against the float model, as a share of the rows.")
    ] = 0.01,
    labels: Annotated[str, typer.Option(help="Names of the classes, comma-separated.", show_default=False)] = "",
    scores: Annotated[
        str, typer.Option(help="Output that holds the class scores; else the first.", show_default=False)
    ] = "",
    name: Annotated[str, typer.Option(help="Name of the model; else that of the file.", show_default=False)] = "",
    version: Annotated[str, typer.Option(help="Version of the release.")] = "1",
    counter: Annotated[
        int | None, typer.Option(help="Orders releases; else the number of a version like 7 or v7.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder or .tar to write; else NAME-VERSION.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Compile a model for devices and measure what it cost.

    Every variant is run again on the validation rows before it is packed into the release, beside a report of what was
    tried. Exit code 4: a target has no variant within the accuracy bound; nothing is written then.
    """
    from edgeserve.contracts.oci import ReleaseIdentity
    from edgeserve.contracts.task import Task
    from edgeserve.plugins import missing

    try:
        from edgeserve_compilers.run import Request, compile_model
        from edgeserve_compilers.spec import CompileOptions
    except ImportError as error:
        raise missing(error, "edgeserve compile") from error

    identity = ReleaseIdentity(
        name=name or _name_of(model), version=version, counter=_counter_of(version) if counter is None else counter
    )
    request = Request(
        model=model,
        targets=_targets(target or [], device or []),
        calibration=calibration,
        validation=validation,
        options=CompileOptions(
            precision=_precision(precision),
            max_accuracy_drop=max_accuracy_drop,
            task=Task(output=scores, labels=tuple(part.strip() for part in labels.split(",")) if labels else ()),
        ),
        identity=identity,
        destination=output or Path(f"{identity.name}-{identity.version}"),
    )
    with _progress() as progress:
        outcome = compile_model(request, progress)
    release = outcome.release
    if as_json:
        where = {"path": str(request.destination), "digest": release.digest} if release else None
        print_json({"release": where, "report": outcome.report})
    else:
        _print_report(outcome.report)
        if release:
            typer.echo(f"\nrelease {identity.name}:{identity.version} in {request.destination}\n{release.digest}")
    if release is None:
        failed = [report.target for report in outcome.report.targets if report.verdict.kept is None]
        raise AccuracyError(
            f"no variant for {', '.join(failed)} may be packed, nothing was written",
            hint="allow more with --max-accuracy-drop, give more calibration rows, or use --precision auto",
        )


def _targets(targets: list[str], devices: list[str]) -> tuple[str, ...]:
    wanted = list(targets)
    if devices:
        from edgeserve import plugins
        from edgeserve_devices.profiles import load_profile

        # Every device runs `null`, which answers nothing of what the model would: only who names it gets it.
        known = [name for name in plugins.names(plugins.TARGETS) if name != "null"]
        for device in devices:
            usable = [target for target in load_profile(device).targets if target in known]
            if not usable:
                raise InputError(
                    f"no target of {device} can be compiled for yet: {', '.join(load_profile(device).targets)}",
                    hint=f"this version compiles for {', '.join(known)}",
                )
            wanted += usable
    if not wanted:
        raise InputError("nothing to compile for", hint="give --target, such as x86-cpu, or --device PROFILE")
    return tuple(dict.fromkeys(wanted))


def _precision(text: str) -> Any:  # noqa: ANN401 - its module is imported when the command runs
    from edgeserve_compilers.spec import PrecisionChoice

    try:
        return PrecisionChoice(text)
    except ValueError:
        raise InputError(
            f"--precision {text[:40]!r} is not known",
            hint=f"use {', '.join(choice.value for choice in PrecisionChoice)}",
        ) from None


def _name_of(model: Path) -> str:
    return re.sub(r"[^a-z0-9]+", "-", model.stem.lower())[:64].strip("-") or "model"


def _counter_of(version: str) -> int:
    number = re.fullmatch(r"v?([0-9]{1,18})", version)
    if not number:
        raise InputError(
            f"version {version[:64]!r} has no number that could order releases",
            hint="give --counter N, higher each time",
        )
    return int(number.group(1))


def _print_report(report: Report) -> None:
    print_table(
        HEADERS,
        [_row(target, trial) for target in report.targets for trial in _shown(target)],
        title=f"{report.model.file}: {report.metric} on {report.judged_on.rows} rows of {report.judged_on.file}",
    )
    for target in report.targets:
        typer.echo(f"{target.target}: {target.verdict.why}")
    if not all(target.native for target in report.targets):
        typer.echo("(host) latency on this machine, a proxy that decides nothing for the device")
    for warning in report.warnings:
        typer.echo(f"warning: {warning}", err=True)


def _shown(target: TargetReport) -> list[Trial]:
    """What was packed; where nothing was, all that was tried."""
    return [target.kept] if target.kept else list(target.trials)


def _row(target: TargetReport, trial: Trial) -> list[str]:
    verdict = ("kept: " if trial is target.kept else "refused: ") + trial.candidate.recipe
    found = trial.measurement
    if found is None:
        return [target.target, trial.candidate.precision.value, "", "", "", "", "", "", verdict]
    proxy = "" if target.native else " (host)"
    return [
        target.target,
        trial.candidate.precision.value,
        f"{found.float_value:.4f} -> {found.value:.4f}",
        f"{found.drop:+.4f} [{found.drop_low:+.4f}, {found.drop_high:+.4f}]",
        f"{trial.float_size_bytes / 1e3:.1f}",
        f"{trial.size_bytes / 1e3:.1f}",
        f"{found.float_latency_ms:.3f}",
        f"{found.latency_ms:.3f}{proxy}",
        verdict,
    ]


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int, int, str], None]]:
    """A bar on stderr where someone looks, else nothing."""
    if not sys.stderr.isatty():
        yield lambda _done, _total, _what: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("loading", total=None)
        yield lambda done, total, what: bar.update(task, completed=done, total=total, description=what)
