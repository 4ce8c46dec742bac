"""The range proof: sound, tight for what it covers, and loud when a ring can wrap."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pqi.graph.errors import GraphError, RangeError
from pqi.graph.graph import IntegerGraph, Node
from pqi.graph.ops import Add, Conv2d, Dense, Input, Lookup, MaxPool2d, Op, Requantize, Scale, Step, SumPool2d
from pqi.graph.ranges import (
    Ranges,
    bits_needed,
    calibrated_accumulators,
    defined_accumulators,
    lift,
    prove,
    proven_accumulators,
    refuse_wide,
    rings,
)


def chain(*ops: Op) -> IntegerGraph:
    names = [f"n{i}" for i in range(len(ops))]
    return IntegerGraph(
        tuple(Node(n, op, tuple(names[i - 1 : i])) for i, (n, op) in enumerate(zip(names, ops, strict=True))), names[-1]
    )


def dense(rows: list[list[int]], bias: list[int]) -> Dense:
    return Dense(torch.tensor(rows), torch.tensor(bias))


@given(lo=st.integers(-(1 << 40), 1 << 40), width=st.integers(0, 1 << 40))
def test_bits_are_the_fewest_that_hold_both_ends(lo: int, width: int) -> None:
    hi, k = lo + width, bits_needed(lo, lo + width)
    assert -(1 << (k - 1)) <= lo and hi <= (1 << (k - 1)) - 1
    assert k == 1 or lo < -(1 << (k - 2)) or hi > (1 << (k - 2)) - 1


@given(x=st.integers(-(1 << 50), 1 << 50), k=st.integers(1, 32))
def test_lift_is_the_word_of_k_bits(x: int, k: int) -> None:
    y = int(lift(torch.tensor(x), k))
    assert (x - y) % (1 << k) == 0 and -(1 << (k - 1)) <= y < 1 << (k - 1)


def test_a_dense_layers_range_is_reached_by_some_input() -> None:
    graph = chain(Input((3,), -2, 5), dense([[3, -4, 0], [1, 1, 1]], [7, 0]))
    proof = prove(graph)
    assert (proof.lo["n1"], proof.hi["n1"]) == (3 * -2 - 4 * 5 + 7, 3 * 5 + 4 * 2 + 7)
    assert graph.run(torch.tensor([[-2, 5, 0]])).min() == proof.lo["n1"]
    assert graph.run(torch.tensor([[5, -2, 0]])).max() == proof.hi["n1"]
    assert proof.channel["n1"] == 0


def test_zero_padding_counts_as_zero() -> None:
    conv = Conv2d(torch.ones(1, 1, 3, 3, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), padding=(1, 1))
    proof = prove(chain(Input((1, 1, 1), 2, 3), conv))
    assert (proof.lo["n1"], proof.hi["n1"]) == (2, 3)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_no_input_leaves_the_proven_ranges(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randint(-20, 21, shape, generator=generator)

    graph = IntegerGraph(
        (
            Node("x", Input((2, 5, 5), -7, 8)),
            Node("c", Conv2d(random(4, 2, 3, 3), random(4), (1, 1), (1, 1)), ("x",)),
            Node("r", Requantize(3, 4, -2), ("c",)),
            Node("p", MaxPool2d((2, 2), (2, 2)), ("r",)),
            Node("s", Scale(random(4), random(4)), ("p",)),
            Node("d", Conv2d(random(4, 2, 1, 1), random(4), groups=2), ("p",)),
            Node("a", Add(), ("s", "d")),
            Node("t", Step(), ("a",)),
            Node("q", SumPool2d((2, 2), (2, 2)), ("t",)),
        ),
        "q",
    )
    proof = prove(graph)
    x = torch.randint(-7, 9, (64, 2, 5, 5), generator=generator)

    def look(consumer: str, value: torch.Tensor) -> torch.Tensor:
        name = graph.readers()[consumer]
        assert int(value.min()) >= proof.lo[name] and int(value.max()) <= proof.hi[name]
        return value

    graph.run(x, look)


def test_rings_follow_their_consumers() -> None:
    graph = IntegerGraph(
        (
            Node("x", Input((1, 4, 4), 0, 255)),
            Node("c", Conv2d(torch.full((1, 1, 1, 1), 100), torch.zeros(1, dtype=torch.int64)), ("x",)),
            Node("r", Requantize(9, 6), ("c",)),
            Node("p", MaxPool2d((2, 2), (2, 2)), ("r",)),
            Node("s", Scale(torch.tensor([3]), torch.tensor([0])), ("p",)),
        ),
        "s",
    )
    proof = prove(graph)
    accumulators = proven_accumulators(graph, proof)
    assert accumulators == {"r": 16, "output": 9}  # 25500 < 2^15; codes up to 49, times 3 is 147 < 2^8
    assert rings(graph, accumulators, proof) == {"x": 16, "c": 16, "r": 9, "p": 9, "s": 9}


def test_a_maximum_needs_one_bit_more_than_its_codes() -> None:
    graph = chain(Input((1, 2, 2), 0, 63), MaxPool2d((2, 2), (2, 2)))
    proof = prove(graph)
    assert rings(graph, proven_accumulators(graph, proof), proof) == {"n0": 8, "n1": 7}


def test_calibrated_rings_are_observed_plus_margin_and_never_above_the_proof() -> None:
    graph = chain(Input((1,), 0, 255), dense([[100]], [0]), Requantize(4, 6))
    proof = prove(graph)
    assert calibrated_accumulators(graph, proof, {"n2": (0, 1000), "output": (0, 63)}, 1) == {"n2": 12, "output": 7}


def test_a_reduced_value_is_bounded_by_its_ring() -> None:
    graph = chain(Input((1,), 0, 255), dense([[100]], [0]), Requantize(4, 6, -5))
    assert prove(graph).lo["n2"] == -5 and prove(graph).hi["n2"] == 58
    narrow = prove(graph, {"n2": 8, "output": 7})
    assert (narrow.lo["n2"], narrow.hi["n2"]) == (-5, -5 + 127 // 16)


def test_a_ring_that_can_wrap_is_refused_by_layer_bits_and_place() -> None:
    graph = IntegerGraph(
        (
            Node("x", Input((1,), 0, 255)),
            Node("fc", dense([[100]], [0]), ("x",), "net.py:12"),
            Node("act", Requantize(4, 6), ("fc",)),
        ),
        "act",
    )
    proof = prove(graph)
    with pytest.raises(RangeError, match=r"'fc' \(net.py:12\), read by 'act': 16 bits needed, 12 allowed"):
        refuse_wide(graph, proven_accumulators(graph, proof), proof, 12)


def test_a_value_beyond_64_bits_is_refused_before_it_overflows() -> None:
    big = dense([[(1 << 31) - 1] * 4], [0])
    with pytest.raises(RangeError, match=r"'n1'.* reach 2\^63"):
        prove(chain(Input((4,), 0, 1 << 30), big, dense([[1 << 30]], [0])))


SQUARES = torch.arange(16) ** 2


def test_a_lookup_demands_the_bits_of_its_table_and_no_more() -> None:
    graph = chain(Input((1,), 0, 255), dense([[1000]], [0]), dense([[-1000]], [7]), Lookup(4, SQUARES))
    proof = prove(graph)
    assert proof.bits["n2"] == 29 and (proof.lo["n3"], proof.hi["n3"]) == (0, 225)
    accumulators = proven_accumulators(graph, proof)
    assert accumulators == {"n3": 4, "output": 9}
    assert rings(graph, accumulators, proof) == {"n0": 4, "n1": 4, "n2": 4, "n3": 9}


def test_a_lookup_keeps_its_ring_whatever_the_data_and_the_proof_say() -> None:
    graph = chain(Input((1,), 0, 1), Lookup(4, SQUARES))
    proof = prove(graph)
    assert proof.bits["n0"] == 2
    assert proven_accumulators(graph, proof)["n1"] == defined_accumulators(graph)["n1"] == 4
    for seen in ((0, 0), (-(1 << 20), 1 << 20)):
        assert calibrated_accumulators(graph, proof, {"n1": seen, "output": (0, 1)}, 3)["n1"] == 4


def test_the_wider_of_two_readers_decides_the_ring() -> None:
    graph = IntegerGraph(
        (
            Node("x", Input((1,), 0, 255)),
            Node("fc", dense([[100]], [0]), ("x",)),
            Node("narrow", Lookup(4, SQUARES), ("fc",)),
            Node("wide", Requantize(9, 6), ("fc",)),
            Node("both", Add(), ("narrow", "wide")),
        ),
        "both",
    )
    proof = prove(graph)
    accumulators = proven_accumulators(graph, proof)
    assert accumulators == {"narrow": 4, "wide": 16, "output": 10}
    assert rings(graph, accumulators, proof) == {"x": 16, "fc": 16, "narrow": 10, "wide": 10, "both": 10}


def test_a_lookup_wider_than_the_widest_allowed_ring_is_refused_for_what_it_is() -> None:
    graph = chain(Input((1,), 0, 255), Lookup(4, SQUARES))
    proof = prove(graph)
    with pytest.raises(RangeError, match=r"max_ring is 3, but .* mod 2\^k by definition: 'n1': k = 4"):
        refuse_wide(graph, proven_accumulators(graph, proof), proof, 3)


def test_a_value_beyond_64_bits_is_refused_before_a_lookup_too() -> None:
    big = dense([[1 << 30]], [0])
    with pytest.raises(RangeError, match=r"'n2'.* reach 2\^63"):
        prove(chain(Input((1,), 0, 1 << 2), big, big, Lookup(4, SQUARES)))


ONE = Input((1,), 0, 1)


@pytest.mark.parametrize(
    ("nodes", "output", "says"),
    [
        ((), "x", "must be its input"),
        ((Node("x", Step(), ("x",)),), "x", "must be its input"),
        ((Node("x", ONE), Node("y", Step(), ("z",))), "y", "no earlier node"),
        ((Node("x", ONE), Node("y", Step(), ("y",))), "y", "no earlier node"),
        ((Node("x", ONE), Node("x", Step(), ("x",))), "x", "unique"),
        ((Node("x", ONE), Node("output", Step(), ("x",))), "output", "unique"),
        ((Node("x", ONE), Node("y", ONE)), "y", "second input"),
        ((Node("x", ONE), Node("y", Step(), ("x", "x"))), "y", "2 inputs"),
        ((Node("x", ONE), Node("y", Step(), ())), "y", "0 inputs"),
        ((Node("x", ONE),), "y", "not the name"),
        ((Node("x", Input((1 << 13, 1 << 13), 0, 1)),), "x", "more than"),
    ],
)
def test_a_graph_that_contradicts_itself_is_refused(nodes: tuple[Node, ...], output: str, says: str) -> None:
    with pytest.raises(GraphError, match=says):
        IntegerGraph(nodes, output)


def test_ranges_are_plain_python_integers() -> None:
    proof = prove(chain(Input((2,), 0, 9), Step()))
    assert isinstance(proof, Ranges) and all(type(v) is int for v in (*proof.lo.values(), *proof.bits.values()))
