"""Pictures of where a run's time and bytes go, and how they change: by layer, by batch size, by bits. Inline SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pqi.measure.bench import Bench
from pqi.measure.layers import Layer
from pqi.measure.picture import drawn
from pqi.measure.points import Point
from pqi.measure.private import Run
from pqi.measure.rows import seconds, size, slowest
from pqi.measure.spread import Spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Part = tuple[str, str, Callable[[Layer], float]]
_MOST = 60  # layers of one picture
_ROW = 0.42  # of a bar's height in the other pictures
_TIME: tuple[Part, ...] = (
    ("products", "#0072B2", lambda layer: layer.linear),
    ("other work", "#D55E00", lambda layer: layer.other),
    ("waiting, exchanges included", "#EECB7F", lambda layer: layer.network),
    ("offline: dealing", "#CFCFCF", lambda layer: layer.offline.deal if layer.offline else 0.0),
    ("offline: preparing, slower server", "#9A9A9A", lambda layer: layer.offline.prepare if layer.offline else 0.0),
)
_BYTES: tuple[Part, ...] = (
    ("between servers, each way", "#D55E00", lambda layer: layer.sent),
    ("dealt", "#CFCFCF", lambda layer: float(layer.declared.dealt_bytes)),
)
_LINES = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#777777", "#E69F00")


def draw_layers(run: Run) -> str:
    """Stacked seconds of every layer for one batch: online work and waiting, then what was done beforehand."""
    return _by_layer("layers", run, _TIME, seconds, f"seconds for a batch of {run.asked.batch}")


def draw_layer_bytes(run: Run) -> str:
    """Stacked bytes of every layer for one batch."""
    return _by_layer("bytes", run, _BYTES, size, f"bytes for a batch of {run.asked.batch}")


def _by_layer(salt: str, run: Run, parts: Sequence[Part], words: Callable[[float], str], label: str) -> str:
    shown = slowest(run.layers, _MOST)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        left = [0.0] * len(shown)
        for name, colour, value in parts:
            values = [value(layer) for layer in shown]
            if any(values):
                axes.barh(range(len(shown)), values, left=left, height=0.75, color=colour, label=name)
                left = [a + b for a, b in zip(left, values, strict=True)]
        axes.set_yticks(range(len(shown)), [layer.name for layer in shown])
        axes.tick_params(axis="y", labelsize=6.5, length=0)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.xaxis.set_major_formatter(lambda value, _: words(value) if value else "0")
        left_out = len(run.layers) - len(shown)
        axes.set_xlabel(label + (f"; {left_out} faster layers are not shown" if left_out else ""))
        if axes.get_legend_handles_labels()[0]:
            figure.legend(loc="outside lower center", ncols=3, frameon=False)

    return drawn(salt + run.protocol, draw, _ROW * len(shown) + 1.0)


def draw_batches(bench: Bench) -> str:
    """Seconds of one input by batch size: the servers of each protocol, and float32. Empty for a single size."""
    found: dict[str, list[tuple[int, Spread]]] = {}
    for run in bench.runs:
        found.setdefault(f"{run.protocol}: server online", []).append((run.asked.batch, run.figures.seconds["server"]))
        if "total" in run.figures.seconds:
            name = f"{run.protocol}: offline + online"
            found.setdefault(name, []).append((run.asked.batch, run.figures.seconds["total"]))
    for plain in bench.plain:
        if plain.float32_seconds is not None:
            found.setdefault("float32, one thread", []).append((plain.batch, plain.float32_seconds))
    if len(bench.plain) < 2:
        return ""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for (name, line), colour in zip(found.items(), _LINES * len(found), strict=False):
            line.sort(key=lambda at: at[0])
            sizes, middle = [b for b, _ in line], [s.median / b for b, s in line]
            axes.plot(sizes, middle, marker="o", markersize=4, color=colour, label=name)
            low, high = [s.low / b for b, s in line], [s.high / b for b, s in line]
            axes.fill_between(sizes, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        _words(axes, "inputs in a batch", "seconds an input")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_major_formatter(lambda value, _: seconds(value))
        axes.set_xticks(sorted({plain.batch for plain in bench.plain}))
        figure.legend(loc="outside lower center", ncols=3, frameon=False)

    return drawn("batches", draw, 5)


def draw_points(points: Sequence[Point]) -> str:
    """Bytes of one input, online and dealt, against the share of right decisions. Empty where none is known."""
    shown = [(point, point.quality) for point in points if point.quality is not None]
    if not shown:
        return ""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for name, colour, values in (
            ("between servers, each way", "#D55E00", [float(point.online_bytes) for point, _ in shown]),
            ("dealt", "#777777", [float(point.dealt_bytes) for point, _ in shown]),
        ):
            axes.plot(values, [100 * quality for _, quality in shown], "o", color=colour, label=name)
            for (point, quality), x in zip(shown, values, strict=True):
                text = f"{point.bits or 'measured'} {point.rings}"
                axes.annotate(text, (x, 100 * quality), xytext=(4, 4), textcoords="offset points", fontsize=6.5)
        axes.set_xscale("log")
        what = "right decisions" if shown[0][0].accuracy is not None else "decisions that are the float network's"
        _words(axes, "bytes of one input (logarithmic)", f"{what}, %")
        axes.xaxis.set_major_formatter(lambda value, _: size(value))
        axes.xaxis.set_minor_formatter(lambda value, _: "")
        axes.margins(x=0.25, y=0.2)
        figure.legend(loc="outside lower center", ncols=2, frameon=False)

    return drawn("points", draw, 5)


def _words(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color="#eeeeee", linewidth=0.6)
