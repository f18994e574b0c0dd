"""The search for a product that keeps the accuracy bound. Pure: what costs time is handed in as functions.

1. Order the base candidates by the noise that they add on a few calibration rows (cheap).
2. Judge them on all rows, in that order, until one holds the bound and loses nothing; three at least.
3. When none does: rank the layers by the noise of *only this layer quantized*, find by bisection how many
   of the noisiest must stay float, then give back to int8 whatever turns out not to be needed.
4. When that does not help either: weights only.

Ranking by "one layer back in float" was measured to keep twice as many layers in float for the same accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from msgspec.structs import replace

from edgeserve.contracts.limits import SEARCH_TRIALS
from edgeserve_compilers.plan import loss
from edgeserve_compilers.spec import Candidate, LayerNoise, Trial

Judge = Callable[[Candidate], Trial]
"""Makes a candidate and measures it on all rows. Never raises for what is the candidate's own fault."""
Noise = Callable[[Candidate], float]
"""Makes a candidate and measures its noise on a few calibration rows; infinite when it cannot be made."""
Mendable = Callable[[Trial], bool]
"""Whether a refused trial might be mended by leaving layers in float."""

_JUDGED_AT_LEAST: Final = 3
"""Base candidates judged on all rows even when the first loses nothing: noise is a hint, the metric decides."""
_MOST_IN_FLOAT: Final = 0.5
"""Share of the layers: beyond it weights alone in int8 are smaller, and as fast."""
_PRUNED_AT_MOST: Final = 12
"""Layers, the least noisy first, that are tried in int8 again one by one: each costs a judgement."""


def search(
    candidates: Sequence[Candidate],
    layers: Sequence[str],
    *,
    judge: Judge,
    noise: Noise,
    mendable: Mendable,
    mixed: bool = True,
    most: int = SEARCH_TRIALS,
) -> tuple[tuple[Trial, ...], tuple[LayerNoise, ...]]:
    """Try candidates until one holds, as far as `most` judgements go.

    Args:
        candidates: Base candidates, the one that is usually best first.
        layers: What may stay float, in order of execution.
        judge: Dear.
        noise: Cheap.
        mendable: Of a refused trial.
        mixed: Whether layers may be left in float.
        most: Judgements at most.

    Returns:
        Every trial, in the order they were made, and the ranking of the layers if there was one.
    """
    full = [candidate for candidate in candidates if not candidate.weights_only]
    trials = list(_bases(full, judge, noise, most))
    ranking: tuple[LayerNoise, ...] = ()
    mendables = list(filter(mendable, trials))  # the least noisy first
    if mixed and len(layers) > 1 and mendables and not _any_holds(trials):
        # What makes a layer hard is the layer: one ranking serves all calibrators.
        ranking = rank(mendables[0].candidate, layers, noise)
        order = [entry.layer for entry in ranking]
        bases = {mendables[0].candidate: None, min(mendables, key=loss).candidate: None}
        for base in bases:
            trials += _mixed(base, order, judge, most - len(trials))
    if not _any_holds(trials) and (mendables or not full):
        weights_only = [candidate for candidate in candidates if candidate.weights_only]
        trials += _bases(weights_only, judge, noise, most - len(trials))
    return tuple(trials), ranking


def rank(base: Candidate, layers: Sequence[str], noise: Noise) -> tuple[LayerNoise, ...]:
    """Layers by the noise that each adds when it is the only one quantized, noisiest first."""
    measured = [
        LayerNoise(layer=layer, noise=noise(_with_float(base, [name for name in layers if name != layer])))
        for layer in layers
    ]
    return tuple(sorted(measured, key=lambda entry: -entry.noise))  # stable: equals stay in order of execution


def _any_holds(trials: Sequence[Trial]) -> bool:
    return any(not trial.refused for trial in trials)


def _bases(candidates: Sequence[Candidate], judge: Judge, noise: Noise, most: int) -> Sequence[Trial]:
    order = sorted(candidates, key=noise) if len(candidates) > 1 else list(candidates)
    trials: list[Trial] = []
    for candidate in order[:most]:
        if len(trials) >= _JUDGED_AT_LEAST and any(not trial.refused and loss(trial) == 0 for trial in trials):
            break
        trials.append(judge(candidate))
    return trials


def _mixed(base: Candidate, order: Sequence[str], judge: Judge, most: int) -> Sequence[Trial]:
    """Bisect the number of layers in float, then prune."""
    trials: list[Trial] = []

    def holds(layers: Sequence[str]) -> bool:
        if len(trials) >= most:
            return False
        trials.append(judge(_with_float(base, layers)))
        return not trials[-1].refused

    low, high = 1, max(1, int(_MOST_IN_FLOAT * len(order)))
    kept: Sequence[str] | None = None
    while low <= high:
        middle = (low + high) // 2
        if holds(order[:middle]):
            kept, high = order[:middle], middle - 1
        else:
            low = middle + 1
    if kept is None:
        return trials
    for layer in list(reversed(kept))[:_PRUNED_AT_MOST]:
        fewer = [name for name in kept if name != layer]
        if fewer and holds(fewer):
            kept = fewer
    return trials


def _with_float(base: Candidate, layers: Sequence[str]) -> Candidate:
    return replace(base, float_layers=tuple(sorted(layers)))
