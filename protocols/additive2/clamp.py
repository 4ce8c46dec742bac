"""Exact shift with ReLU and clamp, and sign, by digit comparison.

With ``z^ = z + rho`` open, v the middle digits of z^ (``bits`` of them above ``shift``), R those of rho, and the
comparison's borrows c (out of the shifted-away bits) and w (out of shift + bits):

    floor(z / 2^shift) = v - R - c + 2^bits w          whenever the bits above are all zero ("in")
    y = low + in * (v - R - c + 2^bits w) + high * (2^bits - 1)

The parties open c, w, in, high under one-time masks gamma, omega, beta, delta; y is then linear in dealt shares of
R, gamma, omega, beta, their products with beta, and delta. Three exchanges: z^, the digit bits, the masked predicates.
The bound is public (code bits), the comparison is exact: there is no probability of a wrong borrow.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from protocols import api, ring
from protocols.additive2 import compare
from protocols.additive2.kernel import Dealing, Kernel, Party
from protocols.additive2.material import Field, Kind
from protocols.cost import Cost, message
from protocols.errors import BadParameters
from protocols.rounds import Steps

Ready = dict[str, Tensor]


@cache
def _plan(step: api.Clamp) -> compare.Plan:
    # Never more code bits than lie between the shifted-away bits and the sign; then the upper clamp is idle.
    code = min(step.bits, step.ring - step.shift - 1)
    above = step.ring - step.shift - code
    if above > compare.MAX_TOP:
        raise BadParameters(
            f"Clamp: {above} bits above the code; at most {compare.MAX_TOP} fit one comparison: clamp to more bits "
            "first, then to these"
        )
    tops = ("in",) if above == 1 else ("in", "high")
    borrows = (*(("c",) if step.shift else ()), *(("w",) if step.shift + code else ()))
    return compare.plan(step.ring, step.shift, code, tops, borrows)


@dataclass(frozen=True)
class _Opened:
    """An opened masked bit b^ = b xor m: b = bit + sign * m over the integers."""

    bit: Tensor
    sign: Tensor


class ClampKernel(Kernel[api.Clamp]):
    """Three exchanges; see the module's formula. Shares of the products live in the ring of the result."""

    def _dealt(self, step: api.Clamp) -> list[str]:
        names = ["R", "beta", "betaR"]
        plan = _plan(step)
        names += ["gamma", "betagamma"] if "c" in plan.predicates else []
        names += ["omega", "betaomega"] if "w" in plan.predicates else []
        return names + (["delta"] if "high" in plan.predicates else [])

    def fields(self, step: api.Clamp) -> tuple[Field, ...]:
        """rho, the comparison's tables, and up to eight ring elements."""
        products = tuple(Field(name, Kind.DEALT, step.count, step.ring_out) for name in self._dealt(step))
        return (Field("rho", Kind.MASK, step.count, step.ring), *_plan(step).fields(step.count), *products)

    def online(self, step: api.Clamp, n: int) -> Cost:
        """z^, the digits' bits, the predicates' bits."""
        plan, count = _plan(step), n * step.count
        return message(count, step.ring) + plan.online(n, step.count) + message(count, len(plan.predicates))

    def deal(self, step: api.Clamp, name: str, inputs: tuple[str, ...], d: Dealing) -> None:
        """Tables for rho, then the products that the result is linear in."""
        plan = _plan(step)
        rho = d.mask(name, "rho")
        masks = {k: v.to(torch.int32) for k, v in compare.deal(plan, name, rho, d).items()}
        middle = ring.field(rho.to(torch.int64), step.shift, plan.code).to(torch.int32)
        beta = masks["in"]
        values = {"R": middle, "beta": beta, "betaR": beta * middle}
        for greek, q in (("gamma", "c"), ("omega", "w")):
            if q in masks:
                values[greek], values[f"beta{greek}"] = masks[q], beta * masks[q]
        if "high" in masks:
            values["delta"] = masks["high"]
        for key, value in values.items():
            d.give(name, key, value)

    def prepare(self, step: api.Clamp, name: str, inputs: tuple[str, ...], p: Party) -> Ready:
        """Read the material."""
        ready = compare.prepare(_plan(step), name, p, step.count)
        ready["rho"] = p.material.take(name, "rho")
        return ready | {key: p.material.take(name, key) for key in self._dealt(step)}

    def run(self, step: api.Clamp, name: str, p: Party, ready: Ready, x: Tensor) -> Steps[Tensor]:
        """Open, compare, open, combine."""
        plan = _plan(step)
        share = ring.to_word(x.reshape(p.n, step.count), step.ring) + ready["rho"]
        z_hat = yield from p.open(name, share, step.ring)
        masked = yield from compare.run(plan, name, p, ready, z_hat)
        opened = yield from p.open_bits(f"{name}.facts", masked, len(plan.predicates))
        bits = _split(plan, opened, ring.word(step.ring_out))
        v = ring.field(z_hat, step.shift, plan.code) if plan.code else torch.zeros_like(z_hat)
        y = self._combine(step, plan, p, ready, bits, v.to(ring.word(step.ring_out)))
        return y.reshape(p.n, *step.shape)

    def _combine(
        self, step: api.Clamp, plan: compare.Plan, p: Party, ready: Ready, bits: dict[str, _Opened], v: Tensor
    ) -> Tensor:
        """``low + in * (v - R - c + 2^code w) + high * (2^bits - 1)`` from opened bits and dealt products."""
        outer = -ready["R"]  # the part of value that is secret, to be multiplied by the public bit of "in" ...
        inner = -ready["betaR"]  # ... and its product with beta
        public = v
        if c := bits.get("c"):
            public = public - c.bit
            outer = outer - c.sign * ready["gamma"]
            inner = inner - c.sign * ready["betagamma"]
        if w := bits.get("w"):
            public = public + (w.bit << plan.code)
            lift = w.sign << plan.code
            outer = outer + lift * ready["omega"]
            inner = inner + lift * ready["betaomega"]
        inside = bits["in"]
        y = inside.bit * outer + inside.sign * (inner + public * ready["beta"])
        if p.first:
            y = y + inside.bit * public + step.low
        if high := bits.get("high"):
            top = (1 << plan.code) - 1
            y = y + top * (high.sign * ready["delta"])
            y = y + top * high.bit if p.first else y
        return y


