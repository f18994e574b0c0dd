"""The contract of a runtime. `tests/suites/runtime.py` holds every implementation to it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from edgeserve.contracts.tensors import Signature

Tensor = npt.NDArray[np.generic]
Tensors = dict[str, Tensor]

ONE_DEVICE: Final[Mapping[str, int]] = MappingProxyType({})
"""`LoadedModel.placement` where there is nothing to tell."""


class RuntimeOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to load a model."""

    device: str = "CPU"
    """Device in the runtime's own words."""
    threads: int = 1
    """Threads inside one call; 0 = the runtime decides."""
    simulate: bool = False
    """Run a variant for other hardware on the nearest device here; `executing_device` then ends in ` (simulated)`."""
    cache: Path | None = None
    """Folder for what the runtime builds of a model on this device (engines, blobs); None = nothing is kept."""
    settings: dict[str, str] = {}
    """Settings of that builder by its own names, as `edgeserve.contracts.variant.Finalize.options` has them."""
    fallback: bool = False
    """Whether another device may take over when the one asked for cannot; `LoadedModel.fallback` then says why. Without
    it that is an error."""


class LoadedModel(Protocol):
    """A model in memory. `run` may be called from several threads at once."""

    signature: Signature
    executing_device: str
    """What runs it, asked of the runtime after loading, never assumed."""
    fallback: str
    """Why `executing_device` is not the device asked for, in one sentence; empty = it is."""
    placement: Mapping[str, int]
    """Operations of the model by the device that they were placed on, where several may share it (a GPU and the CPU);
    empty = one device runs all, or the runtime does not say."""

    def run(self, inputs: Mapping[str, Tensor]) -> Tensors:
        """Compute every output.

        Args:
            inputs: One C-contiguous array for each input, of its datatype and a shape that its spec accepts.

        Returns:
            One array for each output, by name, in the order of the signature. The caller owns them.

        Raises:
            InputError: An input is missing, unknown, or has the wrong datatype or shape.
            DeviceError: The runtime failed.
        """

    def close(self) -> None:
        """Release memory; further calls of `run` are an error. May be called twice."""


class Runtime(Protocol):
    """Loads models of one format."""

    name: str
    """As registered in the entry-point group `edgeserve.runtimes`."""

    def version(self) -> str:
        """Version of the library behind it."""

    def load(self, path: Path, options: RuntimeOptions) -> LoadedModel:
        """Load a model file.

        Raises:
            InputError: The file is not a model of this runtime, is truncated, or an input has no fixed rank.
            DeviceError: The device asked for is not here, or memory ran out.
        """
