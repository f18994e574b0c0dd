"""`edgeserve compile --check RELEASE`: build every variant again from the same inputs and compare every byte."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import msgspec

from edgeserve.contracts.documents import decode
from edgeserve.contracts.errors import DeviceError, EdgeServeError, InputError, TrustError
from edgeserve.contracts.limits import MAX_GOLDEN_BYTES
from edgeserve.release.blobs import digest_file
from edgeserve.release.layout import Release
from edgeserve.runtimes.checks import first_line
from edgeserve_compilers.compilation import Compilation
from edgeserve_compilers.report import PackedFile, Provenance, Report, data_facts, versions
from edgeserve_compilers.run import Progress, find_target
from edgeserve_compilers.subject import Subject, Wish, read_subject


class CheckedFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file of a release beside the same file made again."""

    packed: PackedFile
    found: str
    """Digest of what was made now; empty = no such file was made."""

    @property
    def same(self) -> bool:
        """Whether both are the same bytes."""
        return self.packed.digest == self.found


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """What a check found."""

    files: tuple[CheckedFile, ...]
    other_versions: dict[str, tuple[str, str]]
    """Libraries that differ, the usual cause: version then, version now (empty = not installed)."""

    @property
    def same(self) -> bool:
        """Whether every file is reproduced."""
        return all(file.same for file in self.files)


def check(wish: Wish, release: Release, progress: Progress) -> Checked:
    """Build the variants of a release again.

    Nothing is searched or timed: the recipe of each variant is in the release's report.

    Args:
        wish: The inputs as they were given when the release was compiled; the task is the release's own.
        release: To check.
        progress: As in `compile_model`.

    Raises:
        NotFoundError: The release holds no provenance.
        TrustError: Its provenance speaks of other files than it holds.
        InputError: Model or data are not those that it was made from, or it names code that the wish does not.
        DeviceError: A variant cannot be made here.
    """
    provenance = decode(
        release.read_evidence("provenance.json", limit=MAX_GOLDEN_BYTES),
        Provenance, what="provenance.json", limit=MAX_GOLDEN_BYTES,
    )  # fmt: skip
    report = decode(
        release.read_evidence("report.json", limit=MAX_GOLDEN_BYTES), Report, what="report.json", limit=MAX_GOLDEN_BYTES
    )
    _hold_against(provenance, release)
    subject = _subject(wish, provenance)
    targets = {name: find_target(name) for name in provenance.targets}
    made: dict[tuple[str, str, str], str] = {}
    kept = [entry for entry in report.targets if entry.verdict.kept is not None]
    with tempfile.TemporaryDirectory(prefix="edgeserve-check-") as name:
        work = Compilation(Path(name), release.identity, subject, provenance.options, targets)
        for number, entry in enumerate(kept):
            progress(number, len(kept), entry.title)
            form = next(form for form in targets[entry.target].forms if form.name == entry.form)
            folder, workshop = (Path(name) / f"{kind}-{number}" for kind in ("product", "workshop"))
            folder.mkdir()
            workshop.mkdir()
            assert entry.verdict.kept is not None
            try:
                form.open(work.job(workshop)).produce(entry.verdict.kept, folder)
            except EdgeServeError:
                raise
            except Exception as error:  # converters raise anything
                raise DeviceError(
                    f"{entry.title} cannot be made again: {type(error).__name__}: {first_line(error)}",
                    hint="check with the versions of libraries that the release's provenance.json lists",
                ) from error
            made |= {(entry.target, entry.form, path.name): digest_file(path)[0] for path in folder.iterdir()}
    files = tuple(
        CheckedFile(packed=file, found=made.get((file.target, file.form, file.title), "")) for file in provenance.files
    )
    now = versions()
    differ = {
        name: (then, now.get(name, "")) for name, then in provenance.versions.items() if now.get(name, "") != then
    }
    return Checked(files=files, other_versions=differ)


def _hold_against(provenance: Provenance, release: Release) -> None:
    claimed = sorted((file.target, file.title, file.digest) for file in provenance.files)
    held = sorted(
        (variant.contract.target, title, descriptor.digest)
        for variant in release.variants
        for title, descriptor in variant.files.items()
    )
    if claimed != held:
        raise TrustError(
            "the provenance of the release names other files than the release holds",
            hint="it was put together by something else than the compiler: do not roll it out",
        )


def _subject(wish: Wish, provenance: Provenance) -> Subject:
    task = provenance.options.task
    named = {wish.metric, *((wish.task.metric, wish.task.function) if wish.task else ())}
    for function in (task.metric, task.function):
        if ":" in function and function not in named:
            raise InputError(
                f"the release was judged by {function}, and checking it would execute that",
                hint="if you trust it, name it as you did for the release: with --metric or --task",
            )
    subject = read_subject(replace(wish, task=task))
    then = (provenance.calibration, provenance.validation)
    now = tuple(data_facts(data) if data else None for data in (subject.calibration, subject.validation))
    if subject.model.spec.digest != provenance.model.digest:
        raise InputError(
            f"{subject.model.spec.file} is not the model of the release: {subject.model.spec.digest}, "
            f"it was made from {provenance.model.digest}",
            hint="give the file that was compiled",
        )
    for what, before, given in zip(("--calibration", "--validation"), then, now, strict=True):
        if (before.digest if before else "") != (given.digest if given else ""):
            raise InputError(
                f"{what} is not what the release was made with: {given.file if given else 'nothing'}, "
                f"it was made with {before.file if before else 'nothing'}",
                hint="give the same data as then" if before else f"leave {what} out",
            )
    return subject
