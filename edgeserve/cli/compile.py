"""`edgeserve compile`: what the user wants to a request, what came of it to a table."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from edgeserve.cli.output import print_json, print_table
from edgeserve.contracts.errors import AccuracyError, InputError, TrustError

if TYPE_CHECKING:
    from edgeserve.contracts.task import Task
    from edgeserve_compilers.cache import Cache
    from edgeserve_compilers.check import Checked
    from edgeserve_compilers.compilation import Outcome
    from edgeserve_compilers.report import Report, TargetReport
    from edgeserve_compilers.spec import Trial
    from edgeserve_compilers.subject import Wish

_REASON: Final = 120
"""Characters of the reason why a trial was refused; below the table, that of the best stands in full."""
HEADERS = ("target", "precision", "accuracy", "drop [95 %]", "KB float", "KB", "ms float", "ms", "runs", "verdict")
_DATA_HELP = ".npz, folder of images or WAV, COCO .json, Ultralytics data.yaml; #NAME takes one split of it."


def command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="ONNX, TFLite, .pt2, SavedModel, Keras, OpenVINO IR, scikit-learn, XGBoost, LightGBM; module:function",
            show_default=False,
        ),
    ],
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
    task: Annotated[
        Path | None, typer.Option(help="model.toml: what the tensors mean (docs/task.md).", show_default=False)
    ] = None,
    calibration: Annotated[
        str | None, typer.Option(metavar="DATA", help=f"Typical rows, from which int8 ranges are taken: {_DATA_HELP}")
    ] = None,
    validation: Annotated[
        str | None, typer.Option(metavar="DATA", help="Other rows, with labels, on which accuracy is measured.")
    ] = None,
    metric: Annotated[
        str, typer.Option(help="top1, top5, map, iou, mae, cosine, sqnr, agreement or module:function.")
    ] = "",
    precision: Annotated[str, typer.Option(help="auto, fp32, fp16, int8 or int4.")] = "auto",
    max_accuracy_drop: Annotated[
        float, typer.Option(help="Largest loss of the metric against the float model.")
    ] = 0.01,
    baseline: Annotated[
        Path | None,
        typer.Option(metavar="RELEASE", help="The release before: expected agreement with it is measured."),
    ] = None,
    labels: Annotated[
        str, typer.Option(help="Names of the classes, comma-separated, where there is no --task.", show_default=False)
    ] = "",
    scores: Annotated[
        str,
        typer.Option(help="Output that holds the class scores, where there is no --task.", show_default=False),
    ] = "",
    name: Annotated[str, typer.Option(help="Name of the model; else that of the file.", show_default=False)] = "",
    version: Annotated[str, typer.Option(help="Version of the release.")] = "1",
    counter: Annotated[
        int | None, typer.Option(help="Orders releases; else the number of a version like 7 or v7.", show_default=False)
    ] = None,
    trust_pickle: Annotated[
        bool, typer.Option("--trust-pickle", help="Read files that execute code when they are read.")
    ] = False,
    install_converters: Annotated[
        bool,
        typer.Option(
            "--install-converters",
            help="Make the environment of onnx2tf (Python 3.12, about 600 MB, once) that LiteRT variants of ONNX need.",
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder or .tar to write; else NAME-VERSION.", show_default=False),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Also write the report here, as a page (.html) or as JSON.", show_default=False
        ),
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(
            metavar="RELEASE",
            help="Build this release's variants again from MODEL and the same data, and compare every byte.",
        ),
    ] = None,
    cache: Annotated[bool, typer.Option(help="Take what was compiled before from the cache, and add to it.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Compile a model for devices and measure what it cost.

    Every variant is run again on the validation rows before it is packed into the release, beside a report of what was
    tried. Exit code 4: a target has no variant within the accuracy bound; nothing is written then. Exit code 3: --check
    found other bytes.
    """
    from edgeserve.contracts.oci import ReleaseIdentity
    from edgeserve.plugins import missing

    try:
        from edgeserve_compilers.run import Request, compile_model
        from edgeserve_compilers.subject import Wish
    except ImportError as error:
        raise missing(error, "edgeserve compile", extra="compile") from error

    _check_report_path(report)
    if install_converters:
        from edgeserve_compilers.converters import onnx2tf

        onnx2tf.prepare()
    described = _task(task, labels, scores)
    _find_own_functions(model, metric, described)
    wish = Wish(
        model=model,
        calibration=calibration,
        validation=validation,
        task=described,
        metric=metric,
        trust_pickle=trust_pickle,
    )
    if check is not None:
        _check_release(wish, check, as_json=as_json)
        return
    identity = ReleaseIdentity(
        name=name or _name_of(model), version=version, counter=_counter_of(version) if counter is None else counter
    )
    request = Request(
        wish=wish,
        targets=_targets(target or [], device or []),
        precision=_precision(precision),
        max_accuracy_drop=max_accuracy_drop,
        identity=identity,
        destination=output or Path(f"{identity.name}-{identity.version}"),
        baseline=baseline,
        cache=_cache() if cache else None,
    )
    with _progress() as progress:
        outcome = compile_model(request, progress)
    if report is not None:
        _write_report(report, outcome)
    release = outcome.release
    if as_json:
        where = {"path": str(request.destination), "digest": release.digest} if release else None
        print_json({"release": where, "report": outcome.report})
    else:
        _print_report(outcome.report)
        if outcome.cached:
            typer.echo("taken from the cache: the same was compiled before (--no-cache compiles it again)")
        if release:
            typer.echo(f"\nrelease {identity.name}:{identity.version} in {request.destination}\n{release.digest}")
    if release is None:
        failed = [entry.title for entry in outcome.report.targets if entry.required and entry.verdict.kept is None]
        raise AccuracyError(
            f"no variant for {', '.join(failed) or 'any target'} may be packed, nothing was written",
            hint="allow more with --max-accuracy-drop, give more calibration rows, or use --precision auto",
        )


