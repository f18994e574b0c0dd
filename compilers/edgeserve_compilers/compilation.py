"""One compilation under way: the temporary folder, the float model's answers, and what was kept so far."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from edgeserve.contracts.documents import encode
from edgeserve.contracts.errors import EdgeServeError, InputError
from edgeserve.contracts.oci import (
    AGREEMENT_TYPE,
    GOLDEN_TYPE,
    PROVENANCE_TYPE,
    REPORT_PAGE_TYPE,
    REPORT_TYPE,
    SKETCH_TYPE,
    ReleaseIdentity,
)
from edgeserve.release.blobs import digest_file
from edgeserve.release.build import ReleaseBuilder
from edgeserve.release.layout import Release
from edgeserve.runtimes.base import LoadedModel, RuntimeOptions
from edgeserve.runtimes.variant import find_runtime
from edgeserve.task.decode import fields
from edgeserve_compilers import baseline, explain, plan
from edgeserve_compilers.form_work import FormWork, Shared, Worked, flat_outputs
from edgeserve_compilers.html.page import render
from edgeserve_compilers.html.pictures import picture_of
from edgeserve_compilers.interval import drop_interval
from edgeserve_compilers.pack import prove, variant_contract
from edgeserve_compilers.report import (
    BaselineAgreement,
    GoldenFacts,
    PackedFile,
    Provenance,
    Report,
    TargetReport,
    data_facts,
    versions,
    warnings,
    without_folders,
)
from edgeserve_compilers.sketch import sketch
from edgeserve_compilers.spec import FLOAT, CompileOptions, Trial, Verdict
from edgeserve_compilers.subject import Subject, calibration_rows, open_float, ranking_rows
from edgeserve_compilers.targets.base import Form, Job, Target
from edgeserve_compilers.tolerance import golden_set, tolerance
from edgeserve_compilers.verify import Reference, refer
from edgeserve_devices.probe import probe


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a compilation came to."""

    report: Report
    page: str
    """The report as one HTML page."""
    release: Release | None
    """None when some target has no variant that may be packed."""
    cached: bool = False
    """It was compiled before and only copied."""


