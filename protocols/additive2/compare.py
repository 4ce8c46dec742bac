"""Comparison of a public number with a dealt secret, by digits, on bit planes.

After ``z^ = z + rho mod 2^k`` has been opened, everything one wants to know about z is a comparison of public bits of
z^ with bits of rho. Both are cut into digits of at most 6 bits. For digit j the dealer xor-shares a one-time table over
the digit's values, ``E_j[a] = [a = rho_j]``, from which ``L_j[a] = [a < rho_j]`` is the xor of all entries behind a;
reading both at z^'s public digit is a selection among planes and costs no exchange. Borrows out of the low bits are

    B_J = [z^ mod 2^.. < rho mod 2^..] = xor_{j <= J} lt_j prod_{j < i <= J} eq_i.

(of the lowest digit, L_0 is dealt). Of the top h bits, ``top(z) = top(z^) - top(rho) - w`` with w the borrow out of all
bits below. With a = top(z^), a' its low h - 1 bits, ``E[a] = [a = top(rho)]`` and, from E in the same way,
``L[a'] = [a' < rho'] xor msb(rho)``:

    in     [top(z) = 0]   = E[a] xor w (E[a] xor E[a - 1])
    nonneg [top(z) >= 0]  = 1 xor msb(a) xor L[a'] xor w (E[a] xor E[a + 2^(h-1)])
    high   [top(z) > 0]   = nonneg xor in

so one table serves at several public points. What stands in a product is opened under a mask of its own
(:mod:`gf2`), one exchange for all of it; then the parties hold xor-shares of every requested predicate under a one-time
mask each. Predicates: ``c`` the borrow out of the lowest ``shift`` bits; ``in``; ``high``; ``nonneg``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property, reduce
from itertools import product as combinations

from torch import Tensor

from protocols import planes
from protocols.additive2 import gf2
from protocols.additive2.kernel import Dealing, Party
from protocols.additive2.material import Field, Kind
from protocols.cost import Cost, plane_message
from protocols.errors import BadParameters
from protocols.planes import Builder, Program
from protocols.rounds import Steps

MAX_TOP = 6
MAX_DIGITS = 6
_WIDEST = 6
_OF_THE_TOP = {"in", "nonneg", "high"}
_OPENING_WEIGHT = 2  # an opened bit travels online, both ways: it weighs as two dealt ones

Variables = dict[str, int]


@dataclass(frozen=True)
class Plan:
    """A fixed arrangement of digits and predicates for rings of ``bits`` bits. digits: widths, the lowest first."""

    bits: int
    shift: int
    code: int
    digits: tuple[int, ...]
    predicates: tuple[str, ...]

    @property
    def top_bits(self) -> int:
        """h: bits above shift + code."""
        return self.bits - self.shift - self.code

    @cached_property
    def polynomials(self) -> tuple[gf2.Polynomial, ...]:
        """The predicates over the variables of :attr:`variables`, without public parts."""
        v = self.variables
        borrow: gf2.Polynomial = frozenset()
        at, c = 0, borrow
        for j, width in enumerate(self.digits):
            lt = gf2.variable(v[f"lt{j}"])
            borrow = gf2.plus(lt, gf2.times(borrow, v[f"eq{j}"])) if j else lt
            at += width
            c = borrow if at == self.shift else c
        out = {"c": c}
        if self.top_bits > 1:
            out["in"] = gf2.plus(gf2.variable(v["is"]), gf2.times(borrow, v["is gate"]))
            out["nonneg"] = gf2.plus(gf2.variable(v["sign"]), gf2.times(borrow, v["sign gate"]))
        else:
            out["in"] = out["nonneg"] = gf2.plus(gf2.variable(v["sign"]), borrow)
        out["high"] = gf2.plus(out["nonneg"], out["in"])
        return tuple(out[p] for p in self.predicates)

    @cached_property
    def variables(self) -> Variables:
        """Bits that the parties read from tables, by name; those that gate others come later."""
        names = [f"{kind}{j}" for j in range(len(self.digits)) for kind in ("lt", "eq") if j or kind == "lt"]
        return {name: i for i, name in enumerate([*names, "is", "sign", "is gate", "sign gate"])}

    @cached_property
    def opened(self) -> tuple[int, ...]:
        """The variables that are opened, in the order of the message."""
        return gf2.in_products(self.polynomials)

    @cached_property
    def monomials(self) -> tuple[gf2.Monomial, ...]:
        """The dealt products of masks."""
        return gf2.monomials(self.polynomials)

    @cached_property
    def tables(self) -> dict[str, tuple[int, int]]:
        """Name of each dealt table -> (its first plane, its entries)."""
        sizes = {f"E{j}" if j else "L0": 1 << w for j, w in enumerate(self.digits)}
        if self._reads_top:
            sizes |= {"E": 1 << self.top_bits} if self.top_bits > 1 else {"L": 1}
        out, at = {}, 0
        for name, entries in sizes.items():
            out[name] = (at, entries)
            at += entries
        return out

    @property
    def _reads_top(self) -> bool:
        return bool(_OF_THE_TOP & set(self.predicates))

    @cached_property
    def mask_at(self) -> int:
        """First plane of the predicates' masks; the monomials follow them."""
        return sum(entries for _, entries in self.tables.values())

    @cached_property
    def planes(self) -> int:
        """Dealt bits a value."""
        return self.mask_at + len(self.predicates) + len(self.monomials)

    def fields(self, count: int) -> tuple[Field, ...]:
        """Tables, masks and monomials; and the masks as the dealer draws them."""
        own = len(self.opened) + len(self.predicates)
        return (Field("planes", Kind.BITS, count, self.planes), Field("masks", Kind.DEALER, count, own))

    def online(self, n: int, count: int) -> Cost:
        """One exchange of the opened bits (none if no bit has to be opened)."""
        return plane_message(n, count, len(self.opened)) if self.opened else Cost()

    # ------------------------------------------------------------------ programs

    @cached_property
    def dealing(self) -> Program:
        """The dealer's: planes of rho, its own masks, P0's planes -> P1's planes."""
        b = Builder()
        out: list[int | None] = []
        at = 0
        for j, w in enumerate(self.digits):
            rho = [b.load(0, at + i) for i in range(w)]
            out += equal(b, rho) if j else less(b, rho)
            at += w
        if self._reads_top:
            top = [b.load(0, at + i) for i in range(self.top_bits)]
            out += equal(b, top) if self.top_bits > 1 else top
        count = len(self.opened)
        out += [b.load(1, count + i) for i in range(len(self.predicates))]
        masks = {variable: b.load(1, i) for i, variable in enumerate(self.opened)}
        out += gf2.deal_products(b, masks, self.monomials)
        return b.finish([b.xor(plane, b.load(2, i)) for i, plane in enumerate(out)])

    @cached_property
    def opening(self) -> Program:
        """A party's first part: its share of z^, the other's, its dealt planes -> the middle digits and the top of z^
        (``bits - shift`` planes), then the shares of the opened bits, then those of the bits read but not opened."""
        b = Builder()
        z = b.add([b.load(0, i) for i in range(self.bits)], [b.load(1, i) for i in range(self.bits)])
        known = [b.zero() if x is None else x for x in z]
        read = self._reads(b, known)
        monomial = self._monomial_at
        masked = [b.xor(read[i], b.load(2, monomial[frozenset({i})])) for i in self.opened]
        return b.finish([*known[self.shift :], *masked, *(read[i] for i in self._unopened)])

    def evaluation(self, first: bool) -> Program:
        """Its second part: its shares of the opened bits, the other's, the first part's result, its dealt planes
        -> shares of the masked predicates."""
        return self._evaluations[first]

    @cached_property
    def _evaluations(self) -> dict[bool, Program]:
        return {first: self._evaluation(first) for first in (False, True)}

    def _evaluation(self, first: bool) -> Program:
        b = Builder()
        at = self.bits - self.shift
        opened = {i: b.sum(b.load(0, j), b.load(1, j)) for j, i in enumerate(self.opened)}
        read: dict[int, int | None] = {i: b.load(2, at + len(self.opened) + j) for j, i in enumerate(self._unopened)}
        if first and (sign := self.variables["sign"]) in read:
            # The public part of the sign, 1 xor msb(a), is added by one party.
            read[sign] = b.xor(read[sign], b.xor(b.ones(), b.load(2, at - 1)))
        where = self._monomial_at
        shares = gf2.Evaluation(b, opened, read, lambda t: b.load(3, where[t]), first)
        out = [b.xor(shares.share(p), b.load(3, self.mask_at + i)) for i, p in enumerate(self.polynomials)]
        return b.finish(out)

    @cached_property
    def _monomial_at(self) -> dict[gf2.Monomial, int]:
        start = self.mask_at + len(self.predicates)
        return {t: start + i for i, t in enumerate(self.monomials)}

    @cached_property
    def _unopened(self) -> tuple[int, ...]:
        used = {i for p in self.polynomials for m in p for i in m}
        return tuple(sorted(used - set(self.opened)))

    def _reads(self, b: Builder, z: list[int]) -> dict[int, int | None]:
        """Shares of every variable: dealt tables at public digits."""
        out: dict[str, int | None] = {}

        def table(name: str) -> list[int | None]:
            first, entries = self.tables[name]
            return [b.load(2, first + i) for i in range(entries)]

        at = 0
        for j, w in enumerate(self.digits):
            index = z[at : at + w]
            if j:
                entries = table(f"E{j}")
                out |= {f"lt{j}": b.select(behind(b, entries), index), f"eq{j}": b.select(entries, index)}
            else:
                out["lt0"] = b.select(table("L0"), index)
            at += w
        top = z[at:]
        if self._reads_top and self.top_bits > 1:
            entries, half = table("E"), 1 << (self.top_bits - 1)
            here = b.select(entries, top)
            before = b.select([*entries[-1:], *entries[:-1]], top)
            across = b.select([*entries[half:], *entries[:half]], top)
            either = [b.xor(low, high) for low, high in zip(entries[:half], entries[half:], strict=True)]
            negative = reduce(b.xor, entries[half:])
            sign = b.xor(b.select(behind(b, either), top[:-1]), negative)
            out |= {"is": here, "is gate": b.xor(here, before), "sign": sign, "sign gate": b.xor(here, across)}
        elif self._reads_top:
            out["sign"] = table("L")[0]
        return {i: out[name] for name, i in self.variables.items() if name in out}


