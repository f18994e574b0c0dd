"""`edgeserve fleet rollout`: create, plan, start, pause, resume, abort, rollback, status, watch."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Annotated, Any, Final

import msgspec
import typer

from edgeserve.cli.fleet_options import AsJson, Token, Url, ago, connect, pairs
from edgeserve.cli.output import print_json, print_table
from edgeserve.client.fleet import FleetClient
from edgeserve.contracts.errors import ConflictError, TransientError
from edgeserve.contracts.limits import GATE_MIN_SAMPLES

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, add_completion=False)

_ENDED: Final = ("succeeded", "aborted", "rolled-back")
_POLL_S: Final = 0.3
_PATIENCE_S: Final = 60.0
"""A manager that restarts is waited for as long as this."""

Release = Annotated[
    str, typer.Argument(metavar="RELEASE", help="NAME:VERSION, NAME@sha256:... or a digest of a published release.")
]
Waves = Annotated[str, typer.Option("--waves", help="Cumulative: 1,3,6 or 1,10%,100%.")]
Selector = Annotated[list[str] | None, typer.Option("--selector", help="Only devices with these labels: KEY=VALUE,...")]
Margin = Annotated[float, typer.Option("--margin", help="Accuracy that may be lost against the other devices.")]
MinSamples = Annotated[
    int, typer.Option("--min-samples", help="Feedback needed on both sides to decide; 0: commits decide.")
]
Probation = Annotated[float, typer.Option("--probation", help="Seconds in which a device still reverts by itself.")]
Observe = Annotated[float, typer.Option("--observe", help="Seconds that a wave is watched after its last commit.")]
Deadline = Annotated[float, typer.Option("--deadline", help="Seconds for a wave; silent devices have failed by then.")]
OnFail = Annotated[str, typer.Option("--on-fail", help="When a gate fails: rollback, pause or abort.")]
Id = Annotated[str, typer.Argument(metavar="ROLLOUT", help="Id of the rollout.")]


@app.command()
def create(
    release: Release,
    waves: Waves,
    selector: Selector = None,
    margin: Margin = 0.03,
    min_samples: MinSamples = GATE_MIN_SAMPLES,
    probation: Probation = 30.0,
    observe: Observe = 10.0,
    deadline: Deadline = 3600.0,
    on_fail: OnFail = "rollback",
    start: Annotated[bool, typer.Option("--start", help="Start it at once.")] = False,
    url: Url = "",
    token: Token = "",
    as_json: AsJson = False,
) -> None:
    """Create a rollout; nothing moves before it is started."""
    client = connect(url, token)
    spec = _spec(release, waves, selector, margin, min_samples, probation, observe, deadline, on_fail)
    view = client.create_rollout(spec)
    if start:
        try:
            view = client.act(view["rollout"], "start")
        except ConflictError as error:
            hint = f"it stays a draft; later: edgeserve fleet rollout start {view['rollout']}"
            raise ConflictError(error.message, hint=f"{error.hint}; {hint}" if error.hint else hint) from error
    if as_json:
        print_json(view)
        return
    typer.echo(f"rollout {view['rollout']} of {view['model']}:{view['version']} is {_state(view)}")
    following = "watch" if start else "start"
    typer.echo(f"next: edgeserve fleet rollout {following} {view['rollout']}")


@app.command()
def plan(
    release: Release,
    waves: Waves,
    selector: Selector = None,
    margin: Margin = 0.03,
    min_samples: MinSamples = GATE_MIN_SAMPLES,
    probation: Probation = 30.0,
    observe: Observe = 10.0,
    deadline: Deadline = 3600.0,
    on_fail: OnFail = "rollback",
    url: Url = "",
    token: Token = "",
    as_json: AsJson = False,
) -> None:
    """Say what a rollout would do, device by device, without creating it."""
    spec = _spec(release, waves, selector, margin, min_samples, probation, observe, deadline, on_fail)
    view = connect(url, token).plan(spec)
    if as_json:
        print_json(view)
        return
    print_table(
        ["device", "wave", "why"],
        [[row["device"], row["wave"] or "-", row["reason"]] for row in view["devices"]],
        title=f"{view['model']}:{view['version']}",
    )
    for problem in view["problems"]:
        typer.echo(f"problem: {problem}")


def _action(name: str, text: str) -> Callable[[str, str, str, bool], None]:
    def command(rollout: Id, url: Url = "", token: Token = "", as_json: AsJson = False) -> None:
        view = connect(url, token).act(rollout, name)
        if as_json:
            print_json(view)
        else:
            typer.echo(f"rollout {view['rollout']} is {_state(view)}")

    command.__doc__ = text
    return command


for _name, _text in (
    ("start", "Start a rollout: its first wave goes out when it is valid."),
    ("pause", "Stop offering the release to further devices; those that have it keep it."),
    ("resume", "Go on with a paused rollout; failures so far are acknowledged, new ones count."),
    ("abort", "End a rollout; devices keep what they have."),
    ("rollback", "End a rollout and return every touched device to what it had before."),
):
    app.command(_name)(_action(_name, _text))


@app.command()
def status(
    rollout: Annotated[str, typer.Argument(metavar="ROLLOUT", help="Id of the rollout; all when none is given.")] = "",
    url: Url = "",
    token: Token = "",
    as_json: AsJson = False,
) -> None:
    """Show all rollouts, or one with its devices and verdicts."""
    client = connect(url, token)
    if rollout:
        view = client.rollout(rollout)
        print_json(view) if as_json else _show(view)
        return
    rows = client.rollouts()
    if as_json:
        print_json(rows)
        return
    print_table(
        ["rollout", "release", "state", "wave", "devices", "created", "reason"],
        [
            [
                row["rollout"],
                f"{row['model']}:{row['version']}",
                _state(row),
                f"{row['wave']} of {len(row['spec']['waves'])}",
                _counts(row),
                ago(row["created_at"]),
                row["reason"],
            ]
            for row in rows
        ],
    )


@app.command()
def watch(rollout: Id, url: Url = "", token: Token = "", as_json: AsJson = False) -> None:
    """Follow a rollout until it ends; exits 0 when it succeeded, 1 otherwise."""
    client = connect(url, token)
    seen, verdicts = "", 0
    while True:
        view = _patiently(client, rollout)
        line = f"{_state(view)}, wave {view['wave']} of {len(view['spec']['waves'])}: {_counts(view) or 'no devices'}"
        line += f" - {view['reason']}" if view["reason"] and not _is_verdict(view) else ""
        if line != seen or len(view["verdicts"]) != verdicts:
            if as_json:
                typer.echo(msgspec.json.encode(view))
            else:
                for judged in view["verdicts"][verdicts:]:
                    typer.echo(f"gate of wave {judged['wave']}: {verdict_text(judged)}")
                if line != seen:
                    typer.echo(line)
            seen, verdicts = line, len(view["verdicts"])
        if view["state"] in _ENDED or (view["state"] == "draft" and view["reason"]):
            raise typer.Exit(0 if view["state"] == "succeeded" else 1)
        time.sleep(_POLL_S)


def _is_verdict(view: dict[str, Any]) -> bool:
    """Whether the reason repeats what the line of the gate said."""
    return any("; ".join(judged["verdict"]["reasons"]) in view["reason"] for judged in view["verdicts"])


def verdict_text(judged: dict[str, Any]) -> str:
    """A verdict; its reasons carry the numbers that it rests on."""
    return f"{judged['verdict']['outcome'].upper()}: {'; '.join(judged['verdict']['reasons'])}"


def _patiently(client: FleetClient, rollout: str) -> dict[str, Any]:
    """Ask for a rollout; a manager that is away for a moment is waited for."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(TransientError):
            return client.rollout(rollout)
        time.sleep(_POLL_S)
    return client.rollout(rollout)


