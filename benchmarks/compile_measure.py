"""One model compiled for every target and by the libraries alone, all products scored by the same code."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import compile_peers as peers
import numpy as np

from edgeserve.contracts.oci import ReleaseIdentity
from edgeserve.runtimes.base import RuntimeOptions
from edgeserve.runtimes.rows import run_task
from edgeserve.runtimes.variant import find_runtime
from edgeserve.task.decode import decode, judging_score
from edgeserve.task.model_toml import read_task
from edgeserve.task.score import score
from edgeserve_compilers.interval import drop_interval
from edgeserve_compilers.run import Request, compile_model, find_target
from edgeserve_compilers.spec import FLOAT, PrecisionChoice
from edgeserve_compilers.subject import Subject, Wish, calibration_rows, open_float, read_subject
from edgeserve_compilers.targets.base import Job
from edgeserve_compilers.verify import Reference, refer

HERE = Path(__file__).resolve().parent
SIZE, MIXED_SIZE = 0.30, 0.45
ALL = ("x86-cpu", "arm-cpu", "intel-cpu", "intel-npu", "jetson-gpu")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model with its data and what must hold."""

    name: str
    model: str
    task: str
    calibration: str
    validation: str
    bound: float
    """Largest drop of the metric."""
    targets: tuple[str, ...] = ALL
    precision: PrecisionChoice = PrecisionChoice.INT8
    sizes: bool = False
    """Whether the file must be at most 0.30 of float, 0.45 when mixed."""
    make: Callable[[Path, Path], Path] | None = None
    """Makes the model from the one in the data folder."""
    peers: tuple[str, ...] = ("onnxruntime", "nncf", "ai-edge-quantizer")
    split: Callable[[Path, Path], Path] | None = None
    """Writes calibration.npz and validation.npz from data that come without a split, and returns their folder."""
    extra: Callable[[Path, Reference, list[Row]], None] | None = None


@dataclass(kw_only=True)
class Row:
    """One product."""

    who: str
    what: str
    value: float
    float_value: float
    low: float
    high: float
    size: float
    seconds: float
    bound: float | None
    ok: bool = True
    note: str = ""
    drop: float = field(init=False)

    def __post_init__(self) -> None:
        self.drop = self.float_value - self.value

    def cells(self) -> list[str]:
        verdict = "" if self.bound is None else ("held" if self.ok else "MISSED")
        return [
            self.who, self.what, f"{self.float_value:.4f}", f"{self.value:.4f}",
            f"{self.drop:+.4f} [{self.low:+.4f}, {self.high:+.4f}]", f"{self.size:.2f}", f"{self.seconds:.0f}",
            "" if self.bound is None else f"{self.bound:.3f}", verdict + (f" ({self.note})" if self.note else ""),
        ]  # fmt: skip


