"""TensorFlow and Keras: SavedModel folders, `.keras`, `.h5`. Converted by tf2onnx in a process of its own.

TensorFlow takes a gigabyte, prints, writes to the home folder and may die with the file that it reads; the worker keeps
all that out of the compiler and answers in JSON.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from edgeserve.contracts.errors import DeviceError, InputError
from edgeserve.contracts.limits import CONVERTER_S
from edgeserve_compilers.sources.base import Model, SourceOptions
from edgeserve_compilers.sources.files import folder_digest, needs, read
from edgeserve_compilers.sources.sniff import Content, sniff

_CONTENTS: Final = (Content.SAVED_MODEL, Content.KERAS, Content.HDF5)
_WORKER: Final = Path(__file__).with_name("tensorflow_worker.py")
_HINT: Final = "export it to ONNX where it was trained: python -m tf2onnx.convert --saved-model FOLDER --output m.onnx"
_PROGRAM: Final = (
    "WriteFile", "ReadFile", "PyFunc", "PyFuncStateless", "EagerPyFunc", "LoadLibrary",
    "PrintV2", "CreateSummaryFileWriter", "CreateSummaryDbWriter",
)  # fmt: skip
"""Operations by which a SavedModel reads and writes files or calls Python when it is loaded or run; `PrintV2` prints
into any file that it names."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the worker writes to `answer.json`; the model is in `model.onnx`, its outputs in `expected.npz`."""

    ok: bool
    error: str = ""
    refused: bool = False
    """It would execute code."""
    trials: int = 0
    metadata: dict[str, str] = {}


class TensorFlowSource:
    """Converts the signature `serving_default` of a SavedModel, or a Keras model's own inputs and outputs."""

    name = "tensorflow"

    def recognises(self, path: Path) -> bool:
        """Whether `path` is a folder with `saved_model.pb`, or a Keras file."""
        return sniff(path) in _CONTENTS

    def load(self, path: Path, options: SourceOptions) -> Model:
        """Read, convert and check; see `edgeserve_compilers.sources.base.Source.load`."""
        with needs("a TensorFlow model"):
            from edgeserve_compilers.sources.checked import Origin, checked, digest_of, parse
        if path.is_dir():
            digest = folder_digest(path)
            _check_program(read(path / "saved_model.pb"), path, options)
        else:
            digest = digest_of(read(path))
        _check_installed()
        with tempfile.TemporaryDirectory(prefix="edgeserve-") as folder:
            answer = _convert(path, Path(folder), options)
            model = parse((Path(folder) / "model.onnx").read_bytes(), path)
            _verify(Path(folder), answer.trials, path)
        return checked(model, Origin(path=path, format=self.name, digest=digest, metadata=answer.metadata), options)


def _check_program(graph: bytes, path: Path, options: SourceOptions) -> None:
    found = [name for name in _PROGRAM if b"\x12" + bytes([len(name)]) + name.encode() in graph]  # NodeDef.op = 2
    if found and not options.trust_pickle:
        raise InputError(
            f"{path} contains {', '.join(found)}: it reads or writes files, or calls Python, when it is loaded or run",
            hint="add --trust-pickle if you made it yourself, or export it without these operations",
        )


def _check_installed() -> None:
    for module in ("tensorflow", "tf2onnx"):
        with needs("a TensorFlow model"):
            if sys.modules.get(module, module) is None or importlib.util.find_spec(module) is None:
                raise ModuleNotFoundError(f"No module named {module!r}", name=module)


def _convert(path: Path, folder: Path, options: SourceOptions) -> Answer:
    command = [sys.executable, str(_WORKER), str(path.resolve()), str(folder), *["--trust"] * options.trust_pickle]
    environment = {
        **os.environ,
        "KERAS_HOME": str(folder / "keras"),  # otherwise a folder appears in the home folder
        "KERAS_BACKEND": "tensorflow",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, timeout=CONVERTER_S, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as error:
        raise DeviceError(f"TensorFlow took more than {CONVERTER_S:g} s to convert {path}", hint=_HINT) from error
    file = folder / "answer.json"
    if not file.is_file():
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise InputError(
            f"TensorFlow ended with {done.returncode} while it read {path}{': ' if last else ''}{''.join(last)[:300]}",
            hint=_HINT,
        )
    answer = msgspec.json.decode(file.read_bytes(), type=Answer)
    if answer.refused:
        raise InputError(
            f"{path} contains a Lambda layer or another object that executes code when it is read",
            hint="add --trust-pickle if you made it yourself, or replace the layer by Keras operations and save again",
        )
    if not answer.ok:
        raise InputError(f"{path} cannot be converted to ONNX: {answer.error}", hint=_HINT)
    return answer


def _verify(folder: Path, trials: int, path: Path) -> None:
    from edgeserve_compilers.sources.agreement import require_agreement
    from edgeserve_compilers.sources.session import Session

    with np.load(folder / "expected.npz", allow_pickle=False) as arrays:
        read_arrays = {name: arrays[name] for name in arrays.files}
    rows, outputs = [], []
    for trial in range(trials):
        rows.append(_numbered(read_arrays, f"in.{trial}."))
        outputs.append(_numbered(read_arrays, f"out.{trial}."))
    session = Session((folder / "model.onnx").read_bytes(), str(path))
    answers = iter(outputs)
    require_agreement(
        lambda _: [expected[name] for expected in [next(answers)] for name in session.outputs],
        session.run,
        rows,
        where=str(path),
    )


def _numbered(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
