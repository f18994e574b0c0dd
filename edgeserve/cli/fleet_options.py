"""Options that all `edgeserve fleet` commands share, and what they mean."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import Annotated

import typer

from edgeserve.client.fleet import FleetClient
from edgeserve.contracts.errors import InputError

Url = Annotated[
    str,
    typer.Option("--url", help="The fleet manager; default: EDGESERVE_FLEET_URL, then ./edgeserve-fleet."),
]
Token = Annotated[
    str,
    typer.Option("--token", help="Operator token; default: EDGESERVE_FLEET_TOKEN, then ./edgeserve-fleet."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def connect(url: str, token: str) -> FleetClient:
    """The client that the options and the environment ask for.

    Raises:
        InputError: Nothing says where the manager is.
    """
    return FleetClient.from_environment(os.environ, url=url, token=token)


def pairs(texts: Iterable[str], *, what: str) -> dict[str, str]:
    """Read `key=value` texts, each of which may hold several with commas between.

    Raises:
        InputError: One has no `=`, or a key comes twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        for part in filter(None, text.split(",")):
            key, equals, value = part.partition("=")
            if not equals or not key:
                raise InputError(f"{what} {part[:60]!r} is not KEY=VALUE", hint="write site=hall-3,line=2")
            if key in found:
                raise InputError(f"{what} {key[:60]!r} is given twice")
            found[key] = value
    return found


def ago(moment: float) -> str:
    """How long ago a moment (Unix seconds) was, for people; 0 = never."""
    if not moment:
        return "never"
    seconds = max(0.0, time.time() - moment)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit} ago"
    return f"{int(seconds)} s ago"


def share(correct: int, total: int) -> str:
    """A share with its denominator; nothing to divide by = a dash."""
    return f"{100 * correct / total:.1f} % of {total}" if total else "-"