def _split(plan: compare.Plan, opened: Tensor, word: torch.dtype) -> dict[str, _Opened]:
    out = {}
    for i, q in enumerate(plan.predicates):
        bit = ((opened >> i) & 1).to(word)
        out[q] = _Opened(bit, 1 - 2 * bit)
    return out


class SignKernel(Kernel[api.Sign]):
    """``y = 2 [z >= 0] - 1``: the same comparison with one predicate and one dealt ring element."""

    def _plan(self, step: api.Sign) -> compare.Plan:
        top = min(4, step.ring)
        return compare.plan(step.ring, 0, step.ring - top, ("nonneg",), ())

    def fields(self, step: api.Sign) -> tuple[Field, ...]:
        """rho, the comparison's tables, the predicate's mask in the ring of the result."""
        beta = Field("beta", Kind.DEALT, step.count, step.ring_out)
        return (Field("rho", Kind.MASK, step.count, step.ring), *self._plan(step).fields(step.count), beta)

    def online(self, step: api.Sign, n: int) -> Cost:
        """z^, the digits' bits, one bit."""
        count = n * step.count
        return message(count, step.ring) + self._plan(step).online(n, step.count) + message(count, 1)

    def deal(self, step: api.Sign, name: str, inputs: tuple[str, ...], d: Dealing) -> None:
        """Tables for rho and the mask."""
        masks = compare.deal(self._plan(step), name, d.mask(name, "rho"), d)
        d.give(name, "beta", masks["nonneg"])

    def prepare(self, step: api.Sign, name: str, inputs: tuple[str, ...], p: Party) -> Ready:
        """Read the material."""
        ready = compare.prepare(self._plan(step), name, p, step.count)
        return ready | {key: p.material.take(name, key) for key in ("rho", "beta")}

    def run(self, step: api.Sign, name: str, p: Party, ready: Ready, x: Tensor) -> Steps[Tensor]:
        """``2 (b^ + (1 - 2 b^) beta) - 1`` from the opened masked bit b^."""
        share = ring.to_word(x.reshape(p.n, step.count), step.ring) + ready["rho"]
        z_hat = yield from p.open(name, share, step.ring)
        masked = yield from compare.run(self._plan(step), name, p, ready, z_hat)
        opened = yield from p.open_bits(f"{name}.facts", masked, 1)
        bit = (opened & 1).to(ring.word(step.ring_out))
        y = 2 * ((1 - 2 * bit) * ready["beta"])
        y = y + 2 * bit - 1 if p.first else y
        return y.reshape(p.n, *step.shape)
