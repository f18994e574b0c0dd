from __future__ import annotations

import pytest
from msgspec.structs import replace

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.contracts.variant import Precision
from edgeserve_compilers.plan import Step, best_found, choose, plan, refusals
from edgeserve_compilers.spec import (
    FLOAT,
    Candidate,
    CompileOptions,
    Measurement,
    ModelSpec,
    PrecisionChoice,
    Trial,
)

A, B = (Candidate(precision=Precision.INT8, recipe=recipe) for recipe in "AB")
AUTO, FP32, INT8 = (CompileOptions(precision=choice) for choice in PrecisionChoice)


def model(shape: tuple[int, ...] = (-1, 1, 8, 8), datatype: Datatype = Datatype.FP32) -> ModelSpec:
    spec = TensorSpec(name="image", datatype=datatype, shape=shape)
    signature = Signature(inputs=(spec,), outputs=(TensorSpec(name="y", datatype=Datatype.FP32, shape=(-1, 10)),))
    return ModelSpec(file="m.onnx", digest="sha256:00", size_bytes=1, opset=17, nodes=1, signature=signature)


def step(candidate: Candidate, *, keepable: bool = True, needed_while_unmet: bool = False) -> Step:
    return Step(target="t", candidate=candidate, keepable=keepable, needed_while_unmet=needed_while_unmet)


@pytest.mark.parametrize(
    ("options", "calibrated", "expected"),
    [
        (AUTO, True, [step(FLOAT), step(A), step(B, needed_while_unmet=True)]),
        (INT8, True, [step(FLOAT, keepable=False), step(A), step(B, needed_while_unmet=True)]),
        (FP32, True, [step(FLOAT)]),
        (AUTO, False, [step(FLOAT)]),
    ],
    ids=["auto", "int8", "fp32", "auto without data"],
)
def test_steps_follow_the_wish(options: CompileOptions, calibrated: bool, expected: list[Step]) -> None:
    assert plan(model(), {"t": (A, B)}, options, calibrated=calibrated) == tuple(expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((model(), {}, AUTO, True), "nothing to compile for"),
        ((model(), {"t": (A,)}, INT8, False), "calibration data"),
        ((model(), {"null": ()}, INT8, True), "null has no int8 form"),
        ((model((8, 1, 8, 8)), {"t": (A,)}, AUTO, True), r"'image' has shape \[8, 1, 8, 8\]"),
        ((model(()), {"t": (A,)}, AUTO, True), "first axis"),
        ((model(datatype=Datatype.BYTES), {"t": (A,)}, AUTO, True), "strings"),
    ],
    ids=["no target", "no data", "no form", "built-in batch", "scalar", "strings"],
)
def test_what_cannot_be_made_is_refused_before_any_work(arguments, message: str) -> None:
    *rest, calibrated = arguments
    with pytest.raises(InputError, match=message):
        plan(*rest, calibrated=calibrated)


@pytest.mark.parametrize("drop", [-0.1, 1.0, float("nan")])
def test_a_bound_that_is_no_share_is_refused(drop: float) -> None:
    with pytest.raises(InputError, match="max-accuracy-drop"):
        CompileOptions(max_accuracy_drop=drop)


MEASURED = Measurement(
    value=0.9, float_value=0.9, drop=0.0, drop_low=-0.01, drop_high=0.01, agreement=0.99, sqnr_db=30.0, has_nan=False,
    latency_ms=1.0, float_latency_ms=1.0, executing_device="CPU",
)  # fmt: skip
FIT = Trial(candidate=A, size_bytes=30, float_size_bytes=100, compute_nodes=4, quantized_nodes=4, measurement=MEASURED)


@pytest.mark.parametrize(
    ("trial", "reason"),
    [
        (FIT, None),
        (replace(FIT, measurement=replace(MEASURED, drop=0.01)), None),
        (replace(FIT, measurement=replace(MEASURED, drop=0.0101)), "loses 0.0101, at most 0.0100"),
        (replace(FIT, measurement=replace(MEASURED, has_nan=True)), "NaN"),
        (replace(FIT, measurement=replace(MEASURED, agreement=0.5)), "agrees with the float model on 50.0%"),
        (replace(FIT, quantized_nodes=0), "no convolution or matrix product was quantized"),
        (replace(FIT, size_bytes=100), "not smaller than float: 100 and 100"),
        (replace(FIT, candidate=FLOAT, quantized_nodes=0, size_bytes=100), None),
        (Trial(candidate=A, refused=("the converter failed",)), "the converter failed"),
    ],
    ids=["fit", "at the bound", "over the bound", "NaN", "disagrees", "nothing quantized", "large", "float", "broken"],
)
def test_a_product_is_refused_for_a_reason(trial: Trial, reason: str | None) -> None:
    found = refusals(trial, AUTO)
    assert len(found) == (reason is not None)
    assert reason is None or reason in found[0]


def lost(candidate: Candidate, drop: float, *, refused: bool) -> Trial:
    measurement = replace(MEASURED, drop=drop)
    return Trial(candidate=candidate, measurement=measurement, refused=("it loses too much",) if refused else ())


@pytest.mark.parametrize(
    ("trials", "keepable", "kept"),
    [
        ([lost(FLOAT, 0, refused=False), lost(A, 0.005, refused=False)], True, A),
        ([lost(FLOAT, 0, refused=False), lost(A, 0.2, refused=True), lost(B, 0.003, refused=False)], True, B),
        ([lost(FLOAT, 0, refused=False), lost(A, 0.2, refused=True), lost(B, 0.1, refused=True)], True, FLOAT),
        ([lost(FLOAT, 0, refused=False), lost(A, 0.2, refused=True)], False, None),
        ([lost(FLOAT, 0.2, refused=True), lost(A, 0.2, refused=True)], True, None),
        ([lost(FLOAT, 0, refused=False), Trial(candidate=A, refused=("broken",))], True, FLOAT),
        ([Trial(candidate=FLOAT, refused=("broken",))], True, None),
    ],
    ids=["int8", "second int8", "float", "float unwanted", "converter broke", "int8 broke", "all broke"],
)
def test_the_smallest_that_meets_the_bound_is_kept(trials: list[Trial], keepable: bool, kept: Candidate | None) -> None:
    steps = [step(trial.candidate, keepable=keepable or trial.candidate != FLOAT) for trial in trials]
    verdict = choose(steps, trials)
    assert verdict.kept == kept
    assert verdict.why


def test_the_best_found_is_told_when_nothing_is_kept() -> None:
    trials = [lost(FLOAT, 0, refused=False), lost(A, 0.2, refused=True), lost(B, 0.1, refused=True)]
    steps = [step(FLOAT, keepable=False), step(A), step(B)]
    assert "best found: B" in choose(steps, trials).why
    assert best_found(trials) is trials[2]
    assert best_found([]) is None
