"""How often the new model should answer as the release before: what a shadow rollout is then held against."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from edgeserve.contracts.errors import DeviceError, InputError
from edgeserve.contracts.task import Kind, Task
from edgeserve.contracts.tensors import Signature
from edgeserve.release.layout import Release, Variant
from edgeserve.runtimes.rows import run_task
from edgeserve.runtimes.variant import load_variant
from edgeserve.task.answers import Answers, Detections
from edgeserve.task.classes import CLASSIFIERS, INVALID, winners
from edgeserve.task.decode import decode, judging_score
from edgeserve.task.score import agreement
from edgeserve_compilers.data.dataset import Dataset
from edgeserve_compilers.report import BaselineAgreement, ClassAgreement
from edgeserve_devices.match import choose
from edgeserve_devices.probe import probe

_HINT: Final = "a model of another family cannot be compared row by row: compile it without --baseline"

Rows = npt.NDArray[np.float64]


def compare(release: Release, data: Dataset, task: Task, answers: Answers, folder: Path) -> BaselineAgreement:
    """Run the release before on the rows that decide and hold the new answers against its own.

    Of its variants, the one that this machine would run; if none fits, the first that can be simulated here. Its
    outputs mean what its own task says.

    Args:
        release: The release before.
        data: Rows as the new model takes them.
        task: Of the new model.
        answers: The new float model's, one for each row (step of a stateful task).
        folder: Becomes the folder of the old variant; must not hold anything else.

    Raises:
        InputError: The two are no versions of one model: other inputs, preprocessing, kind of task, number of classes
            or labels. The hint says so; it may be right that they cannot be compared.
        DeviceError: None of its variants can be run on this machine.
        TrustError: The release is damaged.
    """
    variant, simulate = _choose(release)
    name = f"release {release.identity.name} {release.identity.version}"
    old = variant.contract.task or task
    _check_tasks(old, task, name)
    _check_inputs(variant.contract.signature, data, old, name)
    release.unpack(variant, folder)
    _, model = load_variant(folder, simulate=simulate)
    try:
        outputs = run_task(model, data.inputs, old.state)
    finally:
        model.close()
    try:
        before = decode(old, outputs, least_score=judging_score(old))
        _check_answers(before, answers)
        rows = agreement(task, answers, before)
    except InputError as error:
        raise InputError(f"{name} cannot be compared: {error.message}", hint=error.hint or _HINT) from error
    return BaselineAgreement(
        baseline=release.digest,
        version=release.identity.version,
        rows=data.rows,
        agreement=float(rows.mean()),
        classes=_by_class(old, before, rows),
    )


def _choose(release: Release) -> tuple[Variant, bool]:
    """The variant to run, and whether its device must be simulated."""
    facts = probe()
    contracts = [variant.contract for variant in release.variants]
    fitting = choose(contracts, facts).index
    if fitting is not None:
        return release.variants[fitting], False
    runnable = [variant for variant in release.variants if variant.contract.runtime in (*facts.runtimes, "null")]
    if not runnable:
        wanted = ", ".join(sorted({contract.runtime for contract in contracts}))
        raise DeviceError(
            f"no variant of release {release.identity.name} {release.identity.version} can be run here: "
            f"none of the runtimes {wanted} is installed",
            hint="pip install 'edgeserve[demo]', or compile without --baseline",
        )
    return runnable[0], True


def _check_tasks(old: Task, new: Task, name: str) -> None:
    if old.kind is not new.kind:
        raise InputError(f"{name} is for {old.kind.value}, the new model for {new.kind.value}", hint=_HINT)
    if old.inputs and new.inputs and old.inputs != new.inputs:
        raise InputError(
            f"{name} prepares its inputs otherwise than the new model: what is right for one is wrong for the other",
            hint=_HINT,
        )
    if old.labels and new.labels and old.labels != new.labels:
        raise InputError(
            f"the labels of {name} are not those of the new model, or stand in another order",
            hint="give the new model the labels of the old one, in its order, or compile without --baseline",
        )


def _check_inputs(signature: Signature, data: Dataset, task: Task, name: str) -> None:
    specs = {spec.name: spec for spec in signature.inputs if spec.name not in task.state}
    if set(specs) != set(data.inputs):
        raise InputError(
            f"{name} takes {', '.join(specs)}, the new model {', '.join(data.inputs)}",
            hint=_HINT,
        )
    for spec in specs.values():
        array = data.inputs[spec.name]
        shape, wanted = array.shape[1 + task.stateful :], spec.shape[1:]
        rows_fit = spec.accepts((spec.shape[0], *shape)) if spec.shape else False
        # the model of a stateful task may take one step as it is, without an axis for the batch
        step_fits = task.stateful and spec.accepts(shape)
        if array.dtype.name != spec.datatype.numpy_name or not (rows_fit or step_fits):
            raise InputError(
                f"input {spec.name!r} of {name} is {spec.datatype.numpy_name}{list(wanted)} a row, "
                f"that of the new model {array.dtype.name}{list(shape)}",
                hint=_HINT,
            )


def _check_answers(before: Answers, after: Answers) -> None:
    if len(before) != len(after):
        raise InputError(f"it gives {len(before)} answers, the new model {len(after)}")
    old, new = before[0], after[0]
    if isinstance(old, np.ndarray) and isinstance(new, np.ndarray) and old.shape != new.shape:
        raise InputError(f"it answers {old.size} numbers or classes, the new model {new.size}", hint=_HINT)


def _by_class(task: Task, before: Answers, rows: Rows) -> tuple[ClassAgreement, ...]:
    """Agreement where the old release answers each class; of detection, in the pictures where it finds one."""
    if task.kind in CLASSIFIERS:
        answered = [{int(number)} for number in winners(np.array(before, np.float64))]
    elif task.kind is Kind.DETECTION and task.boxes is not None:
        least = task.boxes.score
        answered = [set(found.above(least).classes.tolist()) for found in before if isinstance(found, Detections)]
    else:
        return ()
    members: dict[int, list[int]] = {}
    for row, classes in enumerate(answered):
        for number in classes - {INVALID}:
            members.setdefault(number, []).append(row)
    return tuple(
        ClassAgreement(
            label=task.labels[number] if number < len(task.labels) else str(number),
            rows=len(members[number]),
            agreement=float(rows[members[number]].mean()),
        )
        for number in sorted(members)
    )
