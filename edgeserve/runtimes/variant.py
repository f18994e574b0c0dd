"""Load a variant as it lies on disk: its files and `contract.json` in one folder."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Final

from edgeserve import plugins
from edgeserve.contracts.documents import decode
from edgeserve.contracts.errors import InputError, MissingLibraryError, NotFoundError
from edgeserve.contracts.limits import MAX_CONFIG_BYTES
from edgeserve.contracts.tensors import Signature, TensorSpec
from edgeserve.contracts.variant import VariantContract
from edgeserve.runtimes.advice import package_for, this_machine
from edgeserve.runtimes.base import LoadedModel, Runtime, RuntimeOptions

CONTRACT_FILE: Final = "contract.json"
_BUILDERS: Final = {"tensorrt-engine": "tensorrt"}
"""`Finalize.action` -> the runtime, and the library of the same name, that does best what the action asks for."""


def find_runtime(name: str) -> Runtime:
    """The runtime that is registered as `name`.

    Raises:
        NotFoundError: None is.
        DeviceError: Its library is not installed; the hint says which package, from where, gives it on this machine.
    """
    try:
        runtime: Runtime = plugins.find(plugins.RUNTIMES, name)()
    except MissingLibraryError as error:
        raise MissingLibraryError(error.message, hint=package_for(name, "", this_machine()) or error.hint) from error
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
    folder: Path,
    *,
    simulate: bool,
    threads: int = 1,
    find: Callable[[str], Runtime] = find_runtime,
    cache: Path | None = None,
) -> tuple[VariantContract, LoadedModel]:
    """Load the model of an unpacked variant with the runtime and device that its contract names.

    A variant for which an engine is built is loaded by the builder's own runtime where its library is installed, else
    by the one that the contract names; that may fall back to another device, and `LoadedModel.fallback` says so.

    Args:
        folder: Holds `contract.json` and the variant's files.
        simulate: Run on the nearest device here when the contract's device is absent.
        threads: Threads inside one call; 0 = the runtime decides.
        find: Gives the runtime that the contract names, or another in its place.
        cache: Keeps what is built of models on this device; None = it is built for this load alone.

    Raises:
        InputError: Contract or model is wrong, or the model has another signature than the contract says.
        DeviceError: The runtime or the device is not here, or there is no space for what is built.
    """
    contract = read_contract(folder)
    options = _options(contract, simulate=simulate, threads=threads, cache=cache)
    name = runtime_of(contract, simulate=simulate)
    model = find(name).load(folder / contract.entry, options)
    difference = _difference(contract.signature, model.signature, built=name != contract.runtime)
    if difference:
        model.close()
        raise InputError(
            f"{contract.entry} is not the model that its contract describes: {difference}",
            hint="compile or fetch the release again",
        )
    return contract, model


def unbuilt(folder: Path, *, simulate: bool, find: Callable[[str], Runtime] = find_runtime, cache: Path | None) -> str:
    """Why `load_variant` would have to build something first, for the log; empty = it would not.

    Raises:
        EdgeServeError: As `load_variant`.
    """
    contract = read_contract(folder)
    if contract.finalize is None or simulate:
        return ""
    runtime = find(runtime_of(contract, simulate=simulate))
    look = getattr(runtime, "unbuilt", None)
    if look is None:  # what this runtime builds, and whether, only loading tells
        return ""
    return str(look(folder / contract.entry, _options(contract, simulate=simulate, threads=1, cache=cache)))


def runtime_of(contract: VariantContract, *, simulate: bool) -> str:
    """Name of the runtime that loads a variant here."""
    if contract.finalize is None or simulate:
        return contract.runtime
    builder = _BUILDERS.get(contract.finalize.action)
    return builder if builder and importlib.util.find_spec(builder) is not None else contract.runtime


def _options(contract: VariantContract, *, simulate: bool, threads: int, cache: Path | None) -> RuntimeOptions:
    finalize = contract.finalize
    return RuntimeOptions(
        device=contract.runtime_device,
        threads=threads,
        simulate=simulate,
        cache=cache if finalize is not None else None,  # what no one asked to build is not kept
        settings=finalize.options if finalize is not None else {},
        fallback=finalize is not None and finalize.action in _BUILDERS,
    )


def _difference(wanted: Signature, found: Signature, *, built: bool) -> str:
    for side, ours, theirs in (("input", wanted.inputs, found.inputs), ("output", wanted.outputs, found.outputs)):
        if len(ours) != len(theirs):
            return f"it has {len(theirs)} {side}s, not {len(ours)}"
        for one, other in zip(ours, theirs, strict=True):
            if one != other and not (built and _is_closer(one, other)):
                return f"{side} {_text(other)}, not {_text(one)}"
    return ""


def _is_closer(wanted: TensorSpec, found: TensorSpec) -> bool:
    """Whether a builder only knows a size that the file leaves open, or leaves open one that the file knows."""
    return (
        (wanted.name, wanted.datatype, len(wanted.shape)) == (found.name, found.datatype, len(found.shape))
        and wanted.shape[:1] == found.shape[:1]
        and all(one == other or -1 in (one, other) for one, other in zip(wanted.shape, found.shape, strict=True))
    )


def _text(spec: TensorSpec) -> str:
    return f"{spec.name!r} {spec.datatype.value}{list(spec.shape)}"
