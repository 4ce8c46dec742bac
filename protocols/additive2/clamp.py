"""Exact shift with ReLU and clamp, and sign, by digit comparison.

With ``z^ = z + rho`` open, let v and R be the ``bits + 1`` digits of z^ and of rho above ``shift``, and c the borrow
out of the shifted-away bits. If all bits of ``floor(z / 2^shift)`` above the code are zero ("in"), then

    floor(z / 2^shift) = v - R - c + 2^(bits+1) msb(R) (1 - msb(v)),

for a result below 2^bits tells from the highest bits of v and R alone whether the difference passed zero. So

    y = low + in * (v - R - c + 2^(bits+1) msb(R) (1 - msb(v))) + high * (2^bits - 1).

The parties open c, in, high under one-time masks gamma, beta, delta; y is then linear in dealt shares of R, mu = msb(R)
and gamma, their products with beta, beta, and delta. Three exchanges: z^, the digit bits, the masked predicates.
The bound is public (code bits), the comparison is exact: there is no probability of a wrong borrow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protocols import api, native, planes, ring
from protocols.additive2 import compare
from protocols.additive2.kernel import Dealing, Kernel, Party
from protocols.additive2.material import Field, Kind
from protocols.cost import Cost, plane_message
from protocols.errors import BadParameters
from protocols.rounds import Steps

_FACTS = ("c", "in", "high")
_DEALT = ("R", "beta", "betaR", "mu", "betamu", "gamma", "betagamma", "delta")
_NEEDS = {"gamma": "c", "betagamma": "c", "delta": "high"}


@cache
def _by_digits(step: api.Clamp) -> compare.Plan:
    # Never more code bits than lie between the shifted-away bits and the sign; then the upper clamp is idle.
    code = min(step.bits, step.ring - step.shift - 1)
    above = step.ring - step.shift - code
    if above > compare.MAX_TOP:
        raise BadParameters(
            f"Clamp: {above} bits above the code; at most {compare.MAX_TOP} fit one comparison: clamp to more bits "
            "first, then to these"
        )
    facts = [q for q, needed in zip(_FACTS, (step.shift, True, above > 1), strict=True) if needed]
    return compare.plan(step.ring, step.shift, code, tuple(facts))


@cache
def _dealt(predicates: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the dealt ring elements, in their order."""
    return tuple(name for name in _DEALT if name not in _NEEDS or _NEEDS[name] in predicates)


@dataclass(frozen=True, eq=False)
class Material:
    """A party's material of one batch. rho: a line of words. planes: of the comparison. dealt: lines of words."""

    rho: Tensor
    planes: Tensor
    dealt: Tensor


class ClampKernel(Kernel[api.Clamp]):
    """Three exchanges, two if nothing but z^ and the facts has to be opened; see the module's formula.

    plan: how a step's comparison is arranged. Shares of the products live in the ring of the result.
    """

    def __init__(self, plan: Callable[[api.Clamp], compare.Plan] = _by_digits) -> None:
        self._plan = plan

    def fields(self, step: api.Clamp) -> tuple[Field, ...]:
        """rho, the comparison's planes, and up to eight ring elements."""
        plan = self._plan(step)
        elements = len(_dealt(plan.predicates)) * 8 * planes.width(step.count)
        dealt = Field("dealt", Kind.DEALT, elements, step.ring_out)
        return (Field("rho", Kind.MASK, step.count, step.ring), *plan.fields(step.count), dealt)

    def online(self, step: api.Clamp, n: int) -> Cost:
        """z^, the digits' bits, the predicates' bits."""
        plan = self._plan(step)
        facts = plane_message(n, step.count, len(plan.predicates))
        return plane_message(n, step.count, step.ring) + plan.online(n, step.count) + facts

    def deal(self, step: api.Clamp, name: str, inputs: tuple[str, ...], d: Dealing) -> None:
        """Tables for rho, then the products that the result is linear in."""
        plan = self._plan(step)
        rho = d.mask(name, "rho")
        masks, line = compare.deal(plan, name, rho, d), planes.level(rho)
        d.give_lines(name, "dealt", len(_dealt(plan.predicates)), lambda first: _elements(plan, line, masks, first))

    def prepare(self, step: api.Clamp, name: str, inputs: tuple[str, ...], p: Party) -> Material:
        """Read the material."""
        parts = len(_dealt(self._plan(step).predicates))
        rho, dealt = planes.level(p.material.take(name, "rho")), planes.lines(p.material.take(name, "dealt"), parts)
        return Material(rho, p.material.take(name, "planes"), dealt)

    def run(self, step: api.Clamp, name: str, p: Party, ready: Material, x: Tensor) -> Steps[Tensor]:
        """Open, compare, open, combine."""
        plan = self._plan(step)
        share = planes.level(ring.to_word(x.reshape(p.n, step.count), step.ring))
        public, own = yield from compare.run(plan, name, p, ready.planes, share, ready.rho)
        other = yield from p.swap_planes(f"{name}.facts", own)
        y = _finish(plan, step, p.first, ready.dealt, public[: plan.code + 1], own, other)
        return planes.rows(y, p.n, step.count).reshape(p.n, *step.shape)