def less(b: Builder, rho: list[int]) -> list[int | None]:
    """``[a < rho]`` for every a, from the bits of rho."""
    out: list[int | None] = [None]
    for bit in rho:
        both = [b.land(bit, entry) for entry in out]
        either = [b.xor(b.xor(bit, entry), t) for entry, t in zip(out, both, strict=True)]
        out = [*either, *both]
    return out


def equal(b: Builder, rho: list[int]) -> list[int | None]:
    """``[a = rho]`` for every a."""
    out: list[int | None] = [b.ones()]
    for bit in rho:
        with_bit = [b.land(bit, entry) for entry in out]
        out = [*(b.xor(entry, t) for entry, t in zip(out, with_bit, strict=True)), *with_bit]
    return out


def behind(b: Builder, entries: list[int | None]) -> list[int | None]:
    """For every a the xor of all entries after the one at a."""
    out: list[int | None] = [None]
    for entry in reversed(entries[1:]):
        out.append(b.xor(out[-1], entry))
    return out[::-1]


@cache
def plan(bits: int, shift: int, code: int, predicates: tuple[str, ...]) -> Plan:
    """The arrangement of digits with the fewest dealt and opened bits; none crosses ``shift``."""
    h = bits - shift - code
    if not 1 <= h <= MAX_TOP and _OF_THE_TOP & set(predicates):
        raise BadParameters(f"the top digit would have {h} bits; between 1 and {MAX_TOP} are offered")
    choices = [
        Plan(bits, shift, code, (*low, *middle), predicates)
        for low, middle in combinations(cuts(shift), cuts(code))
        if len(low) + len(middle) <= MAX_DIGITS
    ]
    if not choices:
        raise BadParameters(f"comparing {shift} + {code} bits takes more than the {MAX_DIGITS} digits offered")
    return min(choices, key=lambda p: (p.planes + _OPENING_WEIGHT * len(p.opened), p.digits))


