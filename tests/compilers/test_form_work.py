"""One form from candidates to the product that is kept, with a form of its own and the real ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgeserve.contracts.errors import DeviceError, EdgeServeError, InputError
from edgeserve.contracts.task import Task
from edgeserve.contracts.variant import Finalize, Precision, Selector
from edgeserve.runtimes.base import RuntimeOptions
from edgeserve.runtimes.onnx import OnnxRuntime
from edgeserve_compilers.data.dataset import Dataset
from edgeserve_compilers.form_work import FormWork, Shared, Worked
from edgeserve_compilers.plan import FormPlan
from edgeserve_compilers.spec import FLOAT, Candidate, CompileOptions, ModelSpec, PrecisionChoice, Trial
from edgeserve_compilers.targets.base import Job, Product
from edgeserve_compilers.verify import refer
from tests.suites.models import model, save

ROWS, CLASSES = 200, 5
X = np.random.default_rng(0).standard_normal((ROWS, 8)).astype(np.float32)
WEIGHTS = np.random.default_rng(1).standard_normal((8, CLASSES)).astype(np.float32)
FLOAT_PADDING = 200_000
"""Bytes that a float file has more than the others: a product must be smaller."""


def net(weights: np.ndarray, *, padding: int = 0, slow: int = 0, classes: int = CLASSES) -> onnx.ModelProto:
    """`x` f32 [batch, 8] to `y` f32 [batch, classes] by one matrix, and `slow` operations that change nothing."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["product"])]
    names = ["product", *(f"s{number}" for number in range(slow))]
    nodes += [helper.make_node("Sigmoid", [before], [name]) for before, name in pairwise(names)]
    nodes += [
        helper.make_node("Mul", [names[-1], "nothing"], ["zeros"]),
        helper.make_node("Add", ["product", "zeros"], ["y"]),
    ]
    built = model(
        nodes,
        inputs={"x": (TensorProto.FLOAT, ["batch", 8])},
        outputs={"y": (TensorProto.FLOAT, ["batch", classes])},
        weights={"w": weights.astype(np.float32), "nothing": np.zeros((), np.float32)},
    )
    built.doc_string = "." * padding
    return built


def noisy(share: float) -> np.ndarray:
    return WEIGHTS + share * np.random.default_rng(2).standard_normal(WEIGHTS.shape)


NETS = {
    "exact": lambda: net(WEIGHTS),
    "good": lambda: net(noisy(0.01)),
    "worse": lambda: net(noisy(0.05)),
    "useless": lambda: net(noisy(5.0)),
    "nan": lambda: net(np.full_like(WEIGHTS, np.nan)),
    "slow": lambda: net(WEIGHTS, slow=600),
    "of another shape": lambda: net(WEIGHTS[:, :-1], classes=CLASSES - 1),
}


@dataclass
class Workshop:
    """Makes what the recipe names; `no such file` makes nothing, `breaks` breaks off half way."""

    layers: Sequence[str] = ()
    float_breaks: Exception | None = None

    def produce(self, candidate: Candidate, folder: Path) -> Product:
        (folder / "model.onnx").write_bytes(b"half")
        if candidate == FLOAT:
            if self.float_breaks is not None:
                raise self.float_breaks
            save(net(WEIGHTS, padding=FLOAT_PADDING), folder / "model.onnx")
            return Product(entry="model.onnx", compute_nodes=1)
        if candidate.recipe == "breaks":
            raise ZeroDivisionError("of the converter's own")
        if candidate.recipe != "no such file":
            save(NETS[candidate.recipe](), folder / "model.onnx")
        return Product(entry="model.onnx", compute_nodes=1, quantized_nodes=1)


@dataclass(kw_only=True)
class Form:
    """One workshop for every job."""

    workshop: Workshop = field(default_factory=Workshop)
    must_be_faster: bool = False
    name: str = "matrix"
    runtime: str = "onnxruntime"
    runtime_device: str = "CPU"
    selector: Selector = field(default_factory=Selector)
    candidates: Sequence[Candidate] = ()
    auto: Sequence[Precision] = (Precision.INT8,)
    required: bool = True
    float_fallback: bool = True
    finalize: Finalize | None = None

    def native(self, architecture: str, cpu_features: Sequence[str]) -> bool:
        return True

    def open(self, job: Job) -> Workshop:
        return self.workshop


def work(
    folder: Path,
    *recipes: str,
    form: Form | None = None,
    precision: PrecisionChoice = PrecisionChoice.AUTO,
    native: bool = True,
) -> tuple[Worked, Path]:
    """Work through the recipes, and where the products lay."""
    form = form or Form()
    float_file = save(net(WEIGHTS), folder / "float.onnx")
    loaded = OnnxRuntime().load(float_file, RuntimeOptions())
    labels = (X @ WEIGHTS).argmax(axis=1)
    data = Dataset(file="rows.npz", digest="sha256:00", inputs={"x": X}, truth=labels)
    task = Task(output="y", metric="top1")
    shared = Shared(
        reference=refer(loaded, data, task),
        options=CompileOptions(precision=precision, max_accuracy_drop=0.05, task=task),
        ranking=None,
        ranking_fields=None,
    )
    job = Job(
        model=ModelSpec(file="m.onnx", digest="", size_bytes=1, opset=17, nodes=1, signature=loaded.signature),
        float_file=float_file,
        row_shapes={"x": (8,)},
        calibration={"x": X},
        folder=folder,
    )
    loaded.close()
    step = FormPlan(
        target="matrices",
        form=form.name,
        candidates=tuple(Candidate(precision=Precision.INT8, recipe=recipe) for recipe in recipes),
        keep_float=True,
        mixed=True,
    )
    products = folder / "products"
    products.mkdir()
    return FormWork(form, step, job, shared, native=native, folder=products).carry_out(lambda _what: None), products