class Compilation:
    """The temporary folder of one compilation and what all forms share."""

    def __init__(
        self,
        folder: Path,
        identity: ReleaseIdentity,
        subject: Subject,
        options: CompileOptions,
        targets: dict[str, Target],
    ) -> None:
        self.host = probe()
        self._identity = identity
        self._folder = folder
        self._subject = subject
        self._options = options
        self._targets = targets
        self._builder = ReleaseBuilder(name=identity.name, version=identity.version, counter=identity.counter)
        self._float_file = folder / "float.onnx"
        self._float_file.write_bytes(subject.model.content)
        floats = self._open_reference()
        try:
            self.reference: Reference = refer(floats, subject.judged_on, subject.task)
            self._calibration = calibration_rows(subject, floats)
            self._shared = self._share(floats)
        finally:
            floats.close()
        self._golden = golden_set(self.reference)
        self._reports: list[TargetReport] = []
        self._files: list[PackedFile] = []
        self._pictures: dict[str, list[bytes]] = {}

    def carry_out(self, step: plan.FormPlan, note: Callable[[str], None]) -> None:
        """Work through one form and add what it keeps to the release.

        Raises:
            EdgeServeError: A form that its target cannot do without cannot take this model.
        """
        form = next(form for form in self._targets[step.target].forms if form.name == step.form)
        native = form.native(self.host.architecture, self.host.cpu_features)
        report = TargetReport(
            target=step.target,
            form=step.form,
            runtime=form.runtime,
            requested_device=form.runtime_device,
            native=native,
            required=form.required,
            verdict=Verdict(kept=None, why=""),
            trials=(),
            golden=None,
        )
        with tempfile.TemporaryDirectory(dir=self._folder) as name:
            folder = Path(name)
            try:
                worked = self._work(
                    form, step, folder, native=native, note=lambda what: note(f"{report.title}: {what}")
                )
            except EdgeServeError as error:
                if form.required:
                    raise
                why = f"not made: {error.message}" + (f" ({error.hint})" if error.hint else "")
                self._reports.append(replace(report, verdict=Verdict(kept=None, why=self._public(why))))
                return
            report = replace(
                report,
                trials=tuple(
                    replace(trial, refused=tuple(map(self._public, trial.refused))) for trial in worked.trials
                ),
                verdict=replace(worked.verdict, why=self._public(worked.verdict.why)),
                sensitivity=worked.sensitivity,
            )
            self._reports.append(self._keep(report, form, worked))

    def finish(self, destination: Path, targets: tuple[str, ...], before: Release | None) -> Outcome:
        """Write the release, if every form that its target needs has a variant."""
        subject, reference = self._subject, self.reference
        agreement = self._compare(before) if before else None
        report = Report(
            model=subject.model.spec,
            metric=subject.task.metric,
            judged_on=data_facts(subject.judged_on),
            interval=drop_interval(reference.score, reference.score)[2],
            options=self._options,
            targets=tuple(self._reports),
            warnings=warnings(subject.calibration, subject.validation, self._reports),
            unjudged=subject.unjudged,
            baseline=agreement,
        )
        provenance = Provenance(
            model=subject.model.spec,
            calibration=data_facts(subject.calibration) if subject.calibration else None,
            validation=data_facts(subject.validation) if subject.validation else None,
            options=self._options,
            targets=targets,
            versions=versions(),
            host=self.host,
            files=tuple(self._files),
        )
        page = render(report, pictures=self._pictures, provenance=provenance)
        if any(target.required and target.verdict.kept is None for target in self._reports) or not self._files:
            return Outcome(report=report, page=page, release=None)
        sketched = sketch(subject.task, subject.judged_on.inputs, reference.outputs, reference.answers)
        add = self._builder.add_evidence
        add("report.json", REPORT_TYPE, encode(report))
        add("report.html", REPORT_PAGE_TYPE, page.encode())
        add("golden.npz", GOLDEN_TYPE, self._golden.dump())
        add("sketch.json", SKETCH_TYPE, encode(sketched))
        add("provenance.json", PROVENANCE_TYPE, encode(provenance))
        if agreement:
            add("agreement.json", AGREEMENT_TYPE, encode(agreement))
        return Outcome(report=report, page=page, release=self._builder.write(destination))

    def job(self, folder: Path) -> Job:
        """What a form of any target gets to work with; `folder` is empty."""
        shapes = self._subject.row_shapes
        shapes |= {name: self._calibration[name].shape[1:] for name in self._subject.task.state if self._calibration}
        return Job(
            model=self._subject.model.spec,
            float_file=self._float_file,
            originals=self._subject.model.originals,
            row_shapes=shapes,
            calibration=self._calibration,
            state=self._subject.task.state,
            folder=folder,
        )

    def _public(self, text: str) -> str:
        """What libraries said, without the folders of this machine."""
        originals = [path.parent.absolute() for path in self._subject.model.originals.values()]
        places = [Path.home(), Path(sys.prefix), Path(sys.base_prefix), Path(tempfile.gettempdir())]
        return without_folders(text, [self._folder, *originals, *places])

    def _work(
        self, form: Form, step: plan.FormPlan, folder: Path, *, native: bool, note: Callable[[str], None]
    ) -> Worked:
        workshop, products = folder / "workshop", folder / "products"
        workshop.mkdir()
        products.mkdir()
        if not self._subject.model.content and form.runtime not in self._subject.model.originals:
            raise InputError(
                f"{step.target} ({step.form}) needs an ONNX model, {self._subject.model.spec.file} can only be "
                f"compiled for targets that run {', '.join(self._subject.model.originals)}",
                hint="give the model as its framework exports it to ONNX",
            )
        work = FormWork(form, step, self.job(workshop), self._shared, native=native, folder=products)
        return work.carry_out(note)

    def _keep(self, report: TargetReport, form: Form, worked: Worked) -> TargetReport:
        """Add what was kept to the release, unless a form that runs in more places does as well."""
        trial, made = report.kept, worked.kept
        if trial is None or made is None:
            return report
        others = [
            other.kept for other in self._reports if other.target == report.target and other.runtime == form.runtime
        ]
        if not form.required and plan.is_redundant(trial, [other for other in others if other], self._options):
            why = "hardly more accurate than the form that runs on more devices"
            return replace(report, verdict=Verdict(kept=None, why=why))
        golden = self._pack(report, form, trial, worked)
        shown = explain.examples(made.outputs, self.reference)
        pictures = [picture_of(self._subject.task, self._subject.judged_on.inputs, example.row) for example in shown]
        if all(picture is not None for picture in pictures):
            self._pictures[report.title] = [picture for picture in pictures if picture is not None]
        return replace(
            report,
            golden=golden,
            differences=explain.differences(made.outputs, self.reference),
            examples=shown,
            findings=made.product.findings,
        )

    def _pack(self, report: TargetReport, form: Form, trial: Trial, worked: Worked) -> GoldenFacts:
        """Add a variant to the release once it was loaded from its contract and reproduced the golden set."""
        made = worked.kept
        assert made is not None, "only what was kept is packed"
        options = RuntimeOptions(device=form.runtime_device, simulate=not report.native)
        model = find_runtime(form.runtime).load(made.folder / made.product.entry, options)
        signature = model.signature
        model.close()
        contract = variant_contract(
            report.target,
            form,
            trial,
            entry=made.product.entry,
            signature=signature,
            tolerance=tolerance(made.outputs, self.reference, native=report.native),
            task=self._subject.task,
            rows=self.reference.data.rows,
            model=self._identity.name,
            host=self.host,
        )
        files = {path.name: path for path in sorted(made.folder.iterdir())}
        kept = self._folder / f"kept-{len(self._reports)}"
        made.folder.rename(kept)
        files = {title: kept / title for title in files}
        self._builder.add_variant(contract, files)
        self._files += [
            PackedFile(target=report.target, form=report.form, title=title, digest=digest_file(path)[0])
            for title, path in files.items()
        ]
        return prove(contract, kept, self._golden, simulate=not report.native)

    def _compare(self, before: Release) -> BaselineAgreement:
        folder = self._folder / "baseline"
        folder.mkdir()
        return baseline.compare(before, self._subject.judged_on, self._subject.task, self.reference.answers, folder)

    def _open_reference(self) -> LoadedModel:
        """The float model; for a target that computes something else, its own product."""
        unfaithful = next((target for target in self._targets.values() if not target.faithful), None)
        if unfaithful is None:
            return open_float(self._subject.model, self._float_file)
        folder = self._folder / "reference"
        folder.mkdir()
        form = unfaithful.forms[0]
        job = Job(
            model=self._subject.model.spec,
            float_file=self._float_file,
            row_shapes=self._subject.row_shapes,
            calibration=None,
            folder=self._folder,
        )
        product = form.open(job).produce(FLOAT, folder)
        return find_runtime(form.runtime).load(folder / product.entry, RuntimeOptions())

    def _share(self, floats: LoadedModel) -> Shared:
        rows = ranking_rows(self._calibration, self.reference.outputs) if self._calibration else None
        expected = fields(*flat_outputs(floats, rows, self._subject.task)) if rows else None
        return Shared(reference=self.reference, options=self._options, ranking=rows, ranking_fields=expected)