def _elements(plan: compare.Plan, rho: Tensor, masks: Tensor, first: Tensor) -> Tensor:
    """P1's lines of the dealt elements: their values less P0's lines ``first``."""
    out = torch.empty_like(first)
    if (fast := native.bits()) is not None and first.device.type == "cpu":
        facts, rows = _positions(plan.predicates)
        arrays = (masks.numpy(), facts, rows, plan.shift, plan.code, first.numpy(), out.numpy())
        fast.clamp_elements(rho.contiguous().numpy(), *arrays)
        return out
    bits = _facts(plan, masks, rho.to(first.dtype))
    digits = ring.field(rho.to(torch.int64), plan.shift, plan.code + 1)
    r, mu, beta = digits.to(first.dtype), (digits >> plan.code).to(first.dtype), bits["in"]
    values = {"R": r, "beta": beta, "betaR": beta * r, "mu": mu, "betamu": beta * mu}
    if "c" in bits:
        values |= {"gamma": bits["c"], "betagamma": beta * bits["c"]}
    if "high" in bits:
        values["delta"] = bits["high"]
    return torch.stack([values[key] for key in _dealt(plan.predicates)]) - first


def _facts(plan: compare.Plan, bits: Tensor, like: Tensor) -> dict[str, Tensor]:
    """One plane for each predicate as words 0 and 1, as many and of the same type as ``like``."""
    return {q: planes.insert(bits[i : i + 1], 0, torch.zeros_like(like)) for i, q in enumerate(plan.predicates)}


def _finish(
    plan: compare.Plan, step: api.Clamp, first: bool, dealt: Tensor, v: Tensor, own: Tensor, other: Tensor
) -> Tensor:
    """y from the public digits v and the facts as shared and received (planes), and the dealt lines."""
    out = torch.empty(dealt.shape[1], dtype=ring.word(step.ring_out), device=dealt.device)
    if (fast := native.bits()) is not None and dealt.device.type == "cpu":
        facts, rows = _positions(plan.predicates)
        arrays = [t.numpy() for t in (v, own, other)]
        fast.clamp_end(*arrays, facts, rows, int(first), plan.code, step.low, dealt.numpy(), out.numpy())
        return out
    named = dict(zip(_dealt(plan.predicates), dealt, strict=True))
    return _combine(plan, step.low, first, named, v, own ^ other)