def measure(case: Case, data: Path) -> list[Row]:
    """Compile for every target, then let the peers do theirs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = data / "models" / case.model
        if case.make:
            model = case.make(model, folder)
        rows_in = case.split(data, folder) if case.split else data
        wish = Wish(
            model=str(model), calibration=str(rows_in / case.calibration), validation=str(rows_in / case.validation),
            task=read_task(HERE / "tasks" / case.task),
        )  # fmt: skip
        rows = ours(case, wish, folder)
        subject = read_subject(wish)
        float_file = folder / "float.onnx"
        float_file.write_bytes(subject.model.content)
        floats = open_float(subject.model, float_file)
        reference = refer(floats, subject.judged_on, subject.task)
        calibration = calibration_rows(subject, floats)
        for peer in case.peers:
            rows += theirs(peer, subject, reference, calibration, float_file, folder)
        if case.extra:
            case.extra(data, reference, rows)
        return rows


def ours(case: Case, wish: Wish, folder: Path) -> list[Row]:
    rows = []
    for target in case.targets:
        request = Request(
            wish=wish, targets=(target,), precision=case.precision, max_accuracy_drop=case.bound,
            identity=ReleaseIdentity(name="bench", version="1", counter=1), destination=folder / target,
        )  # fmt: skip
        began = time.perf_counter()
        outcome = compile_model(request, lambda *_: None)
        seconds = time.perf_counter() - began
        for report in outcome.report.targets:
            kept = report.kept
            if kept is None or kept.measurement is None:
                rows.append(missing(f"edgeserve {report.title}", report.verdict.why, case, required=report.required))
                continue
            found, mixed = kept.measurement, bool(kept.candidate.float_layers)
            size = kept.size_bytes / kept.float_size_bytes
            fits = not case.sizes or size <= (MIXED_SIZE if mixed else SIZE)
            rows.append(
                Row(
                    who=f"edgeserve {report.title}",
                    what=f"{kept.candidate.title}; agreement {found.agreement:.3f}", value=found.value,
                    float_value=found.float_value, low=found.drop_low, high=found.drop_high, size=size, seconds=seconds,
                    bound=case.bound, ok=found.drop <= case.bound + 1e-9 and fits,
                    note="" if fits else f"size over {SIZE}",
                )
            )  # fmt: skip
    return rows


def missing(who: str, why: str, case: Case, *, required: bool) -> Row:
    nan = float("nan")
    return Row(
        who=who, what=why[:120], value=nan, float_value=nan, low=nan, high=nan, size=nan, seconds=nan,
        bound=case.bound if required else None, ok=False,
    )  # fmt: skip


def theirs(
    peer: str,
    subject: Subject,
    reference: Reference,
    calibration: dict[str, np.ndarray],
    float_file: Path,
    folder: Path,
) -> list[Row]:
    own = folder / f"peer-{peer}"
    own.mkdir()
    began = time.perf_counter()
    try:
        if peer == "onnxruntime":
            runtime, product = peers.onnxruntime_defaults(float_file, calibration, own)
        elif peer == "nncf":
            runtime, product = peers.nncf_defaults(float_file, calibration, own)
        else:
            float_file = float_tflite(subject, float_file, calibration, own)
            runtime, product = peers.ai_edge_quantizer_defaults(float_file, calibration, own)
        seconds = time.perf_counter() - began
        return [judged(f"{peer} alone", "defaults", runtime, product, float_file, reference, seconds)]
    except Exception as error:  # noqa: BLE001 - what a library cannot do is a result
        print(f"{peer}: {type(error).__name__}: {error}", file=sys.stderr)
        nan = float("nan")
        what = f"{type(error).__name__}: {error}".splitlines()[0][:100]
        return [
            Row(
                who=f"{peer} alone", what=what, value=nan, float_value=nan, low=nan, high=nan, size=nan, seconds=nan,
                bound=None,
            )
        ]  # fmt: skip


def float_tflite(subject: Subject, float_file: Path, calibration: dict[str, np.ndarray], folder: Path) -> Path:
    """The float .tflite that our own LiteRT variants start from."""
    form = next(form for form in find_target("arm-cpu").forms if form.name == "litert-float")
    workshop, product = folder / "workshop", folder / "float"
    workshop.mkdir()
    product.mkdir()
    job = Job(
        model=subject.model.spec, float_file=float_file, originals=subject.model.originals,
        row_shapes=subject.row_shapes, calibration=calibration, folder=workshop,
    )  # fmt: skip
    return product / form.open(job).produce(FLOAT, product).entry


def judged(
    who: str, what: str, runtime: str, product: Path, float_file: Path, reference: Reference, seconds: float
) -> Row:
    model = find_runtime(runtime).load(product, RuntimeOptions())
    inputs = dict(reference.data.inputs)
    outputs = run_task(model, inputs, reference.task.state)
    model.close()
    found = score(
        reference.task,
        reference.task.metric,
        decode(reference.task, outputs, least_score=judging_score(reference.task)),
        reference.truth,
    )
    low, high, _ = drop_interval(found, reference.score)
    files = list(product.parent.glob(f"{product.stem}.*"))
    return Row(
        who=who, what=what, value=found.value, float_value=reference.score.value, low=low, high=high,
        size=sum(path.stat().st_size for path in files) / float_file.stat().st_size, seconds=seconds, bound=None,
    )  # fmt: skip


def section(name: str, rows: list[Row]) -> str:
    head = ["who", "how", "float", "value", "drop [95 %]", "size", "s", "bound", ""]
    lines = [f"## {name}\n", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(row.cells()) + " |" for row in rows]
    return "\n".join(lines) + "\n"
