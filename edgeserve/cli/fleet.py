"""`edgeserve fleet`: run the manager, enrol devices, publish releases, ask why."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from edgeserve.cli import rollout
from edgeserve.cli.fleet_options import AsJson, Token, Url, ago, connect, pairs, share
from edgeserve.cli.output import print_json, print_table

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, add_completion=False)
app.add_typer(rollout.app, name="rollout", help="Bring a release to devices in waves, watch it, take it back.")


@app.command()
def serve(
    config: Annotated[Path | None, typer.Option("--config", help="TOML file (fleet.toml).")] = None,
    state_dir: Annotated[
        str | None, typer.Option("--state-dir", help="Database, keys, blobs, broker. Default: ./edgeserve-fleet.")
    ] = None,
    db: Annotated[str | None, typer.Option("--db", help="Database file or URL.")] = None,
    broker: Annotated[
        str | None, typer.Option("--broker", help="`embedded`, or mqtt[s]://HOST:PORT of another broker.")
    ] = None,
    listen: Annotated[
        str | None, typer.Option("--listen", help="HOST:PORT. Default: 127.0.0.1:8080; port 0 = any.")
    ] = None,
    public_url: Annotated[
        str | None, typer.Option("--public-url", help="URL under which devices reach the manager, if another.")
    ] = None,
    insecure_dev: Annotated[
        bool, typer.Option("--insecure-dev", help="Allow a public address without TLS. Every status shows it.")
    ] = False,
) -> None:
    """Run the fleet manager: REST API, registry, web page, and the broker unless another is named."""
    from edgeserve_fleet.config import load
    from edgeserve_fleet.server import run

    flags = {
        "state_dir": state_dir,
        "db": db,
        "broker": broker,
        "listen": listen,
        "public_url": public_url,
        "insecure_dev": True if insecure_dev else None,
    }
    run(load(config, os.environ, flags), announce=typer.echo)


@app.command()
def enroll(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the device: a-z, 0-9 and '-'; or TENANT.NAME.")],
    label: Annotated[list[str] | None, typer.Option("--label", help="KEY=VALUE, may be repeated.")] = None,
    profile: Annotated[str, typer.Option("--profile", help="Device profile; see `edgeserve devices list`.")] = "",
    simulate: Annotated[
        bool, typer.Option("--simulate", help="This machine stands in for the profile's hardware, and says so.")
    ] = False,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to write the agent's configuration.")] = Path(
        "agent.toml"
    ),
    state_dir: Annotated[
        Path | None, typer.Option("--state-dir", help="The agent's folder. Default: edgeserve-agent/NAME beside it.")
    ] = None,
    http: Annotated[str, typer.Option("--http", help="Where the agent serves; port 0 = any.")] = "127.0.0.1:8000",
    minimum_probation: Annotated[
        float, typer.Option("--minimum-probation", min=0, help="Seconds; the fleet cannot ask for less.")
    ] = 10.0,
    stats_every: Annotated[
        float, typer.Option("--stats-every", min=0.1, help="Seconds between two reports of counters.")
    ] = 10.0,
    force: Annotated[bool, typer.Option("--force", help="Replace the output file.")] = False,
    url: Url = "",
    token: Token = "",
    as_json: AsJson = False,
) -> None:
    """Enrol a device and write its agent.toml, which holds its secret token: bring it to the device, keep no copy."""
    from edgeserve import atomic
    from edgeserve.contracts.errors import ConflictError, DeviceError, InputError

    labels = pairs(label or (), what="label")
    if simulate and not profile:
        raise InputError("--simulate needs a --profile to stand in for", hint="see `edgeserve devices list`")
    output = output.absolute()
    if output.exists() and not force:
        raise ConflictError(f"{output} exists already", hint="name another with -o, or replace it with --force")
    if not output.parent.is_dir():
        raise InputError(f"folder {output.parent} does not exist", hint="make it first")
    _check_settings(profile, http)
    enrolment = connect(url, token).enrol(name, labels=labels, profile=profile)
    short = str(enrolment["device"]).partition(".")[2]
    folder = (state_dir or output.parent / "edgeserve-agent" / short).absolute()
    text = agent_toml(
        enrolment,
        folder=folder,
        profile=profile,
        simulate=simulate,
        http=http,
        probation_s=minimum_probation,
        stats_s=stats_every,
    )
    try:
        atomic.write_bytes(output, text.encode(), mode=0o600)
    except DeviceError as error:
        again = f"`edgeserve fleet revoke {name}`, then enrol it again"
        raise DeviceError(f"{error.message}; the new token is lost", hint=f"{error.hint}; {again}") from error
    if as_json:
        print_json({"device": enrolment["device"], "config": str(output), "state_dir": str(folder)})
        return
    typer.echo(f"enrolled {enrolment['device']}; its token is in {output} alone")
    typer.echo(f"start it there: edgeserve agent run --config {output.name}")


def _check_settings(profile: str, http: str) -> None:
    """Refuse what the agent would refuse, before a token is made that nobody can use."""
    from edgeserve.contracts.errors import InputError
    from edgeserve_agent.serving.listen import listen_address
    from edgeserve_devices.profiles import load_profile

    if profile:
        load_profile(profile)
    try:
        listen_address(http, insecure_dev=False)
    except InputError as error:
        raise InputError(
            f"--http: {error.message}",
            hint="write 127.0.0.1:PORT; on a network of your own, change it in agent.toml with insecure_dev = true "
            "under [serving]",
        ) from error


def agent_toml(
    enrolment: dict[str, Any],
    *,
    folder: Path,
    profile: str,
    simulate: bool,
    http: str,
    probation_s: float,
    stats_s: float,
) -> str:
    """Text of the agent's configuration."""

    def quoted(value: object) -> str:
        return json.dumps(str(value), ensure_ascii=False)  # a TOML basic string has JSON's escapes

    return "\n".join(
        [
            f"state_dir = {quoted(folder)}",
            "",
            "[device]",
            f"id = {quoted(enrolment['device'])}",
            f"profile = {quoted(profile)}",
            f"simulate = {'true' if simulate else 'false'}",
            "",
            "[manager]",
            f"url = {quoted(enrolment['manager_url'])}",
            f"token = {quoted(enrolment['token'])}",
            f"key = {quoted(enrolment['manager_key'])}",
            "poll_s = 60",
            "",
            "[mqtt]",
            f"url = {quoted(enrolment['mqtt_url'])}",
            "",
            "[serving]",
            f"http = {quoted(http)}",
            "",
            "[limits]",
            f"minimum_probation_s = {probation_s:g}",
            "",
            "[telemetry]",
            f"stats_s = {stats_s:g}",
            "",
        ]
    )


