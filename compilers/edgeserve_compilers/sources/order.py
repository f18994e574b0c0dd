"""Order of execution: ONNX demands it of the nodes of a graph, some tools write them as they come."""

from __future__ import annotations

import heapq

import onnx

from edgeserve_compilers.sources.walk import subgraphs


def sort_nodes(graph: onnx.GraphProto) -> bool:
    """Put every node behind those whose outputs it uses (its subgraphs' uses count), keeping the order otherwise.

    Returns:
        Whether anything moved. A graph with a cycle is left as it is.
    """
    moved = False
    for node in graph.node:
        for attribute in node.attribute:
            for inner in subgraphs(attribute):
                moved |= sort_nodes(inner)
    order = _order(graph)
    if order == sorted(order) or len(order) != len(graph.node):
        return moved
    nodes = [graph.node[index] for index in order]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    return True


def _order(graph: onnx.GraphProto) -> list[int]:
    """Indices in the order of execution (Kahn's algorithm, the smallest index first); shorter if there is a cycle."""
    maker = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    users: dict[int, list[int]] = {}
    waiting: dict[int, int] = {}
    for index, node in enumerate(graph.node):
        makers = {maker[name] for name in _uses(node) if name in maker} - {index}
        waiting[index] = len(makers)
        for other in makers:
            users.setdefault(other, []).append(index)
    ready = [index for index, count in waiting.items() if not count]
    order = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for user in users.get(index, ()):
            waiting[user] -= 1
            if not waiting[user]:
                heapq.heappush(ready, user)
    return order


def _uses(node: onnx.NodeProto) -> set[str]:
    """Names that a node takes from its graph, itself and in its subgraphs."""
    names = set(node.input)
    for attribute in node.attribute:
        for inner in subgraphs(attribute):
            made = {name for each in inner.node for name in each.output} | {tensor.name for tensor in inner.initializer}
            made |= {value.name for value in inner.input}
            used = {value.name for value in inner.output}
            for each in inner.node:
                used |= _uses(each)
            names |= used - made
    return names
