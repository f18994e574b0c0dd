"""Load a variant as it lies on disk: its files and `contract.json` in one folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from edgeserve import plugins
from edgeserve.contracts.documents import decode
from edgeserve.contracts.errors import InputError, NotFoundError
from edgeserve.contracts.limits import MAX_CONFIG_BYTES
from edgeserve.contracts.tensors import Signature, TensorSpec
from edgeserve.contracts.variant import VariantContract
from edgeserve.runtimes.base import LoadedModel, Runtime, RuntimeOptions

CONTRACT_FILE: Final = "contract.json"


def find_runtime(name: str) -> Runtime:
    """The runtime that is registered as `name`.

    Raises:
        NotFoundError: None is.
        DeviceError: Its library is not installed.
    """
    runtime: Runtime = plugins.find(plugins.RUNTIMES, name)()
    return runtime


def read_contract(folder: Path) -> VariantContract:
    """Read `contract.json` of an unpacked variant.

    Raises:
        NotFoundError: It is not there.
        InputError: It is not a variant contract.
    """
    path = folder / CONTRACT_FILE
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise NotFoundError(f"cannot read {path}: {error.strerror}", hint="name the folder of a variant") from error
    return decode(data, VariantContract, what=f"variant contract {path}", limit=MAX_CONFIG_BYTES)


def load_variant(
    folder: Path, *, simulate: bool, threads: int = 1, find: Callable[[str], Runtime] = find_runtime
) -> tuple[VariantContract, LoadedModel]:
    """Load the model of an unpacked variant with the runtime and device that its contract names.

    Args:
        folder: Holds `contract.json` and the variant's files.
        simulate: Run on the nearest device here when the contract's device is absent.
        threads: Threads inside one call; 0 = the runtime decides.
        find: Gives the runtime that the contract names, or another in its place.

    Raises:
        InputError: Contract or model is wrong, or the model has another signature than the contract says.
        DeviceError: The runtime or the device is not here.
    """
    contract = read_contract(folder)
    options = RuntimeOptions(device=contract.runtime_device, threads=threads, simulate=simulate)
    model = find(contract.runtime).load(folder / contract.entry, options)
    difference = _difference(contract.signature, model.signature)
    if difference:
        model.close()
        raise InputError(
            f"{contract.entry} is not the model that its contract describes: {difference}",
            hint="compile or fetch the release again",
        )
    return contract, model


def _difference(wanted: Signature, found: Signature) -> str:
    for side, ours, theirs in (("input", wanted.inputs, found.inputs), ("output", wanted.outputs, found.outputs)):
        if len(ours) != len(theirs):
            return f"it has {len(theirs)} {side}s, not {len(ours)}"
        for one, other in zip(ours, theirs, strict=True):
            if one != other:
                return f"{side} {_text(other)}, not {_text(one)}"
    return ""


def _text(spec: TensorSpec) -> str:
    return f"{spec.name!r} {spec.datatype.value}{list(spec.shape)}"
