"""Weights that nobody, one party, or everybody knows: who holds what, who sends what, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import protocols
from protocols import api, ring
from protocols.additive2.dealing import layout
from protocols.additive2.linear import HELD, OpenKernel
from protocols.additive2.material import Field, Kind, Layout
from protocols.clear import define
from protocols.cost import Cost, message, one_way
from protocols.errors import BadParameters, Misuse, PeerMisbehaved
from protocols.linmap import ConvMap, DenseMap
from protocols.prg import Random
from protocols.protocol import NamedStep
from protocols.ring import packed_bytes
from protocols.rounds import PartyId, Round
from protocols.simulate import simulate

BACKEND = protocols.get("additive2")
DENSE = DenseMap(4, 6)
PARTIES = (PartyId.P0, PartyId.P1)


def operands(weight_shape: tuple[int, ...] = (4, 6), bias: tuple[int, ...] = (4,)) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(3)
    return {
        "weight": torch.randint(-128, 128, weight_shape, generator=g),
        "bias": torch.randint(-999, 999, bias, generator=g),
    }


def linear(visibility: str, k: int = 15) -> api.Linear:
    return api.Linear((4,), k, DENSE, visibility)


def steps_of(step: api.Linear, ring_in: int = 15) -> list[NamedStep]:
    if step.opened_to is None:
        return [("s", step, ("x",))]
    return [("o", api.Open(step.map.in_shape, ring_in, step.opened_to), ("x",)), ("s", step, ("o",))]


def split(step: api.Linear) -> dict[PartyId, dict[str, Tensor]]:
    return BACKEND.share_operands("s", step, operands(), Random())


@pytest.mark.parametrize("visibility", api.VISIBILITIES)
def test_every_role_stores_what_its_visibility_says_and_no_more(visibility: str) -> None:
    stored = split(linear(visibility))
    for role in (*PARTIES, PartyId.DEALER):
        assert set(stored.get(role, {})) == {f"s.{key}" for key in HELD[visibility][role]}


def test_of_owned_weights_p1_and_the_dealer_hold_the_two_halves_of_a_one_time_pad() -> None:
    w = operands()["weight"]
    first, second = split(linear("owned")), split(linear("owned"))
    for stored in (first, second):
        together = stored[PartyId.P1]["s.masked"] + stored[PartyId.DEALER]["s.mask"]
        assert torch.equal(together, w.to(torch.int16))
        assert torch.equal(stored[PartyId.P0]["s.weight"], w.to(torch.int16))
    assert not torch.equal(first[PartyId.P1]["s.masked"], second[PartyId.P1]["s.masked"])


def test_public_weights_take_no_material_and_no_message() -> None:
    step = linear("public")
    assert BACKEND.cost(step, 9) == Cost()
    assert BACKEND.record_bytes(steps_of(step)) == 0
    assert layout(steps_of(step)).fields == {}


def test_owned_weights_take_the_dealt_bytes_of_shared_ones_and_half_the_online_bytes() -> None:
    shared, owned = (sum((BACKEND.cost(s, 7) for _, s, _ in steps_of(linear(v))), Cost()) for v in ("shared", "owned"))
    assert owned.dealt_bits == shared.dealt_bits
    assert owned.exchanges == shared.exchanges == 1
    assert owned.sent_bytes(PartyId.P1) == shared.sent_bytes(PartyId.P1) == packed_bytes(7 * 6, 15)
    assert (owned.sent_bytes(PartyId.P0), shared.sent_bytes(PartyId.P0)) == (0, packed_bytes(7 * 6, 15))


def test_a_cost_says_what_each_party_sends_and_adds_up_for_each() -> None:
    total = one_way(10, 12) + message(3, 8) + Cost(dealt_bits=64)
    assert (total.exchanges, total.dealt_bytes) == (2, 8)
    assert total.sent_bytes(PartyId.P0) == packed_bytes(3, 8)
    assert total.sent_bytes(PartyId.P1) == total.online_bytes == packed_bytes(10, 12) + packed_bytes(3, 8)


def test_a_mask_of_p1_alone_is_in_its_stream_and_in_nobody_else_s() -> None:
    own = Field("r", Kind.OWN, 5, 11)
    assert own.record_bytes == own.stream_bytes(PartyId.P0) == 0
    assert own.stream_bytes(PartyId.P1) == Field("r", Kind.MASK, 5, 11).stream_bytes(PartyId.P1) > 0
    where = Layout({"a": [own], "b": [Field("d", Kind.DEALT, 3, 9)]})
    assert where.stream_at[PartyId.P0][("b", "d")] == 0


def test_opened_to_p0_means_that_p1_sends_once_and_waits_for_nothing() -> None:
    step = linear("owned")
    rounds: dict[PartyId, Round] = {}
    dealer = BACKEND.dealer(steps_of(step), split(step)[PartyId.DEALER])
    stored = split(step)
    for party in PARTIES:
        role = BACKEND.party(steps_of(step), party, stored[party])
        dealt = dealer.deal(0, 2) if party is PartyId.P1 else b""
        ready = role.prepare(dealer.keys_for(party), 0, 2, dealt)
        x = torch.zeros((2, 6), dtype=torch.int16)
        rounds[party] = next(role.run_step(ready, "o", steps_of(step)[0][1], x))
    assert (rounds[PartyId.P0].send, rounds[PartyId.P0].expect) == ({}, (PartyId.P1,))
    assert rounds[PartyId.P1].expect == ()
    assert {p: len(m) for p, m in rounds[PartyId.P1].send.items()} == {PartyId.P0: packed_bytes(12, 15)}


def test_p1_computes_no_product_online_on_owned_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    step = linear("owned")
    x = torch.randint(-900, 900, (3, 6), generator=torch.Generator().manual_seed(1))
    stored, shares = split(step), BACKEND.share_input(x, 15)
    dealer = BACKEND.dealer(steps_of(step), stored[PartyId.DEALER])
    roles = {p: BACKEND.party(steps_of(step), p, stored[p]) for p in PARTIES}
    ready = {
        p: roles[p].prepare(dealer.keys_for(p), 0, 3, dealer.deal(0, 3) if p is PartyId.P1 else b"") for p in PARTIES
    }
    products = []
    apply = DenseMap.apply
    monkeypatch.setattr(DenseMap, "apply", lambda m, *more: products.append(more[1].shape) or apply(m, *more))

    def whole(party: PartyId):  # type: ignore[no-untyped-def]
        value = shares[party]
        for name, part, _ in steps_of(step):
            value = yield from roles[party].run_step(ready[party], name, part, value)
        return value

    log = simulate({p: whole(p) for p in PARTIES})
    assert torch.equal(BACKEND.reconstruct(log.results, 15), ring.centred(define(step, x, operands()), 15))
    assert products == [(3, 6), (3, 6)]  # P0's, and the definition's


@pytest.mark.parametrize("size", [-1, 1])
def test_a_one_way_message_of_another_length_is_refused(size: int) -> None:
    step = linear("owned")
    stored = split(step)
    dealer = BACKEND.dealer(steps_of(step), stored[PartyId.DEALER])
    role = BACKEND.party(steps_of(step), PartyId.P0, stored[PartyId.P0])
    ready = role.prepare(dealer.keys_for(PartyId.P0), 0, 1, b"")
    running = role.run_step(ready, "o", steps_of(step)[0][1], torch.zeros((1, 6), dtype=torch.int16))
    next(running)
    with pytest.raises(PeerMisbehaved):
        running.send({PartyId.P1: bytes(packed_bytes(6, 15) + size)})


@pytest.mark.parametrize("visibility", api.VISIBILITIES)
@pytest.mark.parametrize("role", [*PARTIES, PartyId.DEALER])
def test_a_role_that_lacks_its_part_is_refused_by_name(visibility: str, role: PartyId) -> None:
    step = linear(visibility)
    make = BACKEND.dealer if role is PartyId.DEALER else lambda s, t: BACKEND.party(s, role, t)
    for key in HELD[visibility][role]:
        rest = {k: v for k, v in split(step)[role].items() if k != f"s.{key}"}
        with pytest.raises(Misuse, match=rf"{role} lacks its part of the model: s\.{key}"):
            make(steps_of(step), rest)


@pytest.mark.parametrize(
    ("visibility", "role", "key"),
    [
        ("owned", PartyId.P1, "weight"),
        ("owned", PartyId.P1, "mask"),
        ("owned", PartyId.DEALER, "masked"),
        ("shared", PartyId.P0, "weight"),
        ("shared", PartyId.P1, "mask"),
        ("public", PartyId.DEALER, "weight"),
    ],
)
def test_a_role_that_holds_more_than_it_may_know_is_refused_by_name(visibility: str, role: PartyId, key: str) -> None:
    step = linear(visibility)
    stored = {**split(step).get(role, {}), f"s.{key}": torch.zeros((4, 6), dtype=torch.int16)}
    make = BACKEND.dealer if role is PartyId.DEALER else lambda s, t: BACKEND.party(s, role, t)
    with pytest.raises(Misuse, match=rf"{role} holds what it must not know: s\.{key}"):
        make(steps_of(step), stored)


@pytest.mark.parametrize(
    ("visibility", "before", "says"),
    [
        ("shared", api.Open((6,), 15, "P0"), "come from an Open step to both"),
        ("owned", api.Open((6,), 15), "come from an Open step to P0"),
        ("public", api.Open((6,), 15), "must not be opened"),
        ("owned", None, "come from an Open step to P0"),
    ],
)
def test_an_input_that_is_opened_to_the_wrong_party_is_refused(
    visibility: str, before: api.Step | None, says: str
) -> None:
    step = linear(visibility)
    steps: list[NamedStep] = [("s", step, ("o",))] if before is None else [("o", before, ("x",)), ("s", step, ("o",))]
    for party in PARTIES:
        with pytest.raises(Misuse, match=f"'s', a map of {visibility} weights, .*{says}"):
            BACKEND.party(steps, party, split(step)[party])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: api.Open((3,), 15, "P1"), "to = 'P1'"),
        (lambda: linear("secret"), "shared, owned or public"),
    ],
)
def test_an_unknown_setting_is_refused_and_the_known_ones_are_named(make: object, says: str) -> None:
    with pytest.raises(BadParameters, match=says):
        make()  # type: ignore[operator]


def test_one_opening_to_p0_serves_every_owned_map_of_a_value() -> None:
    conv = ConvMap(2, 5, 5, 3, (3, 3))
    maps: list[tuple[str, api.Linear]] = [
        ("a", api.Linear(conv.out_shape, 16, conv, "owned")),
        ("b", api.Linear((2, 5, 2), 12, DenseMap(2, 5, (2, 5)), "owned")),
    ]
    steps: list[NamedStep] = [("o", api.Open((2, 5, 5), 16, "P0"), ("x",)), *((n, s, ("o",)) for n, s in maps)]
    own = {"a": operands((3, 2, 3, 3), (3, 1, 1)), "b": operands((2, 5), (2,))}
    parts = [BACKEND.share_operands(n, s, own[n], Random()) for n, s in maps]
    stored = {p: {k: v for part in parts for k, v in part[p].items()} for p in (*PARTIES, PartyId.DEALER)}
    x = torch.randint(-3000, 3000, (2, 2, 5, 5), generator=torch.Generator().manual_seed(0))
    dealer, shares = BACKEND.dealer(steps, stored[PartyId.DEALER]), BACKEND.share_input(x, 16)

    def whole(party: PartyId, dealt: bytes):  # type: ignore[no-untyped-def]
        role = BACKEND.party(steps, party, stored[party])
        ready = role.prepare(dealer.keys_for(party), 0, 2, dealt)
        opened = yield from role.run_step(ready, "o", steps[0][1], shares[party])
        results = []
        for name, step in maps:
            results.append((yield from role.run_step(ready, name, step, opened)))
        return results

    log = simulate({p: whole(p, dealer.deal(0, 2) if p is PartyId.P1 else b"") for p in PARTIES})
    for i, (name, step) in enumerate(maps):
        got = BACKEND.reconstruct({p: log.results[p][i] for p in PARTIES}, step.ring)
        assert torch.equal(got, ring.centred(define(step, x, own[name]), step.ring))
    assert log.sent_bytes == {PartyId.P0: 0, PartyId.P1: packed_bytes(100, 16)}


def test_what_is_opened_to_p0_alone_leaves_nothing_at_p1() -> None:
    assert OpenKernel().fields(api.Open((3,), 9, "P0"))[0].kind is Kind.OWN
    step = linear("owned")
    stored = split(step)
    dealer = BACKEND.dealer(steps_of(step), stored[PartyId.DEALER])
    role = BACKEND.party(steps_of(step), PartyId.P1, stored[PartyId.P1])
    ready = role.prepare(dealer.keys_for(PartyId.P1), 0, 1, dealer.deal(0, 1))
    running = role.run_step(ready, "o", steps_of(step)[0][1], torch.zeros((1, 6), dtype=torch.int16))
    next(running)
    with pytest.raises(StopIteration) as end:
        running.send({})
    assert end.value.value.numel() == 0


def test_the_statement_says_who_knows_the_weights() -> None:
    shared, owned, public, mixed = (
        BACKEND.statement(v).learns for v in (("shared",), ("owned",), ("public",), ("shared", "owned", "public"))
    )
    assert shared == BACKEND.security.learns
    assert all("nothing about weights" in shared[f"server {x}"] for x in "AB")
    assert "the weights (owned)" in owned["server A"] and "nothing about weights" in owned["server B"]
    assert "client's own" in owned["server B"]
    assert all("the weights (public)" in public[f"server {x}"] for x in "AB")
    assert "the owned and public weights; nothing about other weights" in mixed["server A"]
    assert "the public weights; nothing about other weights" in mixed["server B"]
    assert all(
        "activation tables" in s["dealer"] and "no weight" in s["dealer"] for s in (shared, owned, public, mixed)
    )
