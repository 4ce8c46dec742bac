"""Pictures of a comparison as inline SVG: ratios, saturation and rings of all layers; histograms of one.

matplotlib is needed for them and for nothing else; no window is opened and no global state of it is touched for long.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pqi.graph.errors import PqiGraphError
from pqi.quant.comparison import Codes, Comparison, Histogram, Layer, Weights

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, SKY, ORANGE, GREEN = "#0072B2", "#9CCBE8", "#D55E00", "#009E73"
GREY, LIGHT = "#777777", "#CFCFCF"
_TOP_DB, _LOW_DB = 80.0, -10.0  # ratios beyond are drawn at the edge
_ROWS = 150  # layers of the overview
_BARS = 128
_RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 8.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.formatter.use_mathtext": False,
    "axes.titlesize": 9.0,
    "text.parse_math": False,
    "text.usetex": False,
    "figure.dpi": 100,
    "svg.fonttype": "none",
    "svg.image_inline": True,
}


class PicturesMissing(PqiGraphError, ImportError):
    """matplotlib, which draws, is not installed."""


def overview(comparison: Comparison) -> str:
    """All layers from top to bottom: ratios in dB, saturated shares, bits seen, in the ring and proven, wraps."""

    def draw(figure: Figure) -> None:
        figure.set_layout_engine("constrained", wspace=0.06)  # the names' width decides
        _overview(figure, comparison)

    return _drawn("overview", draw, 11.5, _overview_height(comparison))


def histograms(layer: Layer) -> str:
    """One layer: float values, range of codes and codes used; or weights and their levels. "" if it has neither."""
    codes, weights = layer.codes, layer.weights
    if codes is not None:
        return _drawn(f"codes {layer.name}", lambda figure: draw_codes(figure, codes), 3.6, 2.5)
    if weights is not None:
        return _drawn(f"weights {layer.name}", lambda figure: draw_weights(figure, weights), 3.6, 2.5)
    return ""


def require() -> None:
    """Raise PicturesMissing, which says how to install it, where there is no matplotlib."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise PicturesMissing(
            "the report's pictures are drawn by matplotlib, which is not installed: "
            "pip install 'private-quantized-inference[pictures]'"
        ) from error


def _drawn(salt: str, draw: Callable[[Figure], None], width: float, height: float) -> str:
    """The picture as an <svg> element without prologue, metadata or ids that nothing refers to."""
    require()
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with mpl.rc_context({**_RC, "svg.hashsalt": ascii(salt)}):
        figure = Figure(figsize=(width, height))
        FigureCanvasSVG(figure)
        draw(figure)
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    referred = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in referred else "", text)
    return re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)


def _shown(comparison: Comparison) -> Sequence[Layer]:
    layers = comparison.layers
    if len(layers) <= _ROWS:
        return layers
    kept = {layer.name for layer in comparison.worst(_ROWS)}
    return [layer for layer in layers if layer.name in kept]


def _overview_height(comparison: Comparison) -> float:
    return 1.3 + 0.17 * len(_shown(comparison))


