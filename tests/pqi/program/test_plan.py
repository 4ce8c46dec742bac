"""The planner: every way it knows computes the same integers; the network decides which is taken, and it says why."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import pqi.program as program
import protocols
from pqi.graph import ops
from pqi.graph.graph import IntegerGraph, Node
from pqi.graph.ranges import bits_needed
from pqi.program.errors import ProgramError
from pqi.program.network import LAN, WAN, Profile, profile
from pqi.program.plan import Demand, Pooling, Way, choose, pooling, requantization, sign
from pqi.program.windows import Windows
from pqi.quant import quantize
from protocols import api
from protocols.clear import define
from tests import networks
from tests.pqi.program.lockstep import run

FAR = Profile("far", 1e9, 1.0)
NARROW = Profile("narrow", 1e4, 0.0)


def reference(d: Demand, x: Tensor, values: Tensor) -> Tensor:
    return values[(x >> d.shift).clamp(0, (1 << d.bits) - 1)] & ((1 << d.ring_out) - 1)


def computed(d: Demand, way: Way, x: Tensor, values: Tensor) -> Tensor:
    """By the definitions of the steps; tables as the compiler makes them."""
    over_codes = False
    for _, action in way.actions:
        assert isinstance(action, api.Step)
        operands = {}
        if isinstance(action, (api.Table, api.FusedTable)):
            bits = action.bits if isinstance(action, api.Table) else action.ring - action.shift
            index = torch.arange(1 << bits)
            index = index if over_codes else index - ((index >> (bits - 1)) << bits)
            operands = {"table": values[index.clamp(0, (1 << d.bits) - 1)][None]}
        x, over_codes = define(action, x, operands), isinstance(action, api.Clamp)
    return x.long() & ((1 << d.ring_out) - 1)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_every_way_of_a_requantization_is_the_same_function(data: st.DataObject) -> None:
    ring = data.draw(st.integers(2, 24), "ring")
    shift = data.draw(st.integers(0, ring - 1), "shift")
    bits, tables = data.draw(st.integers(1, 8), "bits"), data.draw(st.booleans(), "tables")
    low, ring_out = 0 if tables else data.draw(st.integers(-9, 9), "low"), data.draw(st.integers(9, 24), "ring_out")
    top = 1 << (ring - 1)
    idle = data.draw(st.booleans(), "idle")
    most = min(top, 1 << (bits + shift)) if idle else top
    x = torch.tensor([data.draw(st.lists(st.integers(-top, most - 1), min_size=1, max_size=30), "x")])
    d = Demand((x.shape[1],), ring, shift, bits, low, int(tables), ring_out, headroom=6, idle=idle)
    values = torch.randint(0, 1 << 9, (1 << bits,)) if tables else low + torch.arange(1 << bits)
    ways = requantization(d, "exact")
    assert len({w.words for w in ways}) >= 1
    for way in ways:
        assert torch.equal(computed(d, way, x, values), reference(d, x, values)), way.words


@pytest.mark.parametrize("ring", [2, 5, 9, 13])
def test_every_way_of_a_sign_is_the_same_function(ring: int) -> None:
    x = torch.arange(-(1 << ring - 1), 1 << ring - 1)[None]
    ways = sign((x.shape[1],), ring, 7)
    assert len(ways) == 2
    for way in ways:
        ((_, step),) = way.actions
        assert isinstance(step, api.Step)
        got = define(step, x, {"table": torch.tensor([[1, -1]])})
        assert torch.equal(got.long(), torch.where(x >= 0, 1, -1)), way.words


small = st.integers(1, 3)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_way_of_a_maximum_is_the_reference_s(data: st.DataObject) -> None:
    kernel, stride, dilation = (data.draw(st.tuples(small, small)) for _ in range(3))
    padding = tuple(data.draw(st.integers(0, k // 2)) for k in kernel)
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    channels, size = data.draw(small), tuple(data.draw(st.integers(m, m + 5)) for m in least)
    low, bits = data.draw(st.integers(-40, 40), "low"), data.draw(st.integers(1, 6), "bits")
    op = ops.MaxPool2d(kernel, stride, padding, dilation, data.draw(st.booleans()))  # type: ignore[arg-type]
    x = low + torch.randint(0, 1 << bits, (2, channels, *size), generator=torch.Generator().manual_seed(bits))
    want = op.evaluate([x])
    assume(bool((want >= low).all()))  # no window is all padding
    out = want.shape[2:]
    least_ring = max(bits_needed(low, low + (1 << bits) - 1), bits + 1)
    d = Pooling(
        channels,
        size,  # type: ignore[arg-type]
        (out[0], out[1]),
        *(kernel, stride, padding, dilation),  # type: ignore[arg-type]
        small=least_ring,
        lowest=low,
        ring_out=16,
    )
    ways = pooling(d, (16, least_ring))
    for way in ways:
        y: Tensor = x.to(torch.int16)
        for _, action in way.actions:
            y = action.apply(y, True) if isinstance(action, Windows) else define(action, y, {})
        assert torch.equal(y.long(), want), way.words


def pooled_graph(
    kernel: int, stride: int, padding: int, low: int, values: Tensor | None = None, twice: bool = True
) -> IntegerGraph:
    """conv, codes, one or two maxima one after the other, conv; input (2, 9, 9)."""
    g = torch.Generator().manual_seed(kernel)

    def ints(*shape: int) -> Tensor:
        return torch.randint(-9, 10, shape, generator=g)

    pool = ops.MaxPool2d((kernel, kernel), (stride, stride), (padding, padding))
    return IntegerGraph(
        (
            Node("x", ops.Input((2, 9, 9), 0, 255)),
            Node("conv", ops.Conv2d(ints(3, 2, 3, 3), ints(3), (1, 1), (1, 1)), ("x",)),
            Node("codes", ops.Requantize(9, 4, low, values), ("conv",)),
            Node("pool", pool, ("codes",)),
            *([Node("again", ops.MaxPool2d((2, 2), (1, 1)), ("pool",))] if twice else []),
            Node("last", ops.Conv2d(ints(2, 3, 2, 2) * 99, ints(2)), ("again" if twice else "pool",)),
        ),
        "last",
    )


@pytest.mark.parametrize("network", [LAN, WAN, FAR, NARROW], ids=lambda n: n.name)
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 1, 1)])
@pytest.mark.parametrize("low", [0, -8, 100])
def test_pooled_codes_are_exact_on_every_network(
    kernel: int, stride: int, padding: int, low: int, network: Profile
) -> None:
    model = networks.integer_model(pooled_graph(kernel, stride, padding, low))
    compiled = program.compile(model, network=network)
    x = torch.randint(0, 256, (3, 2, 9, 9), generator=torch.Generator().manual_seed(0))
    got = run(model, compiled, x)
    assert torch.equal(got.answer, model.integers(x))
    cost = compiled.cost(3)
    assert got.dealt == cost.dealt_bytes
    for p in compiled.parties:
        assert (got.log.sent_bytes[p], got.log.exchanges[p]) == (cost.sent_bytes(p), cost.exchanges)
    assert torch.equal(run(model, program.compile(model, "clear", network), x).answer, got.answer)


def test_a_table_of_codes_may_stand_in_front_of_a_maximum() -> None:
    values = torch.randint(-20, 20, (16,), generator=torch.Generator().manual_seed(0))
    model = networks.integer_model(pooled_graph(3, 2, 1, 0, values))
    x = torch.randint(0, 256, (2, 2, 9, 9), generator=torch.Generator().manual_seed(0))
    for network in (LAN, FAR, NARROW):
        assert torch.equal(run(model, program.compile(model, network=network), x).answer, model.integers(x))


def test_few_bytes_are_bought_with_a_small_ring_and_few_exchanges_without() -> None:
    model = networks.integer_model(pooled_graph(3, 2, 1, 0, twice=False))
    narrow, far = (program.compile(model, network=n) for n in (NARROW, FAR))
    compared = [s.ring_out for _, s, _ in narrow.steps if isinstance(s, (api.Clamp, api.Maximum))]
    assert set(compared) == {5}  # codes of 4 bits, and a difference of two
    lifts = [s for _, s, _ in narrow.steps if isinstance(s, api.Lift)]
    assert [(s.bits, s.ring_out) for s in lifts] == [(5, model.rings["pool"])]
    assert not any(isinstance(s, api.Lift) for _, s, _ in far.steps)
    assert far.cost(1).exchanges < narrow.cost(1).exchanges
    assert narrow.cost(1).dealt_bits < far.cost(1).dealt_bits


def test_maxima_of_maxima_stay_in_the_small_ring_until_the_last() -> None:
    compiled = program.compile(networks.integer_model(pooled_graph(3, 2, 1, 0)), network=NARROW)
    lifts = [i for i in compiled.instructions if isinstance(i.action, api.Lift)]
    assert [i.name for i in lifts] == ["again"]


def test_rows_and_then_columns_share_comparisons() -> None:
    backend = protocols.get("additive2")
    d = Pooling(8, (16, 16), (8, 8), (3, 3), (2, 2), (1, 1), (1, 1), small=5, lowest=0, ring_out=5)
    whole, by_axes = pooling(d, (5,))
    assert by_axes.cost(backend).dealt_bits < 0.8 * whole.cost(backend).dealt_bits
    assert choose([whole, by_axes], 512, backend, NARROW).way is by_axes
    line = replace(d, kernel=(1, 3), out=(16, 8), stride=(1, 2), padding=(0, 1))
    assert [way.words for way in pooling(line, (5,))] == ["whole windows"]


PROVEN = Demand((1024,), 21, 10, 6, 0, 0, 20, headroom=6)


@pytest.mark.parametrize(
    ("demand", "network", "words"),
    [
        (PROVEN, NARROW, "digits"),
        (PROVEN, LAN, "digits"),
        (PROVEN, WAN, "quick clamp"),
        (replace(PROVEN, tables=1), NARROW, "digits and table"),
        (replace(PROVEN, tables=1), FAR, "fused table"),
        (replace(PROVEN, ring=6, shift=0, bits=4), FAR, "table"),
        (replace(PROVEN, ring=8, shift=0, bits=8), LAN, "sign and select"),
    ],
)
def test_the_network_decides(demand: Demand, network: Profile, words: str) -> None:
    made = choose(requantization(demand, "exact"), 1024, protocols.get("additive2"), network)
    assert made.way.words == words
    assert made.why.startswith(f"{words}: ")


def test_what_is_chosen_says_its_price_and_that_of_the_next_best() -> None:
    backend = protocols.get("additive2")
    made = choose(requantization(PROVEN, "exact"), 1024, backend, WAN)
    quick, digits = (backend.cost(kind((1024,), 21, 10, 6, 0, 20), 1) for kind in (api.QuickClamp, api.Clamp))
    sizes = [f"{c.dealt_bits / 8 / 1024:.0f} B" for c in (quick, digits)]
    assert made.why == f"quick clamp: 2 exchanges, {sizes[0]} dealt a value; digits: 3, {sizes[1]}"


def test_an_upper_end_that_is_proven_idle_is_given_up() -> None:
    d = replace(PROVEN, idle=True)
    bits = {s.bits for way in requantization(d, "exact") for s in way.steps if isinstance(s, api.Clamp)}
    assert bits == {6, 10}
    assert {s.bits for way in requantization(PROVEN, "exact") for s in way.steps if isinstance(s, api.Clamp)} == {6}


def test_stochastic_rounding_shifts_in_front_of_everything_else() -> None:
    for way in requantization(PROVEN, "stochastic"):
        assert way.actions[0] == ("shift", api.Shift((1024,), 21, 10, "stochastic"))
        assert way.words.startswith("free shift, ")


def test_explanations_cover_every_layer_with_a_choice() -> None:
    torch.manual_seed(0)
    x = torch.randn(32, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    model = quantize(networks.small_cnn(), calibration=x)
    chosen = {n.name for n in model.graph.nodes if isinstance(n.op, (ops.Requantize, ops.MaxPool2d))}
    for network in ("lan", "wan"):
        why = program.explain(model, network=network)
        assert set(why) == chosen
        assert all(" exchange" in text and " dealt a value" in text for text in why.values())
    assert set(program.explain(model, "clear").values()) <= {"digits", "whole windows", "rows, then columns"}


def test_the_wan_plan_is_faster_on_the_wan_and_the_lan_plan_on_the_lan() -> None:
    class Net(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Flatten(), nn.Linear(144, 5))

    torch.manual_seed(0)
    model = quantize(Net().eval(), calibration=torch.randn(32, 1, 16, 16), activation_bits=5)
    lan, wan = (program.compile(model, network=network).cost(1) for network in ("lan", "wan"))
    assert wan.exchanges < lan.exchanges
    assert lan.dealt_bits < wan.dealt_bits
    assert WAN.seconds(wan) < WAN.seconds(lan)


def test_networks_are_named_or_described() -> None:
    assert profile("wan") is WAN
    assert profile(NARROW) is NARROW
    with pytest.raises(ProgramError, match="'lan', 'wan'"):
        profile("moon")
    for bad in ((0.0, 1.0), (float("inf"), 1.0), (1e9, -1.0), (1e9, float("nan"))):
        with pytest.raises(ProgramError, match="network 'bad'"):
            Profile("bad", *bad)


def test_a_binarised_network_is_exact_where_exchanges_are_dear() -> None:
    net, x = networks.bnn(), torch.randint(0, 256, (9, 30), generator=torch.Generator().manual_seed(2)).float()
    model = quantize(net, calibration=x)
    far, near = (program.compile(model, network=n) for n in (FAR, NARROW))
    codes = model.encode(x, "silent")
    assert torch.equal(run(model, far, codes).answer, model.integers(codes))
    assert far.cost(1).exchanges < near.cost(1).exchanges
