"""Which primitives serve a layer: every exact way is priced by the protocol itself, and the network decides.

From an accumulator ``<z>_k`` to a code there are, with their exchanges (the opening for the next layer is one more):

==============  ==========  ============================================================================================
digits          3           comparison by digits: fewest bytes (``Clamp``, in stages where the ring is much wider)
quick clamp     2           rows of digits that tell a masked result at once (``QuickClamp``): less than twice the bytes
fused table     2           2^(t+1) entries for an index of t = k - shift bits (``FusedTable``)
table           1           2^t entries, where nothing is shifted away (``Table``)
sign, select    2           2^t bits, where nothing is shifted away and no value passes the upper end (``Relu``)
==============  ==========  ============================================================================================

A code that is no interval takes one of the first two and a table of its own (one more exchange), or a table alone. An
upper end that the proof shows to be idle is given up: a clamp to more bits is the same function, and may be cheaper.
``stochastic`` rounding shifts for free in front of all this, is not bit-exact, and says so.

A maximum is a tree over whole windows, or over rows and then columns; in the ring that comes after it, or in the
smallest one that holds a difference of two codes, with a :class:`protocols.api.Lift` behind it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from pqi.program.errors import ProgramError
from pqi.program.network import Profile, work
from pqi.program.windows import Pair, Windows
from protocols import api
from protocols.cost import Cost
from protocols.errors import BadParameters
from protocols.protocol import Protocol

ROUNDINGS = ("exact", "stochastic")
MAX_RELU = 8
MAX_TABLE = 12

Made = tuple[str, api.Step | Windows]


@dataclass(frozen=True)
class Way:
    """One way to compute a layer: its actions in order, each with the suffix of its name; the last has the node's."""

    words: str
    actions: tuple[Made, ...]

    @property
    def steps(self) -> list[api.Step]:
        """Without the local operations."""
        return [action for _, action in self.actions if isinstance(action, api.Step)]

    def cost(self, backend: Protocol) -> Cost:
        """Declared, for one input."""
        return sum((backend.cost(step, 1) for step in self.steps), Cost())

    def price(self, backend: Protocol, count: int) -> tuple[int, str]:
        """Exchanges, and the size of what is dealt for each of ``count`` values."""
        cost = self.cost(backend)
        size = cost.dealt_bits / 8 / max(count, 1)
        return cost.exchanges, f"{size / 1000:.1f} kB" if size >= 1000 else f"{size:.0f} B"


@dataclass(frozen=True)
class Choice:
    """The way taken, its seconds, and why: its price a value beside that of the next best of another kind."""

    way: Way
    seconds: float
    why: str


@dataclass(frozen=True)
class Demand:
    """A requantization to be planned: ``<z>_ring -> <V[clamp(floor(z / 2^shift), 0, 2^bits - 1)]>_ring_out``.

    tables: 0 when V[i] = low + i, else the number of tables (1, or one per channel). headroom: bits above the code that
    one clamp of the protocol can look at. idle: the proof shows that no index passes 2^bits - 1.
    """

    shape: tuple[int, ...]
    ring: int
    shift: int
    bits: int
    low: int
    tables: int
    ring_out: int
    headroom: int
    idle: bool = False

    @property
    def index(self) -> int:
        """Bits of what is left of the accumulator after the shift."""
        return self.ring - self.shift

    def fits(self) -> bool:
        """Whether one clamp is enough."""
        return self.index - min(self.bits, self.index - 1) <= self.headroom


@dataclass(frozen=True)
class Pooling:
    """A maximum over windows to be planned: ``channels`` maps of ``size`` values in, of ``out`` windows out.

    small: the least ring in which values and their differences fit; lowest: no value is below. ring_out: what comes
    after needs it.
    """

    channels: int
    size: Pair
    out: Pair
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    small: int
    lowest: int
    ring_out: int


def choose(ways: Iterable[Way], count: int, backend: Protocol, network: Profile) -> Choice:
    """The fastest way; of equal ones the first. ``count``: values of the layer, for what is said of it."""
    priced: list[tuple[float, Way]] = []
    for way in ways:
        try:
            priced.append((network.seconds(way.cost(backend)) + work(way.steps), way))
        except BadParameters:  # a way that the protocol does not offer at these widths
            continue
    if not priced:
        raise ProgramError("no primitive of the protocol serves these widths: use fewer weight or activation bits")
    priced.sort(key=lambda each: each[0])
    seconds, best = priced[0]
    exchanges, size = best.price(backend, count)
    why = f"{best.words}: {exchanges} exchange{'s' * (exchanges != 1)}, {size} dealt a value"
    for _, other in priced[1:]:
        if other.words != best.words:
            exchanges, size = other.price(backend, count)
            why += f"; {other.words}: {exchanges}, {size}"
            break
    return Choice(best, seconds, why if best.cost(backend) != Cost() else best.words)


# --- from accumulators to codes -----------------------------------------------------------------------------------


