"""Comparison of a public number with a dealt secret, by digits.

After ``z^ = z + rho mod 2^k`` has been opened, everything one wants to know about z is a comparison of public bits of
z^ with bits of rho. Both are cut into digits of at most 6 bits. For digit j the dealer xor-shares two one-time tables
over the digit's values, ``L_j[a] = [a < rho_j] ^ lambda_j`` and ``E_j[a] = [a = rho_j] ^ epsilon_j``; reading them
at z^'s public digit costs nothing. Borrows out of the low bits are

    B_J = [z^ mod 2^.. < rho mod 2^..] = xor_{j <= J} lt_j prod_{j < i <= J} eq_i,

and facts about the top h bits (``top(z) = top(z^) - top(rho) - borrow``) are a table ``X0`` over the top digit for "no
borrow" and ``G = X0 ^ X1`` for what a borrow changes, so that the fact is ``X0 ^ G * borrow``. All are products of
masked bits (:mod:`gf2`): one exchange opens the masked digit bits, after which the parties hold xor-shares of every
requested predicate under its own one-time mask.

Predicates: ``c`` the borrow out of the lowest ``shift`` bits; ``w`` the borrow out of the lowest ``shift + code`` bits;
``in`` top(z) = 0; ``high`` top(z) > 0 as a signed number; ``nonneg`` top(z) >= 0 as a signed number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from protocols import ring
from protocols.additive2 import gf2
from protocols.additive2.kernel import Dealing, Party, lanes
from protocols.additive2.material import Field
from protocols.cost import Cost, message
from protocols.errors import BadParameters
from protocols.rounds import Steps

MAX_TOP = 6
MAX_DIGITS = 6


@dataclass(frozen=True)
class Digit:
    """Bits ``low .. low+width-1`` of z^; ``lt``, ``eq``: positions of its opened bits (eq is -1 for the lowest)."""

    low: int
    width: int
    lt: int
    eq: int

    @property
    def tables(self) -> int:
        """L alone, or L and E."""
        return 1 if self.eq < 0 else 2


@dataclass(frozen=True)
class Top:
    """A predicate of the top digit: its name, whether a borrow's effect varies (then G is opened), G's variable."""

    name: str
    gate: int

    @property
    def tables(self) -> int:
        """X0 alone, or X0 and G."""
        return 1 if self.gate < 0 else 2


@dataclass(frozen=True)
class Plan:
    """A fixed arrangement of digits and predicates for rings of ``bits`` bits."""

    bits: int
    shift: int
    code: int
    digits: tuple[Digit, ...]
    tops: tuple[Top, ...]
    expansion: gf2.Expansion

    @property
    def top_bits(self) -> int:
        """h: bits above shift + code."""
        return self.bits - self.shift - self.code

    @property
    def opened(self) -> int:
        """Masked bits each party sends per value."""
        return self.expansion.variables

    @property
    def predicates(self) -> tuple[str, ...]:
        """In the order of the masks."""
        return self.expansion.predicates

    def fields(self, count: int) -> tuple[Field, ...]:
        """Digit tables, top tables and mask monomials for ``count`` values."""
        out: list[Field] = []
        for j, d in enumerate(self.digits):
            out += lanes(f"digit{j}", count, d.tables << d.width)
        for t in self.tops:
            out += lanes(t.name, count, t.tables << self.top_bits)
        return (*out, *lanes("products", count, self.expansion.bits))

    def online(self, n: int, count: int) -> Cost:
        """One exchange of the opened bits (none if no digit has to be opened)."""
        return message(n * count, self.opened) if self.opened else Cost()


_FACTS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "in": lambda top, h: top == 0,
    "high": lambda top, h: (top >= 1) & (top < (1 << (h - 1))),
    "nonneg": lambda top, h: top < (1 << (h - 1)),
}


def _widths(shift: int, code: int) -> list[int]:
    """Digits of at most 4 bits (16-entry tables) where five of them do, wider where not; none crosses ``shift``."""
    for most in (4, 5, 6):
        parts = [[n * (i + 1) // m - n * i // m for i in range(m)] for n in (shift, code) if (m := -(-n // most))]
        widths = [w for part in parts for w in part]
        if len(widths) <= MAX_DIGITS - 1:
            return widths
    if len(widths) > MAX_DIGITS:
        raise BadParameters(f"comparing {shift} + {code} bits takes {len(widths)} digits; {MAX_DIGITS} are offered")
    return widths


@cache
def plan(bits: int, shift: int, code: int, tops: tuple[str, ...], borrows: tuple[str, ...]) -> Plan:
    """Arrange digits for a ring of ``bits`` bits: low ``shift``, then ``code``, then the top digit of what is left."""
    h = bits - shift - code
    if not 1 <= h <= MAX_TOP:
        raise BadParameters(f"the top digit would have {h} bits; between 1 and {MAX_TOP} are offered")
    low, count, digits = 0, 0, []
    borrow: dict[int, gf2.Polynomial] = {0: frozenset()}
    for j, width in enumerate(_widths(shift, code)):
        lt, eq = count, count + 1 if j else -1
        count += 2 if j else 1
        carried = gf2.times(borrow[low], eq) if j else frozenset()
        digits.append(Digit(low, width, lt, eq))
        low += width
        borrow[low] = gf2.plus(gf2.variable(lt), carried)
    total = borrow[shift + code]
    made, predicates = [], {b: borrow[shift if b == "c" else shift + code] for b in borrows}
    for name in tops:
        varies = h > 1 and bool(total)
        made.append(Top(name, count if varies else -1))
        predicates[name] = gf2.times(total, count) if varies else total
        count += int(varies)
    return Plan(bits, shift, code, tuple(digits), tuple(made), gf2.expand(count, predicates))


# --- the dealer -------------------------------------------------------------------------------------------------


def deal(p: Plan, name: str, rho: Tensor, d: Dealing) -> dict[str, Tensor]:
    """Deal all tables for secrets rho ``(n, count)``; returns each predicate's mask (0/1 int32) to the dealer."""
    index = d.random.words(tuple(rho.shape), 32) & ((1 << p.opened) - 1)
    for j, digit in enumerate(p.digits):
        at = ring.field(rho, digit.low, digit.width).to(torch.int64)
        words = [(1 << at) - 1] if digit.eq < 0 else [(1 << at) - 1, 1 << at]
        _give_tables(d, name, f"digit{j}", words, index >> digit.lt, 1 << digit.width)
    h = p.top_bits
    top = ring.field(rho.to(torch.int64), p.shift + p.code, h)
    for t in p.tops:
        fact = _FACTS[t.name]
        without, with_borrow = _rotated(fact, h, 0)[top], _rotated(fact, h, 1)[top]
        # X0 is never opened and needs no flip; G is opened as variable ``gate``.
        words = [without] if t.gate < 0 else [without, without ^ with_borrow]
        flips = index & 0 if t.gate < 0 else ((index >> t.gate) & 1) << 1
        _give_tables(d, name, t.name, words, flips, 1 << h)
    return _deal_products(p, name, index, d)


