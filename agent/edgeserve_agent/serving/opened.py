"""A variant in memory, warmed up and timed: what a load hands to the data plane."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np

from edgeserve.contracts.errors import DeviceError, EdgeServeError, InputError
from edgeserve.contracts.limits import MAX_CLASSES, MAX_CONFIG_BYTES, MAX_ISOLATED_CALLS
from edgeserve.contracts.model_config import ConfigTensor, Isolation, ModelConfig
from edgeserve.contracts.names import file_name
from edgeserve.contracts.task import Task
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.contracts.variant import VariantContract
from edgeserve.release.blobs import open_regular
from edgeserve.runtimes.base import LoadedModel, Runtime, Tensors
from edgeserve_agent.serving.cores import worker_threads
from edgeserve_agent.serving.warmup import WarmupRequest, protocol_datatype, warmup_requests

_TIMED_RUNS: Final = 7
_TIMED_S: Final = 0.5
"""Slow models are timed by fewer runs."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A loaded model and what is known of it."""

    model: LoadedModel
    runtime: str
    task: Task | None = None
    details: Mapping[str, str] = field(default_factory=dict)
    """Further facts for the model's metadata."""
    config: ModelConfig = field(default_factory=ModelConfig)
    labels: tuple[str, ...] = ()
    """Names of the classes of its first output that has a `label_filename`."""
    warmup: tuple[WarmupRequest, ...] = ()
    """What it runs before it is ready, beside a call with zeros."""
    variant: str = ""
    """Digest of the release's variant that was chosen; empty where whoever loads it knows."""


@dataclass(frozen=True, kw_only=True)
class Warm:
    """An opened model that has run."""

    opened: Opened
    call_us: float
    """Median duration of one call with zeros, microseconds; infinite when it could not be run on zeros."""
    elements: int
    """Elements of its inputs in that call."""


def open_variant(
    folder: Path, *, simulate: bool, threads: int, config: ModelConfig | None = None, cache: Path | None = None
) -> Opened:
    """Load the variant in `folder`.

    Args:
        folder: Holds `contract.json` and the variant's files.
        simulate: Run on the nearest device here when the contract's device is absent.
        threads: Inside one call, unless the configuration says another number; 0 = the runtime decides.
        config: How it is served.
        cache: Keeps what is built of models on this device; None = it is built for this load alone.

    Raises:
        InputError: The folder does not hold a variant, or the configuration does not fit the model.
        DeviceError: This machine cannot run it.
    """
    from edgeserve.runtimes.variant import load_variant

    config = config or ModelConfig()
    contract, model = load_variant(
        folder,
        simulate=simulate,
        threads=threads_of(config, threads),
        find=runtime_finder(config, threads=threads, folder=folder),
        cache=cache,
    )
    return opened_variant(contract, model, config)


def opened_variant(
    contract: VariantContract, model: LoadedModel, config: ModelConfig | None = None, *, folder: Path | None = None
) -> Opened:
    """Bring a loaded variant, its contract and its configuration together; closes the model when they do not fit.

    Args:
        contract: Of the variant.
        model: Loaded from it.
        config: How it is served.
        folder: Where files lie that the configuration names; None = there are none.

    Raises:
        InputError: The configuration does not fit the model.
    """
    opened = Opened(
        model=model,
        runtime=(config and config.runtime) or contract.runtime,
        task=contract.task,
        details={"target": contract.target, "precision": contract.precision.value},
    )
    return configured(opened, config or ModelConfig(), folder=folder)


def runtime_finder(config: ModelConfig, *, threads: int, folder: Path | None) -> Callable[[str], Runtime]:
    """How to find the runtime of a model: the one that its configuration names, in a process of its own if asked for.

    Args:
        config: Of the model.
        threads: Inside one call, unless the configuration says another number: what remains of the cores is how many
            calls a process takes at once.
        folder: Has nothing but the files of the model that will be loaded; None = there is none such.
    """
    from edgeserve.runtimes.variant import find_runtime

    def find(name: str) -> Runtime:
        chosen = config.runtime or name
        if config.isolation is not Isolation.PROCESS:
            return find_runtime(chosen)
        from edgeserve_agent.isolation.options import IsolationOptions
        from edgeserve_agent.isolation.runtime import IsolatedRuntime

        calls = config.instances or worker_threads(threads_of(config, threads))
        isolation = IsolationOptions(calls=min(calls, MAX_ISOLATED_CALLS))
        return IsolatedRuntime(chosen, isolation=isolation, folder=folder)

    return find


def threads_of(config: ModelConfig, threads: int) -> int:
    """Threads inside one call: the configuration's, or what the server was told."""
    return threads if config.threads is None else config.threads


