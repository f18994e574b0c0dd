"""Where tensors lie in the memory that a local client and the server share."""

from __future__ import annotations

import os
import sys
from typing import Final

import numpy as np

from edgeserve.client.blobs import Tensor
from edgeserve.client.local_wire import tensor_bytes
from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import KIB, MIB
from edgeserve.contracts.tensors import Datatype, TensorSpec

BYTES_PLACE: Final = 64 * KIB
"""Room for a BYTES tensor, unless it is said how much."""
_OPEN_PLACE: Final = 16 * MIB
"""Room for an output whose shape only the model knows: memory that is not written to takes none."""


def new_region(size: int) -> int:
    """A memfd that the server may map: it cannot shrink under its feet."""
    assert sys.platform == "linux"
    import fcntl

    descriptor = os.memfd_create("edgeserve-tensors", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def concrete(spec: TensorSpec, shape: tuple[int, ...] | None, batch: int) -> TensorSpec:
    """An input with every dimension known.

    Raises:
        InputError: A dimension stays open, or `shape` is none that the model takes.
    """
    if shape is None:
        shape = (batch, *spec.shape[1:]) if spec.shape[:1] == (-1,) else spec.shape
    if -1 in shape:
        raise InputError(
            f"input {spec.name!r} is {list(spec.shape)} and the session does not say how large", hint="give its shape"
        )
    if not spec.accepts(tuple(shape)):
        raise InputError(f"input {spec.name!r} has shape {list(shape)}, the model takes {list(spec.shape)}")
    return TensorSpec(name=spec.name, datatype=spec.datatype, shape=tuple(shape))


def size_of(spec: TensorSpec) -> int:
    """Bytes of a tensor whose dimensions are known."""
    return tensor_bytes(spec.datatype, spec.shape)


def output_bytes(spec: TensorSpec, rows: tuple[int, ...]) -> int:
    """Room for an output; a first dimension that is open is taken to be that of the first input."""
    if spec.datatype is Datatype.BYTES:
        return BYTES_PLACE
    shape = (*rows, *spec.shape[1:]) if spec.shape[:1] == (-1,) else spec.shape
    return _OPEN_PLACE if -1 in shape else tensor_bytes(spec.datatype, shape)


def sendable(spec: TensorSpec, given: Tensor) -> Tensor:
    """The array in the form in which it is sent; numbers are not converted behind the caller's back."""
    array = np.asarray(given)
    if spec.datatype is Datatype.BYTES:
        return array.astype(object) if array.dtype.kind in "SU" else array
    if array.dtype != np.dtype(spec.datatype.numpy_name):
        raise InputError(f"input {spec.name!r} is {array.dtype.name}, the model takes {spec.datatype.value}")
    return array
