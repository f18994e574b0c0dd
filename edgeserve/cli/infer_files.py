"""`edgeserve infer` with pictures and sound: one file, or all those of a folder."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import typer

from edgeserve.cli.output import print_json, print_table
from edgeserve.contracts.errors import EdgeServeError, InputError, NotFoundError, TransientError
from edgeserve.contracts.limits import MAX_DATASET_FILES, MAX_MEDIA_BYTES

if TYPE_CHECKING:
    from edgeserve.client.inference import FileResult, InferenceClient

CONTENT_TYPES: Final = {
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".bmp": "image/bmp",
    ".webp": "image/webp",
    ".wav": "audio/wav",
}
"""By suffix, in lower case; the server looks at the bytes."""
_MOST_SHOWN: Final = 3
_MOST_CHARS: Final = 100


@dataclass(kw_only=True)
class Outcome:
    """What became of several files."""

    answers: list[tuple[str, FileResult]] = field(default_factory=list)
    errors: list[tuple[str, EdgeServeError]] = field(default_factory=list)
    not_sent: int = 0
    """Files left when the server was gone."""


def takes(path: Path) -> bool:
    """Whether `path` is a folder or named like a picture or sound."""
    return path.is_dir() or path.suffix.lower() in CONTENT_TYPES


def infer_files(
    client: InferenceClient,
    model: str,
    source: Path,
    *,
    version: str,
    request_id: str,
    output: Path | None,
    as_json: bool,
) -> None:
    """Send a file, or every picture and WAV below a folder in the order of their names, and show the answers.

    Raises:
        InputError: An option makes no sense with files, or the only file is refused.
        NotFoundError: There is no file, or the server has no such model.
        TransientError: The server does not answer.
        typer.Exit: Code 1: some of several files got no answer; each was named on stderr.
    """
    if output is not None and output.suffix != ".json":
        raise InputError(f"--output {output} is not a .json", hint="answers to files are written as JSON")
    several = source.is_dir()
    if several and request_id:
        raise InputError("--id names one request, and --input is a folder", hint="leave --id out")
    metadata = client.metadata(model, version=version)  # one error, not one for each file
    files = _found(source) if several else (source,)

    def send(path: Path) -> FileResult:
        content_type = CONTENT_TYPES[path.suffix.lower()]
        return client.infer_file(model, _read(path), content_type=content_type, version=version, request_id=request_id)

    outcome = send_all(files, source, send, client.ready) if several else Outcome(answers=[(source.name, send(source))])
    document = _document(metadata.name, outcome)
    if output is not None:
        _write(output, document)
    if as_json:
        print_json(document)
    else:
        rows = [(name, shown(result.predictions)) for name, result in outcome.answers]
        print_table(("file", "answer"), rows, title=f"{metadata.name} {document['version']}", words=True)
    _report(outcome, len(files))


def shown(predictions: Sequence[dict[str, Any]]) -> str:
    """Predictions in a few words; of several steps, how many and the last."""
    if len(predictions) != 1:
        return f"{len(predictions)} steps, the last: {shown(predictions[-1:])}" if predictions else "nothing"
    prediction = predictions[0]
    match prediction:
        case {"classes": [*classes]}:
            return ", ".join(_scored(entry) for entry in classes[:_MOST_SHOWN]) or "no class"
        case {"boxes": [*boxes]}:
            named = ", ".join(_scored(entry) for entry in boxes[:_MOST_SHOWN])
            more = ", ..." if len(boxes) > _MOST_SHOWN else ""
            return f"{len(boxes)} box{'' if len(boxes) == 1 else 'es'}{': ' if boxes else ''}{named}{more}"
        case _:
            text = ", ".join(f"{name} {msgspec.json.encode(value).decode()}" for name, value in prediction.items())
            return text if len(text) <= _MOST_CHARS else f"{text[: _MOST_CHARS - 3]}..."


def _scored(entry: dict[str, Any]) -> str:
    score = entry.get("score")
    return f"{entry.get('label')} {score:.2f}" if isinstance(score, int | float) else str(entry.get("label"))


def _found(folder: Path) -> tuple[Path, ...]:
    found: list[Path] = []
    for where, _folders, names in os.walk(folder):
        found += [Path(where, name) for name in names if Path(name).suffix.lower() in CONTENT_TYPES]
        if len(found) > MAX_DATASET_FILES:
            raise InputError(f"{folder} has more than {MAX_DATASET_FILES} files", hint="send its sub-folders")
    if not found:
        raise NotFoundError(f"there is no picture or WAV in {folder}", hint=f"known are {', '.join(CONTENT_TYPES)}")
    return tuple(sorted(found))


def send_all(
    files: Sequence[Path], folder: Path, send: Callable[[Path], FileResult], alive: Callable[[], bool]
) -> Outcome:
    """Send one file after the other; an error ends nothing unless the server is gone.

    Args:
        files: Below `folder`.
        folder: Names are relative to it.
        send: Sends one.
        alive: Whether the server answers; asked after an error of the network.
    """
    outcome = Outcome()
    with _progress(len(files)) as advance:
        for number, path in enumerate(files, 1):
            name = str(path.relative_to(folder))
            try:
                outcome.answers.append((name, send(path)))
            except EdgeServeError as error:
                outcome.errors.append((name, error))
                if isinstance(error, TransientError) and not alive():
                    outcome.not_sent = len(files) - number
                    break
            advance()
    return outcome


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_MEDIA_BYTES + 1)
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {path}") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > MAX_MEDIA_BYTES:
        raise InputError(f"{path} has more than {MAX_MEDIA_BYTES} bytes, the most that are sent")
    return data


def _document(model: str, outcome: Outcome) -> dict[str, Any]:
    last = outcome.answers[-1][1] if outcome.answers else None
    answered: list[dict[str, Any]] = [
        {"file": name, "predictions": result.predictions} | ({"id": result.request_id} if result.request_id else {})
        for name, result in outcome.answers
    ]
    failed: list[dict[str, Any]] = [{"file": name, "error": error.message} for name, error in outcome.errors]
    return {
        "model": model,
        "version": last.model_version if last else "",
        "release": last.release if last else "",
        "files": sorted((*answered, *failed), key=lambda entry: str(entry["file"])),
        "failed": len(failed),
        "not_sent": outcome.not_sent,
    }


def _report(outcome: Outcome, files: int) -> None:
    for name, error in outcome.errors:
        typer.echo(f"error: {name}: {error.message}", err=True)
    if outcome.not_sent:
        typer.echo(f"error: the server does not answer any more: {outcome.not_sent} files were not sent", err=True)
    if outcome.errors:
        typer.echo(f"{len(outcome.answers)} of {files} files were answered", err=True)
        raise typer.Exit(1)


def _write(path: Path, document: dict[str, Any]) -> None:
    from edgeserve import atomic

    atomic.write_bytes(path, msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[], object]]:
    """A bar on stderr where someone looks, else nothing."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("files", total=total)
        yield lambda: bar.advance(task)
