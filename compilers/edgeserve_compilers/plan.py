"""What to try and what to keep. Pure: no file, no clock, no library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.tensors import Datatype
from edgeserve.contracts.variant import Precision
from edgeserve_compilers.spec import (
    FLOAT,
    Candidate,
    CompileOptions,
    Measurement,
    ModelSpec,
    PrecisionChoice,
    Trial,
    Verdict,
)


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """Make one candidate for one target and judge it."""

    target: str
    candidate: Candidate
    keepable: bool
    """Whether it may be packed; the float form is always made, to be compared with."""
    needed_while_unmet: bool = False
    """Carried out only when no earlier candidate of the target is good enough."""


def plan(
    model: ModelSpec,
    targets: Mapping[str, Sequence[Candidate]],
    options: CompileOptions,
    *,
    calibrated: bool,
) -> tuple[Step, ...]:
    """List the steps, target by target, in the order to carry them out.

    Args:
        model: The float model.
        targets: Quantized candidates of each target, the first to try first.
        options: What the user wants.
        calibrated: Whether there are calibration data.

    Raises:
        InputError: No target, or what is asked for cannot be made of this model or without data.
    """
    if not targets:
        raise InputError("nothing to compile for", hint="name a --target or a --device")
    _check_rows(model)
    if options.precision is PrecisionChoice.INT8 and not calibrated:
        raise InputError("int8 needs calibration data", hint="give --calibration FILE.npz with about 200 typical rows")
    quantize = calibrated and options.precision is not PrecisionChoice.FP32
    steps = []
    for target, candidates in targets.items():
        if options.precision is PrecisionChoice.INT8 and not candidates:
            raise InputError(f"target {target} has no int8 form", hint="use --precision auto")
        steps.append(Step(target=target, candidate=FLOAT, keepable=options.precision is not PrecisionChoice.INT8))
        if quantize:
            steps.extend(
                Step(target=target, candidate=candidate, keepable=True, needed_while_unmet=place > 0)
                for place, candidate in enumerate(candidates)
            )
    return tuple(steps)


def refusals(trial: Trial, options: CompileOptions) -> tuple[str, ...]:
    """Say why a trial must not be packed; empty = it may. An exit code of a converter proves nothing."""
    found = trial.measurement
    if found is None:
        return trial.refused
    reasons = list(trial.refused)
    if found.has_nan:
        reasons.append("its answers hold NaN")
    if found.drop > options.max_accuracy_drop:
        reasons.append(f"it loses {found.drop:.4f}, at most {options.max_accuracy_drop:.4f} are allowed")
    if found.agreement <= 0.5:
        reasons.append(f"it agrees with the float model on {found.agreement:.1%} of the rows only")
    if trial.candidate.precision is not Precision.FP32:
        if trial.quantized_nodes == 0:
            reasons.append("no convolution or matrix product was quantized")
        if trial.size_bytes >= trial.float_size_bytes:
            reasons.append(f"it is not smaller than float: {trial.size_bytes} and {trial.float_size_bytes} bytes")
    return tuple(reasons)


def choose(steps: Sequence[Step], trials: Sequence[Trial]) -> Verdict:
    """Decide which trial of one target is packed: a quantized one if it may be, else float if that may be.

    Args:
        steps: The steps of the target that were carried out.
        trials: Their results, in the same order.
    """
    fit = [trial for step, trial in zip(steps, trials, strict=True) if step.keepable and not trial.refused]
    quantized = [trial for trial in fit if trial.candidate.precision is not Precision.FP32]
    if quantized:
        best = min(quantized, key=lambda trial: _drop(trial.measurement))
        return Verdict(kept=best.candidate, why="smaller than float and within the accuracy bound")
    if fit:
        tried = [trial for trial in trials if trial.candidate.precision is not Precision.FP32]
        why = _why_float(tried)
        return Verdict(kept=fit[0].candidate, why=why)
    closest = best_found(trials)
    reasons = "; ".join(closest.refused) if closest else "nothing could be made"
    return Verdict(kept=None, why=f"best found: {closest.candidate.recipe if closest else 'none'}: {reasons}")


def best_found(trials: Sequence[Trial]) -> Trial | None:
    """The trial that lost least, refused or not; quantized ones first. None when nothing ran."""
    ran = [trial for trial in trials if trial.measurement is not None]
    quantized = [trial for trial in ran if trial.candidate.precision is not Precision.FP32]
    return min(quantized or ran, key=lambda trial: _drop(trial.measurement), default=None)


def _why_float(tried: Sequence[Trial]) -> str:
    if not tried:
        return "float: no quantized form was asked for, or there are no calibration data"
    best = best_found(tried) or tried[0]
    reasons = "; ".join(best.refused)
    return f"float: {len(tried)} quantized forms were refused, the best ({best.candidate.recipe}) because {reasons}"


def _drop(measurement: Measurement | None) -> float:
    return float("inf") if measurement is None or measurement.has_nan else measurement.drop


def _check_rows(model: ModelSpec) -> None:
    for spec in model.signature.inputs:
        if spec.datatype is Datatype.BYTES:
            raise InputError(f"input {spec.name!r} takes strings", hint="compile the part of the model after them")
        if not spec.shape or spec.shape[0] not in (-1, 1):
            raise InputError(
                f"input {spec.name!r} has shape {list(spec.shape)}: the first axis must count rows and be 1 or vary",
                hint="export the model with a dynamic batch, or a batch of 1",
            )
