"""The check of inputs that every runtime and the server share."""

from __future__ import annotations

from collections.abc import Mapping

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.tensors import Datatype, Signature, datatype_of
from edgeserve.runtimes.base import Tensor


def check_inputs(signature: Signature, inputs: Mapping[str, Tensor]) -> None:
    """Hold `inputs` against the signature.

    Raises:
        InputError: One is missing or unknown, or has another datatype or shape than declared.
    """
    for spec in signature.inputs:
        array = inputs.get(spec.name)
        if array is None:
            raise InputError(f"input {spec.name!r} is missing", hint=f"the model takes {_listed(signature)}")
        if spec.datatype is not Datatype.BYTES and datatype_of(array.dtype.name) is not spec.datatype:
            found = datatype_of(array.dtype.name).value
            raise InputError(f"input {spec.name!r} has datatype {found}, the model takes {spec.datatype.value}")
        if not spec.accepts(array.shape):
            raise InputError(f"input {spec.name!r} has shape {list(array.shape)}, the model takes {list(spec.shape)}")
    if len(inputs) != len(signature.inputs):
        known = {spec.name for spec in signature.inputs}
        extra = next(name for name in inputs if name not in known)
        raise InputError(
            f"input {extra[:80]!r} is not one of the model's", hint=f"the model takes {_listed(signature)}"
        )


def _listed(signature: Signature) -> str:
    return ", ".join(f"{spec.name} {spec.datatype.value}{list(spec.shape)}" for spec in signature.inputs)
