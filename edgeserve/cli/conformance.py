"""`edgeserve conformance`: hold any server to the Open Inference Protocol v2."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeserve.cli.output import print_json
from edgeserve.contracts.errors import InputError

if TYPE_CHECKING:
    from edgeserve.conformance.check import Check
    from edgeserve.conformance.grpc_client import Grpc
    from edgeserve.conformance.run import Report


def command(
    url: Annotated[str, typer.Option("--url", help="HTTP address of the server, such as http://127.0.0.1:8000.")] = "",
    grpc: Annotated[
        str, typer.Option("--grpc", metavar="HOST:PORT", help="Its gRPC address; without one, HTTP is checked only.")
    ] = "",
    model: Annotated[
        list[str] | None, typer.Option("--model", help="Check with this model, may be repeated; else with all listed.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="AREA|ID", help="Only these checks, may be repeated.")
    ] = None,
    skip: Annotated[
        list[str] | None, typer.Option("--skip", metavar="AREA|ID", help="Without these checks, may be repeated.")
    ] = None,
    extension: Annotated[
        list[str] | None, typer.Option("--extension", help="Check this extension though the server does not list it.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 for any failure, not only of a MUST.")] = False,
    timeout: Annotated[float, typer.Option("--timeout", metavar="SECONDS", min=0.1, help="For each answer.")] = 10.0,
    junit: Annotated[Path | None, typer.Option("--junit", help="Write JUnit XML to this file.")] = None,
    list_checks: Annotated[bool, typer.Option("--list", help="Print the checks and exit.")] = False,
    write_models: Annotated[
        Path | None,
        typer.Option("--write-models", metavar="DIR", help="Write the models that let every check run, and exit."),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Print what passed and was skipped, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check whether a server, anyone's, speaks the Open Inference Protocol v2.

    Exit code 0 when every MUST is kept, 1 when one is not. Checks of an extension run when the server lists it. Models
    are sent right and wrong requests; none but `lifecycle` of --write-models is ever unloaded.
    """
    from edgeserve.conformance.run import chosen

    checks = chosen(only or (), skip or ())
    if list_checks:
        _print_checks(checks, as_json=as_json)
        return
    if write_models is not None:
        _write_models(write_models, as_json=as_json)
        return
    if not url:
        raise InputError("no --url was given", hint="edgeserve conformance --url http://HOST:PORT")
    report = _run(url, grpc, model or (), extension or (), checks, timeout=timeout, quiet=as_json, verbose=verbose)
    if junit is not None:
        from edgeserve.conformance.report import junit as to_junit

        junit.write_text(to_junit(report), encoding="utf-8")
    if as_json:
        print_json(report)
    if not report.conforms(strict=strict):
        raise typer.Exit(1)


def _run(
    url: str,
    grpc: str,
    models: list[str] | tuple[str, ...],
    extensions: list[str] | tuple[str, ...],
    checks: list[Check],
    *,
    timeout: float,
    quiet: bool,
    verbose: bool,
) -> Report:
    from edgeserve.conformance.http import Http
    from edgeserve.conformance.report import outcome_lines, summary_lines
    from edgeserve.conformance.run import Outcome, Verdict, run
    from edgeserve.conformance.target import Target

    def done(outcome: Outcome) -> None:
        if not quiet and (verbose or outcome.verdict is Verdict.FAIL):
            typer.echo("\n".join(outcome_lines(outcome, verbose=verbose)))

    http = Http(url, timeout_s=timeout)
    http.reach()
    connection = _grpc(grpc, timeout=timeout)
    try:
        report = run(Target(http, grpc=connection, wanted=models, assumed=extensions), checks, done=done)
    finally:
        if connection is not None:
            connection.close()
    if not quiet:
        typer.echo("\n".join(summary_lines(report)))
    return report


def _grpc(address: str, *, timeout: float) -> Grpc | None:
    if not address:
        return None
    from edgeserve.conformance.grpc_client import Grpc

    return Grpc(address, timeout_s=timeout)


def _print_checks(checks: list[Check], *, as_json: bool) -> None:
    if as_json:
        fields = ("id", "title", "area", "level", "source", "extension")
        print_json([{field: getattr(check, field) for field in fields} for check in checks])
        return
    for check in checks:
        listed = f" (extension {check.extension})" if check.extension else ""
        typer.echo(f"{check.level.value:<9}  {check.id}: {check.title}{listed}")


def _write_models(folder: Path, *, as_json: bool) -> None:
    from edgeserve.conformance.models import write_models

    names = write_models(folder)
    if as_json:
        print_json({"folder": str(folder), "models": names})
        return
    typer.echo(f"{folder} has {len(names)} models in Triton's layout: {', '.join(names)}")
