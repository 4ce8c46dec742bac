"""The comparison as one HTML file: it loads nothing, runs nothing, and can be opened offline or sent by mail."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pqi.graph.report import Report
from pqi.quant.comparison import HEADINGS, Comparison, Layer, cells, decibels, share
from pqi.quant.pictures import histograms, overview
from pqi.webpage import END, begin, text, write

MOST = 60  # layers with a histogram of their own

_STYLE = """body { max-width: 1180px; }
th, td { padding: 0.15rem 0.6rem; }
th:first-child, td:first-child { white-space: normal; overflow-wrap: anywhere; }
th.word, td.word { text-align: left; }
tr.first td { background: #fbe9df; }
.facts td:first-child { padding-right: 1.5rem; white-space: nowrap; }
.cards { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; width: 360px; border: 1px solid #e5e5e5; border-radius: 4px; padding: 0.5rem; }
figure.first { border-color: #D55E00; }
figcaption { font-size: 0.8rem; color: #444; overflow-wrap: anywhere; }
figcaption b { color: #222; }
"""


def write_html(path: str | Path, comparison: Comparison, report: Report | None = None, title: str = "") -> None:
    """Write the page, whole or not at all. report: ``model.report()``, for sizes and prices; title: the model's name.

    Raises PicturesMissing (an ImportError) when matplotlib is not installed, OSError when the file cannot be written.
    """
    write(path, page(comparison, report, title))


def page(comparison: Comparison, report: Report | None = None, title: str = "") -> str:
    """The page as text: facts, advice, overview, histograms of up to 60 layers, the table."""
    name = f"Quantization of {title}" if title else "Quantization, layer by layer"
    parts = [
        begin(name, _STYLE),
        _facts(comparison, report),
        _advice(comparison),
        "<h2>Layers</h2>\n<p class=soft>From the first layer at the top to the last. Signal-to-noise ratio: "
        "10 log<sub>10</sub>(&Sigma; f&sup2; / &Sigma; (f - q)&sup2;), of values f and what stands for them, q. Fake "
        "against float is the price of the grids; integer against fake is the price of the rings.</p>\n",
        f"<div class=wide>{overview(comparison)}</div>\n",
        _cards(comparison),
        _table(comparison),
        END,
    ]
    return "".join(parts)


def _facts(comparison: Comparison, report: Report | None) -> str:
    first = comparison.first_diverging
    last = comparison.layers[-1]
    rows = [("inputs compared", f"{comparison.samples:,}")]
    if (a := comparison.accuracies) is not None:
        named = (("float", a.floating), ("fake-quantized", a.fake), ("integer", a.integer))
        right = [f"{name} {part:.2%}" for name, part in named if part is not None]
        rows += [("accuracy", ", ".join(right))] if right else []
        agree = f"integer {a.integer_agrees:.2%}, fake-quantized {a.fake_agrees:.2%} of the inputs"
        rows.append(("same top class as float", agree))
    rows += [
        ("answer", f"{decibels(last.integer_db) or 'no'} dB; read in {comparison.answer.ring} bits"),
        ("first layer to diverge", first if first is not None else "none"),
        ("bits of codes", _spread(layer.codes.bits for layer in comparison.layers if layer.codes is not None)),
        ("bits of weights", _spread(layer.weights.bits for layer in comparison.layers if layer.weights is not None)),
        ("rings", f"{_policy(comparison)}; the widest has {comparison.widest_ring} bits"),
    ]
    if report is not None:
        sizes = (report.macs, "multiply-accumulates"), (report.activations, "activations"), (report.weights, "weights")
        rows.append(("size", ", ".join(f"{count:,} {what}" for count, what in sizes)))
        for name, p in report.prices.items():
            price = f"{p.exchanges} exchanges, {p.online_bytes:,} B each way online, {p.dealt_bytes:,} B dealt an input"
            rows.append((f"price under {name}", price))
    lines = "".join(f"<tr><td>{text(key)}</td><td>{text(value)}</td></tr>\n" for key, value in rows)
    return f"<table class=facts>\n{lines}</table>\n"


def _policy(comparison: Comparison) -> str:
    if comparison.policy == "proven":
        return "proven: no input can wrap"
    return f"{comparison.policy}: arithmetic mod 2^k by definition"


def _spread(bits: Iterable[int]) -> str:
    found = sorted(set(bits))
    return "none" if not found else str(found[0]) if len(found) == 1 else ", ".join(map(str, found))


def _advice(comparison: Comparison) -> str:
    found = comparison.advice()
    if not found:
        return "<h2>What to look at</h2>\n<p>Nothing stands out.</p>\n"
    items = "".join(f"<li>{text(sentence)}</li>\n" for sentence in found)
    how = "layers={...} is an argument of pqi.quantize; pqi quantize takes --layer NAME:FIELD=VALUE."
    return f"<h2>What to look at</h2>\n<ul>\n{items}</ul>\n<p class=soft>{text(how)}</p>\n"


def _cards(comparison: Comparison) -> str:
    shown: Sequence[Layer] = comparison.worst(MOST)
    if not shown:
        return ""
    total = sum(layer.codes is not None or layer.weights is not None for layer in comparison.layers)
    which = f"The {len(shown)} worst of {total} layers" if total > len(shown) else "Every layer with codes or weights"
    words = (
        f"<p class=soft>{which}, in order of computation; counts are logarithmic. Values: those of the float network "
        "(grey) with the range of the codes (blue), and the codes that the integer model used (orange). Weights: float "
        "(grey) and integers (orange) in steps of their grid; blue ticks are levels.</p>\n"
    )
    return (
        f"<h2>Histograms</h2>\n{words}<div class=cards>\n{''.join(_card(comparison, each) for each in shown)}</div>\n"
    )


def _card(comparison: Comparison, layer: Layer) -> str:
    facts = [layer.op, f"{decibels(layer.integer_db) or 'no'} dB"]
    if (codes := layer.codes) is not None:
        in_use = f"{sum(n > 0 for n in codes.used)} of {len(codes.used)} codes in use"
        facts += [f"{codes.bits} bits", in_use, f"seen {codes.lowest:.4g} to {codes.highest:.4g}"]
        if layer.saturated:
            facts.append(f"saturated {share(codes.saturated_low)} low, {share(codes.saturated_high)} high")
    elif (weights := layer.weights) is not None:
        facts += [f"{weights.bits} bits", f"weights at {decibels(weights.db) or 'no'} dB"]
    if (read := layer.read) is not None:
        facts.append(f"ring {read.ring}, seen {read.seen_bits}, proof {read.proven_bits} bits")
        facts += [f"wrapped {share(read.wrapped)}"] if read.wrapped else []
    mark = " class=first" if layer.name == comparison.first_diverging else ""
    caption = f"<b>{text(layer.name)}</b><br>{text('; '.join(facts))}"
    where = f"<br>{text(layer.source)}" if layer.source else ""
    return f"<figure{mark}>{histograms(layer)}\n<figcaption>{caption}{where}</figcaption></figure>\n"


def _table(comparison: Comparison) -> str:
    first = comparison.first_diverging
    head = "".join(f"<th>{text(title)}</th>" for title in HEADINGS)
    rows = []
    for layer in comparison.layers:
        shape = "x".join(map(str, layer.shape))
        mark = " class=first" if layer.name == first else ""
        figures = "".join(f"<td>{text(cell)}</td>" for cell in cells(layer))
        words = f"<td>{text(layer.name)}</td><td class=word>{text(layer.op)}</td><td class=word>{shape}</td>"
        rows.append(f"<tr{mark}>{words}{figures}</tr>\n")
    return (
        "<h2>Table</h2>\n<p class=soft>low, high: shares beyond the ends of the codes. ring, seen: bits in which a "
        "value is read, and that these inputs needed. wraps: share that left the ring.</p>\n"
        "<div class=wide><table>\n<thead><tr><th>layer</th><th class=word>operator</th><th class=word>shape</th>"
        f"{head}</tr></thead>\n<tbody>\n{''.join(rows)}</tbody>\n</table></div>\n"
    )
