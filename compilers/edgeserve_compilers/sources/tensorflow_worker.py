"""Runs in a process of its own: a TensorFlow or Keras model to ONNX, with TensorFlow's own answers to random inputs.

Usage: tensorflow_worker.py MODEL FOLDER [--trust]; writes FOLDER/answer.json, model.onnx, expected.npz.
The only file that imports tensorflow, keras and tf2onnx.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

OPSET = 17
TRIALS = 3
BATCH = 2


def main(model: Path, folder: Path, *, trust: bool) -> dict[str, Any]:
    """Convert; the answer for the compiler."""
    import tensorflow as tf

    try:
        call, inputs, outputs, metadata = _open(tf, model, trust)
    except Refused:
        return {"ok": False, "refused": True}
    signature = [tf.TensorSpec(spec.shape, spec.dtype, name=name) for name, spec in inputs.items()]
    function = tf.function(call, input_signature=signature)
    proto = _to_onnx(function, signature, outputs)
    expected = {}
    for trial in range(TRIALS):
        rows = _rows(inputs, trial)
        answers = function(*[tf.constant(row) for row in rows.values()])
        expected.update({f"in.{trial}.{name}": row for name, row in rows.items()})
        expected.update({f"out.{trial}.{name}": answers[name].numpy() for name in outputs})
    (folder / "model.onnx").write_bytes(proto.SerializeToString())
    np.savez(folder / "expected.npz", **expected)  # type: ignore[arg-type]  # mypy takes them for allow_pickle
    return {"ok": True, "trials": TRIALS, "metadata": metadata}


class Refused(Exception):  # noqa: N818 - an answer, not an error
    """Reading the file would execute code."""


def _open(tf: Any, model: Path, trust: bool) -> tuple[Callable[..., Any], dict[str, Any], list[str], dict[str, str]]:  # noqa: ANN401
    """A function of the inputs in order that returns the outputs by name; the inputs' specs; the outputs' names."""
    if model.is_dir():
        loaded = tf.saved_model.load(str(model))
        keys = list(loaded.signatures)
        key = "serving_default" if "serving_default" in keys else keys[0] if len(keys) == 1 else None
        if key is None:
            raise ValueError(
                f"it has {'the signatures ' + ', '.join(keys) if keys else 'no signature'}: save it with "
                "signatures={'serving_default': ...}"
            )
        concrete = loaded.signatures[key]
        inputs = dict(sorted(concrete.structured_input_signature[1].items()))  # their order is not that of the file
        names = list(inputs)

        def call(*values: Any) -> Any:  # noqa: ANN401
            # `loaded` owns the variables: without it they are gone when the function is traced
            return loaded.signatures[key](**dict(zip(names, values, strict=True)))

        return call, inputs, sorted(concrete.structured_outputs), {}
    import keras

    try:
        network = keras.models.load_model(str(model), compile=False, safe_mode=not trust)
    except (ValueError, TypeError) as error:
        if "safe_mode" in str(error) or "unsafe" in str(error).lower():
            raise Refused from error
        raise
    inputs = {value.name: tf.TensorSpec(value.shape, value.dtype) for value in network.inputs}
    outputs = [f"output_{number}" for number in range(len(network.outputs))]
    named = getattr(network, "output_names", None) or [network.layers[-1].name]  # a Sequential has none
    if len(set(named)) == len(outputs):
        outputs = [str(name) for name in named]
    single = len(inputs) == 1

    def call_keras(*values: Any) -> Any:  # noqa: ANN401
        answers = network(values[0] if single else list(values), training=False)
        if isinstance(answers, dict):
            answers = list(answers.values())
        return dict(zip(outputs, answers if isinstance(answers, (list, tuple)) else [answers], strict=True))

    return call_keras, inputs, outputs, {"description": str(network.name)}


def _to_onnx(function: Any, signature: list[Any], outputs: list[str]) -> Any:  # noqa: ANN401
    import tf2onnx

    proto, _ = tf2onnx.convert.from_function(function, input_signature=signature, opset=OPSET)
    for value in (*proto.graph.input, *proto.graph.output):
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if axis == 0 and dim.dim_param.startswith("unk__"):
                dim.dim_param = "batch"
    order = {name: place for place, name in enumerate(outputs)}
    ordered = sorted(proto.graph.output, key=lambda value: order.get(value.name, len(order)))
    del proto.graph.output[:]
    proto.graph.output.extend(ordered)
    return proto


def _rows(inputs: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    rows = {}
    for name, spec in inputs.items():
        shape = [BATCH if axis == 0 else 8 if size is None else size for axis, size in enumerate(spec.shape.as_list())]
        if spec.shape.as_list()[:1] != [None]:
            shape[:1] = spec.shape.as_list()[:1]
        kind = np.dtype(spec.dtype.as_numpy_dtype)
        values = random.standard_normal(shape) if kind.kind == "f" else random.integers(0, 2, shape)
        rows[name] = np.asarray(values, kind)
    return rows


if __name__ == "__main__":
    destination = Path(sys.argv[2])
    # The script's own folder is first on the path, where `onnx.py` and `tensorflow.py` lie.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]
    try:
        answer = main(Path(sys.argv[1]), destination, trust="--trust" in sys.argv[3:])
    except Exception as error:  # noqa: BLE001 - whatever TensorFlow raises is the answer
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        answer = {"ok": False, "error": f"{type(error).__name__}: {(lines or [''])[0][:300]}"}
    (destination / "answer.json").write_text(json.dumps(answer))
