"""What every target owes (`edgeserve_compilers.targets.base`).

Subclass `FormContract` with a fixture `form`, and `TargetContract` with a fixture `target`. A form whose library or
converter is not installed is skipped with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from edgeserve import plugins
from edgeserve.contracts.errors import DeviceError
from edgeserve.contracts.variant import Precision
from edgeserve.runtimes.base import RuntimeOptions, Tensors
from edgeserve.runtimes.rows import run_rows
from edgeserve.runtimes.variant import find_runtime
from edgeserve_compilers.spec import FLOAT, Candidate, ModelSpec
from edgeserve_compilers.targets.base import Form, Job, Product, Target, Workshop
from edgeserve_devices.probe import probe
from tests.suites.models import BOX_CHANNELS, branched_net, conv_net, images, mixed_range_net, recurrent_net, save

FAITHFUL_NOISE = 0.02
"""17 dB: the candidate that a form tries first."""
CLIPPED_NOISE = 0.2
"""7 dB: those that clip or have few bits."""


def forms_of(names: Iterable[str]) -> dict[str, Form]:
    """Forms of the registered targets by `target/form`."""
    targets: list[Target] = [plugins.find(plugins.TARGETS, name)() for name in names]
    return {f"{target.name}/{form.name}": form for target in targets for form in target.forms}


def job(
    float_file: Path,
    calibration: Mapping[str, np.ndarray] | None,
    folder: Path,
    *,
    state: Mapping[str, str] | None = None,
) -> Job:
    """What a form gets for a float model; `folder` is made."""
    folder.mkdir()
    signature = find_runtime("onnxruntime").load(float_file, RuntimeOptions()).signature
    sizes = {spec.name: tuple(1 if size < 0 else size for size in spec.shape[1:]) for spec in signature.inputs}
    return Job(
        model=ModelSpec(
            file=float_file.name,
            digest="sha256:" + 64 * "0",
            size_bytes=float_file.stat().st_size,
            opset=17,
            nodes=0,
            signature=signature,
        ),
        float_file=float_file,
        row_shapes={**sizes, **{name: rows.shape[1:] for name, rows in (calibration or {}).items()}},
        calibration=None if calibration is None else dict(calibration),
        state=state or {},
        folder=folder,
    )


def opened(form: Form, work: Job) -> Workshop:
    """Open a workshop, or skip where the form's library is not installed."""
    try:
        find_runtime(form.runtime)
        return form.open(work)
    except (ImportError, DeviceError) as error:
        pytest.skip(f"{form.name}: {error}")


@dataclass(frozen=True)
class Bench:
    """A workshop with a folder for its products, and a way to run them."""

    form: Form
    workshop: Workshop
    folder: Path

    def produce(self, candidate: Candidate, name: str = "") -> tuple[Product, Path]:
        """Make a candidate in a folder of its own."""
        folder = self.folder / (name or f"product-{len(list(self.folder.iterdir()))}")
        folder.mkdir()
        product = self.workshop.produce(candidate, folder)
        files = {path.name for path in folder.iterdir()}
        assert product.entry in files
        assert all(file.startswith("model.") for file in files), files
        return product, folder

    def outputs(self, product: Product, folder: Path, inputs: Tensors) -> Tensors:
        """Run a product by the form's own runtime, or its simulator here."""
        host = probe()
        options = RuntimeOptions(
            device=self.form.runtime_device, simulate=not self.form.native(host.architecture, host.cpu_features)
        )
        model = find_runtime(self.form.runtime).load(folder / product.entry, options)
        try:
            return run_rows(model, inputs)
        finally:
            model.close()

    def answers(self, candidate: Candidate, inputs: Tensors) -> tuple[Product, Tensors]:
        """Make a candidate and run it."""
        product, folder = self.produce(candidate)
        return product, self.outputs(product, folder, inputs)


def float_outputs(path: Path, inputs: Tensors) -> Tensors:
    """What the float model answers, by ONNX Runtime."""
    model = find_runtime("onnxruntime").load(path, RuntimeOptions())
    return run_rows(model, inputs)


def noise(found: np.ndarray, expected: np.ndarray) -> float:
    """Noise power over signal power."""
    assert found.shape == expected.shape
    return float(np.square(found - expected).sum() / np.square(expected).sum())


def size(folder: Path) -> int:
    """Bytes of a product's files."""
    return sum(path.stat().st_size for path in folder.iterdir())


INPUTS: Tensors = {"image": images(40, seed=2)}