def tried(worked: Worked, recipe: str) -> Trial:
    (found,) = (trial for trial in worked.trials if trial.candidate.recipe == recipe)
    return found


def test_only_the_best_and_float_are_still_on_disk(tmp_path: Path) -> None:
    worked, products = work(tmp_path, "worse", "breaks", "useless", "good", "nan", "no such file", "of another shape")
    assert worked.kept is not None
    assert worked.kept.candidate.recipe == "good"
    assert worked.verdict.kept == worked.kept.candidate
    left = {folder.name: (folder / "model.onnx").read_bytes() for folder in products.iterdir()}
    assert left.pop(worked.kept.folder.name) == NETS["good"]().SerializeToString()
    assert list(left.values()) == [net(WEIGHTS, padding=FLOAT_PADDING).SerializeToString()]
    np.testing.assert_allclose(worked.kept.outputs["y"], X @ noisy(0.01).astype(np.float32), atol=1e-4)


def test_a_better_one_that_comes_first_is_not_lost_to_later_ones(tmp_path: Path) -> None:
    worked, products = work(tmp_path, "good", "worse", "useless")
    assert worked.kept is not None
    assert worked.kept.candidate.recipe == "good"
    assert (worked.kept.folder / "model.onnx").is_file()
    assert len(list(products.iterdir())) == 2


@pytest.mark.parametrize(
    ("recipe", "why"),
    [
        ("breaks", "matrices (matrix): breaks cannot be made of m.onnx: ZeroDivisionError: of the converter's own"),
        ("no such file", "is not a model that ONNX Runtime"),
        ("of another shape", f"output 'y' is [{ROWS}, {CLASSES - 1}], the model's is [{ROWS}, {CLASSES}]"),
        ("nan", "its answers hold NaN"),
        ("useless", "at most 0.0500 are allowed"),
    ],
)
def test_what_cannot_be_kept_is_a_refused_trial_and_the_search_goes_on(tmp_path: Path, recipe: str, why: str) -> None:
    worked, _ = work(tmp_path, recipe, "exact")
    assert why in "; ".join(tried(worked, recipe).refused)
    assert worked.verdict.kept is not None
    assert worked.verdict.kept.recipe == "exact"


def test_float_is_kept_when_nothing_else_may_be(tmp_path: Path) -> None:
    worked, products = work(tmp_path, "useless", "nan")
    assert worked.verdict.kept == FLOAT
    assert worked.kept is not None
    assert [worked.kept.folder] == list(products.iterdir())
    assert "2 smaller forms were refused" in worked.verdict.why


@pytest.mark.parametrize(
    ("error", "kind", "what"),
    [
        (KeyError("no such layer"), InputError, "matrices (matrix): fp32 cannot be made of m.onnx: KeyError"),
        (ModuleNotFoundError("no converter"), DeviceError, "matrices (matrix): fp32 cannot be made of m.onnx: Module"),
        (InputError("of the form's own", hint="do this"), InputError, "of the form's own"),
    ],
)
def test_a_form_that_cannot_make_the_float_product_says_so(
    tmp_path: Path, error: Exception, kind: type[EdgeServeError], what: str
) -> None:
    with pytest.raises(kind) as raised:
        work(tmp_path, "exact", form=Form(workshop=Workshop(float_breaks=error)))
    assert raised.value.message.startswith(what)
    assert not list((tmp_path / "products").iterdir())


@pytest.mark.parametrize(
    ("precision", "native", "must_be_faster", "refused"),
    [
        (PrecisionChoice.AUTO, True, True, True),
        (PrecisionChoice.INT8, True, True, False),
        (PrecisionChoice.AUTO, False, True, False),
        (PrecisionChoice.AUTO, True, False, False),
    ],
    ids=["auto, native, must be faster", "asked for by name", "on another machine", "size is what counts"],
)
def test_speed_refuses_only_what_was_not_asked_for_on_the_very_machine(
    tmp_path: Path, precision: PrecisionChoice, native: bool, must_be_faster: bool, refused: bool
) -> None:
    worked, _ = work(tmp_path, "slow", form=Form(must_be_faster=must_be_faster), precision=precision, native=native)
    (slow,) = (trial for trial in worked.trials if trial.candidate.recipe == "slow")
    assert slow.measurement is not None
    assert slow.measurement.latency_ms > slow.measurement.float_latency_ms
    assert any("not faster here" in reason for reason in slow.refused) is refused
    assert (worked.verdict.kept == FLOAT) is refused
