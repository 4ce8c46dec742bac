"""What an audit found, drawn: inline SVG, one picture a question. "" where nothing was found to draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pqi.audit.attack import Curve, Finding
from pqi.audit.rules import FALSE_POSITIVES
from pqi.audit.subjects import FLOAT, INTEGERS
from pqi.measure.picture import drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#777777")
_FORMS = {FLOAT: "#777777", INTEGERS: "#D55E00"}
_FAIR = ("gap of accuracies", "demographic parity difference", "equalized odds difference", "worst group's accuracy")
_ROWS = 7  # of a picture's height


def robustness(findings: Sequence[Finding]) -> str:
    """Robust accuracy over epsilon: float at the left, integers at the right, a line for each attack."""
    shown = {form: _curves(findings, form) for form in (FLOAT, INTEGERS)}
    names = list(dict.fromkeys(name for curves in shown.values() for name in curves))
    if not names:
        return ""

    def draw(figure: Figure) -> None:
        places = figure.subplots(1, 2, sharey=True)
        for axes, (form, curves) in zip(places, shown.items(), strict=True):
            for name, curve in curves.items():
                _line(axes, curve, _COLOURS[names.index(name) % len(_COLOURS)], name)
            axes.set_title(form)
            axes.set_ylim(-0.02, 1.02)
            axes.set_xticks(sorted({x for curve in curves.values() for x in curve.x}))
            axes.xaxis.set_major_formatter(lambda value, _: f"{255 * value:.3g}")
            _words(axes, "epsilon, in 1/255 of the input's range", "robust accuracy" if form == FLOAT else "")
        _legend(figure, places)

    return drawn("audit robustness", draw, _ROWS)


def _curves(findings: Sequence[Finding], form: str) -> dict[str, Curve]:
    """By attack: what was made to fool this form, and what was made on another and scored on it."""
    found = {}
    for finding in findings:
        curve = finding.curves.get("robust accuracy")
        if finding.subject == form and curve is not None:
            found[finding.attack] = curve
    return found


def apart(findings: Sequence[Finding]) -> str:
    """What is right in float and wrong in integers over epsilon; what labels alone find by distance."""
    lines = [(f.curves["driven apart"], f) for f in findings if "driven apart" in f.curves]
    walks = [(f.curves["evaded by distance"], f) for f in findings if "evaded by distance" in f.curves]
    kinds = [kind for kind in (lines, walks) if kind]
    if not kinds:
        return ""

    def draw(figure: Figure) -> None:
        places = figure.subplots(1, len(kinds), squeeze=False)[0]
        for axes, kind in zip(places, kinds, strict=True):
            for curve, finding in kind:
                _line(axes, curve, _FORMS[finding.subject], finding.subject)
            axes.set_title(kind[0][1].attack)
            axes.set_ylim(-0.02, 1.02)
            _words(axes, kind[0][0].x_name, kind[0][0].y_name)
        _legend(figure, places)

    return drawn("audit apart", draw, _ROWS)


def membership(findings: Sequence[Finding]) -> str:
    """True over false positives, both logarithmic: the rare confident guess is what counts."""
    shown = [f for f in findings if f.attack == "membership"]
    methods = list(dict.fromkeys(name for f in shown for name in f.curves))
    if not methods:
        return ""
    least = 0.5 / max(int(f.settings["others"]) for f in shown)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for finding in shown:
            style = "--" if finding.subject == FLOAT else "-"
            for name, curve in finding.curves.items():
                # On a logarithmic axis nothing is at 0: it is drawn at half an example.
                x, y = ([max(value, least) for value in line] for line in (curve.x, curve.y))
                colour = _COLOURS[methods.index(name) % len(_COLOURS)]
                axes.step(x, y, style, where="post", color=colour, linewidth=1.3, label=f"{name}, {finding.subject}")
        axes.plot([least, 1], [least, 1], ":", color="#999999", linewidth=1, label="nothing learnt")
        if least <= FALSE_POSITIVES:
            axes.axvline(FALSE_POSITIVES, color="#999999", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: f"{value:g}")
        _words(axes, "false positives (logarithmic)", "true positives (logarithmic)")
        _legend(figure, [axes])

    return drawn("audit membership", draw, _ROWS + 2)


def signs(findings: Sequence[Finding]) -> str:
    """The signs of a backdoor that are shares or distances, each with its bound."""
    shown = [f for f in findings if f.attack == "detection"]
    if not shown:
        return ""
    finding = shown[0]
    bounds = dict(finding.settings["bounds"])
    rows = [(f"{name} (at most {bounds[name]:g})", finding.figures[name], bounds[name]) for name in bounds]
    least = finding.settings["least agreement"]
    rows.append((f"agreement (at least {least:g})", finding.figures["agreement"], least))

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for row, (_, seen, bound) in enumerate(rows):
            _bar(axes, row, seen, 0.5, _FORMS[INTEGERS])
            axes.plot([bound, bound], [row - 0.4, row + 0.4], color="#222222", linewidth=1.6)
        axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.05)
        _words(axes, "figure with its interval; the stroke is the bound", "")

    return drawn("audit signs", draw, len(rows))


def trigger(findings: Sequence[Finding]) -> str:
    """The trigger that the search found: what it covers, and what it shows there (mean over channels)."""
    shown = [f for f in findings if f.attack == "detection" and f.settings.get("trigger")]
    if not shown:
        return ""
    import numpy as np

    mask, pattern = (np.array(shown[0].settings["trigger"][name], float) for name in ("mask", "pattern"))
    covers, looks = (_plane(values) for values in (mask, mask * pattern))

    def draw(figure: Figure) -> None:
        for axes, values, title in zip(
            figure.subplots(1, 2), (covers, looks), ("what it covers", "what it adds"), strict=True
        ):
            axes.pcolormesh(values, cmap="Greys", vmin=0, vmax=max(float(values.max()), 1e-9))
            axes.invert_yaxis()
            axes.set_aspect("equal")
            axes.set_title(title)
            axes.set_xticks([])
            axes.set_yticks([])

    return drawn("audit trigger", draw, 4)


def _plane(values: Any) -> Any:
    """As a picture: channels averaged, vectors as one row."""
    flat: Any = values.mean(axis=0) if values.ndim == 3 else values.reshape(1, -1)
    return flat


def bit_flips(findings: Sequence[Finding], classes: int) -> str:
    """Accuracy over bits turned, down to chance."""
    shown = [f for f in findings if f.attack == "bit-flips"]
    if not shown:
        return ""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for finding, colour in zip(shown, _COLOURS, strict=False):
            _line(axes, finding.curves["accuracy"], colour, "integers")
        axes.axhline(1 / classes, color="#999999", linewidth=0.8, linestyle=":", label="chance")
        axes.set_ylim(-0.02, 1.02)
        axes.locator_params(axis="x", integer=True)
        _words(axes, "bits turned", "accuracy")
        _legend(figure, [axes])

    return drawn("audit bit flips", draw, _ROWS)


def fairness(findings: Sequence[Finding]) -> str:
    """Gaps between groups, float beside integers, with intervals."""
    shown = {f.subject: f.figures for f in findings if f.attack == "fairness"}
    if not {FLOAT, INTEGERS} <= set(shown):
        return ""
    names = [name for name in _FAIR if name in shown[INTEGERS]]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for form, shift in ((FLOAT, -0.18), (INTEGERS, 0.18)):
            for row, name in enumerate(names):
                _bar(axes, row + shift, shown[form][name], 0.32, _FORMS[form], form if row == 0 else "")
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlim(left=0)
        _words(axes, "share, with its interval", "")
        _legend(figure, [axes])

    return drawn("audit fairness", draw, 1.4 * len(names))


def _bar(axes: Axes, row: float, seen: Any, height: float, colour: str, label: str = "") -> None:
    axes.barh(row, seen.value, height=height, color=colour, alpha=0.75, label=label or None)
    axes.plot([seen.low, seen.high], [row, row], color="#222222", linewidth=1)


def _line(axes: Axes, curve: Curve, colour: str, label: str) -> None:
    axes.plot(curve.x, curve.y, marker="o", markersize=3, linewidth=1.3, color=colour, label=label)
    if curve.low:
        axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.12, linewidth=0)


def _words(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color="#eeeeee", linewidth=0.6)
    axes.set_axisbelow(True)


def _legend(figure: Figure, places: Sequence[Axes]) -> None:
    """One legend for all, each name once."""
    handles: dict[str, Any] = {}
    for axes in places:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=4, frameon=False)
