"""Which operations of a network's head must stay float, whatever the format. Pure.

A detector's head joins boxes in pixels with scores between 0 and 1. One scale for the joined tensor leaves the scores
no step, and every detection is lost, while the signal-to-noise ratio, which the boxes dominate, looks well.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

DIFFERENT_RANGES: Final = 4.0
"""Widest over narrowest input of a join, from which it stays float: the narrowest then has 64 of the 256 steps, 6 bits.
Feature maps that lie side by side were seen within 3 of each other, raw boxes (cells) and scores 4 to 7 apart, boxes in
pixels and scores 100 to 1000."""


@dataclass(frozen=True)
class Node:
    """One operation: its kind and the names of what it reads and writes."""

    name: str
    op: str
    inputs: Sequence[str]
    outputs: Sequence[str]


def float_head(
    nodes: Sequence[Node],
    ranges: Mapping[str, tuple[float, float]],
    *,
    compute: frozenset[str],
    joins: frozenset[str],
    outputs: Collection[str],
) -> frozenset[str]:
    """Names of the nodes that must stay float.

    Those are joins of different ranges from which an output is reached without a compute layer between, what lies
    between them and the outputs, and what leads to them from the last compute layers and to nothing else.

    Args:
        nodes: The graph in order of execution.
        ranges: Smallest and largest value of each tensor on the calibration rows; what has none (constants, shapes) is
            not compared.
        compute: Kinds of operation that have weights: convolutions and matrix products.
        joins: Kinds of operation that put their inputs side by side in one tensor.
        outputs: Outputs of the graph.
    """
    readers: dict[str, list[Node]] = {}
    for node in nodes:
        for tensor in node.inputs:
            readers.setdefault(tensor, []).append(node)
    # Backwards: what reaches an output without a compute layer between.
    ending: set[str] = set()
    for node in reversed(nodes):
        if node.op not in compute and any(
            tensor in outputs or any(reader.name in ending for reader in readers.get(tensor, ()))
            for tensor in node.outputs
        ):
            ending.add(node.name)
    # Forwards: those joins, and what follows them.
    head: set[str] = set()
    reached: set[str] = set()
    for node in nodes:
        follows = not reached.isdisjoint(node.inputs)
        if node.name in ending and (follows or (node.op in joins and _differ(node, ranges))):
            head.add(node.name)
            reached.update(node.outputs)
    # Backwards: what leads to the head only.
    for node in reversed(nodes):
        users = [reader.name for tensor in node.outputs for reader in readers.get(tensor, ())]
        if users and node.op not in compute and head.issuperset(users):
            head.add(node.name)
    return frozenset(head)


def _differ(join: Node, ranges: Mapping[str, tuple[float, float]]) -> bool:
    widths = [max(high, 0.0) - min(low, 0.0) for low, high in (ranges[name] for name in join.inputs if name in ranges)]
    widths = [width for width in widths if width > 0]
    return len(widths) > 1 and max(widths) > DIFFERENT_RANGES * min(widths)