@cache
def _positions(predicates: tuple[str, ...]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each fact stands in the message and each ring element among the dealt ones; -1: not there."""
    dealt = _dealt(predicates)
    facts = [predicates.index(q) if q in predicates else -1 for q in _FACTS]
    return np.array(facts), np.array([dealt.index(q) if q in dealt else -1 for q in _DEALT])


def _combine(plan: compare.Plan, low: int, first: bool, ready: dict[str, Tensor], v: Tensor, opened: Tensor) -> Tensor:
    """The module's formula from the public digits, the opened facts and the dealt elements."""
    bits = _facts(plan, opened, ready["R"])
    # words of 32 bits: the digits may fill the ring's own
    digits = planes.insert(v, 0, torch.zeros_like(ready["R"], dtype=torch.int32))
    lift = ((1 - ((digits >> plan.code) & 1)) << (plan.code + 1)).to(ready["R"].dtype)
    public = digits.to(ready["R"].dtype)
    outer = lift * ready["mu"] - ready["R"]  # what is secret of the result, times the public bit of "in" ...
    inner = lift * ready["betamu"] - ready["betaR"]  # ... and its product with beta
    if "c" in bits:
        sign = 1 - 2 * bits["c"]
        public = public - bits["c"]
        outer, inner = outer - sign * ready["gamma"], inner - sign * ready["betagamma"]
    inside = bits["in"]
    y = inside * outer + (1 - 2 * inside) * (inner + public * ready["beta"])
    if first:
        y = y + inside * public + low
    if "high" in bits:
        top = (1 << plan.code) - 1
        y = y + top * ((1 - 2 * bits["high"]) * ready["delta"])
        y = y + top * bits["high"] if first else y
    return y


class SignKernel(Kernel[api.Sign]):
    """``y = 2 [z >= 0] - 1``: the same comparison with one predicate and one dealt ring element."""

    def _plan(self, step: api.Sign) -> compare.Plan:
        return compare.plan(step.ring, 0, step.ring - 1, ("nonneg",))

    def fields(self, step: api.Sign) -> tuple[Field, ...]:
        """rho, the comparison's planes, the predicate's mask in the ring of the result."""
        beta = Field("beta", Kind.DEALT, step.count, step.ring_out)
        return (Field("rho", Kind.MASK, step.count, step.ring), *self._plan(step).fields(step.count), beta)

    def online(self, step: api.Sign, n: int) -> Cost:
        """z^, the digits' bits, one bit."""
        z = plane_message(n, step.count, step.ring)
        return z + self._plan(step).online(n, step.count) + plane_message(n, step.count, 1)

    def deal(self, step: api.Sign, name: str, inputs: tuple[str, ...], d: Dealing) -> None:
        """Tables for rho and the mask."""
        mask = compare.deal(self._plan(step), name, d.mask(name, "rho"), d)
        d.give(name, "beta", bit_words(mask, d.n, step.count, ring.word(step.ring_out)))

    def prepare(self, step: api.Sign, name: str, inputs: tuple[str, ...], p: Party) -> Material:
        """Read the material."""
        rho = planes.level(p.material.take(name, "rho"))
        return Material(rho, p.material.take(name, "planes"), p.material.take(name, "beta"))

    def run(self, step: api.Sign, name: str, p: Party, ready: Material, x: Tensor) -> Steps[Tensor]:
        """``2 (b^ + (1 - 2 b^) beta) - 1`` from the opened masked bit b^."""
        share = planes.level(ring.to_word(x.reshape(p.n, step.count), step.ring))
        _, own = yield from compare.run(self._plan(step), name, p, ready.planes, share, ready.rho)
        opened = yield from p.open_planes(f"{name}.facts", own)
        bit = bit_words(opened, p.n, step.count, ready.dealt.dtype)
        y = 2 * ((1 - 2 * bit) * ready.dealt)
        y = y + 2 * bit - 1 if p.first else y
        return y.reshape(p.n, *step.shape)


def bit_words(plane: Tensor, n: int, count: int, word: torch.dtype) -> Tensor:
    """One plane ``(1, n * width)`` as words 0 and 1 ``(n, count)``."""
    line = torch.zeros(8 * plane.shape[1], dtype=word, device=plane.device)
    return planes.rows(planes.insert(plane, 0, line), n, count)