def _spec(
    release: str,
    waves: str,
    selector: list[str] | None,
    margin: float,
    min_samples: int,
    probation: float,
    observe: float,
    deadline: float,
    on_fail: str,
) -> dict[str, Any]:
    return {
        "release": release,
        "waves": waves,
        "selector": pairs(selector or (), what="selector"),
        "gate": {"margin": margin, "min_samples": min_samples},
        "probation_s": probation,
        "observe_s": observe,
        "wave_deadline_s": deadline,
        "on_fail": on_fail,
    }


def _state(view: dict[str, Any]) -> str:
    return f"{view['state']} ({view['phase']})" if view["phase"] else str(view["state"])


def _counts(view: dict[str, Any]) -> str:
    return ", ".join(f"{count} {state}" for state, count in view["counts"].items() if count)


def _show(view: dict[str, Any]) -> None:
    typer.echo(f"rollout {view['rollout']}: {view['model']}:{view['version']} is {_state(view)}")
    if view["reason"]:
        typer.echo(f"reason: {view['reason']}")
    print_table(
        ["device", "wave", "state", "phase", "reason"],
        [[row["device"], row["wave"] or "-", row["state"], row["phase"], row["reason"]] for row in view["devices"]],
    )
    for judged in view["verdicts"]:
        typer.echo(f"gate of wave {judged['wave']}: {verdict_text(judged)}")
    if view.get("now"):
        typer.echo(f"the gate would now say: {verdict_text(view['now'])}")
