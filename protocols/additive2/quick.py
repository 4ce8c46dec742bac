"""Exact shift with ReLU and clamp in two exchanges: comparison by rows (:mod:`chain`), one set of products for each
value of the opened borrow.

With ``z^ = z + rho`` open, let v and R be the code's digits of z^ and of rho, c the borrow out of the shifted-away bits
and w the one out of the code. If all bits of ``floor(z / 2^shift)`` above the code are zero ("in"), it is
``v - R - c + 2^code w``, so

    y = low + in * (v - S_w - c) + high * (2^code - 1),        S_w = R - 2^code w.

The second exchange opens c xor gamma, j = w xor omega, and for this j the bits in xor beta_j and high xor delta_j.
Which w belongs to a j the dealer knows: ``S_j = R - 2^code (j xor omega)``. With ``x = x^ + (1 - 2 x^) mask`` for every
bit, y is linear in dealt shares of gamma and, for both j, of S_j, beta_j, beta_j S_j, beta_j gamma and delta_j, so it
needs no further exchange: two, where :mod:`clamp`, with eight dealt ring elements for these eleven, takes three.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protocols import api, native, planes, ring
from protocols.additive2 import chain
from protocols.additive2.compare import MAX_TOP
from protocols.additive2.kernel import Dealing, Kernel, Party
from protocols.additive2.material import Field, Kind
from protocols.cost import Cost, plane_message
from protocols.errors import BadParameters
from protocols.rounds import Steps

_DEALT = ("S0", "S1", "gamma", "beta0", "beta1", "betaS0", "betaS1", "betagamma0", "betagamma1", "delta0", "delta1")
_OF_THE_BORROW = {"gamma", "betagamma0", "betagamma1"}
_OF_THE_TOP = {"beta1", "betagamma1", "delta0", "delta1"}


@cache
def plan(step: api.QuickClamp) -> chain.Plan:
    """The cheapest arrangement for a step. Raises :class:`BadParameters` where the bits do not fit."""
    # Never more code bits than lie between the shifted-away bits and the sign; then the upper clamp is idle.
    code = min(step.bits, step.ring - step.shift - 1)
    above = step.ring - step.shift - code
    if above > MAX_TOP:
        raise BadParameters(
            f"QuickClamp: {above} bits above the code; at most {MAX_TOP} fit one comparison: clamp to more bits "
            "first, then to these"
        )
    return chain.plan(step.ring, step.shift, code)


@cache
def _dealt(made: chain.Plan) -> tuple[str, ...]:
    """Names of the dealt ring elements, in their order."""
    absent = (set() if made.shift else _OF_THE_BORROW) | (set() if made.top_bits > 1 else _OF_THE_TOP)
    return tuple(name for name in _DEALT if name not in absent)


@cache
def _rows(made: chain.Plan) -> NDArray[np.int64]:
    """Where each of :data:`_DEALT` stands; -1: not there. With one bit on top, both j share what is of beta."""
    dealt = _dealt(made)
    same = {"beta1": "beta0", "betagamma1": "betagamma0"} if made.top_bits == 1 else {}
    names = [same.get(name, name) for name in _DEALT]
    return np.array([dealt.index(name) if name in dealt else -1 for name in names])


@dataclass(frozen=True, eq=False)
class Material:
    """A party's material of one batch. rho: a line of words. planes: of the comparison. dealt: lines of words."""

    rho: Tensor
    planes: Tensor
    dealt: Tensor


