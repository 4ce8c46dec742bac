"""Noise that the dealer draws: exactly by its law, in uniform shares, once for every item, at the declared cost."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

import protocols
from protocols import api, noise, ring
from protocols.additive2.dealing import Dealer, layout, prepare_party
from protocols.additive2.material import Kind, PartyKeys
from protocols.clear import define
from protocols.errors import BadParameters, Misuse
from protocols.noise import WHOLE
from protocols.protocol import NamedStep
from protocols.rounds import PartyId
from tests.conformance.battery import check_cost, run, values

BACKEND = protocols.get("additive2")
EPOCH = bytes(range(64))  # a known one: what is dealt from it is the same at every run
PARTIES = (PartyId.P0, PartyId.P1)
ONE_IN_A_HUNDRED_MILLION = 1e-8


def law_of(weights: list[int]) -> Tensor:
    """The law whose probabilities are as the weights."""
    total, sums = sum(weights), np.cumsum(np.array(weights, object))
    return torch.tensor([WHOLE * int(s) // total for s in sums], dtype=torch.int64)


def shares(step: api.Noise, law: Tensor, n: int, first: int = 0, epoch: bytes | None = EPOCH) -> dict[PartyId, Tensor]:
    """Each party's share of e, in [0, 2^ring), for items from ``first`` on."""
    steps: list[NamedStep] = [("s", step, ("x",))]
    dealer = Dealer(steps, {"s.law": law}, epoch)
    dealt, out = dealer.deal(first, n), {}
    for p in PARTIES:
        keys = PartyKeys.receive(p, dealer.keys[p].expose_for_sending())
        ready = prepare_party(steps, layout(steps), p, keys, {}, first, n, dealt if p is PartyId.P1 else b"")
        out[p] = ring.unsigned(ready.material["s"], step.ring)
    return out


def noise_of(step: api.Noise, law: Tensor, n: int, first: int = 0, epoch: bytes | None = EPOCH) -> Tensor:
    return ring.centred(sum(shares(step, law, n, first, epoch).values()), step.ring)  # type: ignore[arg-type]


