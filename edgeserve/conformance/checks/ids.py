"""Area `ids`: the identifier of a request comes back in its answer."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from edgeserve.conformance.check import Level, check
from edgeserve.conformance.infer import head
from edgeserve.conformance.target import Target

_SOURCE = "OIP REST, Inference Request: id"


@check("ids.echoed", level=Level.MUST, source=_SOURCE)
def echoed(target: Target) -> None:
    """The id of the request is the id of the answer."""
    _echo(target, "42")


@check("ids.uuid", level=Level.MUST, source="kserve's client sends random UUIDs")
def uuid(target: Target) -> None:
    """A UUID comes back as it was."""
    _echo(target, "7f3c1f52-3a0e-4d6b-9a57-6b6d2f6f3e11")


@check("ids.unicode", level=Level.MUST, source=_SOURCE)
def unicode(target: Target) -> None:
    """An id of other than ASCII characters comes back as it was."""
    _echo(target, "größe ✓ 推論 🙂")


@check("ids.escapes", level=Level.MUST, source=_SOURCE)
def escapes(target: Target) -> None:
    """An id with quotes, backslashes and line breaks comes back as it was."""
    _echo(target, 'a "b" \\ c\n\td/')


@check("ids.long", level=Level.SHOULD, source=_SOURCE)
def long(target: Target) -> None:
    """An id of 200 characters comes back as it was."""
    _echo(target, "x" * 200)


@check("ids.absent", level=Level.MUST, source="OIP REST, Inference Response: id")
def absent(target: Target) -> None:
    """Without an id the request is answered; the answer's id, where it has one, is a text."""
    answer = target.infer(target.model)
    document, _ = head(answer)
    answer.must(isinstance(document.get("id", ""), str), 'a text "id", or none')


@check("ids.repeated", level=Level.MUST, source="OIP REST, Inference Request: id need not be unique")
def repeated(target: Target) -> None:
    """The same id twice is answered twice."""
    _echo(target, "again")
    _echo(target, "again")


@check("ids.concurrent", level=Level.MUST, source=_SOURCE)
def concurrent(target: Target) -> None:
    """Of many requests at once each gets its own id back."""
    model = target.model  # found before the threads begin
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: target.infer(model, request_id=f"r{number}"), range(64)))
    for number, answer in enumerate(answers):
        document, _ = head(answer)
        answer.must(document.get("id") == f"r{number}", f'"id": "r{number}"')


def _echo(target: Target, given: str) -> None:
    answer = target.infer(target.model, request_id=given)
    document, _ = head(answer)
    answer.must(document.get("id") == given, f'"id": {given!r}', repr(document.get("id")))