class QuickClampKernel(Kernel[api.QuickClamp]):
    """Two exchanges; see the module's formula."""

    def fields(self, step: api.QuickClamp) -> tuple[Field, ...]:
        """rho, the comparison's planes, and up to eleven ring elements."""
        made = plan(step)
        elements = len(_dealt(made)) * 8 * planes.width(step.count)
        dealt = Field("dealt", Kind.DEALT, elements, step.ring_out)
        return (Field("rho", Kind.MASK, step.count, step.ring), *made.fields(step.count), dealt)

    def online(self, step: api.QuickClamp, n: int) -> Cost:
        """z^, the rows."""
        return plane_message(n, step.count, step.ring) + plan(step).online(n, step.count)

    def deal(self, step: api.QuickClamp, name: str, inputs: tuple[str, ...], d: Dealing) -> None:
        """Tables for rho, then the products that the result is linear in."""
        made, line, masks = plan(step), planes.level(d.mask(name, "rho")), d.own(name, "masks")
        digits = planes.extract(line, 0, made.bits)
        d.give_planes(name, "planes", lambda first: made.dealing.run(digits, masks, first))
        facts = _masks(made, masks, digits[-1])
        d.give_lines(name, "dealt", len(_dealt(made)), lambda first: _elements(made, line, facts, first))

    def prepare(self, step: api.QuickClamp, name: str, inputs: tuple[str, ...], p: Party) -> Material:
        """Read the material."""
        parts = len(_dealt(plan(step)))
        rho, dealt = planes.level(p.material.take(name, "rho")), planes.lines(p.material.take(name, "dealt"), parts)
        return Material(rho, p.material.take(name, "planes"), dealt)

    def run(self, step: api.QuickClamp, name: str, p: Party, ready: Material, x: Tensor) -> Steps[Tensor]:
        """Open z^, open the rows that it selects, combine."""
        made = plan(step)
        share = planes.level(ring.to_word(x.reshape(p.n, step.count), step.ring))
        own = planes.extract_sum(share, ready.rho, step.ring)
        other = yield from p.swap_planes(name, own)
        first = made.opening.run(own, other, ready.planes)
        mine = first[step.ring - step.shift :]
        theirs = yield from p.swap_planes(f"{name}.digits", mine)
        facts = made.evaluation.run(mine, theirs, first)
        y = _finish(made, step, p.first, ready.dealt, first[: made.code], facts)
        return planes.rows(y, p.n, step.count).reshape(p.n, *step.shape)


def _masks(made: chain.Plan, own: Tensor, top: Tensor) -> Tensor:
    """Planes of the facts' masks, in the order of :data:`chain.MASKS`; zeros for what there is not."""
    at = made.masks()
    rows = [own[at[name]] if name in at else torch.zeros_like(top) for name in chain.MASKS]
    if made.top_bits == 1:  # "in" is known with the borrow
        rows[2] = rows[3] = rows[1] ^ top
    return torch.stack(rows)


def _elements(made: chain.Plan, rho: Tensor, masks: Tensor, first: Tensor) -> Tensor:
    """P1's lines of the dealt elements: their values less P0's lines ``first``."""
    if (fast := native.clamps()) is not None and first.device.type == "cpu":
        out = torch.empty_like(first)
        arrays = (masks.numpy(), _rows(made), made.shift, made.code, first.numpy(), out.numpy())
        fast.quick_elements(rho.contiguous().numpy(), *arrays)
        return out
    gamma, omega, *others = (_words(mask, first[0]) for mask in masks)
    digit = ring.field(rho.to(torch.int64), made.shift, made.code).to(first.dtype)
    values = {"gamma": gamma}
    for j in (0, 1):
        beta, s = others[j], digit - ((omega ^ j) << made.code)
        values |= {f"S{j}": s, f"beta{j}": beta, f"betaS{j}": beta * s, f"betagamma{j}": beta * gamma}
        values |= {f"delta{j}": others[2 + j]}
    return torch.stack([values[name] for name in _dealt(made)]) - first


def _words(plane: Tensor, like: Tensor) -> Tensor:
    """A plane as words 0 and 1."""
    return planes.insert(plane.unsqueeze(0), 0, torch.zeros_like(like))


def _finish(made: chain.Plan, step: api.QuickClamp, first: bool, dealt: Tensor, v: Tensor, facts: Tensor) -> Tensor:
    """y from the public digits v and the opened facts (planes), and the dealt lines."""
    if (fast := native.clamps()) is not None and dealt.device.type == "cpu":
        out = torch.empty(dealt.shape[1], dtype=dealt.dtype)
        arrays = (_rows(made), int(first), made.code, step.low, dealt.numpy(), out.numpy())
        fast.quick_end(v.numpy(), facts.numpy(), *arrays)
        return out
    named = dict(zip(_DEALT, (dealt[i] if i >= 0 else torch.zeros_like(dealt[0]) for i in _rows(made)), strict=True))
    c, j, inside, high = (_words(fact, dealt[0]) for fact in facts)
    s, beta, product, gated, delta = (
        torch.where(j == 1, named[f"{name}1"], named[f"{name}0"])
        for name in ("S", "beta", "betaS", "betagamma", "delta")
    )
    public = planes.insert(v, 0, torch.zeros_like(c)) - c
    outer = (public if first else 0) - s - (1 - 2 * c) * named["gamma"]
    inner = public * beta - product - (1 - 2 * c) * gated
    y = inside * outer + (1 - 2 * inside) * inner
    y = y + ((1 << made.code) - 1) * ((high if first else 0) + (1 - 2 * high) * delta)
    return y + step.low if first else y
