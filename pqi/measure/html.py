"""A bench as one HTML file: it loads nothing, runs nothing, and can be opened offline or sent by mail."""

from __future__ import annotations

import os
from pathlib import Path

from pqi.measure.bench import Bench
from pqi.measure.charts import draw_batches, draw_layer_bytes, draw_layers, draw_points
from pqi.measure.picture import draw_bytes, draw_seconds
from pqi.measure.private import Run
from pqi.measure.rows import LAYER_COLUMNS, accuracy_line, heading, layer_cells, layers_line, lines, plain_lines
from pqi.quant.html import text

# The policy forbids what the page does not do anyway: any load, any script.
_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 2rem auto; max-width: 1080px;
 padding: 0 1rem; }}
h1 {{ font-size: 1.5rem; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.15rem; margin-top: 2.2rem; }}
table {{ border-collapse: collapse; font-size: 0.85rem; }}
th, td {{ text-align: right; padding: 0.15rem 0.8rem; border-bottom: 1px solid #eee; white-space: nowrap; }}
th {{ color: #555; font-weight: 600; }}
th:first-child, td:first-child {{ text-align: left; }}
.facts td {{ text-align: left; white-space: normal; overflow-wrap: anywhere; }}
.facts td:first-child {{ color: #555; white-space: nowrap; }}
.wide {{ overflow-x: auto; }}
.bad {{ color: #a00000; font-weight: 600; }}
svg {{ max-width: 100%; height: auto; }}
</style>
</head>
<body>
"""


def write_html(path: str | Path, bench: Bench) -> None:
    """Write the page, whole or not at all. Raises MeasureError without matplotlib, OSError on an unwritable file."""
    target = Path(path)
    made = page(bench)
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        draft.write_text(made, encoding="utf-8", errors="replace")
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


def page(bench: Bench) -> str:
    """The page as text: what was measured, whether it held, figures, pictures, who learns what."""
    title = f"What privacy costs: {bench.subject}"
    runs = list(bench.runs)
    verdict = (
        "<p>Every private answer was what the integer model says, and every byte was declared beforehand.</p>\n"
        if bench.held
        else '<p class="bad">Not everything was as promised: see the lines "right" and "bytes as declared".</p>\n'
    )
    parts = [_HEAD.format(title=text(title)), f"<h1>{text(title)}</h1>\n", _facts(bench)]
    if runs:
        parts += [verdict, _table(bench, runs), "<h2>Who spends the time</h2>\n", draw_seconds(runs)]
        parts += ["\n<h2>Where the bytes go</h2>\n", draw_bytes(runs), "\n"]
        parts += [_changing(bench), *(_layers(one) for one in runs if one.layers)]
    parts += [_refused(bench), *_protocols(runs), "</body>\n</html>\n"]
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
