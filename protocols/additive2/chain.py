"""Comparison by digits whose masked results come open in the very exchange that opens the digits' bits.

After ``z^ = z + rho mod 2^k`` is open, cut the bits of rho below its top into digits, the lowest first. From digit to
digit goes a *state*: the borrow s_i out of all digits up to the i-th, ``s_i = lt_i xor eq_i s_(i-1)``, and every state
has a mask m_i of its own. What a *row* of digit i tells, for the public digit a of z^, is the masked state
``t = s_i xor m_i`` and a label that belongs to it,

    V_i(s) = (s xor m_i, Q_i[s xor m_i]) = V_i(0) xor s (1, Q_i[0] xor Q_i[1]),

Q_i[0] and Q_i[1] being one-time pads for what the next row tells. A row has two halves, one for each masked state t
that may come in,

    H_i[t] = V_i(lt_i xor eq_i (t xor m_(i-1))) xor Q_(i-1)[t],

and all rows are opened at once: the first one's content is plain, and tells which half of the second can be read, and
so on. The other half stays under a pad that nobody holds. A label is as long as what it hides, so rows grow by one bit
from the last digit to the first; they consist of single bits, and their tables are E_i times a bit (``lt`` is the xor
of the entries behind, as in :mod:`compare`).

Of the h bits on top, with d = top(z^) - top(rho) and w the borrow out of everything below,

    in_w   [d - w = 0]               = E[d = w]
    high_w [0 < d - w < 2^(h-1)]     = [0 < d < 2^(h-1)] xor w ([d = 1] xor [d = 2^(h-1)])

are opened for both values j of the masked borrow, in_(j xor omega) xor beta_j and high_(j xor omega) xor delta_j, under
masks of their own; the parties use those of the j that came out. If h = 1, ``in = 1 xor top(z^) xor top(rho) xor w`` is
known with the borrow, under the mask ``beta = omega xor top(rho)``.

What is opened is uniform and independent of everything else: each masked state by its mask m_i, each label and each
half that cannot be read by a pad that hides nothing else, the bits of the top by beta and delta. So both parties' views
can be written down by somebody who knows no secret at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate
from itertools import product as combinations

from protocols.additive2.compare import MAX_DIGITS, MAX_TOP, behind, cuts, equal, less
from protocols.additive2.material import Field, Kind
from protocols.cost import Cost, plane_message
from protocols.errors import BadParameters
from protocols.planes import Builder, Program

FACTS = ("c", "w", "in", "high")
MASKS = ("gamma", "omega", "beta0", "beta1", "delta0", "delta1")
_OPENING_WEIGHT = 10  # an opened bit travels while somebody waits; dealt ones ahead of time

Bits = list[int | None]


@dataclass(frozen=True)
class Plan:
    """A fixed arrangement for rings of ``bits`` bits. digits: widths, the lowest first; none crosses ``shift``."""

    bits: int
    shift: int
    code: int
    digits: tuple[int, ...]

    @property
    def top_bits(self) -> int:
        """h: bits above shift + code."""
        return self.bits - self.shift - self.code

    def _told(self, i: int) -> int:
        """Bits that half a row of digit i tells: the masked state, and a label for what the next one tells."""
        return len(self.digits) - i

    @cached_property
    def _starts(self) -> tuple[int, ...]:
        return tuple(accumulate(self.digits, initial=0))

    @cached_property
    def _borrow(self) -> int | None:
        """The digit whose state is c; None if nothing is shifted away."""
        return self._starts.index(self.shift) - 1 if self.shift else None

    # ------------------------------------------------------------------ what is dealt, opened and masked, in order

    @cached_property
    def tables(self) -> dict[str, tuple[int, int]]:
        """Name of each table (or group of constants) -> (its first plane, its entries)."""
        sizes: dict[str, int] = {}
        for i, width in enumerate(self.digits):
            for b in range(self._told(i)):
                sizes |= {f"E{i}.{b}": 1 << width, f"mE{i}.{b}": 1 << width} if i else {f"L.{b}": 1 << width}
            if i:
                sizes[f"pads{i}"] = 2 * self._told(i)
        if self.top_bits > 1:
            sizes |= {"E": 1 << self.top_bits, "wE": 1 << self.top_bits, "masks": 4}
        ends = accumulate(sizes.values())
        return {name: (end - sizes[name], sizes[name]) for name, end in zip(sizes, ends, strict=True)}

    @cached_property
    def planes(self) -> int:
        """Dealt bits a value."""
        return sum(entries for _, entries in self.tables.values())

    @cached_property
    def opened(self) -> int:
        """Bits opened a value."""
        rows = sum(self._told(i) * (2 if i else 1) for i in range(len(self.digits)))
        return rows + (4 if self.top_bits > 1 else 0)

    @cached_property
    def _mask_at(self) -> dict[str, int]:
        """Positions among the dealer's own bits: m_i, both labels that open row i, and the masks of the top."""
        names = [f"m{i}" for i in range(len(self.digits))]
        names += [f"Q{i}.{t}.{b}" for i in range(1, len(self.digits)) for t in (0, 1) for b in range(self._told(i))]
        names += list(MASKS[2:]) if self.top_bits > 1 else []
        return {name: at for at, name in enumerate(names)}

    def fields(self, count: int) -> tuple[Field, ...]:
        """Tables and constants; and the masks as the dealer draws them."""
        return (Field("planes", Kind.BITS, count, self.planes), Field("masks", Kind.DEALER, count, len(self._mask_at)))

    def online(self, n: int, count: int) -> Cost:
        """One exchange of all rows."""
        return plane_message(n, count, self.opened)

    # ------------------------------------------------------------------ programs

    @cached_property
    def dealing(self) -> Program:
        """The dealer's: planes of rho, its own masks, P0's planes -> P1's planes."""
        b = Builder()
        out: Bits = []
        for i, width in enumerate(self.digits):
            rho = [b.load(0, self._starts[i] + j) for j in range(width)]
            base, step = self._telling(b, i)
            if not i:
                entries = less(b, rho)
                for always, gated in zip(base, step, strict=True):
                    out += [b.xor(always, b.land(gated, entry)) for entry in entries]
                continue
            entries, before = equal(b, rho), self._mask(b, f"m{i - 1}")
            for gated in step:
                both = b.land(gated, before)
                out += [b.land(gated, entry) for entry in entries]
                out += [b.land(both, entry) for entry in entries]
            for t in (0, 1):
                out += [b.xor(x, self._mask(b, f"Q{i}.{t}.{j}")) for j, x in enumerate(base)]
        if self.top_bits > 1:
            entries = equal(b, [b.load(0, self._starts[-1] + j) for j in range(self.top_bits)])
            omega = self._mask(b, f"m{len(self.digits) - 1}")
            out += [*entries, *(b.land(omega, entry) for entry in entries)]
            out += [self._mask(b, name) for name in MASKS[2:]]
        return b.finish([b.xor(plane, b.load(2, i)) for i, plane in enumerate(out)])

    def _mask(self, b: Builder, name: str) -> int:
        return b.load(1, self._mask_at[name])

    def _telling(self, b: Builder, i: int) -> tuple[Bits, Bits]:
        """V_i(0), and what a state of 1 adds to it."""
        mask = self._mask(b, f"m{i}")
        base: Bits = [mask]
        step: Bits = [b.ones()]
        for j in range(self._told(i) - 1):
            zero, one = (self._mask(b, f"Q{i + 1}.{t}.{j}") for t in (0, 1))
            apart = b.xor(zero, one)
            base.append(b.fma(zero, mask, apart))
            step.append(apart)
        return base, step

    @cached_property
    def opening(self) -> Program:
        """A party's first part: its share of z^, the other's, its dealt planes -> z^ above ``shift`` (``bits - shift``
        planes), then its shares of the rows."""
        b = Builder()
        z = b.add([b.load(0, i) for i in range(self.bits)], [b.load(1, i) for i in range(self.bits)])
        known = [b.zero() if x is None else x for x in z]
        out: Bits = [*known[self.shift :]]
        for i, width in enumerate(self.digits):
            out += self._row(b, i, known[self._starts[i] : self._starts[i] + width])
        if self.top_bits > 1:
            out += self._top(b, known[self._starts[-1] :])
        return b.finish(out)

    def _table(self, b: Builder, name: str) -> list[int]:
        first, entries = self.tables[name]
        return [b.load(2, first + i) for i in range(entries)]

    def _row(self, b: Builder, i: int, at: list[int]) -> Bits:
        told = range(self._told(i))
        if not i:
            return [b.select(self._table(b, f"L.{j}"), at) for j in told]
        pads = self._table(b, f"pads{i}")
        zero: Bits = []
        one: Bits = []
        for j in told:
            entries, masked = self._table(b, f"E{i}.{j}"), self._table(b, f"mE{i}.{j}")
            low = [b.xor(x, y) for x, y in zip(behind(b, [*entries]), masked, strict=True)]
            read, gate = b.select(low, at), b.select(entries, at)
            zero.append(b.xor(read, pads[j]))
            one.append(b.xor(b.xor(read, gate), pads[len(told) + j]))
        return [*zero, *one]

    def _top(self, b: Builder, at: list[int]) -> Bits:
        """in_0, in_1, high_0, high_1 for both masked borrows, each under its mask."""
        entries, gated, masks = (self._table(b, name) for name in ("E", "wE", "masks"))
        half = len(entries) // 2
        before = [*gated[-1:], *gated[:-1]]
        here = b.select(entries, at)
        after = b.select([*entries[-1:], *entries[:-1]], at)
        turned = b.select([b.xor(x, y) for x, y in zip(gated, before, strict=True)], at)
        # [0 < d < half] is the xor of the entries at the half - 1 places below z^'s digit
        ahead = [*entries, *entries]
        window: Bits = [None]
        for x in ahead[half + 1 : 2 * half]:
            window[0] = b.xor(window[0], x)
        for a in range(2 * half - 1):
            window.append(b.xor(b.xor(window[-1], ahead[a + half + 1]), ahead[a]))
        ends = [b.xor(x, y) for x, y in zip(ahead[2 * half - 1 : 4 * half - 1], ahead[half : 3 * half], strict=True)]
        across = [*gated[half:], *gated[:half]]
        flipped = [b.xor(x, y) for x, y in zip(before, across, strict=True)]
        between = b.select([b.xor(x, y) for x, y in zip(window, flipped, strict=True)], at)
        facts = (b.xor(here, turned), b.xor(after, turned), between, b.xor(between, b.select(ends, at)))
        return [b.xor(fact, mask) for fact, mask in zip(facts, masks, strict=True)]

    @cached_property
    def evaluation(self) -> Program:
        """Its second part: its shares of the rows, the other's, the first part's result -> the facts under their masks
        (:data:`FACTS`; zeros for what there is not)."""
        b = Builder()
        row = [b.sum(b.load(0, i), b.load(1, i)) for i in range(self.opened)]
        state, label = row[0], row[1 : self._told(0)]
        at, c = self._told(0), state if self._borrow == 0 else None
        for i in range(1, len(self.digits)):
            told = self._told(i)
            halves = zip(row[at : at + told], row[at + told : at + 2 * told], label, strict=True)
            state, *label = [b.sum(pad, _either(b, state, x, y)) for x, y, pad in halves]
            at += 2 * told
            c = state if self._borrow == i else c
        if self.top_bits > 1:
            inside, high = (_either(b, state, row[at + j], row[at + j + 1]) for j in (0, 2))
            return b.finish([c, state, inside, high])
        top = b.load(2, self.bits - self.shift - 1)
        return b.finish([c, state, b.xor(b.xor(b.ones(), top), state), None])

    def masks(self) -> dict[str, int]:
        """Positions of the facts' masks (:data:`MASKS`) among the dealer's own bits; what there is not is left out."""
        at = {"gamma": self._borrow, "omega": len(self.digits) - 1} | {x: self._mask_at.get(x) for x in MASKS[2:]}
        return {name: i for name, i in at.items() if i is not None}


def _either(b: Builder, which: int, zero: int, one: int) -> int:
    made = b.fma(zero, which, b.xor(zero, one))
    return b.zero() if made is None else made


@cache
def plan(bits: int, shift: int, code: int) -> Plan:
    """The arrangement of digits with the fewest dealt and opened bits."""
    h = bits - shift - code
    if not 1 <= h <= MAX_TOP:
        raise BadParameters(f"the top digit would have {h} bits; between 1 and {MAX_TOP} are offered")
    choices = [
        Plan(bits, shift, code, (*low, *middle))
        for low, middle in combinations(cuts(shift), cuts(code))
        if len(low) + len(middle) <= MAX_DIGITS
    ]
    if not choices:
        raise BadParameters(f"comparing {shift} + {code} bits takes more than the {MAX_DIGITS} digits offered")
    return min(choices, key=lambda p: (p.planes + _OPENING_WEIGHT * p.opened, p.digits))
