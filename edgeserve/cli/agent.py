"""`edgeserve agent`: run the agent of a device, or look at what it keeps."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeserve.cli.output import print_json, print_table
from edgeserve.contracts.errors import DeviceError

if TYPE_CHECKING:
    from edgeserve_agent.config import AgentConfig
    from edgeserve_agent.deployment import Record

app = typer.Typer(no_args_is_help=True)

Config = Annotated[Path, typer.Option("--config", help="agent.toml, as `edgeserve fleet enroll` writes it.")]
StateDir = Annotated[str, typer.Option("--state-dir", help="Instead of the one in the configuration.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]

_CONFIG = Path("agent.toml")


@app.command()
def run(config: Config = _CONFIG, state_dir: StateDir = "") -> None:
    """Run the agent until SIGTERM: it keeps a model server alive and does what the fleet wants."""
    command = [sys.executable, "-m", "edgeserve_agent", "--config", str(config)]
    command += ["--state-dir", state_dir] if state_dir else []
    sys.stdout.flush()
    # A fresh interpreter: the agent stays for months, this one has loaded a command line.
    os.execv(command[0], command)  # noqa: S606 - no shell, our own interpreter


@app.command()
def status(config: Config = _CONFIG, state_dir: StateDir = "", as_json: Json = False) -> None:
    """Show what a device serves and how its deployments stand, from its state directory."""
    from edgeserve_agent.status import read_status

    found = read_status(_load(config, state_dir))
    if as_json:
        print_json(found)
        return
    server = f"serves at {found.http_url}" if found.http_url else "no server answers"
    typer.echo(f"{found.device}  generation {found.gen_seen}  {server}")
    if found.insecure:
        typer.echo("INSECURE: the server may be reached without TLS and token")
    rows = [
        (one.model, one.active, one.executing_device, one.previous, one.state, one.version, one.reason)
        for one in found.models
    ]
    if rows:
        print_table(("model", "active", "on", "previous", "deployment", "version", "reason"), rows)
    else:
        typer.echo("it has no model yet")
    for one in found.models:
        if one.fallback:
            typer.echo(f"FALLBACK: {one.model}: {one.fallback}")
    if found.quarantined:
        typer.echo(f"quarantined: {', '.join(found.quarantined)}")


@app.command()
def install(
    release: Annotated[Path, typer.Argument(metavar="RELEASE", help="Folder or .tar of a release.")],
    config: Config = _CONFIG,
    state_dir: StateDir = "",
) -> None:
    """Install a release from a file, without a fleet; the agent must be stopped."""
    from edgeserve_agent.local import install as install_release

    _say(install_release(_load(config, state_dir), release))


@app.command()
def rollback(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name of the model.")],
    config: Config = _CONFIG,
    state_dir: StateDir = "",
) -> None:
    """Return to the release that answered before, without a fleet; the agent must be stopped."""
    from edgeserve_agent.local import rollback as roll_back

    _say(roll_back(_load(config, state_dir), model))


def _load(config: Path, state_dir: str) -> AgentConfig:
    from edgeserve_agent.config import build, load

    flags = {"state_dir": state_dir} if state_dir else {}
    if state_dir and config == _CONFIG and not config.exists():
        return build({"device": {"id": "default.local"}, **flags}, "--state-dir")
    return load(config, os.environ, flags)


def _say(record: Record) -> None:
    typer.echo(f"{record.model} {record.target.version}: {record.state.value}")
    if record.state.value == "rejected":
        raise DeviceError(f"{record.model} {record.target.version} was rejected: {record.reason}")
    if record.in_flight:
        typer.echo("it answers, on probation, when the agent is started")
