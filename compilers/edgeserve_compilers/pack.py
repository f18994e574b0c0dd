"""From a judged product to a variant: its contract, and the proof that a device can load it by that contract."""

from __future__ import annotations

from pathlib import Path

from edgeserve.contracts.device import DeviceFacts
from edgeserve.contracts.documents import encode
from edgeserve.contracts.task import Task
from edgeserve.contracts.tensors import Signature
from edgeserve.contracts.variant import Measured, Tolerance, VariantContract
from edgeserve.golden import Golden, reproduce
from edgeserve.runtimes.variant import CONTRACT_FILE, load_variant
from edgeserve_compilers.report import GoldenFacts
from edgeserve_compilers.spec import Trial
from edgeserve_compilers.targets.base import Form


def variant_contract(
    target: str,
    form: Form,
    trial: Trial,
    *,
    entry: str,
    signature: Signature,
    tolerance: Tolerance,
    task: Task,
    rows: int,
    model: str,
    host: DeviceFacts,
) -> VariantContract:
    """The contract of a product that was measured.

    Args:
        target: Name of the target that it was made for.
        form: Of that target.
        trial: How it did.
        entry: File to hand to the runtime.
        signature: As the form's runtime read it.
        tolerance: On the golden set.
        task: With every name filled in, and the metric.
        rows: How many rows it was judged on.
        model: Name of the release.
        host: The machine that it was measured on.
    """
    found = trial.measurement
    assert found is not None, "only what was measured is packed"
    return VariantContract(
        model=model,
        target=target,
        precision=trial.candidate.precision,
        runtime=form.runtime,
        runtime_device=form.runtime_device,
        entry=entry,
        signature=signature,
        task=task,
        selector=form.selector,
        tolerance=tolerance,
        finalize=form.finalize,
        measured=Measured(
            metric=task.metric,
            rows=rows,
            float_value=found.float_value,
            value=found.value,
            drop=found.drop,
            drop_low=found.drop_low,
            drop_high=found.drop_high,
            latency_ms=found.latency_ms,
            float_latency_ms=found.float_latency_ms,
            size_bytes=trial.size_bytes,
            float_size_bytes=trial.float_size_bytes,
            host=host.cpu,
            host_architecture=host.architecture,
            executing_device=found.executing_device,
        ),
    )


def prove(contract: VariantContract, folder: Path, golden: Golden, *, simulate: bool) -> GoldenFacts:
    """Load the variant as a device does, from `contract.json`, and reproduce the golden set.

    Raises:
        GoldenMismatch: It does not reproduce it: tolerance or product is wrong, and nothing may be packed.
        InputError: It is not what the contract says.
    """
    (folder / CONTRACT_FILE).write_bytes(encode(contract))
    _, model = load_variant(folder, simulate=simulate)
    try:
        result = reproduce(model, golden, contract.tolerance, contract.task)
    finally:
        model.close()
    return GoldenFacts(
        rows=result.rows,
        agreement=result.agreement,
        max_abs_difference=result.max_abs_difference,
        tolerance=contract.tolerance,
    )
