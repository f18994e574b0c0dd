from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from msgspec.structs import replace

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.task import Task
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.contracts.variant import Precision
from edgeserve_compilers.plan import FormPlan, best_found, choose, is_redundant, plan, refusals
from edgeserve_compilers.spec import (
    FLOAT,
    Candidate,
    CompileOptions,
    FieldNoise,
    Measurement,
    ModelSpec,
    PrecisionChoice,
    Trial,
)

A, B = (Candidate(precision=Precision.INT8, recipe=recipe) for recipe in "AB")
HALF = Candidate(precision=Precision.FP16, recipe="H")
AUTO, FP32, FP16, INT8, INT4 = (CompileOptions(precision=choice) for choice in PrecisionChoice)


@dataclass(frozen=True)
class Form:
    name: str = "f"
    candidates: Sequence[Candidate] = (A, B)
    auto: Sequence[Precision] = (Precision.INT8,)
    float_fallback: bool = True


FULL = Form(candidates=(A, HALF, B))
STRICT = Form(name="strict", candidates=(A,), float_fallback=False)
FLOATS = Form(name="floats", candidates=(), auto=())


def model(shape: tuple[int, ...] = (-1, 1, 8, 8), datatype: Datatype = Datatype.FP32) -> ModelSpec:
    spec = TensorSpec(name="image", datatype=datatype, shape=shape)
    signature = Signature(inputs=(spec,), outputs=(TensorSpec(name="y", datatype=Datatype.FP32, shape=(-1, 10)),))
    return ModelSpec(file="m.onnx", digest="sha256:00", size_bytes=1, opset=17, nodes=1, signature=signature)


def form_plan(form: Form, *candidates: Candidate, keep_float: bool = True, mixed: bool = True) -> FormPlan:
    return FormPlan(target="t", form=form.name, candidates=candidates, keep_float=keep_float, mixed=mixed)


@pytest.mark.parametrize(
    ("forms", "options", "calibrated", "expected"),
    [
        ([FULL], AUTO, True, [form_plan(FULL, A, B)]),
        ([FULL], INT8, True, [form_plan(FULL, A, B, keep_float=False)]),
        ([FULL], FP16, False, [form_plan(FULL, HALF, keep_float=False)]),
        ([FULL], FP32, True, [form_plan(FULL, mixed=False)]),
        ([FULL], AUTO, False, [form_plan(FULL)]),
        (
            [FULL, STRICT, FLOATS], AUTO, True,
            [form_plan(FULL, A, B), form_plan(STRICT, A, keep_float=False), form_plan(FLOATS)],
        ),
        (
            [FULL, STRICT, FLOATS], INT8, True,
            [form_plan(FULL, A, B, keep_float=False), form_plan(STRICT, A, keep_float=False)],
        ),
        ([FULL, STRICT, FLOATS], FP32, True, [form_plan(FULL, mixed=False), form_plan(FLOATS, mixed=False)]),
        ([FULL, STRICT], AUTO, False, [form_plan(FULL)]),
    ],
    ids=[
        "auto", "int8", "fp16", "fp32", "no data", "three forms", "int8 of three", "fp32 of three",
        "no data, two forms",
    ],
)  # fmt: skip
def test_forms_follow_the_wish(forms, options: CompileOptions, calibrated: bool, expected: list[FormPlan]) -> None:
    assert plan(model(), {"t": forms}, options, calibrated=calibrated) == tuple(expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((model(), {}, AUTO, True), "nothing to compile for"),
        ((model(), {"t": (FULL,)}, INT8, False), "calibration data"),
        ((model(), {"null": (FLOATS,)}, INT8, True), "null has no int8 form"),
        ((model(), {"t": (FULL,)}, INT4, True), "t has no int4 form"),
        ((model(), {"t": (STRICT,)}, AUTO, False), "t has no auto form"),
        ((model((8, 1, 8, 8)), {"t": (FULL,)}, AUTO, True), r"'image' has shape \[8, 1, 8, 8\]"),
        ((model(()), {"t": (FULL,)}, AUTO, True), "'image' is a scalar"),
        ((model(datatype=Datatype.BYTES), {"t": (FULL,)}, AUTO, True), "strings"),
    ],
    ids=["no target", "no data", "no form", "no int4", "only int8, no data", "built-in batch", "scalar", "strings"],
)
def test_what_cannot_be_made_is_refused_before_any_work(arguments, message: str) -> None:
    *rest, calibrated = arguments
    with pytest.raises(InputError, match=message):
        plan(*rest, calibrated=calibrated)


