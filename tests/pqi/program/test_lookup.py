"""Cyclic tables in private: whatever wraps, the answer is the integer model's, in one exchange a table."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import pqi.program as program
from pqi.graph.graph import IntegerGraph, Node
from pqi.graph.model import IntegerModel
from pqi.graph.ops import Add, Conv2d, Dense, Input, Lookup, MaxPool2d, Op, Requantize, Step, SumPool2d
from pqi.graph.ranges import MAX_RING
from protocols import api, native, ring, units
from tests import networks
from tests.pqi.program.lockstep import run


def codes(n: int, *shape: int, seed: int = 5) -> Tensor:
    return torch.randint(0, 256, (n, *shape), generator=torch.Generator().manual_seed(seed))


def same(model: IntegerModel, x: Tensor, protocol: str = "additive2", network: str = "lan") -> program.Program:
    """Equal in every bit, and the declared cost on the wire."""
    compiled = program.compile(model, protocol, network)
    assert compiled.exact
    got = run(model, compiled, x)
    assert torch.equal(got.answer, model.integers(x))
    cost = compiled.cost(len(x))
    assert got.dealt == cost.dealt_bytes
    for party in compiled.parties:
        assert got.log.sent_bytes[party] == cost.online_bytes
        assert got.log.exchanges[party] == cost.exchanges
    return compiled


def graph(*nodes: Node) -> IntegerGraph:
    return IntegerGraph(nodes, nodes[-1].name)


def table(bits: int, *channels: int) -> Lookup:
    values = torch.randint(-8, 8, (*channels, 1 << bits), generator=torch.Generator().manual_seed(bits))
    return Lookup(bits, values)


@pytest.mark.parametrize("protocol", ["clear", "additive2"])
@pytest.mark.parametrize("rings", ["proven", "calibrated"])
@pytest.mark.parametrize("per_channel", [False, True], ids=["one table", "a table a channel"])
@pytest.mark.parametrize("bits", [4, 8, 10])
def test_a_convolutional_network_that_wraps_on_purpose_is_exact(
    bits: int, per_channel: bool, rings: str, protocol: str
) -> None:
    model = networks.integer_model(networks.cyclic_graph(bits, per_channel), rings)
    x = codes(4, 2, 6, 6)
    shares = model.wraps(x.double())
    assert shares["wrap1"] > 0.3 and shares["wrap2"] > 0.3
    same(model, x, protocol)


@pytest.mark.parametrize("n", [0, 1, 7])
@pytest.mark.parametrize("network", ["lan", "wan"])
def test_the_batch_is_free_down_to_nothing_and_the_network_s_profile_changes_nothing(n: int, network: str) -> None:
    model = networks.integer_model(networks.cyclic_graph(8, True))
    assert same(model, codes(n, 2, 6, 6), network=network) == program.compile(model)


def test_the_extreme_codes_are_exact() -> None:
    model = networks.integer_model(networks.cyclic_graph(8))
    same(model, torch.tensor([0, 255]).view(2, 1, 1, 1).expand(2, 2, 6, 6).contiguous())


@pytest.mark.parametrize("bits", [1, 7, 12])
def test_every_width_of_table_is_exact(bits: int) -> None:
    model = networks.integer_model(networks.cyclic_graph(bits, seed=bits))
    same(model, codes(1, 2, 6, 6))


def test_a_lookup_is_one_table_of_one_exchange_on_the_value_as_it_is() -> None:
    model = networks.integer_model(networks.cyclic_graph(8, True))
    compiled = program.compile(model)
    made = {i.name: i for i in compiled.instructions}
    assert made["wrap1"].action == api.Table((4, 6, 6), 8, model.rings["wrap1"], 4)
    assert made["wrap1"].inputs == ("conv1",) and made["wrap2"].inputs == ("sum",)
    assert not any(isinstance(step, (api.Clamp, api.Sign)) for _, step, _ in compiled.steps)
    cost = compiled.cost_by_layer(3)["wrap1"]
    assert (cost.exchanges, cost.online_bits) == (1, 3 * 4 * 6 * 6 * 8)


def test_what_is_linear_before_a_lookup_lives_in_its_ring() -> None:
    model = networks.integer_model(networks.cyclic_graph(8))
    assert model.ranges.bits["conv1"] > 12
    narrow = {"x", "conv1", "wrap1", "conv2", "short", "sum"}
    assert {name for name, k in model.rings.items() if k == 8} == narrow
    compiled = program.compile(model)
    linear = {name: step.ring for name, step, _ in compiled.steps if isinstance(step, api.Linear)}
    assert linear == {"conv1": 8, "conv2": 8, "short": 8, "fc": model.rings["fc"]}


def test_a_linear_map_in_a_ring_of_8_bits_is_one_byte_product_for_each_share_and_each_mask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shapes: list[tuple[int, int]] = []
    exact: Callable[[Tensor, Tensor], Tensor] = ring.byte_product

    def counted(w: Tensor, x: Tensor) -> Tensor:
        assert w.dtype == x.dtype == torch.int8
        shapes.append((w.shape[0], w.shape[1]))
        return exact(w, x)

    monkeypatch.setattr(ring, "byte_product", counted)
    fc = Dense(torch.randint(-9, 10, (5, 30)), torch.zeros(5, dtype=torch.int64))

    def products(bits: int) -> list[tuple[int, int]]:
        model = networks.integer_model(
            graph(Node("x", Input((30,), 0, 255)), Node("fc", fc, ("x",)), Node("wrap", table(bits), ("fc",)))
        )
        compiled = program.compile(model)
        x = codes(3, 30)
        want = model.integers(x)
        shapes.clear()
        assert torch.equal(run(model, compiled, x).answer, want)
        return list(shapes)

    # The dealer's B . r; E . r and W . x^ of each of the two servers.
    with native.switched_off():
        assert products(8) == products(4) == [(5, 30)] * 5
        assert len(products(9)) == 10


@pytest.mark.skipif(native.products() is None, reason="this processor has no units for 16-bit products")
def test_on_16_bit_units_a_ring_of_8_bits_takes_half_of_what_16_bits_take() -> None:
    weight = torch.ones((5, 32), dtype=torch.int16)
    taps = {bits: len(units.dense(weight, bits).places) for bits in (4, 8, 9, 16)}
    assert taps == {4: 8, 8: 8, 9: 16, 16: 16}


@pytest.mark.parametrize("wide", [6, 16, 20])
@pytest.mark.parametrize("bits", [4, 8, 10])
def test_a_value_read_by_a_lookup_and_in_a_wider_ring_is_exact_for_both(bits: int, wide: int) -> None:
    scale = 1 << max(0, wide - 10)
    weight = torch.randint(-1, 2, (3, 2, 2, 2), generator=torch.Generator().manual_seed(1)) * scale
    model = networks.integer_model(
        graph(
            Node("x", Input((2, 5, 5), 0, 255)),
            Node("conv", Conv2d(weight, torch.tensor([1, -2, 3])), ("x",)),
            Node("cyclic", table(bits, 3), ("conv",)),
            Node("shifted", Requantize(3, 5, -4), ("conv",)),
            Node("both", Add(), ("cyclic", "shifted")),
            Node("again", table(4), ("both",)),
        )
    )
    assert model.rings["conv"] == max(model.accumulators["shifted"], bits) > bits
    same(model, codes(3, 2, 5, 5))
    same(model, codes(3, 2, 5, 5), "clear")


def test_two_lookups_of_different_rings_read_one_value() -> None:
    model = networks.integer_model(
        graph(
            Node("x", Input((6,), 0, 255)),
            Node("fc", Dense(torch.randint(-99, 99, (8, 6)), torch.zeros(8, dtype=torch.int64)), ("x",)),
            Node("coarse", table(4), ("fc",)),
            Node("fine", table(10, 8), ("fc",)),
            Node("sum", Add(), ("coarse", "fine")),
        )
    )
    assert (model.rings["fc"], model.accumulators) == (10, {"coarse": 4, "fine": 10, "output": 5})
    same(model, codes(9, 6))


def test_a_lookup_then_a_sum_with_another_branch_then_a_lookup_is_exact() -> None:
    model = networks.integer_model(
        graph(
            Node("x", Input((2, 4, 4), 0, 255)),
            Node("first", table(8, 2), ("x",)),
            Node("mixed", Conv2d(torch.randint(-99, 99, (2, 2, 1, 1)), torch.tensor([500, -500])), ("first",)),
            Node("sum", Add(), ("mixed", "x")),
            Node("second", table(6), ("sum",)),
        )
    )
    assert model.rings == {"x": 8, "first": 6, "mixed": 6, "sum": 6, "second": 4}
    same(model, codes(5, 2, 4, 4))


@pytest.mark.parametrize(
    "before",
    [Requantize(2, 6, -9), Requantize(2, 4, 0, torch.arange(16) ** 2), Step(), MaxPool2d((2, 2), (2, 2)), table(9)],
    ids=lambda op: op.kind,
)
@pytest.mark.parametrize("bits", [1, 3, 8])
def test_a_lookup_reads_what_any_operator_leaves(before: Op, bits: int) -> None:
    model = networks.integer_model(
        graph(
            Node("x", Input((2, 4, 4), 0, 255)),
            Node("before", before, ("x",)),
            Node("wrap", table(bits, 2), ("before",)),
            Node("pool", SumPool2d((2, 2), (2, 2)), ("wrap",)),
        )
    )
    same(model, codes(3, 2, 4, 4))


def test_the_largest_entries_that_a_ring_of_32_bits_holds_come_through() -> None:
    ends = Lookup(1, torch.tensor([-(1 << 31) + 1, (1 << 31) - 1]))
    model = networks.integer_model(graph(Node("x", Input((9,), 0, 255)), Node("wrap", ends, ("x",))))
    assert model.rings["wrap"] == MAX_RING
    same(model, codes(3, 9))


def test_a_program_with_lookups_survives_json_and_holds_no_entry_of_a_table() -> None:
    model = networks.integer_model(networks.cyclic_graph(8, True))
    compiled = program.compile(model)
    again = program.Program.from_json(compiled.to_json())
    assert again == compiled and again.digest == compiled.digest
    assert "values" not in str(compiled.to_json())
    stored = program.split_weights(model, compiled)
    holders = [role for role, tensors in stored.items() if any(key.endswith(".table") for key in tensors)]
    assert [role.name for role in holders] == ["DEALER"]


def test_prices_and_the_report_know_what_a_lookup_costs() -> None:
    model = networks.integer_model(networks.cyclic_graph(8))
    price = model.report().prices["additive2"]
    total = program.compile(model).cost(1)
    assert (price.exchanges, price.online_bytes, price.dealt_bytes) == (
        total.exchanges,
        total.online_bytes,
        total.dealt_bytes,
    )
    assert price.layers["wrap1"] == (1, 144, 144 * 256 * model.rings["wrap1"] // 8)
