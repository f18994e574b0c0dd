"""The runtime without a library: a JSON file says the signature, the answer is computed from the input's bytes.

It lets every path of the product run where no inference library is installed, and in tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgeserve.contracts.documents import decode
from edgeserve.contracts.errors import DeviceError, InputError
from edgeserve.contracts.limits import MAX_CONFIG_BYTES
from edgeserve.contracts.tensors import Datatype, Signature
from edgeserve.runtimes.base import ONE_DEVICE, LoadedModel, RuntimeOptions, Tensor, Tensors
from edgeserve.runtimes.checks import check_inputs


class NullRuntime:
    """Loads `*.null.json`, a `Signature` as JSON."""

    name = "null"

    def version(self) -> str:
        """Always `1`."""
        return "1"

    def load(self, path: Path, options: RuntimeOptions) -> LoadedModel:
        """Read the signature; see `edgeserve.runtimes.base.Runtime.load`."""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        signature = decode(data, Signature, what=f"null model {path.name}", limit=MAX_CONFIG_BYTES)
        return NullModel(signature, "null (simulated)" if options.simulate else "null")


class NullModel:
    """Answers with the sum of each row of the first input, in every element of that row of each output."""

    fallback = ""
    placement = ONE_DEVICE

    def __init__(self, signature: Signature, executing_device: str) -> None:
        self.signature = signature
        self.executing_device = executing_device
        self._closed = False

    def run(self, inputs: Mapping[str, Tensor]) -> Tensors:
        """Compute the outputs; see `edgeserve.runtimes.base.LoadedModel.run`."""
        if self._closed:
            raise DeviceError("the model was closed")
        check_inputs(self.signature, inputs)
        first = inputs[self.signature.inputs[0].name]
        rows = first.shape[0] if first.ndim else 1
        numbers = (
            first.astype(np.float64)
            if self.signature.inputs[0].datatype is not Datatype.BYTES
            else np.zeros(first.shape)
        )
        sums = numbers.reshape(rows, -1).sum(axis=1) if first.size else np.zeros(rows)
        outputs: Tensors = {}
        for spec in self.signature.outputs:
            shape = tuple(rows if size == -1 else size for size in spec.shape)
            values = sums if shape[:1] == (rows,) else sums[:1]
            filled = np.broadcast_to(values.reshape((-1,) + (1,) * (len(shape) - 1)) if shape else values[0], shape)
            dtype = spec.datatype.numpy_name
            outputs[spec.name] = (
                np.array([b""] * filled.size, object).reshape(shape) if dtype == "object" else filled.astype(dtype)
            )
        return outputs

    def close(self) -> None:
        """Forbid further runs."""
        self._closed = True