def test_state_may_have_any_shape() -> None:
    options = CompileOptions(task=Task(state={"image": "y"}))
    assert plan(model((2, -1, 128)), {"t": (FULL,)}, options, calibrated=True)


@pytest.mark.parametrize("drop", [-0.1, 1.0, float("nan")])
def test_a_bound_that_is_no_share_is_refused(drop: float) -> None:
    with pytest.raises(InputError, match="max-accuracy-drop"):
        CompileOptions(max_accuracy_drop=drop)


MEASURED = Measurement(
    value=0.9, float_value=0.9, drop=0.0, drop_low=-0.01, drop_high=0.01, agreement=0.99,
    fields=(FieldNoise(field="scores", sqnr_db=30.0),), has_nan=False,
    latency_ms=1.0, float_latency_ms=1.5, executing_device="CPU",
)  # fmt: skip
FIT = Trial(candidate=A, size_bytes=30, float_size_bytes=100, compute_nodes=4, quantized_nodes=4, measurement=MEASURED)


def fit(**changes) -> Trial:
    return replace(FIT, measurement=replace(MEASURED, **changes))


@pytest.mark.parametrize(
    ("trial", "reason"),
    [
        (FIT, None),
        (fit(drop=0.01), None),
        (fit(drop=0.90 - 0.89), None),
        (fit(drop=0.0101), "loses 0.0101, at most 0.0100"),
        (fit(has_nan=True), "NaN"),
        (fit(agreement=0.5), "agrees with the float model to 50.0%"),
        (fit(positives=0, float_positives=12), "finds none of the float model's 12 boxes"),
        (fit(positives=1, float_positives=12), None),
        (fit(positives=0, float_positives=0), None),
        (fit(fields=(*MEASURED.fields, FieldNoise(field="boxes", sqnr_db=-0.1))), "more noise than signal in boxes"),
        (replace(FIT, quantized_nodes=0), "no convolution or matrix product was quantized"),
        (replace(FIT, size_bytes=100), "not smaller than float: 100 and 100"),
        (replace(FIT, candidate=HALF, quantized_nodes=0), None),
        (replace(FIT, candidate=HALF, size_bytes=100), "not smaller than float"),
        (replace(FIT, candidate=FLOAT, quantized_nodes=0, size_bytes=100), None),
        (Trial(candidate=A, refused=("the converter failed",)), "the converter failed"),
    ],
    ids=[
        "fit", "at the bound", "at the bound in floats",
        "over the bound", "NaN", "disagrees", "no boxes", "few boxes", "no boxes either",
        "drowned field", "nothing quantized", "large", "half", "half and large", "float", "broken",
    ],
)  # fmt: skip
def test_a_product_is_refused_for_a_reason(trial: Trial, reason: str | None) -> None:
    found = refusals(trial, AUTO)
    assert len(found) == (reason is not None)
    assert reason is None or reason in found[0]


