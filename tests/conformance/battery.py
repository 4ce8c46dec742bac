"""One harness for all protocols: run a step with every role, compare with ``clear``, and hold the cost to the wire."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import protocols
from protocols import api, ring
from protocols.clear import define
from protocols.cost import Cost
from protocols.prg import Random
from protocols.protocol import NamedStep, Protocol
from protocols.rounds import PartyId, Steps
from protocols.simulate import Transcript, simulate


@dataclass
class Outcome:
    """What a run gave: both results as representatives in [0, 2^bits), and everything that crossed the wire."""

    got: Tensor
    want: Tensor
    cost: Cost
    log: Transcript[Tensor]
    dealt: int
    shares: dict[PartyId, Tensor]


def named(step: api.Step, ring_in: int) -> list[NamedStep]:
    """The step as a program of its own; a linear step gets the opening it needs."""
    if isinstance(step, api.Linear) and step.opened_to is not None:
        opening = api.Open(step.map.in_shape, ring_in, step.opened_to)
        return [("x/open", opening, ("x",)), ("s", step, ("x/open",))]
    return [("s", step, ("x",))]


def run(
    protocol: str, step: api.Step, x: Tensor, ring_in: int, ring_out: int, operands: dict[str, Tensor] | None = None
) -> Outcome:
    """Share x, deal, run all parties in lockstep, reconstruct."""
    backend, steps, n, first = protocols.get(protocol), named(step, ring_in), x.shape[0], 3
    stored = backend.share_operands("s", step, operands or {}, Random()) if operands else {}
    dealt = b""
    keys = dict.fromkeys(backend.parties, b"")
    if backend.needs_dealer:
        dealer = backend.dealer(steps, stored.get(PartyId.DEALER, {}))
        keys = {p: dealer.keys_for(p) for p in backend.parties}
        dealer.deal(0, first)  # items used by somebody else: positions must not matter
        dealt = dealer.deal(first, n)
    shares = backend.share_input(x, ring_in)
    material = {p: (keys[p], first, n, dealt if p is PartyId.P1 else b"") for p in backend.parties}
    log = simulate({p: _party(backend, steps, p, stored.get(p, {}), material[p], shares[p]) for p in backend.parties})
    got = backend.reconstruct(log.results, ring_out) & ((1 << ring_out) - 1)
    want = ring.unsigned(define(step, x, operands or {}), ring_out).to(torch.int64)
    cost = sum((backend.cost(s, n) for _, s, _ in steps), Cost())
    return Outcome(got, want, cost, log, len(dealt), shares)


def _party(
    backend: Protocol,
    steps: list[NamedStep],
    party: PartyId,
    stored: dict[str, Tensor],
    material: tuple[bytes, int, int, bytes],
    x: Tensor,
) -> Steps[Tensor]:
    role = backend.party(steps, party, stored)
    ready = role.prepare(*material)
    for name, step, _ in steps:
        x = yield from role.run_step(ready, name, step, x)
    return x


def check(
    protocol: str, step: api.Step, x: Tensor, ring_in: int, ring_out: int, operands: dict[str, Tensor] | None = None
) -> Outcome:
    """Run, then insist: equal to ``clear`` in every integer, and declared cost equal to the wire, to the bit."""
    out = run(protocol, step, x, ring_in, ring_out, operands)
    assert out.got.shape == (x.shape[0], *step.shape)
    wrong = out.got != out.want
    assert not wrong.any(), f"{step}: {int(wrong.sum())} of {wrong.numel()} values differ from the definition"
    check_cost(out)
    return out


def check_cost(out: Outcome) -> None:
    """Exchanges, online bits of each party and dealt bits are as declared."""
    assert out.dealt * 8 == out.cost.dealt_bits
    for party, sent in out.log.sent_bytes.items():
        declared = out.cost.sent_bytes(party)
        assert sent == declared, f"{party} sent {sent} bytes, {declared} were declared"
        assert out.log.exchanges[party] == out.cost.exchanges


def values(bits: int, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Signed numbers of ``bits`` bits, the extreme ones first."""
    g = torch.Generator().manual_seed(seed * 1000 + bits)
    x = torch.randint(-(1 << (bits - 1)), 1 << (bits - 1), shape, generator=g)
    top = 1 << (bits - 1)
    extremes = torch.tensor([0, -1, 1 % top, top - 1, -top, min(1 - top, 0), top // 2, -top // 2])
    flat = x.reshape(-1)
    flat[: len(extremes)] = extremes[: flat.numel()]
    return x