def configured(opened: Opened, config: ModelConfig, *, folder: Path | None) -> Opened:
    """Give a model its configuration; closes the model when they do not fit.

    Args:
        opened: The model.
        config: Of it.
        folder: Where the files that the configuration names lie; None = there are none.

    Raises:
        InputError: Inputs, outputs, warm-up requests or label files do not fit the model.
    """
    signature = opened.model.signature
    try:
        _check(config.input, signature.inputs, "input")
        _check(config.output, signature.outputs, "output")
        return replace(
            opened,
            config=config,
            labels=_labels(config, folder),
            warmup=warmup_requests(config, signature, folder),
        )
    except BaseException:
        opened.model.close()
        raise


def _check(entries: tuple[ConfigTensor, ...], specs: tuple[TensorSpec, ...], side: str) -> None:
    """The model's own signature holds; what contradicts it was written for another model."""
    known = {spec.name: spec for spec in specs}
    for entry in entries:
        spec = known.get(entry.name)
        if spec is None:
            raise InputError(
                f"the configuration names {side} {entry.name[:80]!r}, the model has {', '.join(known)}",
                hint="leave input and output out: the model says what they are",
            )
        said = entry.data_type and protocol_datatype(entry.data_type, f"{side} {entry.name!r}")
        if said and said is not spec.datatype:
            is_wrong = f"is {said.value}, the model's is {spec.datatype.value}"
            raise InputError(f"the configuration says that {side} {entry.name[:80]!r} {is_wrong}")


def _labels(config: ModelConfig, folder: Path | None) -> tuple[str, ...]:
    name = next((entry.label_filename for entry in config.output if entry.label_filename), "")
    if not name or folder is None:
        return ()
    path = folder / file_name(name)
    with open_regular(path, follow=True) as file:
        data = file.read(MAX_CONFIG_BYTES + 1)
    labels = data.decode("utf-8", "replace").splitlines()
    if len(data) > MAX_CONFIG_BYTES or len(labels) > MAX_CLASSES:
        raise InputError(f"{path} has more than {MAX_CLASSES} labels or {MAX_CONFIG_BYTES} bytes")
    return tuple(labels)


def warm_up(opened: Opened) -> Warm:
    """Run the model on zeros, dimensions that vary being 1, a few times, and on what its configuration asks for.

    Raises:
        DeviceError: It does not run although its shapes leave no doubt about the input.
    """
    signature = opened.model.signature
    inputs = zeros(signature)
    elements = sum(array.size for array in inputs.values())
    call_us = float("inf")
    try:
        try:
            opened.model.run(inputs)
            call_us = _median_us(opened.model, inputs)
        except Exception as error:
            # Sizes of 1 need not be possible, such as an image of one pixel; a worker process must live through them.
            crashed = getattr(opened.model, "crashes", 0)
            if crashed or not any(-1 in spec.shape[1:] for spec in signature.inputs):
                raise _does_not_run("zeros", error) from error
        for request in opened.warmup:
            _run_warmup(opened.model, request)
    except BaseException:
        opened.model.close()
        raise
    return Warm(opened=opened, call_us=call_us, elements=elements)


def _run_warmup(model: LoadedModel, request: WarmupRequest) -> None:
    try:
        for _ in range(request.count):
            model.run(request.inputs)
    except Exception as error:
        raise _does_not_run(f"its warm-up request {request.name[:80]!r}", error) from error


def _median_us(model: LoadedModel, inputs: Tensors) -> float:
    timed: list[float] = []
    begin = time.perf_counter()
    while len(timed) < _TIMED_RUNS and time.perf_counter() - begin < _TIMED_S:
        start = time.perf_counter()
        model.run(inputs)
        timed.append((time.perf_counter() - start) * 1e6)
    return statistics.median(timed)


def _does_not_run(what: str, error: Exception) -> DeviceError:
    if isinstance(error, EdgeServeError):
        return DeviceError(f"the model does not run on {what}: {error.message}", hint=error.hint)
    return DeviceError(f"the model does not run on {what}: {error}")


def zeros(signature: Signature) -> Tensors:
    """Zeros for every input, dimensions that vary being 1; empty strings for BYTES."""
    inputs: Tensors = {}
    for spec in signature.inputs:
        shape = tuple(1 if size == -1 else size for size in spec.shape)
        dtype = np.dtype(spec.datatype.numpy_name)
        inputs[spec.name] = np.full(shape, b"", object) if spec.datatype is Datatype.BYTES else np.zeros(shape, dtype)
    return inputs