def requantization(d: Demand, rounding: str) -> list[Way]:
    """Every way to serve a requantization."""
    if rounding not in ROUNDINGS:
        raise ProgramError(f"rounding = {rounding!r}: choose from {ROUNDINGS}")
    if rounding == "stochastic" and d.shift:
        first = ("shift", api.Shift(d.shape, d.ring, d.shift, "stochastic"))
        after = _exact(replace(d, ring=d.index, shift=0))
        return [Way(f"free shift, {way.words}", (first, *way.actions)) for way in after]
    return _exact(d)


def _exact(d: Demand) -> list[Way]:
    ways = [_clamped(d, "digits", api.Clamp)]
    if d.fits():
        ways.append(_clamped(d, "quick clamp", api.QuickClamp))
    if d.idle and not d.tables and d.bits < d.index - 1:
        open_ended = replace(d, bits=d.index - 1)
        ways.append(_clamped(open_ended, "digits", api.Clamp))
        ways.append(_clamped(open_ended, "quick clamp", api.QuickClamp))
    if d.index <= MAX_TABLE and d.shift <= MAX_TABLE:
        channels = max(1, d.tables)
        if d.shift:
            ways.append(Way("fused table", (("", api.FusedTable(d.shape, d.ring, d.shift, d.ring_out, channels)),)))
        else:
            ways.append(Way("table", (("", api.Table(d.shape, d.index, d.ring_out, channels)),)))
    no_end = d.idle or d.bits >= d.index - 1
    if not (d.shift or d.tables or d.low) and no_end and 2 <= d.ring <= MAX_RELU:
        ways.append(Way("sign and select", (("", api.Relu(d.shape, d.ring, d.ring_out)),)))
    return ways


def _clamped(d: Demand, words: str, kind: type[api.Clamp]) -> Way:
    """Clamp, in stages if the bits above the code do not fit in one top digit; then the table of values, if any."""
    made: list[Made] = []
    while not d.fits():
        # Clamping to more bits first never changes the final clamp, and what is left has a narrow ring.
        wider = d.ring - d.shift - d.headroom
        made.append((f"clamp{len(made)}", api.Clamp(d.shape, d.ring, d.shift, wider, 0, wider + 1)))
        d = replace(d, ring=wider + 1, shift=0)
    if not d.tables:
        return Way(words, (*made, ("", kind(d.shape, d.ring, d.shift, d.bits, d.low, d.ring_out))))
    made.append(("codes", kind(d.shape, d.ring, d.shift, d.bits, 0, d.bits)))
    return Way(f"{words} and table", (*made, ("", api.Table(d.shape, d.bits, d.ring_out, d.tables))))


def sign(shape: tuple[int, ...], ring: int, ring_out: int) -> list[Way]:
    """Every way to the sign of ``<z>_ring``. The upper half of a ring is its negative numbers: index of one bit."""
    ways = [Way("digits", (("", api.Sign(shape, ring, ring_out)),))]
    if ring - 1 <= MAX_TABLE:
        ways.append(Way("table of the borrow", (("", api.FusedTable(shape, ring, ring - 1, ring_out)),)))
    return ways


# --- maxima -------------------------------------------------------------------------------------------------------


def pooling(d: Pooling, rings: Sequence[int]) -> list[Way]:
    """Every way to a maximum over windows whose input is a share mod each of ``rings``."""
    return [
        Way(f"{words}{' in a small ring' if lifted else ''}", (*made, *lifted))
        for ring in rings
        for words, made, lifted in (
            ("whole windows", _whole(d, ring), _lift(d, ring)),
            ("rows, then columns", _by_axes(d, ring), _lift(d, ring)),
        )
        if made
    ]


def _lift(d: Pooling, ring: int) -> tuple[Made, ...]:
    if ring >= d.ring_out:
        return ()
    return (("", api.Lift((d.channels, *d.out), ring, d.lowest, d.ring_out)),)


def _whole(d: Pooling, ring: int) -> tuple[Made, ...]:
    cut = Windows(d.kernel, d.stride, d.padding, d.dilation, d.out, d.lowest)
    last = "" if ring >= d.ring_out else "maximum"
    width = d.kernel[0] * d.kernel[1]
    return (("windows", cut), (last, api.Maximum((d.channels, *d.out), width, d.small - 1, ring)))


def _by_axes(d: Pooling, ring: int) -> tuple[Made, ...]:
    """Along each row first, then along the columns of what is left: a row's maxima serve every window they are in."""
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = d.kernel, d.stride, d.padding, d.dilation
    if kh == 1 or kw == 1:
        return ()
    rows = (d.size[0], d.out[1])
    last = "" if ring >= d.ring_out else "maximum"
    return (
        ("row-windows", Windows((1, kw), (1, sw), (0, pw), (1, dw), rows, d.lowest)),
        ("rows", api.Maximum((d.channels, *rows), kw, d.small - 1, ring)),
        ("windows", Windows((kh, 1), (sh, 1), (ph, 0), (dh, 1), d.out, d.lowest)),
        (last, api.Maximum((d.channels, *d.out), kh, d.small - 1, ring)),
    )
