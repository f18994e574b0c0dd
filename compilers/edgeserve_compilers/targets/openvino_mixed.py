"""Mixed precision of a graph that NNCF quantized: put chosen layers back to float without calibrating again.

A layer that goes back takes its data from before the quantizers, and its weights and bias from the float graph.
Operations without weights (additions of branches, pooling) stay quantized only between layers that do: alone they would
cost accuracy and gain no speed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

from edgeserve_compilers.targets.openvino_graph import COMPUTE, PASSING, Graph, Port, constant_names, on_grid, sources


def with_float_layers(quantized: Graph, original: Graph, layers: Collection[str]) -> Graph:
    """A copy of `quantized` in which `layers` compute as in `original`.

    Args:
        quantized: What NNCF made of `original`, or `original` with compressed weights: what is in both has one name.
        original: The float graph, with unique names.
        layers: Names of operations of `COMPUTE`.

    Raises:
        KeyError: A layer is not in the graph.
    """
    if not layers:
        return quantized
    return _Reversal(quantized.clone(), original.clone()).revert(frozenset(layers))


class _Reversal:
    """One reversal: operations of a float copy are grafted into a quantized copy, both used up by it."""

    def __init__(self, mixed: Graph, spare: Graph) -> None:
        self._mixed = mixed
        self._spare = spare
        self._nodes = {node.get_friendly_name(): node for node in mixed.get_ops()}
        self._spares = {node.get_friendly_name(): node for node in spare.get_ordered_ops()}
        self._constant = constant_names(spare)
        self._grafted: dict[str, bool] = {}

    def revert(self, layers: frozenset[str]) -> Graph:
        for name in self._affected(layers):
            for index in range(len(self._spares[name].inputs())):
                self._connect(name, index)
        for name in sorted(layers):
            self._put_back_bias(self._spares[name])
        for name, grafted in self._grafted.items():
            if grafted:
                self._spares[name].set_friendly_name(f"{name}/float")
        self._mixed.validate_nodes_and_infer_types()
        return self._mixed

    def _affected(self, layers: frozenset[str]) -> list[str]:
        """The layers, and operations without weights that are not between quantized layers any more."""
        quantizing = [
            name
            for name, node in self._spares.items()
            if name not in self._constant
            and node.get_type_name() not in PASSING | COMPUTE
            and any(map(on_grid, self._data(self._nodes[name])))
        ]
        affected = [name for name in self._spares if name in layers]
        if missing := layers - set(affected):
            raise KeyError(f"there is no layer {min(missing)!r} in the graph")
        for name in quantizing:
            above = self._nearest(name, quantizing, lambda node: [port.get_node() for port in sources(node)])
            below = self._nearest(name, quantizing, _consumers)
            around = {*above, *below}
            if around & layers or not around - layers:
                affected.append(name)
        return affected

    def _nearest(self, name: str, stops: Collection[str], follow: Callable[[Any], list[Any]]) -> Iterator[str]:
        """Compute layers reached in one direction, not through others and not through `stops`."""
        waiting, seen = follow(self._spares[name]), set()
        while waiting:
            node = waiting.pop()
            found = node.get_friendly_name()
            if found in seen or found in stops or found in self._constant:
                continue
            seen.add(found)
            if node.get_type_name() in COMPUTE:
                yield found
            else:
                waiting.extend(follow(node))

    def _data(self, node: Any) -> list[Port]:  # noqa: ANN401
        return [
            port
            for port, spare in zip(sources(node), sources(self._spares[node.get_friendly_name()]), strict=True)
            if spare.get_node().get_friendly_name() not in self._constant
        ]

    def _connect(self, name: str, index: int) -> None:
        wanted = self._float(self._spares[name].input_value(index))
        target = self._nodes[name].input(index)
        if self._nodes[name].get_type_name() == "Result":  # the output of the graph is named by what it answers
            before = target.get_source_output()
            wanted.add_names(before.get_names())
            before.set_names(set())
        target.replace_source_output(wanted)

    def _float(self, port: Port) -> Port:
        """The port of the mixed graph with the values, before any quantizer, of a port of the float graph."""
        node, name = port.get_node(), port.get_node().get_friendly_name()
        if name in self._constant:
            self._graft(node)
            return port
        if node.get_type_name() in PASSING and self._passes_quantized(name):
            return port
        return self._nodes[name].output(port.get_index())

    def _passes_quantized(self, name: str) -> bool:
        """Whether quantized values go through a passing operation. If so its float twin is connected, once."""
        if name not in self._grafted:
            spare, here = self._spares[name], self._nodes[name]
            wanted = [self._float(given) for given in sources(spare)]
            self._grafted[name] = any(
                self._grafted.get(given.get_node().get_friendly_name()) or not _same(given, found)
                for given, found in zip(sources(spare), sources(here), strict=True)
                if given.get_node().get_friendly_name() not in self._constant
            )
            if self._grafted[name]:
                for index, port in enumerate(wanted):
                    spare.input(index).replace_source_output(port)
                self._graft(spare)
        return self._grafted[name]

    def _graft(self, node: Any) -> None:  # noqa: ANN401
        """Names of tensors must be unique in a graph; the quantized graph's own operations keep them."""
        for output in node.outputs():
            output.get_tensor().set_names(set())
        for port in sources(node):
            if port.get_node().get_friendly_name() in self._constant:
                self._graft(port.get_node())

    def _put_back_bias(self, layer: Any) -> None:  # noqa: ANN401
        """NNCF corrects the bias for what quantized weights do to the mean."""
        for adding in _consumers(layer):
            name = adding.get_friendly_name()
            if adding.get_type_name() != "Add" or name not in self._nodes:
                continue
            for index, port in enumerate(sources(adding)):
                if port.get_node().get_friendly_name() in self._constant:
                    self._connect(name, index)


def _same(one: Port, other: Port) -> bool:
    return bool(
        one.get_index() == other.get_index()
        and one.get_node().get_friendly_name() == other.get_node().get_friendly_name()
    )


def _consumers(node: Any) -> list[Any]:  # noqa: ANN401
    return [target.get_node() for output in node.outputs() for target in output.get_target_inputs()]
