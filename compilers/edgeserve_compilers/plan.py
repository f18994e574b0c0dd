"""What to try, what to refuse and what to keep. Pure: no file, no clock, no library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import msgspec

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.task import Task
from edgeserve.contracts.tensors import Datatype
from edgeserve.contracts.variant import Precision
from edgeserve_compilers.spec import Candidate, CompileOptions, Measurement, ModelSpec, PrecisionChoice, Trial, Verdict

_LEAST_FIELD_DB: Final = 0.0
"""A decoded field with more noise than signal has lost what it said, whatever the metric makes of it."""
_ROUNDING: Final = 1e-9
"""A drop is a difference of two means: 0.90 - 0.89 is a little more than 0.01 in floating point."""
_LEAST_AGREEMENT: Final = 0.5
"""No golden tolerance below one half means anything."""
_WORTH_A_VARIANT: Final = 0.5
"""Share of the allowed drop that a variant for fewer devices must win back to be worth its bytes."""
_QUANTIZED: Final = frozenset({Precision.INT8, Precision.INT4})


class FormFacts(Protocol):
    """What a plan must know of a form (`edgeserve_compilers.targets.base.Form`)."""

    @property
    def name(self) -> str:
        """Unique in its target."""

    @property
    def candidates(self) -> Sequence[Candidate]:
        """Quantized (or half-precision) products, the one to try first first."""

    @property
    def auto(self) -> Sequence[Precision]:
        """Precisions that `--precision auto` tries."""

    @property
    def float_fallback(self) -> bool:
        """Whether the float product may be packed."""


class FormPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What to do for one form of a target. The float product is always made, to be compared with."""

    target: str
    form: str
    candidates: tuple[Candidate, ...]
    keep_float: bool
    """The float product may be packed when no candidate may."""
    mixed: bool
    """Layers may be left in float until the accuracy bound holds."""


def plan(
    model: ModelSpec,
    targets: Mapping[str, Sequence[FormFacts]],
    options: CompileOptions,
    *,
    calibrated: bool,
) -> tuple[FormPlan, ...]:
    """List what to make, target by target.

    Args:
        model: The float model.
        targets: Forms of each target.
        options: What the user wants.
        calibrated: Whether there are calibration data.

    Raises:
        InputError: No target, or what is asked for cannot be made of this model or without data.
    """
    if not targets:
        raise InputError("nothing to compile for", hint="name a --target or a --device")
    check_rows(model, options.task)
    wanted = options.precision
    if wanted is PrecisionChoice.INT8 and not calibrated:
        raise InputError("int8 needs calibration data", hint="give --calibration DATA with about 200 typical rows")
    plans = []
    for target, forms in targets.items():
        own = [plan for form in forms if (plan := _form_plan(target, form, wanted, calibrated=calibrated)) is not None]
        if not own:
            raise InputError(
                f"target {target} has no {wanted.value} form",
                hint="use --precision auto" if wanted is not PrecisionChoice.AUTO else "give --calibration DATA",
            )
        plans += own
    return tuple(plans)


def refusals(trial: Trial, options: CompileOptions, *, must_be_faster: bool = False) -> tuple[str, ...]:
    """Say why a trial must not be packed; empty = it may. An exit code of a converter proves nothing.

    Args:
        trial: With its measurement.
        options: The bound.
        must_be_faster: The product is for this very machine, where it must beat its float form.
    """
    if trial.measurement is None:
        return trial.refused
    reasons = [*trial.refused, *accuracy_refusals(trial.measurement, options)]
    precision = trial.candidate.precision
    if precision in _QUANTIZED and trial.quantized_nodes == 0:
        reasons.append("no convolution or matrix product was quantized")
    if precision is not Precision.FP32 and trial.size_bytes >= trial.float_size_bytes:
        reasons.append(f"it is not smaller than float: {trial.size_bytes} and {trial.float_size_bytes} bytes")
    if must_be_faster and precision is not Precision.FP32 and not reasons:
        found = trial.measurement
        if found.latency_ms >= found.float_latency_ms:
            reasons.append(f"it is not faster here: {found.latency_ms:.3f} ms against {found.float_latency_ms:.3f} ms")
    return tuple(reasons)


def accuracy_refusals(found: Measurement, options: CompileOptions) -> tuple[str, ...]:
    """The reasons that leaving layers in float can mend."""
    reasons = []
    if found.has_nan:
        reasons.append("its answers hold NaN")
    if not found.drop <= options.max_accuracy_drop + _ROUNDING:  # a metric that says NaN has not shown anything
        reasons.append(f"it loses {found.drop:.4f}, at most {options.max_accuracy_drop:.4f} are allowed")
    if not found.agreement > _LEAST_AGREEMENT:
        reasons.append(f"it agrees with the float model to {found.agreement:.1%} only")
    if found.float_positives and not found.positives:
        reasons.append(f"it finds none of the float model's {found.float_positives} boxes")
    drowned = [noise.field for noise in found.fields if noise.sqnr_db is not None and noise.sqnr_db < _LEAST_FIELD_DB]
    if drowned:
        reasons.append(f"there is more noise than signal in {', '.join(drowned)}")
    return tuple(reasons)


