"""Carry out a plan: make every candidate, run it, judge it, keep the best of each target, pack them as a release."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from msgspec.structs import replace

from edgeserve import plugins
from edgeserve.contracts.documents import encode
from edgeserve.contracts.errors import ConflictError, EdgeServeError, InputError
from edgeserve.contracts.oci import GOLDEN_TYPE, PROVENANCE_TYPE, REPORT_TYPE, ReleaseIdentity
from edgeserve.contracts.task import Task
from edgeserve.golden import Golden
from edgeserve.release.build import ReleaseBuilder
from edgeserve.release.layout import Release
from edgeserve.runtimes.base import LoadedModel, RuntimeOptions, Tensors
from edgeserve.runtimes.checks import first_line
from edgeserve.runtimes.rows import run_rows
from edgeserve.runtimes.variant import CONTRACT_FILE, find_runtime
from edgeserve_compilers import data as datasets
from edgeserve_compilers import load, plan, verify
from edgeserve_compilers.interval import METHOD
from edgeserve_compilers.pack import prove, variant_contract
from edgeserve_compilers.report import GoldenFacts, Provenance, Report, TargetReport, data_facts, versions, warnings
from edgeserve_compilers.spec import FLOAT, Candidate, CompileOptions, Trial
from edgeserve_compilers.targets.base import Job, Product, Target
from edgeserve_devices.probe import probe

Progress = Callable[[int, int, str], None]
"""Called with steps done, steps in all, and what begins now."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """Everything that one compilation starts from."""

    model: Path
    targets: tuple[str, ...]
    calibration: Path | None
    validation: Path | None
    options: CompileOptions
    identity: ReleaseIdentity
    destination: Path


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a compilation came to."""

    report: Report
    release: Release | None
    """None when some target has no variant that may be packed."""


@dataclass(frozen=True, kw_only=True)
class _Made:
    """A product that runs."""

    folder: Path
    product: Product
    model: LoadedModel
    outputs: Tensors


def compile_model(request: Request, progress: Progress) -> Outcome:
    """Compile a model for every target and pack the release.

    Raises:
        InputError: The model, the data or the wish is wrong.
        ConflictError: Something is at the destination.
        DeviceError: A library is missing, or the disk is full.
    """
    if request.destination.exists() or request.destination.is_symlink():
        raise ConflictError(f"{request.destination} exists already", hint="remove it or give another -o")
    targets = {name: _find_target(name) for name in request.targets}
    model = load.load(request.model)
    calibration = datasets.load(request.calibration, model.spec.signature) if request.calibration else None
    validation = datasets.load(request.validation, model.spec.signature) if request.validation else None
    judged_on = validation or calibration
    if judged_on is None:
        raise InputError(
            "nothing is packed that was not measured", hint="give --validation or --calibration, best both"
        )
    forms = {name: target.candidates for name, target in targets.items()}
    steps = plan.plan(model.spec, forms, request.options, calibrated=calibration is not None)
    if len(targets) > 1 and not all(target.faithful for target in targets.values()):
        raise InputError("target null answers nothing of what the model would", hint="compile for it alone")

    with tempfile.TemporaryDirectory(prefix="edgeserve-compile-") as name:
        work = _Work(Path(name), request, model, calibration, judged_on, targets)
        reports = []
        for number, (target, own) in enumerate(_by_target(steps)):
            progress(number, len(targets) + 1, target)
            reports.append(work.compile_for(targets[target], own))
        report = Report(
            model=model.spec,
            metric=work.metric,
            judged_on=data_facts(judged_on),
            interval=METHOD,
            options=work.options,
            targets=tuple(reports),
            warnings=warnings(calibration, validation),
        )
        progress(len(targets), len(targets) + 1, "packing")
        if any(target.verdict.kept is None for target in reports):
            return Outcome(report=report, release=None)
        provenance = Provenance(
            model=model.spec,
            calibration=data_facts(calibration) if calibration else None,
            validation=data_facts(validation) if validation else None,
            options=work.options,
            targets=request.targets,
            versions=versions(),
            host=work.host,
        )
        work.builder.add_evidence("report.json", REPORT_TYPE, encode(report))
        work.builder.add_evidence("golden.npz", GOLDEN_TYPE, work.golden.dump())
        work.builder.add_evidence("provenance.json", PROVENANCE_TYPE, encode(provenance))
        return Outcome(report=report, release=work.builder.write(request.destination))


