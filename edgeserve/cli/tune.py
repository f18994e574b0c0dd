"""`edgeserve tune`: what the user wants to a request, what was found to a table, a plot and settings."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeserve.cli.output import print_json, print_table
from edgeserve.contracts.errors import ConflictError, DeviceError, InputError, NotFoundError, TransientError

if TYPE_CHECKING:
    from edgeserve.contracts.model_config import ModelConfig
    from edgeserve_agent.tune.measure import Subject
    from edgeserve_agent.tune.objective import Objective
    from edgeserve_agent.tune.report import TuneReport

HEADERS = ("configuration", "clients", "requests/s", "p50 ms", "tail ms", "CPU ms", "MB", "rounds", "verdict")
_MOST_SHOWN = 12
_CONTROL_S = 200.0
"""A model is loaded again with its new settings."""


def command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Model file (.onnx, .xml, .tflite), release (a directory or .tar), or, with --state-dir, the name of "
            "a model of this device.",
            show_default=False,
        ),
    ],
    name: Annotated[str, typer.Option("--name", help="Name of the model; else that of the file or release.")] = "",
    latency_ms: Annotated[
        float | None, typer.Option("--latency-ms", help="Bound of the tail latency, milliseconds.", show_default=False)
    ] = None,
    percentile: Annotated[float, typer.Option("--percentile", help="Which one is the tail.")] = 99.0,
    memory_mb: Annotated[
        float | None,
        typer.Option("--memory-mb", help="Most private memory of the process; else what is free.", show_default=False),
    ] = None,
    objective: Annotated[
        str, typer.Option("--objective", metavar="throughput|latency|cpu", help="What to make best.")
    ] = "throughput",
    concurrency: Annotated[
        str, typer.Option("--concurrency", metavar="N[,N...]", help="Clients at once, for each load.")
    ] = "1,4,16",
    seconds: Annotated[float, typer.Option("--seconds", help="How long to search at most.")] = 120.0,
    inputs: Annotated[
        Path | None,
        typer.Option("--input", metavar="FILE.npz", help="Rows to send, one array per input; else random numbers."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.toml", help="Write the settings here, for `serve --config`."),
    ] = None,
    state_dir: Annotated[
        Path | None,
        typer.Option(
            "--state-dir", metavar="DIR", help="Write them where the agent of this device reads them: models/NAME.toml."
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE.html", help="Also write a page with the frontier.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Measure how a model is served best on this machine.

    Tries threads, instances, dynamic batching and runtimes, each in a process of its own, keeps the best that holds the
    bounds, and turns batching on only where it wins beyond noise. Exit code 1: nothing holds the bounds; nothing is
    written but the report.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from edgeserve_agent.tune.objective import Goal
    from edgeserve_agent.tune.page import method, render
    from edgeserve_agent.tune.plot import plot
    from edgeserve_agent.tune.report import report as report_of
    from edgeserve_agent.tune.settings import model_config, toml
    from edgeserve_agent.tune.tune import Request, tune
    from edgeserve_devices.probe import probe

    if output is not None and state_dir is not None:
        raise InputError("-o and --state-dir are two places", hint="give one of them")
    _check_file(output, ".toml", "-o")
    _check_file(report, ".html", "--report")
    goal = Goal(
        objective=_objective(objective),
        percentile=_between("--percentile", percentile, 1, 100),
        latency_ms=None if latency_ms is None else _between("--latency-ms", latency_ms, 0.001, 3_600_000),
        memory_bytes=None if memory_mb is None else int(1e6 * _between("--memory-mb", memory_mb, 1, 1e9)),
    )
    from edgeserve.contracts.limits import MAX_TUNE_S

    loads = _concurrencies(concurrency)
    _between("--seconds", seconds, 1, MAX_TUNE_S)
    subject = _subject(model, name, inputs, output, state_dir)
    request = Request(subject=subject, goal=goal, concurrencies=loads, seconds=seconds)
    with _progress() as progress:
        outcome = tune(request, progress)
    found = report_of(outcome, probe())
    text = ""
    if outcome.chosen is not None:
        text = toml(model_config(outcome.chosen.configuration, subject.base), _comments(found))
    if report is not None:
        _write(report, render(found, text))
    destination = _destination(output, state_dir, found.model)
    if text and destination is not None:
        _write(destination, text)
    if as_json:
        print_json({"written": str(destination) if text and destination else None, "report": found, "settings": text})
    else:
        _print(found)
        typer.echo(f"\n{plot(found)}\n")
        for line in method(found):
            typer.echo(f"- {line}")
        if text:
            typer.echo(f"\n{text}", nl=False)
    if outcome.chosen is None:
        raise DeviceError(
            f"nothing that was tried holds the bounds; nearest: {found.nearest}",
            hint="allow more with --latency-ms or --memory-mb, or compile the model to int8",
        )
    if destination is None:
        _say("keep it with -o FILE.toml (edgeserve serve --config FILE.toml) or --state-dir DIR", quiet=as_json)
        return
    _say(f"written to {destination}", quiet=as_json)
    if state_dir is not None:
        _say(_taken_up(state_dir, found.model), quiet=as_json)


def _say(text: str, *, quiet: bool) -> None:
    if not quiet:
        typer.echo(text)


def _objective(text: str) -> Objective:
    from edgeserve_agent.tune.objective import Objective

    try:
        return Objective(text)
    except ValueError:
        known = ", ".join(one.value for one in Objective)
        raise InputError(f"--objective {text[:40]!r} is not known", hint=f"use one of {known}") from None


def _between(option: str, value: float, low: float, high: float) -> float:
    if not low <= value <= high:
        raise InputError(f"{option} {value:g} is not between {low:g} and {high:g}")
    return value


def _concurrencies(text: str) -> tuple[int, ...]:
    from edgeserve.contracts.limits import MAX_TUNE_CLIENTS

    parts = [part.strip() for part in text.split(",")]
    numbers = [int(part) for part in parts if part.isascii() and part.isdecimal() and len(part) < 6]
    if len(numbers) != len(parts) or any(not 1 <= number <= MAX_TUNE_CLIENTS for number in numbers):
        raise InputError(
            f"--concurrency {text[:60]!r} is not a list of numbers from 1 to {MAX_TUNE_CLIENTS}", hint="such as 1,4,16"
        )
    return tuple(sorted(set(numbers)))


def _check_file(path: Path | None, suffix: str, option: str) -> None:
    """Before minutes are spent on what cannot be written."""
    if path is not None and path.suffix != suffix:
        raise InputError(f"{option} {path} is not a {suffix} file")
    if path is not None and not path.absolute().parent.is_dir():
        raise InputError(f"{option} {path}: there is no folder {path.absolute().parent}")


def _subject(model: str, name: str, inputs: Path | None, output: Path | None, state_dir: Path | None) -> Subject:
    from edgeserve_agent.serving.fleet_models import read_settings
    from edgeserve_agent.serving.model_folder import is_repository
    from edgeserve_agent.serving.model_source import OpenOptions
    from edgeserve_agent.serving.standalone import SingleModel
    from edgeserve_agent.tune.measure import Subject

    if inputs is not None and not inputs.is_file():
        raise NotFoundError(f"there is no file {inputs}", hint="--input names an .npz")
    if state_dir is not None and not state_dir.is_dir():
        raise NotFoundError(f"there is no state directory {state_dir}", hint="name that of the device's agent")
    path = Path(model)
    if state_dir is not None and not path.exists():
        from edgeserve_agent import slots

        slot = slots.read(state_dir).of(model).active
        if slot is None:
            raise NotFoundError(f"{model} is neither a file nor an active model of {state_dir}")
        if name not in ("", model):
            raise ConflictError(f"--name {name} is not the name of the device's model {model}")
        base = read_settings(state_dir, model)
        return Subject(
            path=slot.folder(state_dir), is_variant=True, version=slot.version, name=model, base=base, inputs=inputs
        )
    if is_repository(path):
        raise InputError(f"{path} is a folder of models", hint="tune them one by one: PATH/NAME/1/model.onnx")
    options = OpenOptions(threads=1, scratch=Path())
    served = SingleModel(path, name=name, options=options).name  # says what is wrong with either
    base = read_settings(state_dir, served) if state_dir is not None else _settings(output)
    return Subject(path=path, name=name, base=base, inputs=inputs)


def _settings(path: Path | None) -> ModelConfig:
    from edgeserve.contracts.model_config import ModelConfig
    from edgeserve_agent.serving.config_file import read_config

    return read_config(path) if path is not None and path.exists() else ModelConfig()


def _destination(output: Path | None, state_dir: Path | None, model: str) -> Path | None:
    if state_dir is None:
        return output
    from edgeserve_agent.serving.fleet_models import settings_path

    return settings_path(state_dir, model)


def _write(path: Path, text: str) -> None:
    from edgeserve import atomic

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DeviceError(f"cannot write {path}: {error.strerror}", hint="check its permissions") from error
    atomic.write_bytes(path, text.encode())


def _taken_up(state_dir: Path, model: str) -> str:
    """Tell the device's serving process, if it runs."""
    from edgeserve_agent.control import SOCKET, Configure, Done, call

    try:
        call(state_dir / SOCKET, Configure(model=model), Done, timeout_s=_CONTROL_S)
    except TransientError:
        return "the serving process does not run: it takes the settings up when it starts"
    except DeviceError as error:
        return f"the serving process goes on without them: {error.message}"
    return "the serving process has taken them up"


