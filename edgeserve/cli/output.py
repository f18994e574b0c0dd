"""What commands print: JSON for scripts, tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
import typer

_LEAST_WIDTH = 300
_BETWEEN = 4
"""Columns of the screen between two columns of a table, at most."""


def print_json(document: object) -> None:
    """Print a document as indented JSON on stdout; structs, dataclasses and containers of them are understood."""
    typer.echo(msgspec.json.format(msgspec.json.encode(document, order="deterministic"), indent=2).decode())


def print_table(
    headers: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "", words: bool = False
) -> None:
    """Print a table on stdout; a column of numbers is aligned to the right, unless all columns are `words`."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    cells = [[_text(value) for value in row] for row in rows]
    table = Table(box=SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
    for column, header in enumerate(headers):
        numeric = bool(cells) and not words and all(row[column][:1] in "0123456789-+" for row in cells if row[column])
        table.add_column(header, justify="right" if numeric else "left", no_wrap=True)
    for row in cells:
        table.add_row(*row)
    # Never cropped: a terminal that is narrower wraps the line, and a pipe gets every character.
    width = sum(max(map(len, column)) + _BETWEEN for column in zip(headers, *cells, strict=True))
    console = Console(width=max(width, _LEAST_WIDTH), highlight=False, markup=False, emoji=False, no_color=True)
    with console.capture() as captured:
        console.print(table)
    typer.echo("\n".join(line.rstrip() for line in captured.get().splitlines()).strip("\n"))


def _text(value: object) -> str:
    return "" if value is None else str(value)