# --- the law ------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), min_size=3, max_size=9).filter(lambda w: len(w) % 2 == 1 and sum(w) > 0))
def test_a_draw_is_the_first_value_whose_count_is_above_the_uniform_number(weights: list[int]) -> None:
    law = law_of(weights)
    near = {u for count in (0, *law.tolist()) for u in (count - 1, count, count + 1) if 0 <= u < WHOLE}
    u = torch.tensor(sorted(near), dtype=torch.int64)
    half = (1 << noise.HALF_BITS) - 1
    got = noise.draw((u & half).to(torch.int32), (u >> noise.HALF_BITS).to(torch.int32), law)
    want = [next(j for j, count in enumerate(law.tolist()) if x < count) - len(weights) // 2 for x in u.tolist()]
    assert got.tolist() == want


def test_dealt_noise_has_exactly_the_law_s_probabilities() -> None:
    weights = [1, 0, 30, 200, 500, 200, 30, 3, 2]
    law, n, count = law_of(weights), 300, 100
    e = noise_of(api.Noise((count,), 9, 4), law, n)
    probabilities = np.diff(law.numpy().astype(np.float64), prepend=0) / WHOLE
    seen = np.bincount(e.reshape(-1).numpy() + 4, minlength=9)
    assert seen[1] == 0
    drawn = probabilities > 0
    assert stats.chisquare(seen[drawn], n * count * probabilities[drawn]).pvalue > 1e-3


@pytest.mark.parametrize("axis", ["items", "values"])
def test_neighbouring_draws_have_nothing_to_do_with_each_other(axis: str) -> None:
    e = noise_of(api.Noise((80,), 12, 2), law_of([1, 1, 1, 1, 1]), 400) + 2
    a, b = (e[:-1], e[1:]) if axis == "items" else (e[:, :-1], e[:, 1:])
    pairs = np.bincount((5 * a + b).reshape(-1).numpy(), minlength=25).reshape(5, 5)
    assert stats.chi2_contingency(pairs).pvalue > 1e-3


def test_the_definition_draws_from_the_same_law_anew_at_every_call() -> None:
    law, step = law_of([1, 2, 4, 2, 1]), api.Noise((5000,), 20, 2)
    x = torch.full((4, 5000), 77_000)
    first, second = (ring.centred(define(step, x, {"law": law}), 20) - x for _ in range(2))
    assert not torch.equal(first, second)
    seen = np.bincount(torch.cat([first, second]).reshape(-1).numpy() + 2, minlength=5)
    assert stats.chisquare(seen, 4000 * np.array([1, 2, 4, 2, 1])).pvalue > ONE_IN_A_HUNDRED_MILLION


@pytest.mark.parametrize(
    ("law", "says"),
    [
        (torch.tensor([0, WHOLE]), "int64 \\(3,\\) is needed"),
        (torch.tensor([0, 1, 2], dtype=torch.int32), "int64"),
        (torch.tensor([0, 5, WHOLE - 1]), "never fall"),
        (torch.tensor([7, 5, WHOLE]), "never fall"),
        (torch.tensor([-1, 5, WHOLE]), "never fall"),
    ],
)
def test_what_is_no_law_is_refused_by_the_dealer_and_by_the_definition(law: Tensor, says: str) -> None:
    step = api.Noise((2,), 8, 1)
    with pytest.raises(Misuse, match=says):
        BACKEND.dealer([("s", step, ("x",))], {"s.law": law})
    with pytest.raises(Misuse, match=says):
        define(step, torch.zeros((1, 2), dtype=torch.int64), {"law": law})


def test_a_dealer_without_the_law_says_so() -> None:
    with pytest.raises(Misuse, match="lacks the law of the noise 's'"):
        BACKEND.dealer([("s", api.Noise((2,), 8, 1), ("x",))], {})


@pytest.mark.parametrize(("bits", "bound"), [(8, 128), (8, 0), (1, 1), (33, 4)])
def test_noise_that_does_not_fit_its_ring_is_refused(bits: int, bound: int) -> None:
    with pytest.raises(BadParameters, match="Noise: "):
        api.Noise((2,), bits, bound)


# --- shares, items, cost ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [4, 13, 16, 27, 32])
@pytest.mark.parametrize("n", [0, 1, 7])
def test_an_answer_is_the_value_and_noise_within_the_bound_at_the_declared_cost(bits: int, n: int) -> None:
    bound = min(500, (1 << (bits - 1)) - 1)
    step, x = api.Noise((3, 5), bits, bound), values(bits, (n, 3, 5))
    out = run("additive2", step, x, bits, bits, {"law": law_of([1] * (2 * bound + 1))})
    e = ring.centred(out.got - x, bits)
    assert bool((e.abs() <= bound).all())
    assert n == 0 or len(e.unique()) > 4
    check_cost(out)
    assert (out.cost.exchanges, out.cost.online_bits) == (0, 0)
    assert out.dealt == n * ring.packed_bytes(15, bits)


@pytest.mark.parametrize("e", [-300, 0, 300])
def test_each_party_s_share_of_the_noise_is_uniform_whatever_the_noise_is(e: int) -> None:
    law = torch.where(torch.arange(-300, 301) >= e, WHOLE, 0)
    found = shares(api.Noise((4096,), 16, 300), law, 4, epoch=None)
    for p in PARTIES:
        for part in (found[p] & 255, found[p] >> 8):
            seen = np.bincount(part.reshape(-1).numpy(), minlength=256)
            assert stats.chisquare(seen).pvalue > ONE_IN_A_HUNDRED_MILLION
    assert bool((ring.centred(found[PartyId.P0] + found[PartyId.P1], 16) == e).all())


def test_the_coins_are_in_the_dealer_s_key_stream_and_in_no_server_s() -> None:
    (coins,) = [f for f in layout([("s", api.Noise((9,), 12, 5), ("x",))]).fields.values() if f.kind is Kind.DEALER]
    assert coins.stream_bytes(PartyId.DEALER) == 62 * 2
    assert coins.record_bytes == sum(coins.stream_bytes(p) for p in PARTIES) == 0


def test_the_dealer_s_key_alone_decides_on_the_noise() -> None:
    step, law = api.Noise((64,), 14, 2), law_of([1, 1, 1, 1, 1])
    e = noise_of(step, law, 3)
    servers, dealer = bytes(48) + EPOCH[48:], EPOCH[:48] + bytes(16)  # the keys of P0 (two) and of P1 come first
    assert torch.equal(noise_of(step, law, 3, epoch=servers), e)
    assert not torch.equal(noise_of(step, law, 3, epoch=dealer), e)


def test_every_item_and_every_epoch_has_noise_of_its_own_and_an_item_has_one() -> None:
    step, law = api.Noise((64,), 14, 2), law_of([1, 1, 1, 1, 1])
    items = noise_of(step, law, 4)
    assert all(not torch.equal(a, b) for a, b in pairwise(items))
    assert torch.equal(noise_of(step, law, 2, first=2), items[2:])  # dealt by another worker of the same epoch
    assert not torch.equal(noise_of(step, law, 4, epoch=None), items)
