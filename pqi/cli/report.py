"""``pqi quantize --report``: float, fake-quantized and integer network layer by layer, in one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from pqi.cli.screen import err, out, plain

if TYPE_CHECKING:
    from pqi.graph.model import IntegerModel
    from pqi.graph.report import Report
    from pqi.quant.comparison import Comparison
    from pqi.quant.stages import Calibration, Lowered


def can_be_drawn(path: Path | None) -> Path | None:
    """An option's callback: a page that could not be written is refused now rather than after the work."""
    if path is None:
        return None
    from pqi.quant.pictures import PicturesMissing, require

    if not path.absolute().parent.is_dir():
        raise typer.BadParameter(f"there is no folder {path.absolute().parent}")
    try:
        require()
    except PicturesMissing as error:
        raise typer.BadParameter(str(error)) from None
    return path


ReportOption = Annotated[
    Path | None,
    typer.Option(
        "--report",
        metavar="R.html",
        dir_okay=False,
        callback=can_be_drawn,
        help="Also compare float and integer network layer by layer on the typical inputs, with histograms, in R.html.",
    ),
]


class Reporter:
    """Keeps what the stages of a quantization made, if a report was asked for, and writes it."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._kept: tuple[Calibration, Lowered, IntegerModel] | None = None

    def look(self, calibration: Calibration, lowered: Lowered, model: IntegerModel) -> None:
        """What ``pqi.quantize`` shows at its end."""
        if self.path is not None:
            self._kept = calibration, lowered, model

    def write(self, x: Any, labels: Any, report: Report, title: str) -> Comparison | None:
        """Compare on x and write the page; None where nobody asked."""
        if self.path is None or self._kept is None:
            return None
        from pqi.quant.compare import compare
        from pqi.quant.html import write_html

        console = err()
        columns = (TextColumn("Comparing"), BarColumn(40), MofNCompleteColumn())
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("", total=None)
            found = compare(*self._kept, x, labels, lambda done, total: bar.update(task, completed=done, total=total))
        write_html(self.path, found, report, title)
        first = found.first_diverging
        told = "no layer diverges" if first is None else f"{first} is the first layer to diverge"
        out().print(f"Wrote {plain(str(self.path))}: {plain(told)}.", soft_wrap=True)
        return found
