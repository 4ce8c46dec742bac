"""The measured difference as one HTML file: it loads nothing, runs nothing, and can be opened offline or mailed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pqi.federated.study.attacks import Inferred, Inverted, Spread
from pqi.measure.picture import drawn
from pqi.webpage import END, begin, text, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#777777", "#E69F00")
_INVERSION = (
    "An image is read from rows of the first layer's part of the update, divided by the bias's entry, and from its "
    "leading singular vectors; of all that is read, the one most like the image sent is taken. Similarity: correlation "
    "over pixels. Control: the same for images that nobody sent. Leaked: similarity less control, in the same trials. "
    "Intervals: 95 %, from resampled trials."
)
_MEMBERSHIP = (
    "Members are the victim's training images, the others as many test images of the same labels. Loss: how much the "
    "update improved an image. Gradient: how far the update points where the image would have pulled it. Area under "
    "the curve: 0.5 is a guess. A trial is one client in one round; intervals: 95 %, from resampled trials."
)


@dataclass(frozen=True)
class Study:
    """What a page shows. facts: the setting, in words. inverted, inferred: by setting, every view of it."""

    title: str
    facts: Mapping[str, str]
    inverted: Mapping[str, Sequence[Inverted]] = field(default_factory=dict)
    inferred: Mapping[str, Sequence[Inferred]] = field(default_factory=dict)


def write_page(path: str | Path, study: Study) -> None:
    """Write the page, whole or not at all. Raises MeasureError without matplotlib, OSError on an unwritable file."""
    write(path, page(study))


def page(study: Study) -> str:
    """The page as text: the setting, images sent and read, curves, and every figure with its interval."""
    facts = "".join(f"<tr><td>{text(name)}</td><td>{text(what)}</td></tr>\n" for name, what in study.facts.items())
    parts = [
        begin(study.title, bitmaps=True),
        f"<table class=facts>\n{facts}</table>\n",
    ]
    if study.inverted:
        parts.append(f"<h2>Gradient inversion</h2>\n<p class=soft>{_INVERSION}</p>\n")
    for setting, views in study.inverted.items():
        parts += [f"<h2>{text(setting)}</h2>\n", draw_images(views), _inverted(views)]
    if study.inferred:
        parts.append(f"<h2>Membership inference</h2>\n<p class=soft>{_MEMBERSHIP}</p>\n")
    for setting, found in study.inferred.items():
        parts += [f"<h2>{text(setting)}</h2>\n", draw_curves(found), _inferred(found)]
    return "".join([*parts, END])


def _inverted(views: Sequence[Inverted]) -> str:
    columns = ("similarity", "control", "leaked", "less than the first view by", "PSNR, dB")
    return _table(columns, {v.view: (v.similarity, v.control, v.leaked, v.less, v.psnr) for v in views})


def _inferred(found: Sequence[Inferred]) -> str:
    columns = ("area under the curve", "less than the first view by", "true positives at 10 % false")
    return _table(columns, {f"{f.view}, {f.score}": (f.area, f.less, f.true_at) for f in found})


def _table(columns: Sequence[str], rows: Mapping[str, Sequence[Spread]]) -> str:
    head = "".join(f"<th>{text(name)}</th>" for name in ("the server sees", *columns))
    body = "".join(
        f"<tr><td>{text(name)}</td>{''.join(f'<td>{text(str(cell))}</td>' for cell in cells)}</tr>\n"
        for name, cells in rows.items()
    )
    return f"<div class=wide><table>\n<tr>{head}</tr>\n{body}</table></div>\n"


def draw_images(views: Sequence[Inverted]) -> str:
    """Images of the first trials in a row as they were sent, and below it what each view gave away."""
    names = ["sent", *(view.view for view in views)]
    rows = [views[0].shown[:, 0], *(view.shown[:, 1] for view in views)]
    side = round(rows[0].shape[-1] ** 0.5)
    if side * side != rows[0].shape[-1]:
        return ""  # no square images: figures alone

    def draw(figure: Figure) -> None:
        axes = figure.subplots(len(rows), len(rows[0]), squeeze=False)
        for name, row, images in zip(names, axes, rows, strict=True):
            for axis, image in zip(row, images, strict=True):
                axis.imshow(image.reshape(side, side), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
                axis.set_xticks([])
                axis.set_yticks([])
            row[0].set_ylabel(name, rotation=0, ha="right", va="center")

    return drawn("images", draw, 2.4 * len(rows) - 2)


def draw_curves(found: Sequence[Inferred]) -> str:
    """True against false positives, one panel a score."""
    scores = list(dict.fromkeys(one.score for one in found))

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, len(scores), squeeze=False)[0]
        for axes, score in zip(panels, scores, strict=True):
            shown = [one for one in found if one.score == score]
            for one, colour in zip(shown, _COLOURS * len(shown), strict=False):
                label = f"{one.view}: {one.area.mean:.3f}"
                axes.plot(one.curve.false, one.curve.true, color=colour, linewidth=1.2, label=label)
            axes.plot(np.array([0, 1]), np.array([0, 1]), color="#bbbbbb", linewidth=0.6, linestyle="--")
            axes.set_title(f"by {score}", fontsize=9)
            axes.set_xlabel("false positives")
            axes.set_aspect("equal")
            axes.legend(loc="lower right", frameon=False, fontsize=7)
        panels[0].set_ylabel("true positives")

    return drawn("curves", draw, 7)
