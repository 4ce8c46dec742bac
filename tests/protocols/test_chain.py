"""Rows of digits: what they tell is right, and what is opened tells nothing else."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from protocols import api, native, planes, ring
from protocols.additive2 import chain, quick
from protocols.prg import Random
from tests.conformance.battery import check, values

PLANS = [chain.Plan(7, 3, 2, (2, 1, 2)), chain.Plan(6, 0, 3, (2, 1)), chain.Plan(6, 2, 3, (2, 3))]


def uniform(rows: int, count: int) -> Tensor:
    return Random().words((rows, planes.width(count)), 8).to(torch.uint8)


def words(rows: Tensor, count: int) -> NDArray[np.int64]:
    return planes.insert(rows, 0, torch.zeros(count, dtype=torch.int32)).numpy().astype(np.int64)


def opened(p: chain.Plan, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both parties' run on values z: the opened rows (planes), the facts (planes), and their masks as the dealer's."""
    count = len(z)
    rho = Random().words((count,), p.bits)
    masks = uniform(p.fields(count)[1].bits, count)
    mine = uniform(p.planes, count)
    digits = planes.extract(rho, 0, p.bits)
    dealt = (mine, p.dealing.run(digits, masks, mine))
    first = Random().words((count,), p.bits)
    z_hat = [planes.extract(x, 0, p.bits) for x in (first, ring.to_word(z, p.bits) + rho - first)]
    shares = [p.opening.run(z_hat[i], z_hat[1 - i], dealt[i])[p.bits - p.shift :] for i in (0, 1)]
    public = p.opening.run(*z_hat, dealt[0])
    facts = [p.evaluation.run(shares[i], shares[1 - i], public) for i in (0, 1)]
    assert torch.equal(*facts)
    return shares[0] ^ shares[1], facts[0], quick._masks(p, masks, digits[-1])


@pytest.mark.parametrize("p", PLANS)
def test_the_facts_are_right_for_every_value_under_many_masks(p: chain.Plan) -> None:
    z = torch.arange(1 << p.bits).repeat(64)
    _, facts, masks = opened(p, z)
    j = words(facts[1:2], len(z))
    for name, fact, at in (("in", 2, 2), ("high", 3, 4)):
        which = np.where(j == 1, words(masks[at + 1 : at + 2], len(z)), words(masks[at : at + 1], len(z)))
        value = words(facts[fact : fact + 1], len(z)) ^ which
        signed = ring.centred(z, p.bits).numpy() >> (p.shift + p.code)
        want = signed == 0 if name == "in" else (signed > 0) & (p.top_bits > 1)
        assert np.array_equal(value == 1, want), name


@pytest.mark.parametrize("p", PLANS)
@pytest.mark.parametrize("value", [0, 5, -1])
def test_all_that_is_opened_is_jointly_uniform(p: chain.Plan, value: int) -> None:
    """Every pattern of the opened bits comes as often as any other, whatever z is."""
    count = 1 << 16
    rows, _, _ = opened(p, torch.full((count,), value))
    assert p.opened == len(rows)
    patterns = words(rows[:12], count)
    assert stats.chisquare(np.bincount(patterns, minlength=1 << min(12, p.opened))).pvalue > 1e-8
    for a, b in product(range(p.opened), repeat=2):
        if a < b:
            pairs = words(torch.stack([rows[a], rows[b]]), count)
            assert stats.chisquare(np.bincount(pairs, minlength=4)).pvalue > 1e-8


@pytest.mark.parametrize(("shift", "bits", "ring_out"), [(8, 6, 19), (0, 7, 13), (5, 30, 32), (9, 6, 16)])
def test_a_quick_clamp_in_torch_deals_and_computes_what_compiled_loops_do(shift: int, bits: int, ring_out: int) -> None:
    step = api.QuickClamp((100,), shift + 9, shift, bits, -3, ring_out)
    with native.switched_off():
        check("additive2", step, values(shift + 9, (3, 100), 1), shift + 9, ring_out)
    made = quick.plan(step)
    rho = Random().words((104,), step.ring)
    masks = quick._masks(made, uniform(made.fields(104)[1].bits, 104), uniform(1, 104)[0])
    lines = Random().words((len(quick._dealt(made)), 104), ring_out)
    v, facts = uniform(made.code, 104), uniform(len(chain.FACTS), 104)
    facts[0] &= 255 * (shift > 0)
    facts[3] &= 255 * (made.top_bits > 1)

    def both() -> list[Tensor]:
        ends = [quick._finish(made, step, first, lines, v, facts) for first in (False, True)]
        return [quick._elements(made, rho, masks, lines), *ends]

    compiled = both()
    with native.switched_off():
        for fast, slow in zip(compiled, both(), strict=True):
            assert torch.equal(ring.unsigned(fast, ring_out), ring.unsigned(slow, ring_out))
