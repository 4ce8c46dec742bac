"""What a comparison found: one record a layer, the first layer that diverges, advice in words, a table."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

LOW_DB = 10.0
DROP_DB = 10.0
CLEAN_DB = 15.0
SATURATED = 0.01  # more than this share of values at an end of the codes is worth a word
_COARSE_DB = 20.0  # weights nearer than this to their grid are not what harms
_IDLE = 0.25  # fewer of its codes than this share in use, and the range is too wide
_RINGS_DB = 3.0  # so much better without rings, and it is they that harm
_OF_A_KIND = 4


@dataclass(frozen=True)
class Histogram:
    """Counts between edges (one more than counts); what lies beyond the ends is in the outermost bins."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Codes:
    """Values that become codes.

    levels: the reals that the codes stand for, ascending; used: how often the integer model took each. floats: the
    float network's values there. lowest, highest: of those values. saturated_low, saturated_high: share of the integer
    model's values beyond the ends of the codes, where the network itself does not clamp.
    observer, percentile: from which the range came ("": the client's own quantizer).
    """

    bits: int
    levels: tuple[float, ...]
    used: tuple[int, ...]
    floats: Histogram
    lowest: float
    highest: float
    saturated_low: float
    saturated_high: float
    observer: str
    percentile: float


@dataclass(frozen=True)
class Weights:
    """Weights in steps of their grid. levels: of the first channel, empty for more than 64. db: signal to noise."""

    bits: int
    levels: tuple[float, ...]
    floats: Histogram
    integers: Histogram
    db: float | None


@dataclass(frozen=True)
class Accumulated:
    """What a reader reads in its ring of ``ring`` bits: ends by proof, ends seen, bits for them, share that wrapped.

    index_bits: what a requantization would have to look at for none to wrap, None for other readers. cyclic: it reads
    mod 2^ring by definition, so that a wrap is no fault.
    """

    ring: int
    index_bits: int | None
    proof: tuple[int, int]
    proven_bits: int
    seen: tuple[int, int]
    seen_bits: int
    wrapped: float
    cyclic: bool = False


