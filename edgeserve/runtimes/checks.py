"""The checks that every runtime and the server share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np

from edgeserve.contracts.errors import InputError, NotFoundError
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec, datatype_of
from edgeserve.runtimes.base import Tensor

_PLACE: Final = re.compile(r"^/\S+\.\w+:\d+ [^()]*\([^()]*\)\s*(?=\S)")
"""File, line and C++ signature before the words of an error."""
_DTYPES: Final = {datatype: np.dtype(datatype.numpy_name) for datatype in Datatype}


def check_inputs(signature: Signature, inputs: Mapping[str, Tensor]) -> None:
    """Hold `inputs` against the signature.

    Raises:
        InputError: One is missing or unknown, has another datatype or shape than declared, or foreign byte order.
    """
    for spec in signature.inputs:
        array = inputs.get(spec.name)
        if array is None:
            raise InputError(f"input {spec.name!r} is missing", hint=f"the model takes {_listed(signature)}")
        if array.dtype != _DTYPES[spec.datatype]:  # asking for its name costs more than the rest of this check
            _check_datatype(spec, array)
        if not spec.accepts(array.shape):
            raise InputError(f"input {spec.name!r} has shape {list(array.shape)}, the model takes {list(spec.shape)}")
    if len(inputs) != len(signature.inputs):
        known = {spec.name for spec in signature.inputs}
        extra = next(name for name in inputs if name not in known)
        raise InputError(
            f"input {extra[:80]!r} is not one of the model's", hint=f"the model takes {_listed(signature)}"
        )


def check_file(path: Path, *, what: str = "model") -> None:
    """Make sure that `path` is a file before a library is let at it; `what` says in errors what was to be in it.

    Raises:
        NotFoundError: There is nothing.
        InputError: It is a folder or something else.
    """
    if not path.exists():
        raise NotFoundError(f"there is no {what} file {path}")
    if not path.is_file():
        raise InputError(f"{path} is not a file", hint=f"name the {what} file itself")


def first_line(error: Exception) -> str:
    """The telling line of a library's error text, short enough to show."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return _PLACE.sub("", (telling or lines or [type(error).__name__])[0])[:300]


def _check_datatype(spec: TensorSpec, array: Tensor) -> None:
    if spec.datatype is not Datatype.BYTES and datatype_of(array.dtype.name) is not spec.datatype:
        found = datatype_of(array.dtype.name).value
        raise InputError(f"input {spec.name!r} has datatype {found}, the model takes {spec.datatype.value}")
    if not array.dtype.isnative:
        raise InputError(f"input {spec.name!r} has the byte order of another machine")


def _listed(signature: Signature) -> str:
    return ", ".join(f"{spec.name} {spec.datatype.value}{list(spec.shape)}" for spec in signature.inputs)
