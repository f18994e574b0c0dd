"""Weights that an ONNX model keeps in files beside it, brought into it."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import onnx
from onnx.external_data_helper import load_external_data_for_model, uses_external_data

from edgeserve.contracts.errors import InputError, NotFoundError
from edgeserve.contracts.limits import MAX_MODEL_FILE_BYTES
from edgeserve.runtimes.checks import first_line
from edgeserve_compilers.sources.walk import tensors


def embed_weights(model: onnx.ModelProto, path: Path) -> bool:
    """Bring weights from files beside the model at `path` into it; tell whether there were any.

    Raises:
        NotFoundError: A file with weights is missing.
        InputError: It lies outside the model's own folder, is truncated, or all together are too large.
    """
    outside = [tensor for tensor in tensors(model) if uses_external_data(tensor)]
    total = len(outside) and model.ByteSize()
    for tensor in outside:
        total += _external_bytes(tensor, path)
    if total > MAX_MODEL_FILE_BYTES:
        raise InputError(f"{path} has {total} bytes with its weights, at most {MAX_MODEL_FILE_BYTES} are allowed")
    if outside:
        try:
            load_external_data_for_model(model, str(path.parent))
        except (OSError, ValueError, onnx.checker.ValidationError) as error:
            raise InputError(f"cannot read the weights of {path}: {first_line(error)}") from error
    return bool(outside)


def _external_bytes(tensor: onnx.TensorProto, path: Path) -> int:
    """Length of a tensor outside the file, after a check of where it is."""
    facts = {entry.key: entry.value for entry in tensor.external_data}
    location = facts.get("location", "")
    place = PurePosixPath(location)
    if not location or place.is_absolute() or ".." in place.parts or "\\" in location or "\0" in location:
        raise InputError(
            f"{path} wants weights from {location[:80]!r}, outside its own folder",
            hint="save the model with its weights inside, or beside it",
        )
    file = path.parent / place
    if not file.resolve().is_relative_to(path.parent.resolve()):
        raise InputError(f"{path} wants weights from {location[:80]!r}, a link that leaves its own folder")
    if not file.is_file():
        raise NotFoundError(
            f"the weights {location[:80]!r} of {path} are missing", hint="put the file beside the model"
        )
    try:
        offset, length = int(facts.get("offset") or 0), int(facts.get("length") or -1)
    except ValueError as error:
        raise InputError(f"{path} names weights in {location[:80]!r} with an offset that is no number") from error
    size = file.stat().st_size
    length = size - offset if length < 0 else length
    if offset < 0 or length < 0 or offset + length > size:
        raise InputError(f"the weights {location[:80]!r} of {path} are truncated")
    return length
