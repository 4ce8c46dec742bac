"""The trade-off curve as a picture; matplotlib is loaded only here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pqi.graph.errors import QuantizationError

if TYPE_CHECKING:
    from pqi.tuning.curve import Curve

_UNITS = {
    "offline_bytes": "dealt bytes per input",
    "online_bytes": "online bytes per input, each way",
    "exchanges": "exchanges, one after the other",
    "seconds": "seconds per input, estimated",
}
SUFFIXES = (".png", ".svg", ".pdf")


def refuse_unless_drawable(path: str | Path) -> None:
    """Raise QuantizationError where a picture could not be drawn: before an hour of work rather than after it."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise QuantizationError(f"picture {str(path)!r}: the name must end in one of {', '.join(SUFFIXES)}")
    _figure()


def _figure() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise QuantizationError(
            "pictures need matplotlib, which is not installed: pip install 'private-quantized-inference[pictures]'"
        ) from error
    return Figure


def draw(curve: Curve, path: str | Path) -> None:
    """Cost against accuracy: all points, the front, the float network, the budget, the choice. Written to ``path``."""
    refuse_unless_drawable(path)
    figure = _figure()(figsize=(8.0, 5.0), layout="constrained")
    axes = figure.add_subplot()
    front, choice = curve.front, curve.choice
    # What guesses tells nothing and would squeeze the rest into a corner.
    floor = min(curve.float_accuracy - max(0.06, 4 * curve.budget / 100), choice.measured.accuracy - 0.01)
    shown = [p for p in curve.points if p.measured.accuracy >= floor]
    axes.scatter([p.cost for p in shown], [100 * p.measured.accuracy for p in shown], s=12, c="0.72", label="measured")
    line = [p for p in front if p.measured.accuracy >= floor]
    axes.step(
        [p.cost for p in line],
        [100 * p.measured.accuracy for p in line],
        where="post",
        marker="o",
        markersize=4,
        color="tab:blue",
        label="no other is better in both",
    )
    axes.errorbar(
        [choice.cost],
        [100 * choice.measured.accuracy],
        yerr=[100 * choice.measured.accuracy_error],
        fmt="*",
        markersize=15,
        color="tab:red",
        capsize=3,
        label=f"chosen: {choice.cost:,.4g}, {100 * choice.measured.accuracy:.2f} % (one standard error)",
    )
    axes.axhline(
        100 * curve.float_accuracy, color="0.3", linewidth=1, label=f"float {100 * curve.float_accuracy:.2f} %"
    )
    axes.axhline(
        100 * curve.float_accuracy - curve.budget, color="0.3", linewidth=1, linestyle=":", label="accuracy budget"
    )
    axes.set_xscale("log")
    for formatted in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        formatted("{x:,.6g}")
    axes.tick_params(axis="x", which="both", labelsize=8, rotation=30)
    axes.set_xlabel(_UNITS.get(curve.objective, curve.objective))
    axes.set_ylabel(f"accuracy on {curve.samples:,} validation inputs, %")
    axes.set_title(f"{curve.protocol}, cost as declared; network {curve.network.name}", loc="left", fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(loc="lower right", fontsize=8)
    figure.savefig(Path(path), dpi=150)