@dataclass(frozen=True)
class Layer:
    """One layer, its inputs by name, and signal-to-noise ratios in dB.

    fake_db: fake-quantized against float. integer_db: integer against float. rings_db: integer against fake-quantized.
    Infinite where there is no noise at all, None where there is no signal.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    inputs: tuple[str, ...]
    source: str
    fake_db: float | None
    integer_db: float | None
    rings_db: float | None
    codes: Codes | None = None
    weights: Weights | None = None
    read: Accumulated | None = None

    @property
    def saturated(self) -> float:
        """Share of values beyond either end of the codes."""
        return self.codes.saturated_low + self.codes.saturated_high if self.codes is not None else 0.0

    @property
    def wrapped(self) -> float:
        """Share of what it reads that left its ring, unless that is meant."""
        return self.read.wrapped if self.read is not None and not self.read.cyclic else 0.0


@dataclass(frozen=True)
class Accuracies:
    """Shares of the batch: right in float, fake-quantized, integers (with labels); same top class as in float."""

    floating: float | None
    fake: float | None
    integer: float | None
    fake_agrees: float
    integer_agrees: float


@dataclass(frozen=True)
class Comparison:
    """Float, fake-quantized and integer network side by side on ``samples`` inputs.

    layers: in order of computation. answer: what the client reads. accuracies: None where answers are no classes.
    low_db, drop_db: by which a layer diverges (see ``first_diverging``).
    """

    samples: int
    policy: str
    layers: tuple[Layer, ...]
    answer: Accumulated
    accuracies: Accuracies | None
    low_db: float = LOW_DB
    drop_db: float = DROP_DB

    @property
    def first_diverging(self) -> str | None:
        """The first layer at which the integer model leaves the float network, or None.

        In order of computation, the first whose integer_db is below ``low_db`` (10 dB: a tenth of the signal's power
        is noise), or below 15 dB and more than ``drop_db`` lower than the worst of its inputs. Layers without signal
        are passed over.
        """
        found = {layer.name: layer.integer_db for layer in self.layers}
        for layer in self.layers:
            own = layer.integer_db
            if own is None:
                continue
            before = min((db for i in layer.inputs if (db := found.get(i)) is not None), default=math.inf)
            if own < self.low_db or (own < CLEAN_DB and before - own > self.drop_db):
                return layer.name
        return None

    @property
    def widest_ring(self) -> int:
        """Bits of the widest ring that somebody reads in."""
        return max([self.answer.ring, *(layer.read.ring for layer in self.layers if layer.read is not None)])

    def worst(self, count: int) -> tuple[Layer, ...]:
        """The ``count`` layers with the lowest integer_db among those with codes or weights, in order."""
        shown = [layer for layer in self.layers if layer.codes is not None or layer.weights is not None]
        ranked = sorted(shown, key=lambda layer: math.inf if layer.integer_db is None else layer.integer_db)
        kept = {layer.name for layer in ranked[:count]}
        return tuple(layer for layer in shown if layer.name in kept)

    def advice(self) -> tuple[str, ...]:
        """What to look at and what to change, worst first; at most four of a kind."""
        kinds = (
            self._of_divergence(),
            self._of_rings(),
            self._of_saturation(),
            self._of_weights(),
            self._of_idle_codes(),
        )
        return tuple(sentence for kind in kinds for sentence in islice(kind, _OF_A_KIND))

    def _of_rings(self) -> Iterator[str]:
        reads = [(layer.name, layer.read) for layer in self.layers if layer.read is not None]
        harmed = [(name, r) for name, r in [*reads, ("", self.answer)] if r.wrapped > 0 and not r.cyclic]
        for name, r in sorted(harmed, key=lambda pair: -pair[1].wrapped):
            who = f"layer {name!r} reads" if name else "the answer is read"
            own = "" if r.index_bits is None else f", or layers={{{name!r}: {{'index_bits': {r.index_bits}}}}}"
            yield (
                f"{who} in {r.ring} bits, and {share(r.wrapped)} of its values wrap: raise margin_bits by "
                f"{r.seen_bits - r.ring}{own}, or use rings='proven'."
            )

    def _of_divergence(self) -> Iterator[str]:
        first = self.first_diverging
        for layer in self.layers:
            if layer.name == first:
                before = [d for each in self.layers if each.name in layer.inputs and (d := each.integer_db) is not None]
                came = f", after {decibels(min(before))} dB at its inputs" if before else ""
                yield (
                    f"layer {first!r} ({layer.op}) is the first to diverge: {decibels(layer.integer_db)} dB{came}. "
                    + _cure(layer)
                )

    def _of_saturation(self) -> Iterator[str]:
        for layer in sorted(self.layers, key=lambda each: -each.saturated):
            if layer.codes is not None and layer.saturated > SATURATED:
                low, high = layer.codes.saturated_low, layer.codes.saturated_high
                where = f"{share(high)} of its values at the top" if high >= low else f"{share(low)} at the bottom"
                yield f"layer {layer.name!r} saturates {where}: {_wider(layer.name, layer.codes)}"

    def _of_weights(self) -> Iterator[str]:
        coarse = [(w.db, layer) for layer in self.layers if (w := layer.weights) is not None and w.db is not None]
        for db, layer in sorted(coarse, key=lambda pair: pair[0]):
            if layer.weights is not None and db < _COARSE_DB:
                more = f"layers={{{layer.name!r}: {{'weight_bits': {min(layer.weights.bits + 1, 12)}}}}}"
                yield (
                    f"layer {layer.name!r} has weights {decibels(db)} dB from their {layer.weights.bits}-bit grid; "
                    f"raise its bits: {more}, or learn the rounding (learned_rounding=True)."
                )

    def _of_idle_codes(self) -> Iterator[str]:
        for layer in self.layers:
            codes = layer.codes
            if codes is not None and codes.bits >= 4 and sum(n > 0 for n in codes.used) <= _IDLE * len(codes.used):
                yield (
                    f"layer {layer.name!r} uses {sum(n > 0 for n in codes.used)} of its {len(codes.used)} codes: its "
                    "range is too wide for these data; lower its percentile or choose another observer, or give fewer "
                    f"bits: layers={{{layer.name!r}: {{'activation_bits': {codes.bits - 1}}}}}."
                )

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON values; an infinite ratio (no noise) is "inf"."""
        layers = [_plain({**asdict(layer), "saturated": layer.saturated}) for layer in self.layers]
        return {
            "samples": self.samples,
            "policy": self.policy,
            "widest_ring": self.widest_ring,
            "first_diverging": self.first_diverging,
            "low_db": self.low_db,
            "drop_db": self.drop_db,
            "accuracies": None if self.accuracies is None else asdict(self.accuracies),
            "answer": _plain(asdict(self.answer)),
            "advice": list(self.advice()),
            "layers": layers,
        }

    def __rich__(self) -> Table:
        """A table for the terminal."""
        caption = escape("\n".join([self.words(), *self.advice()[:3]]))
        table = Table(title="Layer by layer", caption=caption, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        table.title_justify = table.caption_justify = "left"
        table.add_column("layer", overflow="fold", min_width=12)
        table.add_column("operator", no_wrap=True)
        for title in HEADINGS:
            table.add_column(title, justify="right", no_wrap=True)
        first = self.first_diverging
        for layer in self.layers:
            table.add_row(escape(layer.name), layer.op, *cells(layer), style="bold" if layer.name == first else None)
        return table

    def words(self) -> str:
        """Inputs, accuracies and the first diverging layer in a line or two."""
        lines = [f"{self.samples:,} inputs; dB against float: fake-quantized, integer; then integer against fake."]
        if (a := self.accuracies) is not None:
            right = {"float": a.floating, "fake-quantized": a.fake, "integer": a.integer}
            known = [f"{name} {part:.2%}" for name, part in right.items() if part is not None]
            known.append(f"integer agrees with float on {a.integer_agrees:.2%}")
            lines.append(f"accuracy: {', '.join(known)}." if len(known) > 1 else f"{known[0]}.")
        first = self.first_diverging
        lines.append("no layer diverges." if first is None else f"first layer to diverge: {first}.")
        return "\n".join(lines)

    def __str__(self) -> str:
        first = self.first_diverging
        last = decibels(self.layers[-1].integer_db)
        found = "no layer diverges" if first is None else f"{first!r} diverges first"
        return f"Comparison: {len(self.layers)} layers on {self.samples:,} inputs, answer at {last} dB, {found}"


HEADINGS = ("bits", "fake dB", "int dB", "rings dB", "low", "high", "ring", "seen", "wraps")


def cells(layer: Layer) -> tuple[str, ...]:
    """The figures of one layer under ``HEADINGS``."""
    own: Codes | Weights | None = layer.codes or layer.weights
    ends, read = layer.codes, layer.read
    return (
        str(own.bits) if own is not None else "",
        decibels(layer.fake_db),
        decibels(layer.integer_db),
        decibels(layer.rings_db),
        share(ends.saturated_low) if ends is not None else "",
        share(ends.saturated_high) if ends is not None else "",
        str(read.ring) if read is not None else "",
        str(read.seen_bits) if read is not None else "",
        share(read.wrapped) if read is not None else "",
    )


def decibels(value: float | None) -> str:
    """23.1; "inf" without noise, "" without signal."""
    return "" if value is None else f"{value:.1f}"


def share(part: float) -> str:
    """12 %, 0.3 %, 2e-05; 0 only for none at all."""
    if part == 0:
        return "0"
    return f"{100 * part:.2g} %" if 1e-3 <= part < 0.995 else f"{100 * part:.0f} %" if part >= 0.995 else f"{part:.0e}"


def _cure(layer: Layer) -> str:
    """What to change in a layer that diverges."""
    if layer.fake_db is not None and layer.integer_db is not None and layer.fake_db - layer.integer_db > _RINGS_DB:
        return (
            f"Without rings it would have {decibels(layer.fake_db)} dB: values wrap here or before, see to the rings."
        )
    if layer.codes is not None and layer.saturated > SATURATED:
        return "It saturates: see to its range first."
    if layer.codes is not None:
        return f"Raise its bits: layers={{{layer.name!r}: {{'activation_bits': {min(layer.codes.bits + 2, 12)}}}}}."
    if layer.weights is not None:
        return f"Raise its bits: layers={{{layer.name!r}: {{'weight_bits': {min(layer.weights.bits + 2, 12)}}}}}."
    return "It has no bits of its own: look at what it reads."


def _wider(name: str, codes: Codes) -> str:
    if not codes.observer:
        return "these inputs go beyond the client's range: calibrate with inputs like them, or set input_range."
    if codes.observer == "percentile" and codes.percentile < 100:
        return f"raise its percentile or bits: layers={{{name!r}: {{'percentile': 100.0}}}}."
    more = f"layers={{{name!r}: {{'observer': 'minmax', 'activation_bits': {min(codes.bits + 1, 12)}}}}}"
    return f"these data go beyond the calibrated range: calibrate with data like them, or: {more}."


def _plain(value: Any) -> Any:
    """JSON values: tuples become lists, and an infinite number its name."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and math.isinf(value) else value
