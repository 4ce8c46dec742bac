"""A bench as one HTML file: it loads nothing, runs nothing, and can be opened offline or sent by mail."""

from __future__ import annotations

from pathlib import Path

from pqi.measure.bench import Bench
from pqi.measure.charts import draw_batches, draw_layer_bytes, draw_layers, draw_points
from pqi.measure.picture import draw_bytes, draw_seconds
from pqi.measure.private import Run
from pqi.measure.rows import LAYER_COLUMNS, accuracy_line, heading, layer_cells, layers_line, lines, plain_lines
from pqi.webpage import END, begin, text, write

_STYLE = ".bad { color: #a00000; font-weight: 600; }\n"


def write_html(path: str | Path, bench: Bench) -> None:
    """Write the page, whole or not at all. Raises MeasureError without matplotlib, OSError on an unwritable file."""
    write(path, page(bench))


def page(bench: Bench) -> str:
    """The page as text: what was measured, whether it held, figures, pictures, who learns what."""
    title = f"What privacy costs: {bench.subject}"
    runs = list(bench.runs)
    verdict = (
        "<p>Every private answer was what the integer model says, and every byte was declared beforehand.</p>\n"
        if bench.held
        else '<p class="bad">Not everything was as promised: see the lines "right" and "bytes as declared".</p>\n'
    )
    parts = [begin(title, _STYLE), _facts(bench)]
    if runs:
        parts += [verdict, _table(bench, runs), "<h2>Who spends the time</h2>\n", draw_seconds(runs)]
        parts += ["\n<h2>Where the bytes go</h2>\n", draw_bytes(runs), "\n"]
        parts += [_changing(bench), *(_layers(one) for one in runs if one.layers)]
    parts += [_refused(bench), *_protocols(runs), END]
    return "".join(parts)


def _rows(rows: list[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><td>{text(name)}</td><td>{text(what)}</td></tr>\n" for name, what in rows if what)
    return f'<table class="facts">\n{cells}</table>\n'


def _facts(bench: Bench) -> str:
    machine = f"{bench.machine.get('processor', '')}, {bench.machine.get('cores', '')} cores"
    versions = ", ".join(f"{name} {version}" for name, version in bench.versions.items())
    rows = [("network", bench.note), ("accuracy", accuracy_line(bench)), ("machine", machine), ("versions", versions)]
    return _rows([*rows, *(("without privacy", line) for line in plain_lines(bench))])


def _table(bench: Bench, runs: list[Run]) -> str:
    head = "".join(f"<th>{text(heading(one))}</th>" for one in runs)
    body = "".join(
        f"<tr><td>{text(name)}</td>{''.join(f'<td>{text(cell)}</td>' for cell in cells)}</tr>\n"
        for name, cells in lines(bench, runs)
    )
    return (
        "<h2>Figures of one batch: median (least-largest)</h2>\n"
        f'<div class="wide"><table>\n<tr><th></th>{head}</tr>\n{body}</table></div>\n'
    )


def _changing(bench: Bench) -> str:
    """How figures change with the batch and with the bits."""
    parts = []
    if batches := draw_batches(bench):
        parts += ["<h2>By batch size: medians, least to largest</h2>\n", batches, "\n"]
    if against := draw_points(bench.points):
        parts += ["<h2>Bytes against accuracy (weight bits/activation bits)</h2>\n", against, "\n"]
    return "".join(parts)


def _layers(one: Run) -> str:
    """Pictures and figures by layer."""
    head = "".join(f"<th>{text(name)}</th>" for name in LAYER_COLUMNS)
    body = "".join(
        f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in layer_cells(layer))}</tr>\n" for layer in one.layers
    )
    return (
        f"<h2>{text(heading(one))}, layer by layer</h2>\n<p>{text(layers_line(one))}.</p>\n{draw_layers(one)}\n"
        f'{draw_layer_bytes(one)}\n<div class="wide"><table>\n<tr>{head}</tr>\n{body}</table></div>\n'
    )


def _refused(bench: Bench) -> str:
    return f"<h2>Not served</h2>\n{_rows(list(bench.refused.items()))}" if bench.refused else ""


def _protocols(runs: list[Run]) -> list[str]:
    """Per protocol, who learns what, and its parameters."""
    parts = []
    for one in {each.protocol: each for each in runs}.values():
        rows = [("adversary", one.security.adversary), *one.security.learns.items(), *one.facts.items()]
        parts.append(f"<h2>{text(one.protocol)}: who learns what, parameters</h2>\n{_rows(rows)}")
    return parts
