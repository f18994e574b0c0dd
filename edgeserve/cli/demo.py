"""`edgeserve demo`."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer


def command(
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave everything running at the end, print the addresses.")
    ] = False,
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Work in this folder and leave it; default: a temporary one.")
    ] = None,
) -> None:
    """The whole story on one machine.

    Compiles a real model, starts a broker, a manager and six agents, rolls out a better release in waves, then a bad
    one that the gate takes back, while a client counts every answer. Exits 0 only when all of it happened.
    """
    from edgeserve.demo.story import run

    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        raise typer.Exit(run(folder.resolve(), keep=keep))
    temporary = Path(tempfile.mkdtemp(prefix="edgeserve-demo-"))
    code = 1
    try:
        code = run(temporary, keep=keep)
    finally:
        if code == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            typer.echo(f"logs and state are left in {temporary}", err=True)
    raise typer.Exit(code)