def choose(trials: Sequence[Trial], *, keep_float: bool) -> Verdict:
    """Decide which trial of one form is packed: a smaller one if it may be, else float if that may be.

    Of several, the one with fewest layers in float; then the one that loses least, with least noise, the smallest.

    Args:
        trials: All that was tried; the float product is among them.
        keep_float: Whether float may be packed.
    """
    fit = [trial for trial in trials if not trial.refused and trial.measurement is not None]
    small = [trial for trial in fit if trial.candidate.precision is not Precision.FP32]
    if small:
        best = min(small, key=merit)
        return Verdict(kept=best.candidate, why="smaller than float and within the accuracy bound")
    floats = [trial for trial in fit if trial.candidate.precision is Precision.FP32]
    tried = [trial for trial in trials if trial.candidate.precision is not Precision.FP32]
    if floats and keep_float:
        return Verdict(kept=floats[0].candidate, why=_why_float(tried))
    closest = best_found(tried or trials)
    what = "best found" if closest else "none could be made"
    closest = closest or next(iter(tried or trials))
    reasons = "; ".join(closest.refused) or "float is not packed in this form"
    return Verdict(kept=None, why=f"{what}: {closest.candidate.title}: {reasons}")


def is_redundant(trial: Trial, others: Sequence[Trial], options: CompileOptions) -> bool:
    """Whether a variant that runs on fewer devices is hardly better than one of its precision that runs on more."""
    gain = _WORTH_A_VARIANT * options.max_accuracy_drop
    return any(
        other.candidate.precision is trial.candidate.precision and loss(other) <= loss(trial) + gain for other in others
    )


def best_found(trials: Sequence[Trial]) -> Trial | None:
    """The trial that lost least, refused or not; quantized ones first. None when nothing ran."""
    ran = [trial for trial in trials if trial.measurement is not None]
    small = [trial for trial in ran if trial.candidate.precision is not Precision.FP32]
    return min(small or ran, key=lambda trial: (loss(trial), merit(trial)), default=None)


def loss(trial: Trial) -> float:
    """What a trial loses of the metric; answers that happen to be better than float's are luck, not merit."""
    found = trial.measurement
    return float("inf") if found is None or found.has_nan else max(round(found.drop, 9), 0.0)


def merit(trial: Trial) -> tuple[int, float, float, int]:
    """What makes one trial that holds the bound better than another, smallest first."""
    noise = trial.measurement.sqnr_db if trial.measurement else 0.0
    return (
        len(trial.candidate.float_layers),
        loss(trial),
        -noise if noise is not None else float("-inf"),
        trial.size_bytes,
    )


def _form_plan(target: str, form: FormFacts, wanted: PrecisionChoice, *, calibrated: bool) -> FormPlan | None:
    if wanted is PrecisionChoice.FP32:
        if not form.float_fallback:
            return None
        return FormPlan(target=target, form=form.name, candidates=(), keep_float=True, mixed=False)
    allowed = tuple(form.auto) if wanted is PrecisionChoice.AUTO else (Precision(wanted.value),)
    candidates = tuple(
        candidate
        for candidate in form.candidates
        if candidate.precision in allowed and (calibrated or candidate.precision is Precision.FP16)
    )
    keep_float = form.float_fallback and wanted is PrecisionChoice.AUTO
    if not candidates and not keep_float:
        return None
    return FormPlan(target=target, form=form.name, candidates=candidates, keep_float=keep_float, mixed=True)


def _why_float(tried: Sequence[Trial]) -> str:
    if not tried:
        return "float: no quantized form was asked for, or there are no calibration data"
    best = best_found(tried) or tried[0]
    reasons = "; ".join(best.refused)
    return f"float: {len(tried)} smaller forms were refused, the best ({best.candidate.title}) because {reasons}"


def check_rows(model: ModelSpec, task: Task) -> None:
    """Hold the inputs against what rows of data can give.

    Raises:
        InputError: An input takes strings, or its first axis does not count rows.
    """
    for spec in model.signature.inputs:
        if spec.datatype is Datatype.BYTES:
            raise InputError(f"input {spec.name!r} takes strings", hint="compile the part of the model after them")
        if spec.name in task.state:
            continue
        if not spec.shape:
            raise InputError(
                f"input {spec.name!r} is a scalar",
                hint=f"fix it in the task: [constants] {spec.name} = VALUE, or carry it as [state]",
            )
        if spec.shape[0] not in (-1, 1):
            raise InputError(
                f"input {spec.name!r} has shape {list(spec.shape)}: the first axis must count rows and be 1 or vary",
                hint="export the model with a dynamic batch, or a batch of 1; name what is carried over in [state]",
            )
