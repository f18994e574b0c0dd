"""What is compiled and what it is judged on: model, task and data, read and held against each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from msgspec.structs import replace

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import CALIBRATION_STEPS, RANKING_ELEMENTS, RANKING_ROWS
from edgeserve.contracts.task import METRICS, Kind, Task
from edgeserve.runtimes.base import LoadedModel, RuntimeOptions, Tensors
from edgeserve.runtimes.rows import unroll
from edgeserve.runtimes.variant import find_runtime
from edgeserve.task.metadata import task_from_metadata
from edgeserve.task.model_toml import check_task
from edgeserve_compilers import load, plan
from edgeserve_compilers.data.dataset import Dataset
from edgeserve_compilers.data.read import load as load_data
from edgeserve_compilers.sources.base import Model, SourceOptions
from edgeserve_compilers.verify import metric_of

_FEWEST_RANKED: Final = 4


@dataclass(frozen=True, kw_only=True)
class Wish:
    """The user's files and what is said of them."""

    model: str
    """A file, a folder or `module:function`."""
    calibration: str | None = None
    validation: str | None = None
    task: Task | None = None
    metric: str = ""
    """Overrides the task's."""
    trust_pickle: bool = False


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Everything that a compilation starts from, checked."""

    model: Model
    task: Task
    """Every name filled in, the metric that is used among them."""
    calibration: Dataset | None
    validation: Dataset | None
    unjudged: tuple[str, ...]

    @property
    def judged_on(self) -> Dataset:
        """The rows that decide."""
        found = self.validation or self.calibration
        assert found is not None, "read_subject refuses to go on without data"
        return found

    @property
    def row_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of one row of each input that data are given for."""
        axes = 2 if self.task.state else 1
        return {name: array.shape[axes:] for name, array in self.judged_on.inputs.items()}


def read_subject(wish: Wish) -> Subject:
    """Read model, task and data.

    Raises:
        InputError: One is wrong, they do not fit each other, or there are no data at all.
        DeviceError: A library is missing that the model's format needs.
    """
    constants = wish.task.constants if wish.task else {}
    model = load.load(wish.model, SourceOptions(trust_pickle=wish.trust_pickle, constants=constants))
    signature = model.spec.signature
    given = wish.task or task_from_metadata(model.metadata, signature)
    task = check_task(given or Task(), signature)
    plan.check_rows(model.spec, task)
    calibration = load_data(Path(wish.calibration), signature, task) if wish.calibration else None
    validation = load_data(Path(wish.validation), signature, task) if wish.validation else None
    judged_on = validation or calibration
    if judged_on is None:
        raise InputError(
            "nothing is packed that was not measured", hint="give --validation or --calibration, best both"
        )
    task, unjudged = _judge_by(task, judged_on, known=given is not None, metric=wish.metric)
    if calibration and {n: a.shape[1:] for n, a in calibration.inputs.items()} != {
        n: a.shape[1:] for n, a in judged_on.inputs.items()
    }:
        raise InputError(f"{calibration.file} and {judged_on.file} hold rows of different shapes")
    return Subject(model=model, task=task, calibration=calibration, validation=validation, unjudged=unjudged)


def open_float(model: Model, file: Path) -> LoadedModel:
    """The float model in a runtime of this host: `file` holds its ONNX form, if it has one."""
    if model.content:
        return find_runtime("onnxruntime").load(file, RuntimeOptions())
    return find_runtime("openvino").load(model.originals["openvino"], RuntimeOptions())


def calibration_rows(subject: Subject, floats: LoadedModel) -> Tensors | None:
    """Rows to calibrate with; of a stateful model the steps, evenly spread, each with the state that it began with."""
    data = subject.calibration
    if data is None:
        return None
    if not subject.task.state:
        return dict(data.inputs)
    steps = unroll(floats, data.inputs, subject.task.state)
    count = len(next(iter(steps.values())))
    chosen = np.linspace(0, count - 1, min(count, CALIBRATION_STEPS)).astype(np.int64)
    return {name: array[chosen] for name, array in steps.items()}


def ranking_rows(rows: Tensors, outputs: Tensors) -> Tensors:
    """Calibration rows, evenly spread, on which noise is measured; `outputs` (of any rows) say how large they are."""
    count = len(next(iter(rows.values())))
    elements = sum(array.size // len(array) for array in (*rows.values(), *outputs.values()))
    most = max(_FEWEST_RANKED, min(RANKING_ROWS, RANKING_ELEMENTS // max(elements, 1)))
    chosen = np.linspace(0, count - 1, min(count, most)).astype(np.int64)
    return {name: array[chosen] for name, array in rows.items()}


def run_steps(model: LoadedModel, rows: Tensors, state: dict[str, str]) -> Tensors:
    """Outputs of single steps whose state is given with them; outputs that are state are left out."""
    parts = []
    for row in range(len(next(iter(rows.values())))):
        step = {
            name: np.ascontiguousarray(array[row] if name in state else array[row : row + 1])
            for name, array in rows.items()
        }
        parts.append(model.run(step))
    carried = set(state.values())
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0] if name not in carried}


def _judge_by(task: Task, data: Dataset, *, known: bool, metric: str) -> tuple[Task, tuple[str, ...]]:
    """The task with its metric, and what cannot be judged."""
    unjudged = []
    if not known and data.truth is None:
        if metric not in ("", *METRICS[Kind.TENSORS]):
            raise InputError(
                f"--metric {metric}: {data.file} has no labels, and no task says what the outputs mean",
                hint="give labelled data, or a model.toml with --task; numbers are compared by sqnr or agreement",
            )
        task = replace(task, kind=Kind.TENSORS, metric="")
        unjudged.append(
            "no task says what the outputs mean: they were held against the float model's number by number; whether "
            "the right answers win is not known (write a model.toml, give it with --task)"
        )
    elif not known:
        unjudged.append(
            f"no task says what the outputs mean: {task.output!r} was taken for class scores, "
            f"because {data.file} has labels"
        )
    task = replace(task, metric=metric or task.metric)
    used = metric_of(task, data)
    if data.truth is None:
        instead = f", {used} stands in for {task.metric}" if task.metric not in ("", used) else ""
        unjudged.append(
            f"{data.file} has no labels: the float model's answers are the truth{instead}; how right they are is not "
            "known"
        )
    return replace(task, metric=used), tuple(unjudged)
