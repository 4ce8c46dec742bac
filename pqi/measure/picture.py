"""Pictures of a bench as inline SVG: who spends the seconds, and where the bytes go. Needs matplotlib."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pqi.measure.errors import MeasureError
from pqi.measure.private import Run
from pqi.measure.rows import heading, seconds, size

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "text.parse_math": False,
    "text.usetex": False,
    "svg.fonttype": "none",
}
_SECONDS = (
    ("client encrypts", "#9CCBE8"),
    ("server offline", "#CFCFCF"),
    ("server online", "#D55E00"),
    ("client decrypts", "#0072B2"),
    ("the rest: network, waiting", "#EEEEEE"),
)
_BYTES = (("question", "#9CCBE8"), ("answer", "#0072B2"), ("dealt", "#CFCFCF"), ("between servers", "#D55E00"))


def require() -> None:
    """Raise MeasureError where pictures could not be drawn: before the work rather than after it."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise MeasureError(
            "pictures are drawn by matplotlib, which is not installed: "
            "pip install 'private-quantized-inference[pictures]'"
        ) from None


def draw_seconds(runs: Sequence[Run]) -> str:
    """One bar per run: the median seconds of one input, by who spends them."""
    parts = [_seconds_of(one) for one in runs]
    return drawn("seconds", lambda figure: _bars(figure, runs, parts, _SECONDS, seconds, "seconds an input"), len(runs))


def draw_bytes(runs: Sequence[Run]) -> str:
    """One bar per run: the bytes of one input, by where they go; keys, which go once, are not in it."""
    parts = [_bytes_of(one) for one in runs]
    return drawn("bytes", lambda figure: _bars(figure, runs, parts, _BYTES, size, "bytes an input"), len(runs))


def _seconds_of(one: Run) -> list[float]:
    found = {name: spread.median for name, spread in one.figures.seconds.items()}
    parts = [found.get("encrypt", 0.0), found["offline"], found["server"], found.get("decrypt", 0.0)]
    rest = max(0.0, found["whole"] - parts[0] - parts[2] - parts[3] - parts[1])
    return [part / one.asked.batch for part in (*parts, rest)]


def _bytes_of(one: Run) -> list[float]:
    figures = one.figures
    parts = (
        figures.question_bytes,
        figures.answer_bytes,
        sum(figures.offline_bytes.values()),
        sum(figures.online_bytes.values()),
    )
    return [part / one.asked.batch for part in parts]


def _bars(
    figure: Figure,
    runs: Sequence[Run],
    parts: Sequence[Sequence[float]],
    kinds: Sequence[tuple[str, str]],
    words: Callable[[float], str],
    label: str,
) -> None:
    """A whole bar is on a logarithmic scale and divided by share: the eye reads the sum, the colours the parts."""
    from matplotlib.patches import Patch

    axes = figure.add_subplot()
    sums = [sum(part) or 1e-12 for part in parts]
    floor = min(sums) / 10
    for row, (part, total) in enumerate(zip(parts, sums, strict=True)):
        left = floor
        for (_, colour), value in zip(kinds, part, strict=True):
            right = left * (total / floor) ** (value / total)
            axes.barh(row, right - left, left=left, height=0.6, color=colour)
            left = right
        axes.annotate(words(total), (total, row), xytext=(4, 0), textcoords="offset points", va="center")
    axes.set_xscale("log")
    axes.set_xlim(floor, max(sums) * 6)
    axes.xaxis.set_major_formatter(lambda value, _: words(value))
    axes.set_yticks(range(len(runs)), [heading(one) for one in runs])
    axes.invert_yaxis()
    axes.set_xlabel(f"{label} (logarithmic; colours divide a bar by share)")
    used = [kind for k, kind in enumerate(kinds) if any(part[k] for part in parts)]
    figure.legend(
        handles=[Patch(color=colour, label=name) for name, colour in used],
        loc="outside lower center",
        ncols=len(used),
        frameon=False,
    )


def drawn(salt: str, draw: Callable[[Figure], None], rows: float) -> str:
    """The picture as an <svg> element without prologue, metadata or ids that nothing refers to.

    rows: its height, in bars.
    """
    require()
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with mpl.rc_context({**_RC, "svg.hashsalt": salt}):
        figure = Figure(figsize=(8.5, 1.6 + 0.42 * rows), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    referred = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in referred else "", text)
    return re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
