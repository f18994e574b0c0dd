"""One form of one target: make candidates, run each by its own runtime, judge it, keep the best."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

from msgspec.structs import replace

from edgeserve import plugins
from edgeserve.contracts.errors import DeviceError, EdgeServeError, InputError, MissingLibraryError
from edgeserve.contracts.task import Task
from edgeserve.runtimes.base import LoadedModel, RuntimeOptions, Tensors
from edgeserve.runtimes.checks import first_line
from edgeserve.runtimes.rows import run_rows, run_task
from edgeserve.runtimes.variant import CONTRACT_FILE, find_runtime
from edgeserve_compilers import plan, verify
from edgeserve_compilers.search import search
from edgeserve_compilers.spec import FLOAT, Candidate, CompileOptions, LayerNoise, PrecisionChoice, Trial, Verdict
from edgeserve_compilers.subject import run_steps
from edgeserve_compilers.targets.base import Form, Job, Product, Workshop
from edgeserve_compilers.verify import Fields, Reference

Note = Callable[[str], None]
"""Called with what begins now."""


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What all forms of one compilation share."""

    reference: Reference
    options: CompileOptions
    ranking: Tensors | None
    """Rows on which noise is measured; None without calibration data."""
    ranking_fields: Fields | None
    """The float model's decoded fields on them."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """A product that ran on all rows."""

    candidate: Candidate
    folder: Path
    product: Product
    outputs: Tensors


@dataclass(frozen=True, kw_only=True)
class Worked:
    """What came of one form."""

    verdict: Verdict
    trials: tuple[Trial, ...]
    sensitivity: tuple[LayerNoise, ...]
    kept: Made | None


class FormWork:
    """The workshop of one form and everything made in it. `folder` is empty and removed by the caller."""

    def __init__(
        self, form: Form, step: plan.FormPlan, job: Job, shared: Shared, *, native: bool, folder: Path
    ) -> None:
        self._form = form
        self._step = step
        self._job = job
        self._shared = shared
        self._native = native
        self._folder = folder
        self._runtime = find_runtime(form.runtime)
        self._numbers = count()
        self._best: tuple[Trial, Made] | None = None
        self._faster = (
            form.must_be_faster and native and shared.options.precision is PrecisionChoice.AUTO
        )  # what was asked for by name need not win a race

    def carry_out(self, note: Note) -> Worked:
        """Try what the plan names and choose.

        Raises:
            EdgeServeError: The form cannot make the float product of this model, which all others are held against.
            MissingLibraryError: What its candidates are made with is not installed.
        """
        note("float")
        workshop = self._open()
        folder, product = self._produce(workshop, FLOAT)
        with self._loaded(folder, product) as baseline:
            floats = self._run(FLOAT, folder, product, baseline)
            trials = [self._judge(floats, baseline, baseline, floats)]
            more, sensitivity = search(
                self._step.candidates,
                workshop.layers,
                judge=partial(self._try, workshop, baseline, floats, note),
                noise=partial(self._noise, workshop, note),
                mendable=lambda trial: (
                    trial.measurement is not None
                    and bool(plan.accuracy_refusals(trial.measurement, self._shared.options))
                ),
                mixed=self._step.mixed,
            )
        trials += more
        verdict = plan.choose(trials, keep_float=self._step.keep_float)
        kept = None
        if verdict.kept == FLOAT:
            kept = floats
        elif verdict.kept is not None:
            assert self._best is not None, "a trial that may be packed was kept as the best"
            kept = self._best[1]
        return Worked(verdict=verdict, trials=tuple(trials), sensitivity=sensitivity, kept=kept)

    def _open(self) -> Workshop:
        try:
            return self._form.open(self._job)
        except EdgeServeError:
            raise
        except Exception as error:  # converters raise anything
            raise self._cannot("the float form", error) from error

    def _produce(self, workshop: Workshop, candidate: Candidate) -> tuple[Path, Product]:
        folder = self._folder / str(next(self._numbers))
        folder.mkdir()
        try:
            return folder, workshop.produce(candidate, folder)
        except Exception as error:  # converters raise anything
            shutil.rmtree(folder)
            if isinstance(error, EdgeServeError):
                raise
            raise self._cannot(candidate.title, error) from error

    def _run(self, candidate: Candidate, folder: Path, product: Product, model: LoadedModel) -> Made:
        reference = self._shared.reference
        outputs = run_task(model, reference.data.inputs, reference.task.state)
        for name, expected in reference.outputs.items():
            if name not in outputs or outputs[name].shape != expected.shape:
                found = list(outputs[name].shape) if name in outputs else "missing"
                raise InputError(f"output {name!r} is {found}, the model's is {list(expected.shape)}")
        return Made(candidate=candidate, folder=folder, product=product, outputs=outputs)

    def _try(self, workshop: Workshop, baseline: LoadedModel, floats: Made, note: Note, candidate: Candidate) -> Trial:
        note(candidate.title)
        folder: Path | None = None
        try:
            folder, product = self._produce(workshop, candidate)
            with self._loaded(folder, product) as model:
                made = self._run(candidate, folder, product, model)
                trial = self._judge(made, model, baseline, floats)
        except MissingLibraryError:
            raise
        except (EdgeServeError, MemoryError) as error:
            if folder is not None:
                shutil.rmtree(folder)
            return Trial(candidate=candidate, refused=(str(error) or type(error).__name__,))
        if trial.refused or (self._best is not None and plan.merit(trial) >= plan.merit(self._best[0])):
            shutil.rmtree(made.folder)
            return trial
        if self._best is not None:
            shutil.rmtree(self._best[1].folder)
        self._best = trial, made
        return trial

    def _judge(self, made: Made, model: LoadedModel, baseline: LoadedModel, floats: Made) -> Trial:
        trial = Trial(
            candidate=made.candidate,
            size_bytes=size_of(made.folder),
            float_size_bytes=size_of(floats.folder),
            compute_nodes=made.product.compute_nodes,
            quantized_nodes=made.product.quantized_nodes,
            placement=made.product.placement,
            measurement=verify.measure(model, made.outputs, baseline, self._shared.reference),
        )
        return replace(trial, refused=plan.refusals(trial, self._shared.options, must_be_faster=self._faster))

    def _noise(self, workshop: Workshop, note: Note, candidate: Candidate) -> float:
        shared = self._shared
        if shared.ranking is None or shared.ranking_fields is None:
            return 0.0
        note(f"noise of {candidate.title}")
        folder: Path | None = None
        try:
            folder, product = self._produce(workshop, candidate)
            with self._loaded(folder, product) as model:
                return verify.worst_noise(
                    *flat_outputs(model, shared.ranking, shared.reference.task), shared.ranking_fields
                )
        except MissingLibraryError:
            raise
        except (EdgeServeError, MemoryError):
            return verify.INFINITE_NOISE
        finally:
            if folder is not None:
                shutil.rmtree(folder)

    @contextlib.contextmanager
    def _loaded(self, folder: Path, product: Product) -> Iterator[LoadedModel]:
        options = RuntimeOptions(device=self._form.runtime_device, threads=1, simulate=not self._native)
        model = self._runtime.load(folder / product.entry, options)
        try:
            yield model
        finally:
            model.close()

    def _cannot(self, what: str, error: Exception) -> EdgeServeError:
        message = (
            f"{self._step.target} ({self._form.name}): {what} cannot be made of {self._job.model.file}: "
            f"{type(error).__name__}: {first_line(error)}"
        )
        if isinstance(error, ImportError):
            return MissingLibraryError(message, hint=plugins.missing(error, what).hint)
        return DeviceError(message) if isinstance(error, MemoryError) else InputError(message)


def flat_outputs(model: LoadedModel, rows: Tensors, task: Task) -> tuple[Task, Tensors]:
    """Outputs of calibration rows, and the task that reads them: rows of a stateful model are steps of their own."""
    if task.state:
        return replace(task, state={}), run_steps(model, rows, task.state)
    return task, run_rows(model, rows)


def size_of(folder: Path) -> int:
    """Bytes of a product."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.name != CONTRACT_FILE)
