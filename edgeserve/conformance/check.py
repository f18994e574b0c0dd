"""What a check is: an id, a requirement with its source, and a body that raises `Violation`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from edgeserve.conformance.target import Target

Body = Callable[["Target"], None]


class Level(str, Enum):
    """How much a server owes it (RFC 2119)."""

    MUST = "MUST"
    """The text of the protocol asks for it; and what contradicts itself must not be answered as if it made sense."""
    SHOULD = "SHOULD"
    """The protocol leaves it open, but named clients rely on it, or the reference implementation does it."""
    EXTENSION = "EXTENSION"
    """A must of an extension; counts only for servers that list the extension."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One requirement and how to see whether it is kept."""

    id: str
    """`area.name`, stable: scripts rely on it."""
    title: str
    """The requirement, a sentence."""
    level: Level
    source: str
    """Section of the protocol, document of an extension, or the client that relies on it."""
    extension: str
    """Runs only when the server lists it; empty for the protocol itself."""
    body: Body

    @property
    def area(self) -> str:
        """What it belongs to, such as `binary` or `grpc-core`."""
        return self.id.partition(".")[0]

    @property
    def needs_grpc(self) -> bool:
        """Tell whether the check speaks gRPC."""
        return self.area.startswith("grpc-")


class Violation(Exception):  # noqa: N818 - a finding, not an error of this program
    """The server did not keep the requirement."""

    def __init__(self, *, sent: str, expected: str, got: str) -> None:
        super().__init__(f"sent {sent}; expected {expected}; got {got}")
        self.sent = sent
        self.expected = expected
        self.got = got


class NoAnswer(Violation):
    """There was no answer at all: the server may be gone."""


class Skip(Exception):  # noqa: N818 - a finding, not an error of this program
    """The check cannot be made of this server; the text says why."""


CHECKS: Final[dict[str, Check]] = {}
"""All checks by id, in the order of their modules; filled when `edgeserve.conformance.checks` is imported."""


def check(check_id: str, *, level: Level, source: str, extension: str = "") -> Callable[[Body], Body]:
    """Register a function as a check; its docstring is the requirement."""

    def register(body: Body) -> Body:
        add(check_id, title=_sentence(body), level=level, source=source, extension=extension, body=body)
        return body

    return register


def add(check_id: str, *, title: str, level: Level, source: str, extension: str, body: Body) -> None:
    """Register a check that is made in a loop."""
    if check_id in CHECKS:
        raise AssertionError(f"two checks have the id {check_id}")
    CHECKS[check_id] = Check(id=check_id, title=title, level=level, source=source, extension=extension, body=body)


def _sentence(body: Body) -> str:
    text = body.__doc__
    if not text:
        raise AssertionError(f"{body!r} has no docstring to say what it requires")
    return " ".join(text.split("\n\n")[0].split()).rstrip(".")
