from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve_compilers.heads import DIFFERENT_RANGES, Node, float_head

COMPUTE, JOINS = frozenset({"Conv"}), frozenset({"Concat"})


def chain(*steps: str) -> list[Node]:
    """Nodes written as `op: inputs > outputs`; each is named by its first output."""
    nodes = []
    for step in steps:
        op, _, rest = step.partition(":")
        inputs, outputs = (part.split() for part in rest.split(">"))
        nodes.append(Node(outputs[0], op, inputs, outputs))
    return nodes


BODY = ("Conv: image > body", "Conv: body > box", "Conv: body > logit", "Sigmoid: logit > score")
BOXES_AND_SCORES = {"box": (-200.0, 600.0), "score": (0.0, 1.0), "logit": (-9.0, 4.0), "body": (-1.0, 1.0)}


@pytest.mark.parametrize(
    ("nodes", "ranges", "expected"),
    [
        pytest.param(
            [*BODY, "Concat: box score > out"], BOXES_AND_SCORES, {"score", "out"}, id="join-and-what-leads-to-it"
        ),
        pytest.param(
            [*BODY, "Concat: box score > joined", "Reshape: joined shape > flat", "Transpose: flat > out"],
            BOXES_AND_SCORES, {"score", "joined", "flat", "out"}, id="down-to-the-output",
        ),
        pytest.param(
            [
                *BODY, "Concat: box score > raw", "Slice: raw > xy", "Slice: raw > wh", "Slice: raw > rest",
                "Add: xy grid > cell", "Mul: cell stride > centre", "Exp: wh > size", "Concat: centre size rest > out",
            ],
            BOXES_AND_SCORES, {"score", "raw", "xy", "wh", "rest", "cell", "centre", "size", "out"},
            id="decoded-in-the-graph",
        ),
        pytest.param(
            [*BODY, "Concat: box score > out"], {"box": (-2.0, 2.0), "score": (0.0, 1.0)}, set(), id="ranges-alike"
        ),
        pytest.param([*BODY, "Concat: box score > out"], {"box": (-200.0, 600.0)}, set(), id="nothing-to-compare-with"),
        pytest.param(
            [*BODY, "Concat: box score > joined", "Conv: joined > out"], BOXES_AND_SCORES, set(),
            id="layer-behind-the-join",
        ),
        pytest.param(
            [*BODY, "Concat: box score > joined", "Conv: joined > more", "Concat: joined more > out"],
            BOXES_AND_SCORES, {"score", "joined", "out"}, id="to-an-output-and-to-a-layer",
        ),
        pytest.param(
            [*BODY, "Relu: body > active", "Conv: active > other", "Concat: box score active > out"],
            {**BOXES_AND_SCORES, "active": (0.0, 1.0)}, {"score", "out"}, id="what-a-layer-reads-too-is-left-alone",
        ),
        pytest.param([*BODY, "Add: box score > out"], BOXES_AND_SCORES, set(), id="a-sum-is-no-join"),
    ],
)  # fmt: skip
def test_what_joins_boxes_and_scores_stays_float(
    nodes: list[str], ranges: dict[str, tuple[float, float]], expected: set[str]
) -> None:
    built = chain(*nodes)
    assert float_head(built, ranges, compute=COMPUTE, joins=JOINS, outputs=["out"]) == expected


@pytest.mark.parametrize(("factor", "floats"), [(0.99, False), (1.01, True)])
def test_the_bound_is_the_ratio_of_the_ranges_with_zero_in_them(factor: float, floats: bool) -> None:
    nodes = chain("Conv: image > a", "Conv: image > b", "Concat: a b > out")
    ranges = {"a": (2.0, 3.0), "b": (-3.0 * DIFFERENT_RANGES * factor, -1.0)}
    assert bool(float_head(nodes, ranges, compute=COMPUTE, joins=JOINS, outputs=["out"])) is floats


def test_several_outputs_are_heads_of_their_own() -> None:
    nodes = chain(*BODY, "Concat: box score > out", "Conv: body > other", "Relu: other > mask")
    found = float_head(nodes, BOXES_AND_SCORES, compute=COMPUTE, joins=JOINS, outputs=["out", "mask"])
    assert found == {"score", "out"}


@given(st.data())
def test_layers_are_never_of_the_head_and_it_is_closed_towards_the_outputs(data: st.DataObject) -> None:
    kinds = st.sampled_from(["Conv", "Concat", "Relu", "Add"])
    tensors, nodes = ["image"], []
    for place in range(data.draw(st.integers(1, 14))):
        op = data.draw(kinds)
        count = 1 if op in ("Conv", "Relu") else 2
        inputs = [data.draw(st.sampled_from(tensors)) for _ in range(count)]
        tensors.append(f"t{place}")
        nodes.append(Node(f"n{place}", op, inputs, [f"t{place}"]))
    ranges = {name: (0.0, data.draw(st.sampled_from([0.5, 1.0, 100.0]))) for name in tensors}
    outputs = {nodes[-1].outputs[0]}
    head = float_head(nodes, ranges, compute=COMPUTE, joins=JOINS, outputs=outputs)
    for node in nodes:
        readers = [reader for reader in nodes if node.outputs[0] in reader.inputs]
        if node.name in head:
            assert node.op != "Conv"
            assert node.outputs[0] in outputs or any(reader.name in head for reader in readers)
