from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from edgeserve.contracts.errors import DeviceError, InputError
from edgeserve_compilers.load import load
from edgeserve_compilers.sources.base import SourceOptions
from tests.suites.source import SourceCase, SourceContract

_MAKE = """
    import sys
    from pathlib import Path
    import numpy as np
    import keras
    import tensorflow as tf

    folder, sprung = Path(sys.argv[1]), sys.argv[2]
    layers = keras.layers
    keras.utils.set_random_seed(0)
    net = keras.Sequential([
        keras.Input((8, 8, 1), name="image"), layers.Conv2D(8, 3, padding="same", activation="relu"),
        layers.BatchNormalization(), layers.DepthwiseConv2D(3, strides=2, padding="same"), layers.ReLU(6.0),
        layers.GlobalAveragePooling2D(), layers.Dense(10, activation="softmax", name="classes")])
    net.save(folder / "net.keras")
    net.save(folder / "net.h5")
    net.export(str(folder / "exported"))
    x = np.random.default_rng(0).standard_normal((3, 8, 8, 1)).astype("float32")
    np.savez(folder / "answers.npz", x=x, y=np.asarray(net(x, training=False)))

    class Module(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")])
        def two(self, x):
            return {"later": x + 1.0, "first": tf.nn.relu(x) * 2.0}

    class Writer(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")])
        def writes(self, x):
            tf.io.write_file(sprung, "x")
            return {"y": x * 2.0}

    module = Module()
    tf.saved_model.save(module, str(folder / "module"), signatures={"serving_default": module.two})
    tf.saved_model.save(tf.Module(), str(folder / "unsigned"))
    bad = Writer()
    tf.saved_model.save(bad, str(folder / "writes"), signatures={"serving_default": bad.writes})

    # Only the code of a lambda is saved: the path has to be a literal in it.
    spring = eval(f"lambda x: [__import__('pathlib').Path({sprung!r}).touch(), x * 2][1]")
    trap = keras.Sequential([keras.Input((4,)), layers.Lambda(spring, output_shape=(4,))])
    trap.save(folder / "trap.keras")
    trap.save(folder / "trap.h5")
    Path(sprung).unlink(missing_ok=True)
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with models; made in a process of its own, since TensorFlow and PyTorch in one are not to be relied on."""
    import importlib.util

    if importlib.util.find_spec("tensorflow") is None or importlib.util.find_spec("tf2onnx") is None:
        pytest.skip("tensorflow is not installed: pip install 'edgeserve[tensorflow]'")
    folder = tmp_path_factory.mktemp("tensorflow")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_MAKE), str(folder), str(folder / "sprung")],
        capture_output=True,
        text=True,
        check=False,
        env={"HOME": str(folder), "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


class TestTensorFlowSource(SourceContract):
    @pytest.fixture
    def case(self, models: Path) -> SourceCase:
        with np.load(models / "answers.npz") as arrays:
            return SourceCase(
                source="tensorflow",
                path=models / "net.keras",
                rows={"image": arrays["x"]},
                answers=[arrays["y"]],
                library="tensorflow",
                extra="tensorflow",
                prefixes=4,  # each starts TensorFlow
            )


@pytest.mark.parametrize(
    ("name", "given", "answer"), [("net.h5", "image", "classes"), ("exported", "image", "output_0")]
)
def test_every_form_computes_the_same(models: Path, tmp_path: Path, name: str, given: str, answer: str) -> None:
    from tests.suites.source import run

    model = load(models / name)
    assert model.spec.signature.inputs[0].shape == (-1, 8, 8, 1)
    assert model.spec.opset == 17
    with np.load(models / "answers.npz") as arrays:
        (found,) = run(model, {model.spec.signature.inputs[0].name: arrays["x"]}, tmp_path)
        np.testing.assert_allclose(found, arrays["y"], atol=1e-5)
    assert model.spec.signature.inputs[0].name == given
    assert model.spec.signature.outputs[0].name == answer


def test_several_outputs_come_in_the_order_of_their_names(models: Path) -> None:
    names = [spec.name for spec in load(models / "module").spec.signature.outputs]
    assert names == ["first", "later"]


def test_a_saved_model_without_a_signature_says_how_to_give_it_one(models: Path) -> None:
    with pytest.raises(InputError, match="serving_default"):
        load(models / "unsigned")


@pytest.mark.parametrize("name", ["trap.keras", "trap.h5", "writes"])
def test_nothing_is_executed_without_trust(models: Path, name: str) -> None:
    sprung = models / "sprung"
    with pytest.raises(InputError, match=r"executes code|reads or writes files") as raised:
        load(models / name)
    assert "--trust-pickle" in raised.value.hint
    assert not sprung.exists()


def test_a_model_that_prints_may_print_into_any_file(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(b"\x0a\x05print\x12\x07PrintV2")
    with pytest.raises(InputError, match="contains PrintV2"):
        load(tmp_path)


def test_a_trusted_lambda_is_converted(models: Path) -> None:
    try:
        model = load(models / "trap.keras", SourceOptions(trust_pickle=True))
    finally:
        assert (models / "sprung").exists(), "the trap is one"
        (models / "sprung").unlink()
    assert model.spec.signature.inputs[0].shape == (-1, 4)


def test_a_missing_tensorflow_is_named_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "saved_model.pb").write_bytes(b"\x08\x01")
    with pytest.raises(DeviceError, match="tensorflow") as raised:
        load(folder)
    assert raised.value.hint == "pip install 'edgeserve[tensorflow]'"