@app.command()
def devices(url: Url = "", token: Token = "", as_json: AsJson = False) -> None:
    """List the devices: what they run, and how well."""
    rows = connect(url, token).devices()
    if as_json:
        print_json(rows)
        return
    print_table(
        ["device", "profile", "online", "model", "version", "wanted", "state", "runs on", "accuracy", "last seen"],
        [row for device in rows for row in _device_rows(device)],
    )


@app.command()
def revoke(
    device: Annotated[str, typer.Argument(metavar="DEVICE", help="Name or id of the device.")],
    url: Url = "",
    token: Token = "",
    as_json: AsJson = False,
) -> None:
    """Take a device's credentials away; what it serves goes on."""
    answer = connect(url, token).revoke(device)
    if as_json:
        print_json(answer)
    else:
        typer.echo(f"revoked {answer['revoked']}")


@app.command()
def releases(url: Url = "", token: Token = "", as_json: AsJson = False) -> None:
    """List the releases that were published."""
    rows = connect(url, token).releases()
    if as_json:
        print_json(rows)
        return
    print_table(
        ["release", "counter", "variants", "added", "digest"],
        [
            [
                f"{row['name']}:{row['version']}",
                row["counter"],
                ", ".join(f"{variant['target']} {variant['precision']}" for variant in row["variants"]),
                ago(row["added_at"]),
                row["digest"] + ("  HALTED" if row.get("halted") else ""),
            ]
            for row in rows
        ],
    )


@app.command()
def publish(
    release: Annotated[Path, typer.Argument(metavar="RELEASE", help="Release: a folder or a .tar.")],
    url: Url = "",
    token: Token = "",
    as_json: AsJson = False,
) -> None:
    """Check a release here, push what the registry lacks, and make it known to the fleet."""
    from edgeserve.client.registry import RegistryClient
    from edgeserve.release.layout import verify_release

    client = connect(url, token)
    opened = verify_release(release)
    registry = RegistryClient(client.url, opened.identity.name, token=client.token)
    size = sum(descriptor.size for descriptor in opened.blob_descriptors())
    if sys.stderr.isatty():
        with typer.progressbar(length=size, label=f"pushing {opened.identity.name}", file=sys.stderr) as bar:
            sent = registry.push(opened, progress=lambda done, _total: bar.update(done - bar.pos))
    else:
        sent = registry.push(opened)
    view = client.register_release(opened.digest)
    if as_json:
        print_json(view)
        return
    typer.echo(f"{opened.identity.name}:{opened.identity.version}")
    typer.echo(opened.digest)
    typer.echo(f"{sent} of {size} bytes sent, the rest was there")


@app.command()
def why(
    device: Annotated[str, typer.Argument(metavar="DEVICE", help="Name or id of the device.")],
    url: Url = "",
    token: Token = "",
    as_json: AsJson = False,
) -> None:
    """Say why a device has, or has not, the releases that the fleet wants of it."""
    lines = connect(url, token).why(device)
    if as_json:
        print_json(lines)
        return
    for line in lines:
        typer.echo(line)


@app.command()
def status(url: Url = "", token: Token = "", as_json: AsJson = False) -> None:
    """Say how the manager runs."""
    answer = connect(url, token).status()
    if as_json:
        print_json(answer)
        return
    if answer.get("insecure"):
        typer.echo("WARNING: tokens cross the network in the clear (--insecure-dev)", err=True)
    for key, value in answer.items():
        typer.echo(f"{key.replace('_', ' '):<15} {str(value).lower() if isinstance(value, bool) else value}")


def _device_rows(device: dict[str, Any]) -> list[list[object]]:
    """One row a model; a device without one has a row, too."""
    facts = device.get("facts") or {}
    simulated = " (simulated)" if facts.get("simulated") else ""
    state = "revoked" if device["revoked"] else "yes" if device["online"] else "no"
    start = [device["device"], device["profile"] + simulated, state]
    stats = {(row["model"], row["release"]): row for row in device["stats"]}
    rows = []
    for model in device["models"]:
        counted = stats.get((model["model"], model["active"]), {})
        accuracy = share(counted.get("correct", 0), counted.get("feedback", 0))
        rows.append(
            [
                *start,
                model["model"],
                model["version"] or "-",
                model["desired_version"] or "-",
                model["state"] + (f": {model['reason']}" if model["reason"] else ""),
                model["executing_device"],
                accuracy,
                ago(device["last_seen"]),
            ]
        )
    return rows or [[*start, "-", "-", "-", "", "", "-", ago(device["last_seen"])]]