def _rotated(fact: Callable[[Tensor, int], Tensor], h: int, borrow: int) -> Tensor:
    """For each rho in [0, 2^h): the word whose bit v is ``fact(v - rho - borrow mod 2^h)``; int64."""
    v = torch.arange(1 << h)
    truth = fact((v[None, :] - v[:, None] - borrow) & ((1 << h) - 1), h).to(torch.int64)
    return (truth << v).sum(1)


def _give_tables(d: Dealing, step: str, name: str, words: list[Tensor], flips: Tensor, entries: int) -> None:
    """Xor-share tables of ``entries`` bits, each held in an int64 word, side by side in one field.

    Table i is flipped as a whole where bit i of ``flips`` is set: what is read from it is then masked.
    """
    every = (1 << entries) - 1 if entries < 64 else -1
    masked = [word ^ -((flips >> i) & 1).to(torch.int64) for i, word in enumerate(words)]
    if entries * len(words) <= 32:
        joined = sum((word & every) << (i * entries) for i, word in enumerate(masked))
        d.give_xor(step, f"{name}.0", torch.as_tensor(joined))
        return
    per = -(-entries // 32)
    for i, word in enumerate(masked):
        for lane in range(per):
            d.give_xor(step, f"{name}.{i * per + lane}", (word >> (32 * lane)) & 0xFFFFFFFF)


def _deal_products(p: Plan, name: str, index: Tensor, d: Dealing) -> dict[str, Tensor]:
    e = p.expansion
    extra = ring.unsigned(d.random.words(tuple(index.shape), len(e.predicates)), len(e.predicates)).to(torch.int32)
    masks = {q: (extra >> i) & 1 for i, q in enumerate(e.predicates)}
    flat = index.reshape(-1).to(torch.int64)
    for lane in range(len(e.lanes)):
        word = torch.index_select(e.deal[lane], 0, flat).reshape(index.shape)
        for q, at in e.mask_at.items():
            if at // gf2.LANE == lane:
                word = word | (masks[q] << (at % gf2.LANE))
        d.give_xor(name, f"products.{lane}", word)
    return masks


# --- a party ----------------------------------------------------------------------------------------------------

Ready = dict[str, Tensor]


def prepare(p: Plan, name: str, party: Party, count: int) -> Ready:
    """Read this step's dealt words."""
    return {f.name: party.material.take(name, f.name) for f in p.fields(count)}


def run(p: Plan, name: str, party: Party, ready: Ready, z_hat: Tensor) -> Steps[Tensor]:
    """Xor-share of all masked predicates, one bit each (bit i = predicate i), int32 ``(n, count)``: one exchange."""
    own = torch.zeros(z_hat.shape, dtype=torch.int32)
    for j, digit in enumerate(p.digits):
        at = ring.field(z_hat, digit.low, digit.width)
        own |= _read(ready, f"digit{j}", at, digit.tables, 1 << digit.width) << digit.lt
    top = ring.field(z_hat if z_hat.element_size() == 4 else z_hat.to(torch.int32), p.shift + p.code, p.top_bits)
    facts = {}
    for t in p.tops:
        both = _read(ready, t.name, top, t.tables, 1 << p.top_bits)
        facts[t.name] = both & 1
        if t.gate >= 0:
            own |= (both >> 1) << t.gate
    index = own
    if p.opened:
        index = yield from party.open_bits(f"{name}.digits", own, p.opened)
    flat = (index & ((1 << p.opened) - 1)).reshape(-1)
    out = torch.zeros_like(own)
    if party.first:
        out = torch.index_select(p.expansion.public, 0, flat).reshape(own.shape)
    for i, q in enumerate(p.predicates):
        share = _selected(p.expansion, q, ready, flat).reshape(own.shape)
        if q in facts:
            share = share ^ facts[q]
        out = out ^ (share << i)
    return out


def _read(ready: Ready, name: str, at: Tensor, tables: int, entries: int) -> Tensor:
    """Bit ``at`` of each of one or two dealt tables, as bits 0 and 1 of an int32."""
    if entries * tables <= 32:
        word = ready[f"{name}.0"] >> at
        return ((word & 1) if tables == 1 else (word & 1) | ((word >> (entries - 1)) & 2)).to(torch.int32)
    per = -(-entries // 32)
    out = torch.zeros(at.shape, dtype=torch.int32)
    for i in range(tables):
        word = ready[f"{name}.{i * per}"].to(torch.int64) & 0xFFFFFFFF
        if per == 2:
            word |= ready[f"{name}.{i * per + 1}"].to(torch.int64) << 32
        out |= ((word >> at) & 1).to(torch.int32) << i
    return out


def _selected(e: gf2.Expansion, q: str, ready: Ready, index: Tensor) -> Tensor:
    """Parity of the dealt products under the public selection."""
    total: Tensor | None = None
    for lane, table in e.select[q]:
        word = ready[f"products.{lane}"].reshape(-1).to(torch.int32) & torch.index_select(table, 0, index)
        total = word if total is None else total ^ word
    return ring.parity(total if total is not None else torch.zeros_like(index))
