"""Shift by s bits, exact or stochastic.

Exact: with ``z^ = z + rho`` open, ``floor(z / 2^s) = (z^ div 2^s) - (rho div 2^s) - [z^ mod 2^s < rho mod 2^s]``.
For s up to 8 the borrow is read from a one-time table at the public ``z^ mod 2^s``: one exchange. Above that it
comes from a digit comparison: three exchanges, a few bytes.

Stochastic: each party shifts its own share and P0 adds one. The sum is floor(z / 2^s) or one more, the latter with
probability (z mod 2^s + 1) / 2^s over the shares. Nothing is sent and nothing is dealt; the result lives in the smaller
ring, so there is no wrap-around failure; but it is *not* what ``clear`` computes, and says so wherever it is used.
"""

from __future__ import annotations

import torch
from torch import Tensor

from protocols import api, planes, ring
from protocols.additive2 import compare
from protocols.additive2.clamp import bit_words
from protocols.additive2.kernel import Dealing, Kernel, Party
from protocols.additive2.material import Field, Kind
from protocols.cost import Cost, message, plane_message
from protocols.rounds import Steps

Ready = dict[str, Tensor]

TABLE_LIMIT = 8


class ShiftKernel(Kernel[api.Shift]):
    """Result in the ring of ``ring - shift`` bits."""

    def _plan(self, step: api.Shift) -> compare.Plan:
        return compare.plan(step.ring, step.shift, 0, ("c",))

    def _by_table(self, step: api.Shift) -> bool:
        return step.shift <= TABLE_LIMIT

    def fields(self, step: api.Shift) -> tuple[Field, ...]:
        """rho, its upper bits shared in the result's ring, and the borrow by table or by digits."""
        if step.rounding == "stochastic":
            return ()
        t = step.ring - step.shift
        common = (Field("rho", Kind.MASK, step.count, step.ring), Field("upper", Kind.DEALT, step.count, t))
        if self._by_table(step):
            return (*common, Field("borrow", Kind.TABLE, step.count, t, 1 << step.shift))
        return (*common, *self._plan(step).fields(step.count), Field("gamma", Kind.DEALT, step.count, t))

    def online(self, step: api.Shift, n: int) -> Cost:
        """One exchange by table, three by digits, none when stochastic."""
        if step.rounding == "stochastic":
            return Cost()
        if self._by_table(step):
            return message(n * step.count, step.ring)
        digits = self._plan(step).online(n, step.count)
        return plane_message(n, step.count, step.ring) + digits + plane_message(n, step.count, 1)

    def deal(self, step: api.Shift, name: str, inputs: tuple[str, ...], d: Dealing) -> None:
        """The upper bits of rho, and the borrow over its lower bits."""
        if step.rounding == "stochastic":
            return
        rho = ring.unsigned(d.mask(name, "rho"), step.ring).to(torch.int64)
        d.give(name, "upper", rho >> step.shift)
        if self._by_table(step):
            u = torch.arange(1 << step.shift, device=d.device)
            low = rho & ((1 << step.shift) - 1)
            d.give_table(name, "borrow", (u < low.unsqueeze(-1)).to(torch.int32))
            return
        mask = compare.deal(self._plan(step), name, d.mask(name, "rho"), d)
        d.give(name, "gamma", bit_words(mask, d.n, step.count, ring.word(step.ring - step.shift)))

    def prepare(self, step: api.Shift, name: str, inputs: tuple[str, ...], p: Party) -> Ready:
        """Read the material (the table is read online, at one entry)."""
        if step.rounding == "stochastic":
            return {}
        ready = {key: p.material.take(name, key) for key in ("rho", "upper")}
        if not self._by_table(step):
            ready |= {key: p.material.take(name, key) for key in ("planes", "gamma")}
        return ready

    def run(self, step: api.Shift, name: str, p: Party, ready: Ready, x: Tensor) -> Steps[Tensor]:
        """``v - upper - borrow``."""
        t = step.ring - step.shift
        x = ring.to_word(x.reshape(p.n, step.count), step.ring)
        if step.rounding == "stochastic":
            yield from ()
            own = ring.unsigned(x, step.ring) >> step.shift
            return ring.to_word(own + int(p.first), t).reshape(p.n, *step.shape)
        y = -ready["upper"]
        if self._by_table(step):
            z_hat = yield from p.open(name, x + ready["rho"], step.ring)
            wide = ring.unsigned(z_hat, step.ring)
            v = ring.to_word(wide >> step.shift, t)
            y = y - p.material.read_table(name, "borrow", wide & ((1 << step.shift) - 1))
        else:
            share, rho = planes.level(x), planes.level(ready["rho"])
            public, own = yield from compare.run(self._plan(step), name, p, ready["planes"], share, rho)
            opened = yield from p.open_planes(f"{name}.facts", own)
            bit = bit_words(opened, p.n, step.count, y.dtype)
            v = planes.rows(planes.insert(public, 0, y.new_zeros(len(share))), p.n, step.count)
            y = y - (1 - 2 * bit) * ready["gamma"]
            v = v - bit
        return (y + v if p.first else y).reshape(p.n, *step.shape)
