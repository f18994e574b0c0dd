"""`edgeserve doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeserve.cli.output import print_json, print_table


def command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what is installed, what clashes and what to do; exit 1 when something installed will not work."""
    from edgeserve.doctor.environment import read_environment
    from edgeserve.doctor.findings import Verdict, examine, is_broken

    findings = examine(read_environment(Path.cwd()))
    if as_json:
        print_json({"ok": not is_broken(findings), "findings": findings})
    else:
        print_table(
            ("", "what", "found"),
            [(finding.verdict.value, finding.subject, finding.detail) for finding in findings],
        )
        for finding in findings:
            if finding.hint:
                mark = "!" if finding.verdict in (Verdict.BROKEN, Verdict.WARNING) else "-"
                typer.echo(f"{mark} {finding.subject}: {finding.hint}")
    if is_broken(findings):
        raise typer.Exit(1)
