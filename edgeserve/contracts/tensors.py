"""What goes into a model and comes out: names, datatypes and shapes in the words of the Open Inference Protocol."""

from __future__ import annotations

from enum import Enum

import msgspec

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import MAX_TENSOR_RANK


class Datatype(str, Enum):
    """Tensor datatypes of the Open Inference Protocol v2 ("Tensor Data Types")."""

    BOOL = "BOOL"
    UINT8 = "UINT8"
    UINT16 = "UINT16"
    UINT32 = "UINT32"
    UINT64 = "UINT64"
    INT8 = "INT8"
    INT16 = "INT16"
    INT32 = "INT32"
    INT64 = "INT64"
    FP16 = "FP16"
    FP32 = "FP32"
    FP64 = "FP64"
    BF16 = "BF16"
    """Triton's: numpy has no such type, so its arrays hold the 16 bits of each number as `uint16`."""
    BYTES = "BYTES"

    @property
    def numpy_name(self) -> str:
        """Name of the numpy dtype, `object` for BYTES."""
        return _NUMPY[self]

    @property
    def item_bytes(self) -> int:
        """Bytes of one element; 0 for BYTES, whose elements vary."""
        return _SIZES[self]


_NUMPY = {
    Datatype.BOOL: "bool",
    Datatype.UINT8: "uint8",
    Datatype.UINT16: "uint16",
    Datatype.UINT32: "uint32",
    Datatype.UINT64: "uint64",
    Datatype.INT8: "int8",
    Datatype.INT16: "int16",
    Datatype.INT32: "int32",
    Datatype.INT64: "int64",
    Datatype.FP16: "float16",
    Datatype.FP32: "float32",
    Datatype.FP64: "float64",
    Datatype.BF16: "uint16",
    Datatype.BYTES: "object",
}
_FROM_NUMPY = {name: datatype for datatype, name in _NUMPY.items() if datatype is not Datatype.BF16}
_SIZES = {
    Datatype.BOOL: 1, Datatype.UINT8: 1, Datatype.INT8: 1,
    Datatype.UINT16: 2, Datatype.INT16: 2, Datatype.FP16: 2, Datatype.BF16: 2,
    Datatype.UINT32: 4, Datatype.INT32: 4, Datatype.FP32: 4,
    Datatype.UINT64: 8, Datatype.INT64: 8, Datatype.FP64: 8,
    Datatype.BYTES: 0,
}  # fmt: skip


def datatype_of(numpy_name: str) -> Datatype:
    """Return the datatype for a numpy dtype name such as `float32`.

    Raises:
        InputError: The protocol has no such datatype.
    """
    try:
        return _FROM_NUMPY[numpy_name]
    except KeyError:
        raise InputError(f"no tensor datatype corresponds to {numpy_name!r}") from None


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """Name, datatype and shape of one input or output; -1 stands for a dimension that varies."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.name or len(self.name) > 256:
            raise InputError(f"tensor name {self.name[:40]!r} must have 1 to 256 characters")
        if len(self.shape) > MAX_TENSOR_RANK:
            raise InputError(f"tensor {self.name!r} has {len(self.shape)} dimensions, at most {MAX_TENSOR_RANK}")
        if any(size < -1 for size in self.shape):
            raise InputError(f"tensor {self.name!r} has a negative dimension in {list(self.shape)}")

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Tell whether a concrete `shape` fits."""
        return len(shape) == len(self.shape) and all(
            want in (-1, have) for want, have in zip(self.shape, shape, strict=True)
        )


class Signature(msgspec.Struct, frozen=True, kw_only=True):
    """Inputs and outputs of a model, in its own order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        for side, specs in (("input", self.inputs), ("output", self.outputs)):
            if not specs:
                raise InputError(f"a model needs at least one {side}")
            if len({spec.name for spec in specs}) != len(specs):
                raise InputError(f"two {side}s have the same name")