class _Work:
    """The temporary folder of one compilation and what all targets share."""

    def __init__(
        self,
        folder: Path,
        request: Request,
        model: load.Model,
        calibration: datasets.Dataset | None,
        judged_on: datasets.Dataset,
        targets: dict[str, Target],
    ) -> None:
        self.host = probe()
        self.builder = ReleaseBuilder(
            name=request.identity.name, version=request.identity.version, counter=request.identity.counter
        )
        self._identity = request.identity
        self._folder = folder
        self._model = model
        self._calibration = calibration
        self._numbers = count()
        self._float_file = folder / "float" / request.model.name
        self._float_file.parent.mkdir()
        self._float_file.write_bytes(model.content)
        self._shapes = {name: array.shape[1:] for name, array in judged_on.inputs.items()}
        if calibration and self._shapes != {name: array.shape[1:] for name, array in calibration.inputs.items()}:
            raise InputError(f"{calibration.file} and {judged_on.file} hold rows of different shapes")
        self.metric = "top1" if judged_on.labels is not None else "agreement"
        task = _named_output(request.options.task, model, self.metric)
        self.options = CompileOptions(
            precision=request.options.precision, max_accuracy_drop=request.options.max_accuracy_drop, task=task
        )
        source = next((target for target in targets.values() if not target.faithful), None)
        self._reference = verify.refer(self._reference_model(source), judged_on, task)
        self.golden: Golden = verify.golden_set(self._reference)

    def compile_for(self, target: Target, steps: Sequence[plan.Step]) -> TargetReport:
        """Make and judge the candidates of one target, and add the kept one to the release."""
        native = target.native(self.host.architecture)
        baseline = self._make(target, FLOAT, native=native)
        made = {FLOAT: baseline}
        done: list[plan.Step] = []
        trials: list[Trial] = []
        for step in steps:
            if step.needed_while_unmet and any(not t.refused for t in trials if t.candidate != FLOAT):
                continue
            try:
                if step.candidate not in made:
                    made[step.candidate] = self._make(target, step.candidate, native=native)
                trial = self._judge(step.candidate, made[step.candidate], baseline)
            except EdgeServeError as error:
                trial = Trial(candidate=step.candidate, refused=(error.message,))
            done.append(step)
            trials.append(trial)
        verdict = plan.choose(done, trials)
        kept = next((trial for trial in trials if trial.candidate == verdict.kept), None)
        golden = self._pack(target, kept, made[kept.candidate], native=native) if kept else None
        for product in made.values():
            product.model.close()
        return TargetReport(target=target.name, native=native, verdict=verdict, trials=tuple(trials), golden=golden)

    def _make(self, target: Target, candidate: Candidate, *, native: bool) -> _Made:
        """Produce and run one candidate: whatever a converter throws is a finding, not a crash."""
        folder = self._folder / str(next(self._numbers))
        folder.mkdir()
        calibration = self._calibration.inputs if self._calibration else None
        job = Job(
            model=self._model.spec,
            float_file=self._float_file,
            row_shapes=self._shapes,
            calibration=calibration,
            folder=folder,
        )
        try:
            product = target.produce(candidate, job)
        except EdgeServeError:
            raise
        except Exception as error:  # converters raise anything
            raise InputError(
                f"{target.name}: {candidate.recipe} cannot be made of {self._model.spec.file}: "
                f"{type(error).__name__}: {first_line(error)}"
            ) from error
        options = RuntimeOptions(device=target.runtime_device, threads=1, simulate=not native)
        model = find_runtime(target.runtime).load(folder / product.entry, options)
        return _Made(folder=folder, product=product, model=model, outputs=run_rows(model, self._reference.data.inputs))

    def _judge(self, candidate: Candidate, made: _Made, baseline: _Made) -> Trial:
        trial = Trial(
            candidate=candidate,
            size_bytes=_size(made.folder),
            float_size_bytes=_size(baseline.folder),
            compute_nodes=made.product.compute_nodes,
            quantized_nodes=made.product.quantized_nodes,
            measurement=verify.measure(made.model, made.outputs, baseline.model, self._reference),
        )
        return replace(trial, refused=plan.refusals(trial, self.options))

    def _pack(self, target: Target, trial: Trial, made: _Made, *, native: bool) -> GoldenFacts:
        """Add a variant to the release once it was loaded from its contract and reproduced the golden set."""
        contract = variant_contract(
            target,
            trial,
            entry=made.product.entry,
            signature=made.model.signature,
            tolerance=verify.tolerance(made.outputs, self._reference, native=native),
            task=self.options.task,
            rows=self._reference.data.rows,
            model=self._identity.name,
            host=self.host,
        )
        self.builder.add_variant(contract, {path.name: path for path in sorted(made.folder.iterdir())})
        return prove(contract, made.folder, self.golden, simulate=not native)

    def _reference_model(self, unfaithful: Target | None) -> LoadedModel:
        """The float model; for a target that computes something else, its own product."""
        if unfaithful is None:
            return find_runtime("onnxruntime").load(self._float_file, RuntimeOptions())
        folder = self._folder / "reference"
        folder.mkdir()
        job = Job(
            model=self._model.spec,
            float_file=self._float_file,
            row_shapes=self._shapes,
            calibration=None,
            folder=folder,
        )
        product = unfaithful.produce(FLOAT, job)
        return find_runtime(unfaithful.runtime).load(folder / product.entry, RuntimeOptions())


def _find_target(name: str) -> Target:
    target: Target = plugins.find(plugins.TARGETS, name)()
    return target


def _by_target(steps: Sequence[plan.Step]) -> list[tuple[str, list[plan.Step]]]:
    grouped: dict[str, list[plan.Step]] = {}
    for step in steps:
        grouped.setdefault(step.target, []).append(step)
    return list(grouped.items())


def _named_output(task: Task, model: load.Model, metric: str) -> Task:
    """The task with the scored output by name, which is what devices read."""
    names = [spec.name for spec in model.spec.signature.outputs]
    if task.output and task.output not in names:
        raise InputError(f"the model has no output {task.output[:80]!r}", hint=f"it has {', '.join(names)}")
    return Task(kind=task.kind, output=task.output or names[0], labels=task.labels, metric=metric)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.name != CONTRACT_FILE)
