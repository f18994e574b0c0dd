"""What every target owes (`edgeserve_compilers.targets.base`). Subclass `TargetContract` with a fixture `target`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeserve import plugins
from edgeserve.contracts.variant import Precision
from edgeserve.runtimes.base import RuntimeOptions
from edgeserve.runtimes.rows import run_rows
from edgeserve.runtimes.variant import find_runtime
from edgeserve_compilers import load
from edgeserve_compilers.spec import FLOAT, Candidate
from edgeserve_compilers.targets.base import Job, Product, Target
from tests.suites.models import conv_net, images, save


def produce(folder: Path, target: Target, candidate: Candidate, name: str = "product") -> tuple[Product, Path]:
    """Make `candidate` of the tiny net in `folder/name`."""
    path = folder / "float.onnx"
    if not path.exists():
        save(conv_net(), path)
    before = path.read_bytes()
    destination = folder / name
    destination.mkdir()
    job = Job(
        model=load.load(path).spec,
        float_file=path,
        row_shapes={"image": (1, 8, 8)},
        calibration={"image": images(64)},
        folder=destination,
    )
    product = target.produce(candidate, job)
    assert path.read_bytes() == before, "the float model was changed"
    return product, destination


class TargetContract:
    """Every test of it runs for every target."""

    @pytest.fixture
    def work(self, tmp_path: Path):
        """A function that makes a candidate of a target in a folder of its own."""
        return lambda target, candidate, name="product": produce(tmp_path, target, candidate, name)

    def outputs(self, target: Target, product: Product, folder: Path) -> np.ndarray:
        options = RuntimeOptions(device=target.runtime_device, simulate=not target.native("amd64"))
        model = find_runtime(target.runtime).load(folder / product.entry, options)
        try:
            return run_rows(model, {"image": images(40, seed=2)})["logits"]
        finally:
            model.close()

    def test_it_is_registered_under_its_name(self, target: Target) -> None:
        assert plugins.find(plugins.TARGETS, target.name) is type(target)
        assert target.runtime in plugins.names(plugins.RUNTIMES)

    def test_candidates_are_quantized_and_have_names_of_their_own(self, target: Target) -> None:
        recipes = [candidate.recipe for candidate in target.candidates]
        assert len(set(recipes)) == len(recipes)
        assert all(candidate.precision is not Precision.FP32 for candidate in target.candidates)

    def test_the_float_form_answers_like_the_model(self, target: Target, work) -> None:
        product, folder = work(target, FLOAT)
        found = self.outputs(target, product, folder)
        assert found.shape == (40, 10)
        assert product.quantized_nodes == 0
        if target.faithful:
            assert product.compute_nodes == 3
            np.testing.assert_allclose(found, _float_outputs(folder), rtol=1e-3, atol=1e-3)

    def test_every_quantized_form_is_smaller_quantized_and_close(
        self, target: Target, work, capsys: pytest.CaptureFixture[str]
    ) -> None:
        product, folder = work(target, FLOAT, "float-form")
        expected, size = _float_outputs(folder), _size(folder)
        for number, candidate in enumerate(target.candidates):
            product, folder = work(target, candidate, f"quantized-{number}")
            assert product.quantized_nodes == product.compute_nodes == 3
            assert _size(folder) < size
            found = self.outputs(target, product, folder)
            noise = np.square(found - expected).sum() / np.square(expected).sum()
            assert 0 < noise < (0.02 if number == 0 else 0.2), candidate.recipe  # 17 dB; those that clip less
            _check_folder(product, folder)
        assert capsys.readouterr().out == "", "stdout belongs to the command's own output"

    def test_the_float_form_is_all_that_is_in_its_folder(self, target: Target, work) -> None:
        _check_folder(*work(target, FLOAT))

    def test_the_same_input_gives_the_same_bytes(self, target: Target, work) -> None:
        for number, candidate in enumerate([FLOAT, *target.candidates][:2]):
            (_, one), (_, other) = work(target, candidate, f"one-{number}"), work(target, candidate, f"other-{number}")
            for path in one.iterdir():
                assert path.read_bytes() == (other / path.name).read_bytes(), path.name

    def test_an_unknown_candidate_is_an_error(self, target: Target, work) -> None:
        with pytest.raises((KeyError, ValueError)):
            work(target, Candidate(precision=Precision.INT4, recipe="wishful thinking"))


def _check_folder(product: Product, folder: Path) -> None:
    files = {path.name for path in folder.iterdir()}
    assert product.entry in files
    assert all(name.startswith("model.") for name in files), files


def _float_outputs(beside: Path) -> np.ndarray:
    model = find_runtime("onnxruntime").load(beside.parent / "float.onnx", RuntimeOptions())
    return run_rows(model, {"image": images(40, seed=2)})["logits"]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