@pytest.mark.parametrize(
    ("trial", "must", "refused"),
    [
        (fit(latency_ms=2.0), True, True),
        (fit(latency_ms=1.5), True, True),
        (fit(latency_ms=1.4), True, False),
        (fit(latency_ms=2.0), False, False),
        (replace(fit(latency_ms=2.0), candidate=FLOAT), True, False),
    ],
    ids=["slower", "as fast", "faster", "slower elsewhere", "float itself"],
)
def test_on_its_own_machine_a_smaller_form_must_win_the_race(trial: Trial, must: bool, refused: bool) -> None:
    found = refusals(trial, AUTO, must_be_faster=must)
    assert bool(found) is refused
    assert not found or "not faster here" in found[0]


def lost(candidate: Candidate, drop: float, *, refused: bool = False, noise: float = 30.0, size: int = 0) -> Trial:
    measurement = replace(MEASURED, drop=drop, fields=(FieldNoise(field="scores", sqnr_db=noise),))
    why = ("it loses too much",) if refused else ()
    return Trial(candidate=candidate, measurement=measurement, refused=why, size_bytes=size)


MIXED = replace(A, float_layers=("conv1",))


@pytest.mark.parametrize(
    ("trials", "keep_float", "kept"),
    [
        ([lost(FLOAT, 0), lost(A, 0.005)], True, A),
        ([lost(FLOAT, 0), lost(A, 0.2, refused=True), lost(B, 0.003)], True, B),
        ([lost(FLOAT, 0), lost(A, 0.2, refused=True), lost(B, 0.1, refused=True)], True, FLOAT),
        ([lost(FLOAT, 0), lost(A, 0.2, refused=True)], False, None),
        ([lost(FLOAT, 0.2, refused=True), lost(A, 0.2, refused=True)], True, None),
        ([lost(FLOAT, 0), Trial(candidate=A, refused=("broken",))], True, FLOAT),
        ([Trial(candidate=FLOAT, refused=("broken",))], True, None),
        ([lost(FLOAT, 0), lost(A, -0.01, noise=20), lost(B, 0.0, noise=30)], True, B),
        ([lost(FLOAT, 0), lost(MIXED, 0.0), lost(A, 0.0)], True, A),
        ([lost(FLOAT, 0), lost(A, 0.0, size=9), lost(B, 0.0, size=8)], True, B),
    ],
    ids=[
        "int8", "second int8", "float", "float unwanted", "converter broke", "int8 broke", "all broke",
        "luck is no merit",
        "fewer float layers", "smaller",
    ],
)  # fmt: skip
def test_the_smallest_that_meets_the_bound_is_kept(
    trials: list[Trial], keep_float: bool, kept: Candidate | None
) -> None:
    verdict = choose(trials, keep_float=keep_float)
    assert verdict.kept == kept
    assert verdict.why


def test_the_best_found_is_told_when_nothing_is_kept() -> None:
    trials = [lost(FLOAT, 0), lost(A, 0.2, refused=True), lost(B, 0.1, refused=True)]
    assert "best found: B" in choose(trials, keep_float=False).why
    assert best_found(trials) is trials[2]
    assert best_found([]) is None


def test_what_could_not_be_made_is_told_when_nothing_was_measured() -> None:
    trials = [lost(FLOAT, 0), Trial(candidate=A, refused=("there is nothing to quantize",))]
    assert choose(trials, keep_float=False).why == "none could be made: A: there is nothing to quantize"


@pytest.mark.parametrize(
    ("ours", "theirs", "redundant"),
    [
        (lost(A, 0.01), lost(B, 0.01), True),
        (lost(A, 0.001), lost(B, 0.005), True),
        (lost(A, 0.001), lost(B, 0.007), False),
        (lost(A, 0.01), lost(FLOAT, 0.0), False),
        (lost(A, -0.02), lost(B, -0.01), True),
    ],
    ids=["as good", "hardly better", "better", "another precision", "both lose nothing"],
)
def test_a_variant_for_fewer_devices_must_be_better(ours: Trial, theirs: Trial, redundant: bool) -> None:
    assert is_redundant(ours, [theirs], AUTO) is redundant
    assert not is_redundant(ours, [], AUTO)
