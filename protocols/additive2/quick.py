"""Exact shift with ReLU and clamp in two exchanges: products of masked bits, dealt in the ring of the result.

With ``z^ = z + rho`` open, cut z^ and rho into the ``shift`` lowest bits (u and rho_u), the code's bits (v and R), and
h bits on top (whose difference is d). Before any borrow the index is ``i = v - R + 2^code d``; its true value is
``i - c`` for the borrow ``c = [u < rho_u]``. A clamp T then gives ``T[i - c] = T[i] - c (T[i] - T[i-1])``; T changes
in two places only: on its ramp, by one, and where the ring closes, from its top to 0. With the bits

    a0 = [d = 0],  a1 = [d = 1],  s = [d = -2^(h-1)],  m = [1 < d < 2^(h-1)],  L = [v < R],  E = [v = R]

the ramp is ``D = a0 (1 - L - E) + a1 L``, and

    y = low + D (v - R - c) + 2^code a1 L + (2^code - 1) (m + a1 (1 - L) + s (L + E c))

(h = 1: d is 0 or 1, and 1 is -1: s = a1 = 1 - a0, m = 0, and of the last bracket only ``s E c`` is left).

Every bit compares *public* bits of z^ with bits of rho that the dealer knows: it is read from a one-time xor-shared
table under its own mask, at no exchange, and opened. With ``x = x^ + (1 - 2 x^) mask`` a product of such bits is linear
in dealt shares of products of their masks, so y needs no further exchange: two, where the comparison of :mod:`clamp`,
which deals single bits instead of ring elements, takes three. ``c`` comes from one table of 2^shift bits, or from two
halves (``c = L1 + E1 L0``) where the larger number of products is cheaper than the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, reduce
from itertools import combinations
from operator import mul

import numpy as np
import torch
from torch import Tensor

from protocols import api, planes, ring
from protocols.additive2.kernel import Dealing, Kernel, Party
from protocols.additive2.material import Field, Kind
from protocols.cost import Cost, message, plane_message
from protocols.errors import BadParameters
from protocols.rounds import Steps

MAX_CODE = 8
MAX_SHIFT = 16
MAX_TOP = 6
_MAX_BORROW = 10
_ROWS = 64
_R = "R"

Term = frozenset[str]
Sum = dict[tuple[str, ...], int]
Fact = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Bit:
    """One opened bit: read from a table over bits ``low .. low+width-1`` of z^; ``fact(z^'s digit, rho's digit)``."""

    name: str
    low: int
    width: int
    fact: Fact


@dataclass(frozen=True, eq=False)
class Plan:
    """The bits to be opened, in order; y as a polynomial; the dealt products of masks, with R where it is among them.

    weights[term] = (a, b): y is the sum of (a + b v) times the product of the term's bits (and R).
    """

    code: int
    bits: tuple[Bit, ...]
    weights: dict[Term, tuple[int, int]]
    products: tuple[Term, ...]

    @property
    def entries(self) -> int:
        """Of all tables of one value together."""
        return sum(1 << bit.width for bit in self.bits)

    def dealt_bits(self, ring_out: int) -> int:
        """Bits dealt for one value."""
        return self.entries + ring_out * len(self.products)


def _lt(a: Tensor, b: Tensor) -> Tensor:
    return a < b


def _eq(a: Tensor, b: Tensor) -> Tensor:
    return a == b


def _difference(h: int, least: int, beyond: int) -> Fact:
    """``least <= d < beyond`` for the difference d mod 2^h."""

    def fact(a: Tensor, b: Tensor) -> Tensor:
        d = (a - b) & ((1 << h) - 1)
        return (d >= least) & (d < beyond)

    return fact


@cache
def plan(step: api.QuickClamp) -> Plan:
    """The cheapest arrangement for a step. Raises :class:`BadParameters` where the bits do not fit its tables."""
    code = min(step.bits, step.ring - step.shift - 1)
    top = step.ring - step.shift - code
    if not 1 <= code <= MAX_CODE or top > MAX_TOP or step.shift > MAX_SHIFT:
        raise BadParameters(
            f"QuickClamp: shift by {step.shift}, {code} bits of code, {top} above; at most {MAX_SHIFT}, 1 to "
            f"{MAX_CODE} and {MAX_TOP} are offered: use Clamp"
        )
    options = [_arranged(step.shift, code, top, split) for split in (False, True) if step.shift > 1 or not split]
    fitting = [p for p in options if all(bit.width <= _MAX_BORROW for bit in p.bits)]
    return min(fitting, key=lambda p: p.dealt_bits(step.ring_out))


@cache
def _arranged(shift: int, code: int, h: int, split: bool) -> Plan:
    bits: list[Bit] = []
    borrow: tuple[Term, ...] = ()
    if split:
        half = shift // 2
        bits += [Bit("c0", 0, half, _lt), Bit("c1", half, shift - half, _lt), Bit("e1", half, shift - half, _eq)]
        borrow = (frozenset({"c1"}), frozenset({"e1", "c0"}))
    elif shift:
        bits.append(Bit("c", 0, shift, _lt))
        borrow = (frozenset({"c"}),)
    bits += [Bit("L", shift, code, _lt), Bit("E", shift, code, _eq)]
    at, seam = shift + code, 1 << (h - 1)
    bits.append(Bit("a0", at, h, _difference(h, 0, 1)))
    if h > 1:
        bits += [Bit("a1", at, h, _difference(h, 1, 2)), Bit("s", at, h, _difference(h, seam, seam + 1))]
    if h > 2:
        bits.append(Bit("m", at, h, _difference(h, 2, seam)))
    weights = _polynomial(code, h, borrow)
    products: dict[Term, None] = {}
    for term in sorted(weights, key=lambda t: weights[t][1] == 0):  # what v multiplies stands first
        masks = sorted(term - {_R})
        for chosen in (frozenset(c) for size in range(len(masks) + 1) for c in combinations(masks, size)):
            products[chosen | (term & {_R})] = None
    products.pop(frozenset(), None)
    return Plan(code, tuple(bits), weights, tuple(products))


def _polynomial(code: int, h: int, borrow: tuple[Term, ...]) -> dict[Term, tuple[int, int]]:
    """y - low, by the formula of the module."""
    total: dict[Term, tuple[int, int]] = {}
    ramp: Sum
    raised: Sum
    seam: Sum

    def add(term: Term, a: int, b: int = 0) -> None:
        before = total.get(term, (0, 0))
        total[term] = before[0] + a, before[1] + b

    if h > 1:
        ramp = {("a0",): 1, ("a0", "L"): -1, ("a0", "E"): -1, ("a1", "L"): 1}
        raised, seam = {("a1", "L"): 1}, {("s", "E"): 1}
    else:
        ramp = {("a0",): 1, ("a0", "L"): -2, ("a0", "E"): -1, ("L",): 1}
        raised, seam = {("L",): 1, ("a0", "L"): -1}, {("E",): 1, ("a0", "E"): -1}
    high = (1 << code) - 1
    for names, w in ramp.items():
        add(frozenset(names), 0, w)
        add(frozenset({*names, _R}), -w)
        for c in borrow:
            add(frozenset(names) | c, -w)
    for names, w in raised.items():
        add(frozenset(names), w << code)
    for names, w in seam.items():
        for c in borrow:
            add(frozenset(names) | c, w * high)
    above: Sum = {("a1",): 1, ("a1", "L"): -1, ("s", "L"): 1} if h > 1 else {}
    middle: Sum = {("m",): 1} if h > 2 else {}
    for names, w in (above | middle).items():
        add(frozenset(names), w * high)
    return total


@cache
def _coefficients(step: api.QuickClamp) -> tuple[Tensor, Tensor]:
    """What multiplies 1 and each dealt product, for every value of the opened bits, and what further multiplies v:
    ``(2^bits, 1 + products)`` each, in the word of the result."""
    made = plan(step)
    names = [bit.name for bit in made.bits]
    column = {term: i for i, term in enumerate((frozenset[str](), *made.products))}
    index = torch.arange(1 << len(names))
    opened = {name: (index >> i) & 1 for i, name in enumerate(names)}
    plain, by_v = (torch.zeros((len(index), len(column)), dtype=torch.int64) for _ in range(2))
    plain[:, 0] = step.low
    for term, (a, b) in made.weights.items():
        own = sorted(term - {_R})
        for masks in (set(c) for size in range(len(own) + 1) for c in combinations(own, size)):
            factor = torch.ones_like(index)
            for name in own:
                factor = factor * (1 - 2 * opened[name] if name in masks else opened[name])
            at = column[frozenset(masks) | (term & {_R})]
            plain[:, at] += a * factor
            by_v[:, at] += b * factor
    used, word = int(by_v.any(0).nonzero().max()) + 1, ring.word(step.ring_out)
    return plain.to(word), by_v[:, :used].to(word).contiguous()


class QuickClampKernel(Kernel[api.QuickClamp]):
    """Two exchanges; see the module's formula."""

    def fields(self, step: api.QuickClamp) -> tuple[Field, ...]:
        """rho, the bits' masks, their tables entry by entry, and the products of masks in the ring of the result."""
        made = plan(step)
        return (
            Field("rho", Kind.MASK, step.count, step.ring),
            Field("masks", Kind.DEALER, step.count, len(made.bits)),
            Field("tables", Kind.BITS, step.count, made.entries),
            Field("products", Kind.DEALT, step.count * len(made.products), step.ring_out),
        )

    def online(self, step: api.QuickClamp, n: int) -> Cost:
        """z^, the bits."""
        return message(n * step.count, step.ring) + plane_message(n, step.count, len(plan(step).bits))

    def deal(self, step: api.QuickClamp, name: str, inputs: tuple[str, ...], d: Dealing) -> None:
        """Tables for rho, flipped as a whole where their bit's mask is 1, and the products, value after value."""
        made, word = plan(step), ring.word(step.ring_out)
        rho = planes.level(ring.unsigned(d.mask(name, "rho"), step.ring)).to(torch.int64)
        masks = d.own(name, "masks")
        d.give_planes(name, "tables", lambda first: _tables(made, rho, masks).bitwise_xor_(first))
        drawn = planes.insert(masks, 0, torch.zeros(len(rho), dtype=torch.int32))
        known = {bit.name: ((drawn >> i) & 1).to(word) for i, bit in enumerate(made.bits)}
        known[_R] = ring.field(rho, step.shift, made.code).to(word)
        products = torch.stack([reduce(mul, [known[x] for x in sorted(term)]) for term in made.products], 1)
        lines = products.reshape(d.n, 8 * planes.width(step.count), len(made.products))
        d.give(name, "products", lines[:, : step.count].reshape(d.n, step.count * len(made.products)))

    def prepare(self, step: api.QuickClamp, name: str, inputs: tuple[str, ...], p: Party) -> dict[str, Tensor]:
        """Read the material."""
        ready = {key: p.material.take(name, key) for key in ("rho", "tables", "products")}
        return ready | {"products": ready["products"].reshape(-1, len(plan(step).products))}

    def run(self, step: api.QuickClamp, name: str, p: Party, ready: dict[str, Tensor], x: Tensor) -> Steps[Tensor]:
        """Open z^, read the bits' tables there, open the bits, combine."""
        made = plan(step)
        share = ring.to_word(x.reshape(p.n, step.count), step.ring) + ready["rho"]
        opened = yield from p.open(name, share, step.ring)
        z_hat = ring.unsigned(opened, step.ring).to(torch.int64)
        line = planes.level(z_hat)
        own = planes.extract(_read(made, ready["tables"], line), 0, len(made.bits))
        bits = yield from p.open_planes(f"{name}.digits", own)
        index = planes.rows(planes.insert(bits, 0, torch.zeros(len(line), dtype=torch.int32)), p.n, step.count)
        v = ring.field(z_hat, step.shift, made.code).reshape(-1)
        return _combined(step, p.first, index.reshape(-1), v, ready["products"]).reshape(p.n, *step.shape)


