"""A step with all of its secrets drawn, which can be run on any devices, and what must come out the same everywhere."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

import protocols
from protocols import api, devices, ring
from protocols.clear.define import define
from protocols.linmap import ConvMap, DenseMap, LinearMap, ScaleMap
from protocols.noise import WHOLE
from protocols.prg import Random
from protocols.protocol import NamedStep
from protocols.rounds import PartyId, Steps
from protocols.simulate import Transcript, simulate
from tests.conformance.battery import named, values

HERE = devices.CPU
BACKEND = protocols.get("additive2")
ROLES = (PartyId.P0, PartyId.P1, PartyId.DEALER)
N, FIRST = 29, 2
Places = Mapping[PartyId, torch.device]

STEPS: list[tuple[api.Step, int, int, int | None]] = [  # step, its ring, that of the result, bits of its table
    (api.Clamp((N,), 18, 8, 6, -3, 20), 18, 20, None),
    (api.Clamp((N,), 32, 20, 8, 0, 9), 32, 9, None),
    (api.Clamp((16,), 7, 0, 6, 1, 7), 7, 7, None),
    (api.QuickClamp((N,), 18, 8, 6, -3, 20), 18, 20, None),
    (api.QuickClamp((N,), 9, 0, 8, -3, 9), 9, 9, None),
    (api.Shift((N,), 20, 5), 20, 15, None),
    (api.Shift((N,), 27, 13), 27, 14, None),
    (api.Shift((N,), 20, 5, "stochastic"), 20, 15, None),
    (api.Sign((N,), 21, 5), 21, 5, None),
    (api.Relu((N,), 8, 18), 8, 18, None),
    (api.Maximum((5,), 3, 6, 8), 8, 8, None),
    (api.Maximum((5,), 4, 12, 32), 32, 32, None),
    (api.Lift((N,), 9, -3, 20), 9, 20, None),
    (api.Table((3, 5), 6, 18, 3), 6, 18, 6),
    (api.Table((3, 5), 4, 7), 4, 7, 4),
    (api.FusedTable((3, 5), 12, 5, 17, 3), 12, 17, 7),
    (api.Noise((N,), 18, 40), 18, 18, None),
]
MAPS: list[tuple[LinearMap, tuple[int, ...]]] = [
    (DenseMap(5, 13), (5,)),
    (DenseMap(1, 1), (1,)),
    (DenseMap(30, 16, (2,)), (30,)),
    (ScaleMap((3, 4)), (3, 1)),
    (ConvMap(3, 9, 7, 5, (3, 2), (2, 1), (1, 2), (1, 2)), (5, 1, 1)),
    (ConvMap(4, 8, 7, 6, (3, 3), (1, 1), (1, 1), (1, 1), 2), (6, 1, 1)),
    (ConvMap(4, 7, 7, 4, (3, 3), (2, 2), (1, 1), (1, 1), 4), (4, 1, 1)),
    (ConvMap(8, 4, 4, 24, (1, 1)), (24, 1, 1)),
]


class Trial:
    """A step with everything drawn: it can be run again, on other devices, with the same secrets."""

    def __init__(self, step: api.Step, x: Tensor, ring_in: int, operands: dict[str, Tensor]) -> None:
        self.steps: list[NamedStep] = named(step, ring_in)
        self.n = len(x)
        self.stored = BACKEND.share_operands("s", step, operands, Random()) if operands else {}
        self.epoch = BACKEND.dealer(self.steps, self.stored.get(PartyId.DEALER, {})).expose_epoch()
        self.shares = BACKEND.share_input(x, ring_in)

    def run(self, places: Places) -> tuple[bytes, Transcript[Tensor]]:
        """What is dealt, and what the parties make of it; their results are brought here."""
        dealer = BACKEND.dealer(
            self.steps, self.stored.get(PartyId.DEALER, {}), self.epoch, places.get(PartyId.DEALER, HERE)
        )
        dealt = dealer.deal(FIRST, self.n)
        log = simulate({p: self._party(p, dealer.keys_for(p), dealt, places.get(p, HERE)) for p in BACKEND.parties})
        log.results = {p: devices.place(y, HERE) for p, y in log.results.items()}
        return dealt, log

    def _party(self, p: PartyId, keys: bytes, dealt: bytes, place: torch.device) -> Steps[Tensor]:
        role = BACKEND.party(self.steps, p, self.stored.get(p, {}), place)
        ready = role.prepare(keys, FIRST, self.n, dealt if p is PartyId.P1 else b"")
        x = devices.place(self.shares[p], place)
        for name, step, _ in self.steps:
            x = yield from role.run_step(ready, name, step, x)
            assert x.device == place
        return x


def check(
    place: torch.device, step: api.Step, x: Tensor, ring_in: int, ring_out: int, operands: dict[str, Tensor]
) -> None:
    """The same bytes and the same shares whichever roles are at ``place``, which make the defined result."""
    trial = Trial(step, x, ring_in, operands)
    dealt, here = trial.run({})
    for roles in (ROLES, (PartyId.P0,), (PartyId.P1, PartyId.DEALER)):
        dealt_there, there = trial.run(dict.fromkeys(roles, place))
        assert dealt_there == dealt
        assert there.received == here.received
        shares = zip(here.results.values(), there.results.values(), strict=True)
        assert all(torch.equal(ring.unsigned(a, ring_out), ring.unsigned(b, ring_out)) for a, b in shares)
    if isinstance(step, api.Noise):
        e = ring.centred(BACKEND.reconstruct(here.results, ring_out) - x, ring_out)
        assert bool((e.abs() <= step.bound).all())
    elif not (isinstance(step, api.Shift) and step.rounding == "stochastic"):
        got = ring.unsigned(BACKEND.reconstruct(here.results, ring_out), ring_out)
        assert torch.equal(got, ring.unsigned(define(step, x, operands), ring_out).to(torch.int64))


def check_step(place: torch.device, at: int, n: int) -> None:
    """:func:`check` of the step at a position of :data:`STEPS`, on n items."""
    step, ring_in, ring_out, table = STEPS[at]
    operands = {} if table is None else {"table": values(16, (step.channels, 1 << table))}  # type: ignore[attr-defined]
    if isinstance(step, api.Noise):
        operands = {"law": (torch.arange(2 * step.bound + 1) + 1) * (WHOLE // (2 * step.bound + 1))}
        operands["law"][-1] = WHOLE
    width = (step.width,) if isinstance(step, api.Maximum) else ()
    x = values(step.bits if width or isinstance(step, api.Relu) else ring_in, (n, *step.shape, *width))
    check(place, step, (x & 127) - 3 if isinstance(step, api.Lift) else x, ring_in, ring_out, operands)


def check_maps(place: torch.device, visibility: str, bits: int) -> None:
    """:func:`check` of every map."""
    for m, bias in MAPS:
        operands = {"weight": values(bits, m.weight_shape, 1), "bias": values(bits, bias, 2)}
        step = api.Linear(m.out_shape, bits, m, visibility)
        check(place, step, values(bits, (bits % 3, *m.in_shape)), bits, bits, operands)