def _overview(figure: Figure, comparison: Comparison) -> None:
    layers = _shown(comparison)
    ratios, ends, bits, wraps = figure.subplots(1, 4, sharey=True, width_ratios=(4, 1.5, 2.5, 1.5))
    draw_ratios(ratios, layers, comparison)
    draw_shares(ends, layers)
    draw_bits(bits, layers)
    draw_wraps(wraps, layers)
    rows = range(len(layers))
    ratios.set_yticks(rows, [short(layer.name) for layer in layers], fontsize=7)
    ratios.set_ylim(len(layers) - 0.4, -0.6)
    for axes in (ratios, ends, bits, wraps):
        axes.grid(axis="y", color="#EEEEEE", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_ticks_position("top")
        axes.xaxis.set_label_position("top")
        axes.spines["top"].set_visible(True)
        axes.spines["bottom"].set_visible(False)


def draw_ratios(axes: Axes, layers: Sequence[Layer], comparison: Comparison) -> None:
    """Three lines of dB, from the first layer at the top to the last; the first diverging layer is marked."""
    lines: tuple[tuple[str, str, str, float, Callable[[Layer], float | None]], ...] = (
        ("integer against fake", GREEN, ":", 1.3, lambda layer: layer.rings_db),
        ("fake against float", SKY, "-", 4.0, lambda layer: layer.fake_db),  # broad: the next one often covers it
        ("integer against float", ORANGE, "-", 1.3, lambda layer: layer.integer_db),
    )
    for label, colour, style, width, of in lines:
        values = [(_clipped(value), row) for row, layer in enumerate(layers) if (value := of(layer)) is not None]
        x, y = [v for v, _ in values], [row for _, row in values]
        axes.plot(x, y, style, color=colour, label=label, linewidth=width, marker="o", markersize=2 * width**0.5)
    axes.axvline(comparison.low_db, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
    first = comparison.first_diverging
    for row, layer in enumerate(layers):
        if layer.name == first:
            axes.axhspan(row - 0.5, row + 0.5, color=ORANGE, alpha=0.15, linewidth=0)
    axes.set_xlim(_LOW_DB - 2, _TOP_DB + 3)
    axes.set_xlabel(f"signal to noise in dB (beyond {_TOP_DB:.0f}: drawn there)")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=3, frameon=False, fontsize=7)


def draw_shares(axes: Axes, layers: Sequence[Layer]) -> None:
    """Saturated shares: at the low end to the left, at the high end to the right, in per cent."""
    rows = [row for row, layer in enumerate(layers) if layer.codes is not None]
    low = [-100 * codes.saturated_low for layer in layers if (codes := layer.codes) is not None]
    high = [100 * codes.saturated_high for layer in layers if (codes := layer.codes) is not None]
    axes.barh(rows, low, color=BLUE, height=0.7)
    axes.barh(rows, high, color=ORANGE, height=0.7)
    reach = max([0.01, *(abs(v) for v in (*low, *high))]) * 1.1
    axes.set_xlim(-reach, reach)
    axes.set_xticks((-reach / 1.1, 0, reach / 1.1), [f"{reach / 1.1:.2g}", "0", f"{reach / 1.1:.2g}"])
    axes.axvline(0, color=GREY, linewidth=0.6)
    axes.set_xlabel("saturated, %\n(low | high)")


def draw_bits(axes: Axes, layers: Sequence[Layer]) -> None:
    """Bits of accumulators: those seen filled, those of the proof hollow, the ring a stroke."""
    reads = [(row, layer.read) for row, layer in enumerate(layers) if layer.read is not None]
    rows = [row for row, _ in reads]
    axes.barh(rows, [r.proven_bits for _, r in reads], color="none", edgecolor=GREY, height=0.7, linewidth=0.6)
    axes.barh(rows, [r.seen_bits for _, r in reads], color=LIGHT, height=0.7)
    for row, read in reads:
        axes.plot([read.ring] * 2, [row - 0.45, row + 0.45], color=ORANGE, linewidth=1.6)
    most = max([8, *(max(r.proven_bits, r.ring) for _, r in reads)])
    axes.set_xlim(0, most + 1)
    axes.set_xticks(range(0, most + 1, 4))
    axes.set_xlabel("bits read: seen (grey),\nproof (hollow), ring (stroke)")


def draw_wraps(axes: Axes, layers: Sequence[Layer]) -> None:
    """Share of accumulators that wrapped, in per cent; cyclic tables, whose wraps are meant, in grey."""
    reads = [(row, layer.read) for row, layer in enumerate(layers) if layer.read is not None]
    shares = [100 * read.wrapped for _, read in reads]
    axes.barh([row for row, _ in reads], shares, color=[LIGHT if r.cyclic else ORANGE for _, r in reads], height=0.7)
    reach = max([0.01, *shares])
    axes.set_xlim(0, reach * 1.1)
    axes.set_xticks((0, reach), ["0", f"{reach:.2g}"])
    axes.set_xlabel("wrapped, %\n")


def draw_codes(figure: Figure, codes: Codes) -> None:
    """Float values above with the range of codes shaded, codes used below, on one axis of reals."""
    figure.subplots_adjust(left=0.15, right=0.98, bottom=0.11, top=0.97, hspace=0.18)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    first, last = codes.levels[0], codes.levels[-1]
    above.axvspan(first, last, color=BLUE, alpha=0.10, linewidth=0)
    for end in (first, last):
        above.axvline(end, color=BLUE, linewidth=0.9)
    _filled(above, codes.floats, GREY)
    _logarithmic(above, codes.floats.counts, "float")
    places, counts, width = _coarser(codes)
    below.bar(places, counts, width=width, color=ORANGE, linewidth=0)
    _logarithmic(below, counts, "codes")
    low, high = codes.floats.edges[0], codes.floats.edges[-1]
    below.set_xlim(low - 0.02 * (high - low), high + 0.02 * (high - low))
    below.locator_params(axis="x", nbins=6)


def draw_weights(figure: Figure, weights: Weights) -> None:
    """Float weights filled, integers as a line above them, levels as ticks; in steps of the grid."""
    figure.subplots_adjust(left=0.15, right=0.98, bottom=0.18, top=0.97)
    axes = figure.subplots()
    _filled(axes, weights.floats, LIGHT)
    axes.stairs(weights.integers.counts, weights.integers.edges, color=ORANGE, linewidth=1.0)
    _logarithmic(axes, (*weights.floats.counts, *weights.integers.counts), "weights")
    if weights.levels:
        axes.vlines(weights.levels, 0, 0.04, transform=axes.get_xaxis_transform(), color=BLUE, linewidth=0.8)
    low, high = weights.floats.edges[0], weights.floats.edges[-1]
    axes.set_xlim(low, high)
    axes.set_xlabel("steps of the grid; float (grey), integers (line)")


def short(name: str, limit: int = 34) -> str:
    """A layer's name as a label: plain characters (fonts lack others), its end kept when it is long."""
    text = "".join(c if c.isprintable() and c.isascii() else "?" for c in name)
    return text if len(text) <= limit else "..." + text[3 - limit :]


def _clipped(value: float) -> float:
    return min(max(value, _LOW_DB), _TOP_DB)


def _filled(axes: Axes, found: Histogram, colour: str) -> None:
    axes.stairs(found.counts, found.edges, fill=True, color=colour, linewidth=0)


def _logarithmic(axes: Axes, counts: Sequence[int], label: str) -> None:
    """Counts on a logarithmic axis on which one value can still be seen."""
    axes.set_yscale("log")
    highest = max([1, *counts])
    axes.set_ylim(0.6, highest * 2)
    powers = range(0, math.ceil(math.log10(highest)) + 1, max(1, math.ceil(math.log10(highest) / 3)))
    axes.set_yticks([10.0**p for p in powers], [_power(p) for p in powers])
    axes.yaxis.set_tick_params(which="minor", length=0)
    axes.minorticks_off()
    axes.set_ylabel(label)


def _power(exponent: int) -> str:
    return ("1", "10", "100", "1k", "10k", "100k", "1M", "10M", "100M", "1G", "10G")[exponent] if exponent <= 10 else ""


def _coarser(codes: Codes) -> tuple[list[float], list[int], float]:
    """Codes as bars: each its own up to 128 of them, neighbours together beyond."""
    levels, used = codes.levels, codes.used
    together = math.ceil(len(levels) / _BARS)
    places = [sum(levels[i : i + together]) / len(levels[i : i + together]) for i in range(0, len(levels), together)]
    counts = [sum(used[i : i + together]) for i in range(0, len(levels), together)]
    span = (places[-1] - places[0]) or 1.0
    gaps = [b - a for a, b in pairwise(places)] or [span]
    return places, counts, min(max(0.8 * min(gaps), span / 200), span / 10)