def _comments(report: TuneReport) -> list[str]:
    from edgeserve_agent.tune.report import in_words

    better = report.against_default
    gain = in_words(better, report.wanted.objective) if better else "as it is served without settings"
    return [
        f"edgeserve tune: {report.model} {report.version} with {report.runtime} on {report.device}",
        f"measured on {report.cpu}, {report.cores} cores; clients: {', '.join(map(str, report.wanted.concurrencies))}",
        gain,
    ]


def _print(report: TuneReport) -> None:
    wanted = report.wanted
    bound = f", p{wanted.percentile:g} up to {wanted.latency_ms:g} ms" if wanted.latency_ms else ""
    typer.echo(
        f"{report.model} {report.version}, {report.runtime} on {report.device}; {report.cpu}, {report.cores} cores\n"
        f"best {wanted.objective}{bound}, up to {wanted.memory_bytes / 1e6:.0f} MB\n"
    )
    print_table(HEADERS, [_row(trial) for trial in report.trials[:_MOST_SHOWN]])
    if len(report.trials) > _MOST_SHOWN:
        typer.echo(f"... and {len(report.trials) - _MOST_SHOWN} more that are worse (--json lists all)")


def _row(trial: object) -> list[str]:
    from edgeserve_agent.tune.report import Trial

    assert isinstance(trial, Trial)
    load = next((one for one in trial.loads if one.concurrency == trial.best_at), None)
    load = load or (trial.loads[-1] if trial.loads else None)
    figures = [""] * 5
    if load is not None:
        figures = [
            str(load.concurrency),
            f"{load.throughput:.1f}",
            f"{load.p50_ms:.3f}",
            f"{load.tail_ms:.3f}",
            f"{load.cpu_ms:.3f}",
        ]
    return [trial.title, *figures, f"{trial.memory_bytes / 1e6:.0f}", str(trial.rounds), trial.verdict[:80]]


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[float, float, str], None]]:
    """A bar on stderr where someone looks, else nothing."""
    if not sys.stderr.isatty():
        yield lambda _done, _total, _what: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("loading", total=None)
        yield lambda done, total, what: bar.update(task, completed=done, total=total, description=what)
