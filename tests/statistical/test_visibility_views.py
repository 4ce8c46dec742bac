"""What each party sees of a linear map whose weights P0 owns, or everybody knows: uniform, whatever the secrets are.

Of owned weights P0 sees the opened ``x - r`` (it knows W anyway), and P1 sees ``E = W - B``, its mask, the dealt
``B . r - s`` and nothing online. Inputs and weights are as far from each other as the ring allows.
"""

from __future__ import annotations

import secrets

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import protocols
from protocols import api, ring
from protocols.linmap import DenseMap
from protocols.prg import Random
from protocols.rounds import PartyId
from tests.conformance.battery import named, run

N, K = 4096, 16
ONE_IN_A_HUNDRED_MILLION = 1e-8
MAP = DenseMap(N, 8)
WIDE = DenseMap(8, N)
EXTREMES = {"lowest": -(1 << (K - 1)), "zero": 0, "highest": (1 << (K - 1)) - 1}


def p_value(values: Tensor) -> float:
    """Of the hypothesis that ring elements of 16 bits are uniform, by bytes."""
    data = ring.pack(values.reshape(-1), K).tobytes()
    assert len(data) >= 2000
    return float(stats.chisquare(np.bincount(np.frombuffer(data, np.uint8), minlength=256)).pvalue)


def operands(m: DenseMap, weight: int) -> dict[str, Tensor]:
    return {"weight": torch.full(m.weight_shape, weight), "bias": torch.zeros(m.outputs, dtype=torch.int64)}


def full(m: DenseMap, value: str) -> Tensor:
    return torch.full((1, *m.in_shape), EXTREMES[value])


@pytest.mark.parametrize("value", EXTREMES)
@pytest.mark.parametrize("weight", [0, 127])
def test_what_p0_is_told_and_what_it_opens_is_uniform(value: str, weight: int) -> None:
    out = run("additive2", api.Linear((8,), K, WIDE, "owned"), full(WIDE, value), K, K, operands(WIDE, weight))
    ((sender, message),) = out.log.received[PartyId.P0]
    told = ring.unpack(np.frombuffer(message, np.uint8), K, N)
    opened = told + out.shares[PartyId.P0].reshape(-1)
    assert sender is PartyId.P1
    assert p_value(told) > ONE_IN_A_HUNDRED_MILLION
    assert p_value(opened) > ONE_IN_A_HUNDRED_MILLION


def test_p1_hears_nothing_online_of_owned_weights_and_nobody_anything_of_public_ones() -> None:
    owned = run("additive2", api.Linear((N,), K, MAP, "owned"), full(MAP, "highest"), K, K, operands(MAP, 127))
    assert owned.log.received[PartyId.P1] == []
    assert owned.log.sent_bytes[PartyId.P0] == 0
    public = run("additive2", api.Linear((N,), K, MAP, "public"), full(MAP, "highest"), K, K, operands(MAP, 127))
    assert all(heard == [] for heard in public.log.received.values())


@pytest.mark.parametrize("value", EXTREMES)
@pytest.mark.parametrize("weight", [-128, 0, 127])
def test_what_p1_holds_and_is_dealt_of_owned_weights_is_uniform(value: str, weight: int) -> None:
    step = api.Linear((N,), K, MAP, "owned")
    stored = protocols.get("additive2").share_operands("s", step, operands(MAP, weight), Random())
    assert p_value(stored[PartyId.P1]["s.masked"]) > ONE_IN_A_HUNDRED_MILLION
    assert p_value(stored[PartyId.DEALER]["s.mask"]) > ONE_IN_A_HUNDRED_MILLION
    steps = named(step, K)
    dealer = protocols.get("additive2").dealer(steps, stored[PartyId.DEALER])
    dealt = np.frombuffer(dealer.deal(0, 1), np.uint8)
    assert stats.chisquare(np.bincount(dealt, minlength=256)).pvalue > ONE_IN_A_HUNDRED_MILLION
    out = run("additive2", step, full(MAP, value), K, K, operands(MAP, weight))
    for share in out.log.results.values():
        assert p_value(share) > ONE_IN_A_HUNDRED_MILLION


@pytest.mark.parametrize("visibility", ["owned", "public"])
@pytest.mark.parametrize("party", [PartyId.P0, PartyId.P1])
def test_a_simulator_without_the_input_or_another_party_s_weights_produces_the_same_view(
    visibility: str, party: PartyId
) -> None:
    """It knows the step, the batch and what the party knows anyway, and draws the rest: lengths and spread match."""
    step, backend = api.Linear((8,), K, WIDE, visibility), protocols.get("additive2")
    steps, own = named(step, K), operands(WIDE, 77)
    real = run("additive2", step, full(WIDE, "lowest"), K, K, own)
    stored = backend.share_operands("s", step, own, Random())[party]
    if visibility == "owned" and party is PartyId.P1:
        stored = {key: Random().words(tuple(t.shape), K) for key, t in stored.items()}
    role = backend.party(steps, party, stored)
    record = secrets.token_bytes(backend.record_bytes(steps)) if party is PartyId.P1 else b""
    ready = role.prepare(secrets.token_bytes(32 if party is PartyId.P0 else 16), 0, 1, record)
    heard, value = [], Random().words((1, N), K)
    for name, part, _ in steps:
        running = role.run_step(ready, name, part, value)
        try:
            sent = next(running)
            while True:
                reply = {p: secrets.token_bytes(2 * N) for p in sent.expect}
                heard += reply.values()
                sent = running.send(reply)
        except StopIteration as end:
            value = end.value
    assert value.shape == (1, 8)
    assert [len(m) for m in heard] == [len(m) for _, m in real.log.received[party]]
    for mine, (_, theirs) in zip(heard, real.log.received[party], strict=True):
        counts = [np.bincount(np.frombuffer(m, np.uint8), minlength=256) for m in (mine, theirs)]
        assert stats.chi2_contingency(np.array(counts) + 1).pvalue > ONE_IN_A_HUNDRED_MILLION


@pytest.mark.parametrize("visibility", ["owned", "public"])
def test_lengths_and_order_of_messages_do_not_depend_on_input_or_weights(visibility: str) -> None:
    step = api.Linear((8,), K, WIDE, visibility)
    shapes = set()
    for value in EXTREMES:
        for weight in (0, 127):
            log = run("additive2", step, full(WIDE, value), K, K, operands(WIDE, weight)).log
            shapes.add(tuple((str(p), len(m)) for heard in log.received.values() for p, m in heard))
    assert len(shapes) == 1
