"""Carry out a compilation: read, plan, work through every form of every target, pack what holds as a release."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgeserve import plugins
from edgeserve.contracts.documents import decode
from edgeserve.contracts.errors import ConflictError, InputError
from edgeserve.contracts.limits import MAX_GOLDEN_BYTES
from edgeserve.contracts.oci import ReleaseIdentity
from edgeserve.release.blobs import digest_of
from edgeserve.release.build import copy_release
from edgeserve.release.layout import Release, open_release
from edgeserve_compilers import plan
from edgeserve_compilers.cache import Cache
from edgeserve_compilers.compilation import Compilation, Outcome
from edgeserve_compilers.converters import onnx2tf
from edgeserve_compilers.report import Report, data_facts, versions
from edgeserve_compilers.spec import CompileOptions, PrecisionChoice
from edgeserve_compilers.subject import Subject, Wish, read_subject
from edgeserve_compilers.targets.base import Target
from edgeserve_devices.probe import probe

Progress = Callable[[int, int, str], None]
"""Called with what is done, what there is in all, and what begins now."""

_UNITS: Final = 100
"""Of progress for each form."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """Everything that one compilation starts from."""

    wish: Wish
    targets: tuple[str, ...]
    precision: PrecisionChoice = PrecisionChoice.AUTO
    max_accuracy_drop: float = 0.01
    identity: ReleaseIdentity
    destination: Path
    baseline: Path | None = None
    """The release before, to measure agreement with."""
    cache: Cache | None = None


def compile_model(request: Request, progress: Progress) -> Outcome:
    """Compile a model for every target and pack the release.

    Raises:
        InputError: The model, the task, the data or the wish is wrong.
        ConflictError: Something is at the destination.
        DeviceError: A library is missing, or the disk is full.
    """
    if request.destination.exists() or request.destination.is_symlink():
        raise ConflictError(f"{request.destination} exists already", hint="remove it or give another -o")
    targets = {name: find_target(name) for name in request.targets}
    if len(targets) > 1 and not all(target.faithful for target in targets.values()):
        raise InputError("target null answers nothing of what the model would", hint="compile for it alone")
    progress(0, 1, "reading the model and the data")
    subject = read_subject(request.wish)
    options = CompileOptions(
        precision=request.precision, max_accuracy_drop=request.max_accuracy_drop, task=subject.task
    )
    before = open_release(request.baseline) if request.baseline else None
    steps = plan.plan(
        subject.model.spec,
        {name: target.forms for name, target in targets.items()},
        options,
        calibrated=subject.calibration is not None,
    )
    key = _cache_key(request, subject, options, before)
    if request.cache and key and (folder := request.cache.get(key)):
        return _from_cache(folder, request.destination)
    with tempfile.TemporaryDirectory(prefix="edgeserve-compile-") as name:
        work = Compilation(Path(name), request.identity, subject, options, targets)
        for number, step in enumerate(steps):
            work.carry_out(step, _Share(progress, number, len(steps), expected=1 + 2 * len(step.candidates)))
        progress(_UNITS * len(steps), _UNITS * len(steps), "packing")
        outcome = work.finish(request.destination, request.targets, before)
    if request.cache and key and outcome.release and request.destination.is_dir():
        request.cache.put(key, request.destination)
    return outcome


def find_target(name: str) -> Target:
    """The target that is registered as `name`.

    Raises:
        NotFoundError: None is.
        DeviceError: Its library is not installed.
    """
    target: Target = plugins.find(plugins.TARGETS, name)()
    return target


class _Share:
    """Progress of one form: how many steps it will take shows only as it goes."""

    def __init__(self, progress: Progress, number: int, forms: int, *, expected: int) -> None:
        self._progress = progress
        self._start = _UNITS * number
        self._total = _UNITS * forms
        self._expected = expected
        self._begun = 0

    def __call__(self, what: str) -> None:
        done = min(self._begun / self._expected, 0.95)
        self._begun += 1
        self._progress(self._start + int(_UNITS * done), self._total, what)


def _cache_key(request: Request, subject: Subject, options: CompileOptions, before: Release | None) -> str:
    """Names everything that the outcome depends on; empty when code of the user's takes part, which has no digest."""
    if subject.task.function or ":" in subject.task.metric:
        return ""
    model, data = subject.model, (subject.calibration, subject.validation)
    host = probe()
    return Cache.key(
        model=model.spec,  # its digest holds all files of the model, its name is in the report
        content=digest_of(model.content),
        originals={name: digest_of(path.read_bytes()) for name, path in model.originals.items()},
        data=[data_facts(entry) if entry else None for entry in data],
        options=options,
        targets=request.targets,
        identity=request.identity,
        baseline=before.digest if before else "",
        versions=versions(),
        converters={"onnx2tf": onnx2tf.is_there()},
        host=[host.cpu, host.architecture, sorted(host.cpu_features), host.accelerators, host.runtimes],
    )


def _from_cache(folder: Path, destination: Path) -> Outcome:
    release = copy_release(folder, destination)
    report = release.read_evidence("report.json", limit=MAX_GOLDEN_BYTES)
    page = release.read_evidence("report.html", limit=MAX_GOLDEN_BYTES)
    return Outcome(
        report=decode(report, Report, what="report.json", limit=MAX_GOLDEN_BYTES),
        page=page.decode(),
        release=release,
        cached=True,
    )
