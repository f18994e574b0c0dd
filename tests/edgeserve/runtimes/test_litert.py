"""LiteRT under the contract suite, and what is its alone."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed: pip install 'edgeserve[litert]'")

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.runtimes.base import RuntimeOptions, Tensors
from edgeserve.runtimes.flatbuffer import check_tflite
from edgeserve.runtimes.litert import LiteRtRuntime
from tests.suites.litert import FLOAT32, INT8, STRING, Op, T, dense_net, dense_weights, schema, tflite
from tests.suites.models import CLASSES
from tests.suites.runtime import RuntimeCase, RuntimeContract

RELU = schema.BuiltinOperator.RELU


def by_numpy(inputs: Tensors) -> Tensors:
    weights, bias = dense_weights()
    return {"logits": inputs["image"].reshape(len(inputs["image"]), -1) @ weights.T + bias}


@pytest.fixture(scope="module", params=[-1, 1], ids=lambda batch: f"batch {batch}")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RuntimeCase:
    batch = request.param
    path = tmp_path_factory.mktemp("litert") / "model.tflite"
    path.write_bytes(dense_net(batch))
    signature = Signature(
        inputs=(TensorSpec(name="image", datatype=Datatype.FP32, shape=(batch, 1, 8, 8)),),
        outputs=(TensorSpec(name="logits", datatype=Datatype.FP32, shape=(batch, CLASSES)),),
    )
    return RuntimeCase(
        runtime=LiteRtRuntime(), path=path, signature=signature, answers=by_numpy, absent_device="EdgeTPU"
    )


class TestLiteRt(RuntimeContract):
    pass


def load(data: bytes, folder: Path):
    path = folder / "m.tflite"
    path.write_bytes(data)
    return LiteRtRuntime().load(path, RuntimeOptions())


@pytest.mark.parametrize(
    ("names", "signature", "expected"),
    [
        (("serving_default_image:0", "StatefulPartitionedCall:0"), None, ("image", "StatefulPartitionedCall")),
        (("serving_default_image:0", "PartitionedCall:1"), ("picture", "scores:0"), ("picture", "scores:0")),
        (("image", "head/logits"), None, ("image", "head/logits")),
    ],
    ids=["noise of TensorFlow", "the signature", "tensors"],
)
def test_names_are_the_signatures_else_the_tensors_without_noise(tmp_path, names, signature, expected) -> None:
    loaded = load(dense_net(names=names, signature=signature), tmp_path)
    assert (loaded.signature.inputs[0].name, loaded.signature.outputs[0].name) == expected
    loaded.close()


def test_noise_stays_where_two_names_would_be_the_same(tmp_path) -> None:
    data = tflite(
        [T(name=name, shape=[1, 3]) for name in ("x", "StatefulPartitionedCall:0", "StatefulPartitionedCall:1")],
        [Op(code=RELU, inputs=[0], outputs=[1]), Op(code=RELU, inputs=[1], outputs=[2])],
        inputs=[0],
        outputs=[1, 2],
    )
    loaded = load(data, tmp_path)
    assert [spec.name for spec in loaded.signature.outputs] == [
        "StatefulPartitionedCall:0",
        "StatefulPartitionedCall:1",
    ]
    loaded.close()


def test_a_batch_that_a_constant_contradicts_is_built_in(tmp_path) -> None:
    loaded = load(dense_net(rows_inside=1), tmp_path)
    assert loaded.signature.inputs[0].shape == (1, 1, 8, 8)
    assert loaded.signature.outputs[0].shape == (1, CLASSES)
    with pytest.raises(InputError, match="shape"):
        loaded.run({"image": np.zeros((2, 1, 8, 8), np.float32)})
    loaded.close()


def test_rows_may_change_from_call_to_call(tmp_path) -> None:
    loaded = load(dense_net(), tmp_path)
    rows = np.random.default_rng(1).standard_normal((9, 1, 8, 8)).astype(np.float32)
    for count in (1, 9, 3, 9, 1):
        found = loaded.run({"image": rows[:count]})["logits"]
        np.testing.assert_allclose(found, by_numpy({"image": rows[:count]})["logits"], rtol=1e-4, atol=1e-4)
    loaded.close()


def test_integers_of_a_quantized_model_stay_integers(tmp_path) -> None:
    data = tflite(
        [T(name="x", shape=[1, 4], type=INT8), T(name="y", shape=[1, 4], type=INT8)],
        [Op(code=schema.BuiltinOperator.MAXIMUM, inputs=[0, 0], outputs=[1], options=schema.MaximumMinimumOptionsT())],
        inputs=[0],
        outputs=[1],
    )
    loaded = load(data, tmp_path)
    assert loaded.signature.inputs[0].datatype is loaded.signature.outputs[0].datatype is Datatype.INT8
    rows = np.array([[-128, -1, 0, 127]], np.int8)
    np.testing.assert_array_equal(loaded.run({"x": rows})["y"], rows)
    loaded.close()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(
            tflite(
                [T(name="x", shape=[1, 2]), T(name="y", shape=[1, 2])],
                [Op(code="Frobnicate", inputs=[0], outputs=[1])],
                inputs=[0],
                outputs=[1],
            ),
            "Frobnicate",
            id="unknown operation",
        ),
        pytest.param(
            tflite(
                [T(name="x", shape=[], type=FLOAT32), T(name="y", shape=[], type=FLOAT32)],
                [Op(code=RELU, inputs=[0], outputs=[1])],
                inputs=[0],
                outputs=[1],
            ),
            r"input 'x' of m\.tflite has no fixed rank",
            id="scalar",
        ),
        pytest.param(
            tflite([T(name="x", shape=[1], type=STRING)], [], inputs=[0], outputs=[0]),
            r"input 'x' of m\.tflite is of type",
            id="strings",
        ),
    ],
)
def test_what_cannot_be_served_is_named(tmp_path, data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(data, tmp_path)


def test_every_truncation_is_refused_before_the_library_sees_it() -> None:
    """tflite-runtime dies of them; each byte of a model belongs to something that is checked, but for padding."""
    data = dense_net()
    check_tflite(data, "m.tflite")
    for length in range(0, len(data) - 4, 3):
        with pytest.raises(InputError, match=r"m\.tflite is not a"):
            check_tflite(data[:length], "m.tflite")


@given(st.binary(max_size=64), st.integers(0, 4000), st.binary(min_size=1, max_size=8))
def test_whatever_the_bytes_the_check_ends_with_an_input_error_or_none(start: bytes, place: int, patch: bytes) -> None:
    damaged = bytearray(dense_net())
    damaged[place % len(damaged) : place % len(damaged) + len(patch)] = patch
    for data in (start, start[:4] + b"TFL3" + start[4:], bytes(damaged)):
        assert outcome(data) in (
            "whole",
            "check that the file is whole; export it again",
            "name a .tflite file; its bytes 4 to 7 are TFL3",
        )


def test_tables_that_share_a_long_vector_end_the_check_at_once() -> None:
    """A few bytes that stand for a thousand million references."""
    subgraphs, tensors = 2_000, 500_000
    data = bytearray(struct.pack("<I4s", 20, b"TFL3"))
    data += struct.pack("<HHHHH2x", 10, 8, 0, 0, 4)  # vtable of Model: field 2 at 4
    data += struct.pack("<iI", 12, 4)  # Model at 20, its vector of subgraphs behind it
    data += struct.pack("<I", subgraphs)
    first = len(data) + 4 * subgraphs + 8  # behind the offsets: a vtable of SubGraph, then the tables
    data += b"".join(struct.pack("<I", first + 8 * n - (len(data) + 4 * n)) for n in range(subgraphs))
    data += struct.pack("<HHH2x", 6, 8, 4)
    vector = first + 8 * subgraphs
    for n in range(subgraphs):
        place = first + 8 * n
        data += struct.pack("<iI", place - (first - 8), vector - (place + 4))
    # All of them are one tensor without fields, which lies behind its vtable at the end.
    data += struct.pack("<I", tensors) + (4 * np.arange(tensors, 0, -1) + 4).astype("<u4").tobytes()
    data += struct.pack("<HHi", 4, 4, 4)
    started = time.perf_counter()
    with pytest.raises(InputError, match="more references than bytes"):
        check_tflite(bytes(data), "m.tflite")
    assert time.perf_counter() - started < 60


def outcome(data: bytes) -> str:
    try:
        check_tflite(data, "m.tflite")
    except InputError as error:
        return error.hint
    return "whole"


def test_tflite_runtime_with_numpy_2_is_explained(tmp_path: Path) -> None:
    """It can be imported and fails at the first model: a stand-in of that name shows what is said."""
    package = tmp_path / "tflite_runtime"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "interpreter.py").write_text("class Interpreter:\n    def __init__(self, **_): raise SystemError\n")
    (tmp_path / "m.tflite").write_bytes(dense_net())
    program = """
