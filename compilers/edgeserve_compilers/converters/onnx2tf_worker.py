"""Runs inside onnx2tf's own environment, which has no edgeserve: one JSON request on stdin, one JSON answer on stdout.

Request: `{"onnx": file, "output": folder}`.
Answer: `{"ok": bool, "file": name, "seconds": number, "version": text, "error": text}`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path


def convert(request: dict) -> dict:  # type: ignore[type-arg]
    """Inputs keep their layout; outputs may come out transposed."""
    import onnx
    import onnx2tf  # type: ignore[import-not-found]

    folder = Path(request["output"])
    model = onnx.load(request["onnx"])
    source = folder / "model.onnx"  # its name is that of the results
    onnx.save(model, source)
    onnx2tf.convert(
        input_onnx_file_path=str(source),
        output_folder_path=str(folder),
        keep_shape_absolutely_input_names=[value.name for value in model.graph.input],
        non_verbose=True,
        verbosity="error",
    )
    # The float16 file beside it is never looked at: LiteRT fails on it, or computes noise.
    return {"file": "model_float32.tflite", "version": onnx2tf.__version__}


def main() -> None:
    """Answer one request. What the libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    begin = time.monotonic()
    try:
        answer = {"ok": True, "error": "", **convert(json.load(sys.stdin))}
    except BaseException as error:  # noqa: BLE001 - onnx2tf ends with sys.exit on operations that it does not know
        answer = {"ok": False, "error": f"{type(error).__name__}: {error}"[:2000]}
    json.dump({**answer, "seconds": round(time.monotonic() - begin, 3)}, answers)
    answers.flush()


if __name__ == "__main__":
    main()
