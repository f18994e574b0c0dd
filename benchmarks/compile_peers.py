"""What the libraries do by themselves: each function writes a product and names the runtime that loads it."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.modules["openvino_telemetry"] = None  # it would write to the home folder and call home

Rows = dict[str, np.ndarray]


def rows_of(data: Rows) -> list[Rows]:
    """One dictionary of single-row arrays for each row."""
    return [
        {name: np.ascontiguousarray(array[row : row + 1]) for name, array in data.items()}
        for row in range(len(next(iter(data.values()))))
    ]


def onnxruntime_defaults(model: Path, calibration: Rows, folder: Path) -> tuple[str, Path]:
    """`quantize_static` with nothing but its defaults, after the preparation that its documentation asks for."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._rows = iter(rows_of(calibration))

        def get_next(self) -> Rows | None:
            return next(self._rows, None)

    prepared, product = folder / "prepared.onnx", folder / "model.onnx"
    quant_pre_process(model, prepared, skip_symbolic_shape=True)
    quantize_static(prepared, product, Reader())
    prepared.unlink()
    return "onnxruntime", product


def nncf_defaults(model: Path, calibration: Rows, folder: Path) -> tuple[str, Path]:
    """`nncf.quantize` with nothing but its defaults."""
    import nncf
    import openvino

    logging.getLogger("nncf").setLevel(logging.ERROR)
    quantized = nncf.quantize(openvino.convert_model(model), nncf.Dataset(rows_of(calibration)), subset_size=10**6)
    openvino.save_model(quantized, folder / "model.xml", compress_to_fp16=False)
    return "openvino", folder / "model.xml"


def nncf_accuracy_control(
    model: Path,
    calibration: Rows,
    folder: Path,
    *,
    validation: Rows,
    accuracy: Callable[[Rows], float],
    max_drop: float,
) -> tuple[str, Path]:
    """`nncf.quantize_with_accuracy_control` with nothing but its defaults."""
    import nncf
    import openvino

    logging.getLogger("nncf").setLevel(logging.ERROR)

    def judge(compiled: object, rows: object) -> float:
        outputs: dict[str, list[np.ndarray]] = {}
        for row in rows:
            for port, value in compiled(row).items():
                outputs.setdefault(min(port.get_names()), []).append(value)
        return accuracy({name: np.concatenate(parts) for name, parts in outputs.items()})

    quantized = nncf.quantize_with_accuracy_control(
        openvino.convert_model(model), nncf.Dataset(rows_of(calibration)), nncf.Dataset(rows_of(validation)), judge,
        max_drop=max_drop, subset_size=10**6,
    )  # fmt: skip
    openvino.save_model(quantized, folder / "model.xml", compress_to_fp16=False)
    return "openvino", folder / "model.xml"


def ai_edge_quantizer_defaults(model: Path, calibration: Rows, folder: Path) -> tuple[str, Path]:
    """The library's own static recipe (int8 weights and activations) on a float .tflite, inputs and outputs float."""
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe_manager
    from ai_edge_quantizer.qtyping import TFLOperationName

    recipe = recipe_manager.RecipeManager()
    recipe.add_static_config(".*", TFLOperationName.ALL_SUPPORTED, 8, 8)
    for end in (TFLOperationName.INPUT, TFLOperationName.OUTPUT):
        recipe.add_quantization_config(".*", end, algorithm_key=recipe_manager.AlgorithmName.NO_QUANTIZE)
    work = quantizer.Quantizer(str(model), recipe.get_quantization_recipe())
    interpreter = Interpreter(str(model))
    (key,) = interpreter.get_signature_list()
    with (
        Path(os.devnull).open("w") as nothing,
        contextlib.redirect_stderr(nothing),
        contextlib.redirect_stdout(nothing),
    ):
        ranges = work.calibrate({key: rows_of(calibration)})
        product = folder / "model.tflite"
        product.write_bytes(bytes(work.quantize(ranges).quantized_model))
    return "litert", product