import sys
sys.modules["ai_edge_litert"] = None
from pathlib import Path
from edgeserve.contracts.errors import DeviceError
from edgeserve.runtimes.base import RuntimeOptions
from edgeserve.runtimes.litert import LiteRtRuntime
try:
    LiteRtRuntime().load(Path("m.tflite"), RuntimeOptions())
except DeviceError as error:
    print(error.message, "|", error.hint)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    if np.lib.NumpyVersion(np.__version__) >= "2.0.0":
        assert done.stdout.startswith("tflite-runtime was built for numpy 1")
        assert "pip install ai-edge-litert" in done.stdout


def test_the_reference_models_answer_as_published(realdata: Path) -> None:
    """Both were measured by other means (docs/testdata.md)."""
    clips = np.load(realdata / "data/kws_mfcc_even.npz")
    rows, labels = clips["x"][~clips["is_calib"]], clips["y"][~clips["is_calib"]]
    for name, scale, zero in (("float32", 1.0, 0), ("int8_reference", 0.584703, 83)):
        loaded = LiteRtRuntime().load(realdata / f"models/kws_dscnn_{name}.tflite", RuntimeOptions())
        spec = loaded.signature.inputs[0]
        given_rows = rows.reshape(len(rows), *spec.shape[1:]) / scale
        if spec.datatype is Datatype.INT8:
            given_rows = np.clip(np.rint(given_rows) + zero, -128, 127)
        found = loaded.run({spec.name: given_rows.astype(spec.datatype.numpy_name)})
        loaded.close()
        answers = next(iter(found.values())).argmax(axis=1)
        assert (answers == labels).mean() == pytest.approx(0.9188, abs=0.002), name