class FormContract:
    """Every test of it runs for every form of every target."""

    faithful = True
    """Products compute what the model computes (`Target.faithful`)."""

    @pytest.fixture
    def float_file(self, tmp_path: Path) -> Path:
        return save(conv_net(), tmp_path / "float.onnx")

    @pytest.fixture
    def bench(self, form: Form, float_file: Path, tmp_path: Path) -> Bench:
        """The form's workshop on the small classifier, open."""
        return self.bench_on(form, float_file, {"image": images(64)}, tmp_path)

    def bench_on(self, form: Form, model: Path, calibration: Tensors | None, folder: Path, **more) -> Bench:
        (products := folder / "products").mkdir()
        return Bench(form, opened(form, job(model, calibration, folder / "work", **more)), products)

    def test_candidates_are_quantized_and_have_names_of_their_own(self, form: Form) -> None:
        recipes = [candidate.recipe for candidate in form.candidates]
        assert len(set(recipes)) == len(recipes)
        assert len(recipes) <= 16, "every one is made and judged"
        for candidate in form.candidates:
            assert candidate.precision is not Precision.FP32
            assert candidate.float_layers == ()
        assert set(form.auto) <= {candidate.precision for candidate in form.candidates}

    def test_the_float_product_answers_like_the_model(self, bench: Bench, float_file: Path) -> None:
        product, found = bench.answers(FLOAT, INPUTS)
        assert found["logits"].shape == (40, 10)
        assert product.quantized_nodes == 0
        assert not {"int8", "int4"} & product.placement.keys()
        if self.faithful:
            assert product.compute_nodes == 3
            np.testing.assert_allclose(
                found["logits"], float_outputs(float_file, INPUTS)["logits"], rtol=1e-3, atol=1e-3
            )

    def test_the_float_product_needs_no_calibration(self, form: Form, float_file: Path, tmp_path: Path) -> None:
        bench = self.bench_on(form, float_file, None, tmp_path)
        assert bench.answers(FLOAT, INPUTS)[1]["logits"].shape == (40, 10)

    def test_a_built_in_batch_of_one_is_compiled_too(self, form: Form, tmp_path: Path) -> None:
        path = save(conv_net(batch=1), tmp_path / "one.onnx")
        bench = self.bench_on(form, path, {"image": images(16)}, tmp_path)
        for candidate in (FLOAT, *form.candidates[:1]):
            found = bench.answers(candidate, INPUTS)[1]["logits"]
            if self.faithful:
                assert noise(found, float_outputs(path, INPUTS)["logits"]) < FAITHFUL_NOISE

    def test_every_candidate_is_smaller_and_close_and_says_what_it_quantized(
        self, bench: Bench, float_file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = float_file.read_bytes()
        expected = float_outputs(float_file, INPUTS)["logits"]
        float_size = size(bench.produce(FLOAT)[1])
        for number, candidate in enumerate(bench.form.candidates):
            product, folder = bench.produce(candidate)
            assert size(folder) < float_size, candidate.recipe
            assert product.compute_nodes == 3
            if candidate.precision is Precision.FP16:
                assert product.placement.get("fp16", 0) >= 3
            else:
                assert 1 <= product.quantized_nodes <= 3, candidate.recipe
            if number == 0 and candidate.precision is Precision.INT8:
                assert product.quantized_nodes == 3, "the one to try first quantizes all"
                assert product.placement["int8"] >= 3
            found = bench.outputs(product, folder, INPUTS)["logits"]
            lost = noise(found, expected)
            assert 0 < lost < (FAITHFUL_NOISE if number == 0 else CLIPPED_NOISE), candidate.recipe
        assert float_file.read_bytes() == before, "the float model was changed"
        assert capsys.readouterr().out == "", "stdout belongs to the command's own output"

    def test_no_setting_of_a_candidate_is_ignored(self, form: Form, tmp_path: Path) -> None:
        """Quantizers ignore options that they do not know, without a word: the product is then that of another."""
        rows = images(64)
        rows[5] *= 6  # ranges with this outlier and without it differ
        net = save(branched_net(), tmp_path / "branched.onnx")
        bench = self.bench_on(form, net, {"image": rows}, tmp_path)
        made: dict[bytes, str] = {}
        for candidate in form.candidates:
            _, folder = bench.produce(candidate)
            content = b"".join(path.read_bytes() for path in sorted(folder.iterdir()))
            assert content not in made, f"{candidate.title} is the same as {made[content]}"
            made[content] = candidate.title

    def test_layers_stay_float_one_by_one(self, bench: Bench, float_file: Path) -> None:
        layers = list(bench.workshop.layers)
        assert len(set(layers)) == len(layers)
        if not layers:
            pytest.skip("no mixed precision")
        expected = float_outputs(float_file, INPUTS)["logits"]
        base = bench.form.candidates[0]
        whole, found = bench.answers(base, INPUTS)
        lost = noise(found["logits"], expected)
        for count in range(1, len(layers) + 1):
            candidate = Candidate(
                precision=base.precision, recipe=base.recipe, float_layers=tuple(sorted(layers[:count]))
            )
            product, found = bench.answers(candidate, INPUTS)
            assert product.quantized_nodes == whole.quantized_nodes - count
            assert noise(found["logits"], expected) < 2 * lost + 1e-9
        assert noise(found["logits"], expected) < lost / 2, "with every layer in float hardly anything is lost"

    def test_a_head_that_joins_different_ranges_keeps_its_scores(self, form: Form, tmp_path: Path) -> None:
        if not form.candidates or not self.faithful:
            pytest.skip("nothing is quantized")
        path = save(mixed_range_net(), tmp_path / "detector.onnx")
        bench = self.bench_on(form, path, {"image": images(64)}, tmp_path)
        expected = float_outputs(path, INPUTS)["boxes"]
        for candidate in form.candidates:
            if candidate.precision is Precision.INT4:
                continue  # there is no matrix
            product, found = bench.answers(candidate, INPUTS)
            scores, boxes = found["boxes"][:, BOX_CHANNELS:], found["boxes"][:, :BOX_CHANNELS]
            assert noise(scores, expected[:, BOX_CHANNELS:]) < FAITHFUL_NOISE, candidate.recipe
            assert noise(boxes, expected[:, :BOX_CHANNELS]) < CLIPPED_NOISE, candidate.recipe
            if candidate.precision is Precision.INT8:
                assert product.quantized_nodes >= 2, "what lies before the head is quantized"

    def test_a_stateful_model_is_compiled_for_a_batch_of_one(self, form: Form, tmp_path: Path) -> None:
        path = save(recurrent_net(), tmp_path / "recurrent.onnx")
        random = np.random.default_rng(3)
        rows = {
            "sound": random.standard_normal((24, 12)).astype(np.float32),
            "state": random.uniform(-1, 1, (24, 2, 1, 16)).astype(np.float32),
        }
        bench = self.bench_on(form, path, rows, tmp_path, state={"state": "next"})
        one: Tensors = {"sound": rows["sound"][:1], "state": rows["state"][0]}
        reference = find_runtime("onnxruntime").load(path, RuntimeOptions()).run(one)
        for candidate in (
            FLOAT,
            *(candidate for candidate in form.candidates if candidate.precision is not Precision.INT4),
        ):
            product, folder = bench.produce(candidate)
            options = RuntimeOptions(device=form.runtime_device, simulate=True)
            found = find_runtime(form.runtime).load(folder / product.entry, options).run(one)
            assert found.keys() == reference.keys()
            if self.faithful:
                for name, expected in reference.items():
                    assert noise(found[name], expected) < CLIPPED_NOISE, (candidate.recipe, name)

    def test_the_same_candidate_gives_the_same_bytes(self, form: Form, float_file: Path, tmp_path: Path) -> None:
        first, again = tmp_path / "first", tmp_path / "again"
        first.mkdir()
        again.mkdir()
        one = self.bench_on(form, float_file, {"image": images(32)}, first)
        other = self.bench_on(form, float_file, {"image": images(32)}, again)
        layers = tuple(one.workshop.layers[:1])
        mixed = [
            Candidate(precision=base.precision, recipe=base.recipe, float_layers=layers) for base in form.candidates[:1]
        ]
        wanted = [FLOAT, *form.candidates, *(mixed if layers else [])]
        made = {number: one.produce(candidate)[1] for number, candidate in enumerate(wanted)}
        for number, candidate in reversed(list(enumerate(wanted))):  # what was made before must not matter
            folder = other.produce(candidate)[1]
            for path in folder.iterdir():
                assert path.read_bytes() == (made[number] / path.name).read_bytes(), (candidate.title, path.name)

    def test_an_unknown_candidate_is_an_error(self, bench: Bench) -> None:
        with pytest.raises((KeyError, ValueError)):
            bench.produce(Candidate(precision=Precision.INT4, recipe="wishful thinking"))


class TargetContract:
    """Every test of it runs for every registered target."""

    def test_it_is_registered_under_its_name(self, target: Target) -> None:
        assert plugins.find(plugins.TARGETS, target.name) is type(target)
        assert {form.runtime for form in target.forms} <= set(plugins.names(plugins.RUNTIMES))

    def test_forms_have_names_of_their_own_and_one_is_required(self, target: Target) -> None:
        names = [form.name for form in target.forms]
        assert len(set(names)) == len(names)
        assert any(form.required for form in target.forms)

    def test_what_finalizes_a_form_says_what_its_result_depends_on(self, target: Target) -> None:
        for form in target.forms:
            if form.finalize is not None:
                assert "model" in form.finalize.cache_key
                assert form.finalize.steps