def _tables(made: Plan, rho: Tensor, masks: Tensor) -> Tensor:
    """Every bit's table, xor its mask, as planes: one for each value that z^'s digit can have."""
    out, at = np.empty((made.entries, len(rho) // 8), np.uint8), 0
    for i, bit in enumerate(made.bits):
        every = torch.arange(1 << bit.width, dtype=torch.int16)
        digit = ring.field(rho, bit.low, bit.width).to(torch.int16)
        for first in range(0, len(every), _ROWS):
            part = every[first : first + _ROWS]
            facts = bit.fact(part[:, None], digit[None, :]).numpy()
            out[at : at + len(part)] = np.packbits(facts, axis=1, bitorder="little") ^ masks[i].numpy()
            at += len(part)
    return torch.from_numpy(out)


def _read(made: Plan, tables: Tensor, z_hat: Tensor) -> Tensor:
    """This party's share of all bits at z^'s digits: bit i of int32 words ``(values,)``."""
    value = torch.arange(len(z_hat))
    place, within, at = value >> 3, (value & 7).to(torch.uint8), 0
    out = torch.zeros(len(z_hat), dtype=torch.int32)
    for i, bit in enumerate(made.bits):
        entry = tables.reshape(-1)[(at + ring.field(z_hat, bit.low, bit.width)) * tables.shape[1] + place]
        out |= ((entry >> within) & 1).to(torch.int32) << i
        at += 1 << bit.width
    return out


def _combined(step: api.QuickClamp, first: bool, index: Tensor, v: Tensor, products: Tensor) -> Tensor:
    """y: the dealt products ``(values, products)`` under the coefficients that the opened bits and v select."""
    plain, by_v = _coefficients(step)
    at = index.to(torch.int64)
    factors = plain[at]
    further = by_v[at] * v.to(plain.dtype).unsqueeze(1)
    factors[:, : further.shape[1]] += further
    y = (factors[:, 1:] * products).sum(1, dtype=plain.dtype)
    return y + factors[:, 0] if first else y
