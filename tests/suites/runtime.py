"""What every runtime owes (`edgeserve.runtimes.base`). Subclass `RuntimeContract` with a fixture `case`."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgeserve import plugins
from edgeserve.contracts.errors import DeviceError, InputError
from edgeserve.contracts.tensors import Signature
from edgeserve.runtimes.base import LoadedModel, Runtime, RuntimeOptions, Tensors


@dataclass(frozen=True, kw_only=True)
class RuntimeCase:
    """A runtime with a model that it can load."""

    runtime: Runtime
    path: Path
    signature: Signature
    """One input f32; its first axis is -1 or 1."""
    answers: Callable[[Tensors], Tensors]
    """What the model computes, by other means."""
    device: str = "CPU"
    absent_device: str | None = None
    """A device that the runtime knows of and this machine has not."""
    falls_back: bool = True
    """Whether the runtime has another device that can take over for that one."""
    companion: str | None = None
    """Suffix of a second file that the model needs."""

    @property
    def static(self) -> bool:
        return self.signature.inputs[0].shape[0] == 1

    def rows(self, count: int, *, seed: int = 0) -> Tensors:
        spec = self.signature.inputs[0]
        data = np.random.default_rng(seed).standard_normal((count, *spec.shape[1:]))
        return {spec.name: data.astype(np.float32)}


class RuntimeContract:
    """Every test of it runs for every case."""

    @pytest.fixture
    def loaded(self, case: RuntimeCase):
        model = case.runtime.load(case.path, RuntimeOptions(device=case.device))
        yield model
        model.close()

    @pytest.fixture
    def registered(self, case: RuntimeCase) -> type[object]:
        """What its entry point names; a runtime that wraps another has the name of that one."""
        return type(case.runtime)

    def test_it_is_registered_under_its_name(self, case: RuntimeCase, registered: type[object]) -> None:
        assert plugins.find(plugins.RUNTIMES, case.runtime.name) is registered
        assert case.runtime.version()

    def test_the_signature_is_the_models_own(self, case: RuntimeCase, loaded: LoadedModel) -> None:
        assert loaded.signature == case.signature

    def test_the_answer_is_what_the_model_computes(self, case: RuntimeCase, loaded: LoadedModel) -> None:
        rows = case.rows(1 if case.static else 5)
        outputs = loaded.run(rows)
        expected = case.answers(rows)
        assert list(outputs) == [spec.name for spec in case.signature.outputs]
        for spec in case.signature.outputs:
            assert outputs[spec.name].dtype.name == spec.datatype.numpy_name
            assert spec.accepts(outputs[spec.name].shape)
            np.testing.assert_allclose(outputs[spec.name], expected[spec.name], rtol=1e-4, atol=1e-4)

    def test_zero_rows_give_zero_rows_or_a_clear_error(self, case: RuntimeCase, loaded: LoadedModel) -> None:
        if case.static:
            with pytest.raises(InputError, match="shape"):
                loaded.run(case.rows(0))
        else:
            assert all(len(output) == 0 for output in loaded.run(case.rows(0)).values())

    def test_an_input_that_is_not_contiguous_counts_all_the_same(self, case: RuntimeCase, loaded: LoadedModel) -> None:
        (name, array), *_ = case.rows(1 if case.static else 3).items()
        strided = np.repeat(array, 2, axis=-1)[..., ::2]
        assert not strided.flags.c_contiguous
        expected = loaded.run({name: array})
        for output, values in loaded.run({name: strided}).items():
            np.testing.assert_array_equal(values, expected[output])

    def test_inputs_are_left_alone_and_need_not_be_writable(self, case: RuntimeCase, loaded: LoadedModel) -> None:
        (name, array), *_ = case.rows(1).items()
        before = array.copy()
        array.flags.writeable = False
        loaded.run({name: array})
        np.testing.assert_array_equal(array, before)

    def test_outputs_belong_to_the_caller(self, case: RuntimeCase, loaded: LoadedModel) -> None:
        first, second = case.rows(1), case.rows(1, seed=1)
        kept = loaded.run(first)
        copies = {name: array.copy() for name, array in kept.items()}
        later = loaded.run(second)
        for name, array in kept.items():
            np.testing.assert_array_equal(array, copies[name])
            assert not np.shares_memory(array, later[name])
            array[...] = 0
        for name, array in loaded.run(first).items():
            np.testing.assert_array_equal(array, copies[name])

    def test_calls_from_several_threads_get_their_own_answers(self, case: RuntimeCase, loaded: LoadedModel) -> None:
        calls = [case.rows(1, seed=seed) for seed in range(64)]
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(loaded.run, calls))
        for call, answer in zip(calls, answers, strict=True):
            for name, values in case.answers(call).items():
                np.testing.assert_allclose(answer[name], values, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda name, array: {}, "is missing"),
            (lambda name, array: {"stranger": array}, "is missing"),
            (lambda name, array: {name: array, "stranger": array}, "'stranger' is not one of the model's"),
            (lambda name, array: {name: array.astype(np.float64)}, "datatype FP64"),
            (lambda name, array: {name: array.astype(">f4")}, "byte order"),
            (lambda name, array: {name: array[0]}, "shape"),
            (lambda name, array: {name: np.concatenate([array, array], axis=-1)}, "shape"),
        ],
        ids=["none", "other name", "one too many", "datatype", "byte order", "rank", "size"],
    )
    def test_a_wrong_input_is_refused(self, case: RuntimeCase, loaded: LoadedModel, spoil, message: str) -> None:
        (name, array), *_ = case.rows(1).items()
        with pytest.raises(InputError, match=message):
            loaded.run(spoil(name, array))
        assert loaded.run({name: array})

    def test_it_can_be_closed_twice_and_then_runs_no_more(self, case: RuntimeCase, loaded: LoadedModel) -> None:
        loaded.close()
        loaded.close()
        with pytest.raises(DeviceError, match="closed"):
            loaded.run(case.rows(1))

    @pytest.mark.parametrize(
        "content", [b"", b"hello, world", b"{}", bytes(2000)], ids=["empty", "text", "json", "zeros"]
    )
    def test_a_file_that_is_not_a_model_is_refused(self, case: RuntimeCase, tmp_path: Path, content: bytes) -> None:
        path = self._copy(case, tmp_path)
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"model"):
            case.runtime.load(path, RuntimeOptions(device=case.device))

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
    def test_a_truncated_file_is_refused(self, case: RuntimeCase, tmp_path: Path, share: float) -> None:
        path = self._copy(case, tmp_path)
        data = path.read_bytes()
        path.write_bytes(data[: min(int(len(data) * share), len(data.rstrip()) - 1)])
        with pytest.raises(InputError):
            case.runtime.load(path, RuntimeOptions(device=case.device))

    def test_a_second_file_that_is_missing_or_truncated_is_refused(self, case: RuntimeCase, tmp_path: Path) -> None:
        if case.companion is None:
            pytest.skip("the model is one file")
        path = self._copy(case, tmp_path)
        second = path.with_suffix(case.companion)
        second.write_bytes(second.read_bytes()[:-8])
        with pytest.raises(InputError, match=path.name):
            case.runtime.load(path, RuntimeOptions(device=case.device))
        second.unlink()
        with pytest.raises(InputError, match="missing"):
            case.runtime.load(path, RuntimeOptions(device=case.device))

    def test_a_folder_or_nothing_is_refused(self, case: RuntimeCase, tmp_path: Path) -> None:
        for path in (tmp_path, tmp_path / f"absent{case.path.suffix}"):
            with pytest.raises(InputError, match=path.name):
                case.runtime.load(path, RuntimeOptions(device=case.device))

    def test_simulation_is_always_named_as_such(self, case: RuntimeCase) -> None:
        device = case.absent_device or case.device
        simulated = case.runtime.load(case.path, RuntimeOptions(device=device, simulate=True))
        real = case.runtime.load(case.path, RuntimeOptions(device=case.device))
        assert simulated.executing_device.endswith(" (simulated)")
        assert real.executing_device
        assert "simulated" not in real.executing_device
        simulated.close()
        real.close()

    def test_what_runs_as_asked_for_tells_of_no_fallback(self, case: RuntimeCase, loaded: LoadedModel) -> None:
        assert loaded.fallback == ""
        assert all(device and count > 0 for device, count in loaded.placement.items())

    @pytest.mark.parametrize("simulate", [False, True])
    def test_allowing_a_fallback_changes_nothing_where_none_is_needed(self, case: RuntimeCase, simulate: bool) -> None:
        options = RuntimeOptions(device=case.device, fallback=True, simulate=simulate)
        allowed = case.runtime.load(case.path, options)
        strict = case.runtime.load(case.path, msgspec.structs.replace(options, fallback=False))
        assert allowed.fallback == ""
        assert allowed.executing_device == strict.executing_device
        allowed.close()
        strict.close()

    def test_a_fallback_is_taken_only_where_it_is_allowed_and_then_told(self, case: RuntimeCase) -> None:
        if case.absent_device is None or not case.falls_back:
            pytest.skip("the runtime has no other device")
        with pytest.raises(DeviceError):
            case.runtime.load(case.path, RuntimeOptions(device=case.absent_device))
        model = case.runtime.load(case.path, RuntimeOptions(device=case.absent_device, fallback=True))
        assert case.absent_device in model.fallback
        assert model.executing_device in model.fallback
        assert case.absent_device not in model.executing_device
        assert "simulated" not in model.executing_device
        rows = case.rows(1)
        for name, values in case.answers(rows).items():
            np.testing.assert_allclose(model.run(rows)[name], values, rtol=1e-4, atol=1e-4)
        model.close()

    def test_a_fallback_is_no_way_around_a_damaged_file(self, case: RuntimeCase, tmp_path: Path) -> None:
        path = self._copy(case, tmp_path)
        path.write_bytes(b"hello, world")
        with pytest.raises(InputError, match=r"model"):
            case.runtime.load(path, RuntimeOptions(device=case.absent_device or case.device, fallback=True))

    def test_a_device_that_is_not_here_is_an_error_that_says_what_is(self, case: RuntimeCase) -> None:
        if case.absent_device is None:
            pytest.skip("the runtime knows no devices")
        with pytest.raises(DeviceError) as raised:
            case.runtime.load(case.path, RuntimeOptions(device=case.absent_device))
        assert case.absent_device in raised.value.message
        assert "CPU" in raised.value.hint

    @staticmethod
    def _copy(case: RuntimeCase, folder: Path) -> Path:
        path = folder / case.path.name
        path.write_bytes(case.path.read_bytes())
        if case.companion:
            path.with_suffix(case.companion).write_bytes(case.path.with_suffix(case.companion).read_bytes())
        return path