@cache
def cuts(bits: int) -> tuple[tuple[int, ...], ...]:
    """Near-equal cuts of ``bits`` into digits, wider ones first."""
    out = []
    for parts in range(-(-bits // _WIDEST), MAX_DIGITS + 1):
        if parts and bits >= parts:
            small, more = divmod(bits, parts)
            out.append(tuple(small + (i < more) for i in range(parts)))
    return tuple(out) if bits else ((),)


# --- the dealer and the parties ---------------------------------------------------------------------------------


def deal(p: Plan, name: str, rho: Tensor, d: Dealing) -> Tensor:
    """Deal all tables for secrets rho ``(n, count)``; returns the planes of the predicates' masks to the dealer."""
    masks = d.own(name, "masks")
    d.give_planes(
        name, "planes", lambda first: p.dealing.run(planes.extract(planes.level(rho), 0, p.bits), masks, first)
    )
    return masks[len(p.opened) :]


def run(p: Plan, name: str, party: Party, dealt: Tensor, share: Tensor, rho: Tensor) -> Steps[tuple[Tensor, Tensor]]:
    """Open ``z + rho`` from shares of both (lines of words), compare.

    Returns the public bits of z^ above ``shift`` (planes), and this party's shares of the masked predicates. Exchanges:
    z^, then the opened bits, if any.
    """
    own = planes.extract_sum(share, rho, p.bits)
    other = yield from party.swap_planes(name, own)
    first = p.opening.run(own, other, dealt)
    at = p.bits - p.shift
    mine = first[at : at + len(p.opened)]
    theirs = mine
    if p.opened:
        theirs = yield from party.swap_planes(f"{name}.digits", mine)
    facts = p.evaluation(party.first).run(_or_none(mine, first), _or_none(theirs, first), first, dealt)
    return first[:at], facts


def _or_none(x: Tensor, like: Tensor) -> Tensor:
    """Programs take their width from their inputs: an input without planes still has one."""
    return x if x.shape[0] else like[:1]
