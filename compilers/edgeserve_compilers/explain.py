"""What the report shows of a kept variant besides figures: differences, and examples with both answers."""

from __future__ import annotations

from typing import Final

import numpy as np

from edgeserve.runtimes.base import Tensors
from edgeserve.task.decode import decode, fields, judging_score
from edgeserve.task.present import describe, describe_truth
from edgeserve.task.score import agreement
from edgeserve_compilers.report import Bucket, Example
from edgeserve_compilers.verify import Reference, noise_share

_BUCKETS: Final = 41
"""Odd, so that the middle one holds `no difference`."""
_WORST: Final = 4
_TYPICAL: Final = 2
_CLIP_QUANTILE: Final = 99.9
"""The outermost bars hold the rest: one outlier must not flatten the picture."""


def differences(outputs: Tensors, reference: Reference) -> tuple[Bucket, ...]:
    """Histogram of variant minus float over all elements of the noisiest decoded field."""
    found = fields(reference.task, outputs)
    name = max(found, key=lambda field: noise_share(reference.fields[field], found[field]))
    apart = (found[name] - reference.fields[name]).ravel()
    apart = apart[np.isfinite(apart)]
    if not apart.size:
        return ()
    reach = float(np.percentile(np.abs(apart), _CLIP_QUANTILE)) or float(np.abs(apart).max()) or 1.0
    edges = np.linspace(-reach, reach, _BUCKETS + 1)
    counts, _ = np.histogram(np.clip(apart, -reach, reach), edges)
    return tuple(
        Bucket(low=float(low), high=float(high), count=int(count))
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    )


def examples(outputs: Tensors, reference: Reference) -> tuple[Example, ...]:
    """The rows whose answers agree least, then some from the middle."""
    task, data = reference.task, reference.data
    agree = agreement(task, decode(task, outputs, least_score=judging_score(task)), reference.answers)
    answers, floats = decode(task, outputs), decode(task, reference.outputs)
    order = np.argsort(agree, kind="stable")
    middle = order[len(order) // 2 :][:_TYPICAL]
    rows = list(dict.fromkeys([*order[:_WORST].tolist(), *middle.tolist()]))
    steps = len(agree) // data.rows  # a stateful task answers once a step
    return tuple(
        Example(
            row=row // steps,
            name=data.names[row // steps] if data.names else "",
            truth=describe_truth(task, reference.truth[row])
            if reference.labelled and len(reference.truth) > row
            else "",
            float_answer=describe(task, floats[row]),
            answer=describe(task, answers[row]),
            agreement=float(agree[row]),
        )
        for row in rows
    )
