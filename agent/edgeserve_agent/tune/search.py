"""What to measure next, given what was measured: hill climbing whose steps are races. Pure and without memory.

From far-apart beginnings to the best of them; then to the best of its neighbours, as long as there is a better one.
Each step measures all neighbours once and only those that come near the best again (successive halving: Jamieson and
Talwalkar, "Non-stochastic Best Arm Identification", 2016), so that what is clearly worse costs one round. At last those
that could be chosen are measured as often as it takes to tell them apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from edgeserve_agent.tune.objective import (
    LEAST_GAIN,
    NEAR,
    ROUNDS,
    Goal,
    Point,
    best_of,
    excess,
    gain,
    worths,
)
from edgeserve_agent.tune.space import Configuration, Space

SCREENING: Final = 3
"""Rounds after which a step is made."""
_RACERS: Final = 4
"""Near the best, that are measured again together."""
_FINALISTS: Final = 8
"""Configurations that are measured ROUNDS times; more only if they are served anyway or the best without batching."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """Configurations that are to be measured one after the other, in one round."""

    configurations: tuple[Configuration, ...]
    why: str


def next_pass(space: Space, goal: Goal, points: Sequence[Point], *, explore: bool = True) -> Pass | None:
    """What to measure next.

    Args:
        space: What may be tried.
        goal: What is sought.
        points: All that was measured, in any order; every configuration once.
        explore: Look at configurations that were not measured; without, only tell apart what was.

    Returns:
        The next round; None = there is nothing more to find out. The same arguments give the same answer.
    """
    known = {point.configuration for point in points}
    unseen = tuple(one for one in space.seeds() if one not in known)
    if unseen and (explore or not known):
        return Pass(configurations=unseen, why="beginnings")
    worth = worths(points, goal)
    if not worth:
        return _toward(space, goal, [point for point in points if not point.refused], known) if explore else None
    allowed = [point for point in points if point.configuration in worth]
    best = best_of(space, worth, allowed)
    if explore:
        near_best = _near(space, worth, allowed, best)
        # On a plain that is flat within noise, wandering about would find nothing: on from the simplest.
        level = [best, *(one for one in near_best if _ties(one, best, goal))]
        centre = min(level, key=lambda point: space.simplicity(point.configuration))
        racers = {id(one): one for one in (*near_best[:_RACERS], centre) if one is not best}.values()
        unclear = [one for one in racers if _together(one, best) < SCREENING and len(one.rounds) < 2 * SCREENING]
        if unclear:
            return _race(space, [best, *unclear], "which neighbour is best")
        near = [one for one in space.neighbours(centre.configuration) if one not in known]
        if near:
            both = dict.fromkeys((best.configuration, centre.configuration))
            return Pass(configurations=(*both, *near), why="neighbours of the best")
    for pairs in _finals(space, worth, allowed):
        late = {id(point): point for pair in pairs if _is_open(*pair, goal) for point in pair}
        if late:
            return _race(space, list(late.values()), "which one is best")
    return None


def _toward(space: Space, goal: Goal, usable: Sequence[Point], known: set[Configuration]) -> Pass | None:
    """Nothing meets the constraints yet: on from what misses them least."""
    if not usable:
        return None
    nearest = min(usable, key=lambda point: (excess(point, goal), space.simplicity(point.configuration))).configuration
    near = [one for one in space.neighbours(nearest) if one not in known]
    return Pass(configurations=(nearest, *near), why="nothing meets the bounds yet") if near else None


def _near(space: Space, worth: Mapping[Configuration, float], allowed: Sequence[Point], best: Point) -> list[Point]:
    """Those worth so nearly as much as the best that another round may turn them round."""
    least = NEAR * worth[best.configuration]
    near = [point for point in allowed if point is not best and worth[point.configuration] >= least]
    return sorted(near, key=lambda point: (-worth[point.configuration], space.simplicity(point.configuration)))


def _finals(
    space: Space, worth: Mapping[Configuration, float], allowed: Sequence[Point]
) -> Iterator[list[tuple[Point, Point]]]:
    """Pairs, the better one first, that the choice depends on; those first that could change most.

    The best against what is served anyway and against the best without batching; then against those near it.
    """
    # The luckiest of many that are alike always looks as if it could be better: at some point enough were looked at.
    often = [point for point in allowed if len(point.rounds) >= ROUNDS]
    entered = often if len(often) >= _FINALISTS else allowed
    best = best_of(space, worth, entered)
    plain = [point for point in entered if not point.configuration.batch]
    plain_best = best_of(space, worth, plain) if plain else best
    default = next((point for point in allowed if point.configuration == space.default), plain_best)
    pairs = [(best, plain_best), (best, default), (plain_best, default)]
    yield [(one, other) for one, other in pairs if one is not other]
    yield [(best, point) for point in _near(space, worth, entered, best)[:_RACERS]]


def _ties(one: Point, best: Point, goal: Goal) -> bool:
    """Whether there was a round in which `best` was not better."""
    found = gain(best, one, goal)
    return found is None or found.low <= 1


def _is_open(one: Point, other: Point, goal: Goal) -> bool:
    """Whether more rounds may tell them apart: one of them that went wrong is outvoted by twice as many."""
    if min(len(one.rounds), len(other.rounds)) >= 3 * ROUNDS:
        return False
    found = gain(one, other, goal)
    undecided = found is not None and found.ratio >= LEAST_GAIN and not found.certain
    return _together(one, other) < (2 * ROUNDS if undecided else ROUNDS)


def _race(space: Space, points: Sequence[Point], why: str) -> Pass:
    ordered = sorted((point.configuration for point in points), key=space.simplicity)
    return Pass(configurations=tuple(ordered), why=why)


def _together(one: Point, other: Point) -> int:
    """Rounds in which both were measured."""
    return len({found.number for found in one.rounds} & {found.number for found in other.rounds})