def _task(path: Path | None, labels: str, scores: str) -> Task | None:
    from edgeserve.contracts.task import Task
    from edgeserve.task.model_toml import read_task

    if path is not None and (labels or scores):
        raise InputError("--labels and --scores are for models without --task", hint=f"write them into {path}")
    if path is not None:
        return read_task(path)
    if labels or scores:
        return Task(output=scores, labels=tuple(part.strip() for part in labels.split(",")) if labels else ())
    return None


def _find_own_functions(model: str, metric: str, task: Task | None) -> None:
    """Let `module:function` name a module in the current folder.

    Only when there is one, and last on the path: no file that happens to lie here takes the place of a library.
    """
    from edgeserve.contracts.task import FUNCTION

    names = ["" if Path(model).exists() else model, metric, *((task.metric, task.function) if task else ())]
    if any(map(FUNCTION.fullmatch, names)):
        sys.path.append(str(Path.cwd()))


def _cache() -> Cache:
    from edgeserve.contracts.limits import COMPILE_CACHE_BYTES
    from edgeserve_compilers.cache import RELEASES, Cache, default_folder

    return Cache(default_folder(os.environ, Path.home()) / RELEASES, COMPILE_CACHE_BYTES)


def _check_release(wish: Wish, path: Path, *, as_json: bool) -> None:
    from edgeserve.release.layout import verify_release
    from edgeserve_compilers.check import check

    release = verify_release(path)
    with _progress() as progress:
        checked = check(wish, release, progress)
    if as_json:
        print_json(checked)
    else:
        _print_check(checked)
    if not checked.same:
        differ = [file.packed.title for file in checked.files if not file.same]
        raise TrustError(
            f"{len(differ)} of {len(checked.files)} files of {path} are not what its inputs give here",
            hint="install the versions named above and check again" if checked.other_versions else "do not roll it out",
        )


def _print_check(checked: Checked) -> None:
    print_table(
        ("target", "form", "file", "digest", "verdict"),
        [
            (
                file.packed.target,
                file.packed.form,
                file.packed.title,
                file.packed.digest.removeprefix("sha256:")[:16],
                "same" if file.same else f"differs: {file.found.removeprefix('sha256:')[:16] or 'not made'}",
            )
            for file in checked.files
        ],
    )
    for library, (then, now) in checked.other_versions.items():
        typer.echo(f"{library}: {then} when it was compiled, {now or 'not installed'} here")


def _check_report_path(path: Path | None) -> None:
    if path is not None and path.suffix not in (".html", ".json"):
        raise InputError(f"--report {path} is neither .html nor .json")
    if path is not None and not path.absolute().parent.is_dir():
        raise InputError(f"--report {path}: there is no folder {path.absolute().parent}")


def _write_report(path: Path, outcome: Outcome) -> None:
    from edgeserve import atomic
    from edgeserve.contracts.documents import encode

    data = outcome.page.encode() if path.suffix == ".html" else encode(outcome.report)
    atomic.write_bytes(path, data)


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


def _name_of(model: str) -> str:
    stem = model.partition(":")[2] or Path(model).stem
    return re.sub(r"[^a-z0-9]+", "-", stem.lower())[:64].strip("-") or "model"


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
        typer.echo(f"{target.title}: {target.verdict.why}")
    if report.baseline:
        typer.echo(
            f"agreement with {report.baseline.version}: {report.baseline.agreement:.4f} on {report.baseline.rows} rows"
        )
    if not all(target.native for target in report.targets):
        typer.echo("(host) latency on this machine, a proxy that decides nothing for the device")
    for warning in (*report.unjudged, *report.warnings):
        typer.echo(f"warning: {warning}", err=True)


def _shown(target: TargetReport) -> list[Trial]:
    """What was packed; where nothing was that the target needs, all that was tried."""
    if target.kept:
        return [target.kept]
    return [trial for trial in target.trials if trial.refused] if target.required else []


def _row(target: TargetReport, trial: Trial) -> list[str]:
    verdict = f"kept: {trial.candidate.title}"
    if trial is not target.kept:
        verdict = f"refused: {trial.candidate.title}: {shorten('; '.join(trial.refused), _REASON, placeholder=' ...')}"
    found = trial.measurement
    if found is None:
        return [target.title, trial.candidate.precision.value, "", "", "", "", "", "", "", verdict]
    proxy = "" if target.native else " (host)"
    return [
        target.title,
        trial.candidate.precision.value,
        f"{found.float_value:.4f} -> {found.value:.4f}",
        f"{found.drop:+.4f} [{found.drop_low:+.4f}, {found.drop_high:+.4f}]",
        f"{trial.float_size_bytes / 1e3:.1f}",
        f"{trial.size_bytes / 1e3:.1f}",
        f"{found.float_latency_ms:.3f}",
        f"{found.latency_ms:.3f}{proxy}",
        " ".join(f"{count} {form}" for form, count in sorted(trial.placement.items()) if count),
        verdict,
    ]


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int, int, str], None]]:
    """A bar on stderr where someone looks, else nothing."""
    if not sys.stderr.isatty():
        yield lambda _done, _total, _what: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("loading", total=None)
        yield lambda done, total, what: bar.update(task, completed=done, total=total, description=what)
