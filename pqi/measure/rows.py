"""The figures of a bench as words, line by line: what the screen and the page both show."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pqi.measure.bench import Bench
from pqi.measure.layers import Layer
from pqi.measure.private import Run
from pqi.measure.spread import Spread
from pqi.session.roles import DEALER, SERVERS

Line = tuple[str, list[str]]
_UNITS = ("B", "kB", "MB", "GB")
_SERVERS = tuple(SERVERS.values())
LAYER_COLUMNS = ("layer", "online", "products", "other work", "waiting", "dealing", "preparing", "sent", "dealt")


def heading(one: Run) -> str:
    """What a column is of."""
    over = f" {one.asked.link}" if one.asked.link else ""
    return f"{one.protocol} x{one.asked.batch:,}{over}"


def lines(bench: Bench, runs: list[Run]) -> list[Line]:
    """Per figure its name and what it is for every run; seconds and bytes are of one batch."""
    of: tuple[tuple[str, Callable[[Run], str]], ...] = (
        ("inputs asked", lambda r: f"{r.asked.samples:,}"),
        ("right", _right),
        ("bytes as declared", lambda r: "yes" if r.truth.as_declared else "NO"),
        ("accuracy", lambda r: "" if r.truth.accuracy is None else f"{100 * r.truth.accuracy:.2f} %"),
        ("whole, client's clock", lambda r: _spread(r.figures.seconds["whole"])),
        ("whole, an input", lambda r: seconds(r.figures.seconds["whole"].median / r.asked.batch)),
        ("server online", lambda r: _spread(r.figures.seconds["server"])),
        ("server, an input", lambda r: seconds(r.figures.seconds["server"].median / r.asked.batch)),
        ("server offline", lambda r: _spread(r.figures.seconds["offline"])),
        ("client encrypts", lambda r: _spread(r.figures.seconds.get("encrypt"))),
        ("client decrypts", lambda r: _spread(r.figures.seconds.get("decrypt"))),
        ("dealing it, pool empty", lambda r: _spread(r.figures.seconds.get("deal"))),
        ("offline + online, pool empty", lambda r: _spread(r.figures.seconds.get("total"))),
        ("client makes keys, once", lambda r: seconds(r.figures.keys_seconds) if r.figures.keys_bytes else ""),
        ("whole / float32", lambda r: _times(r, "whole", bench.beside(r).float32_seconds)),
        ("online / float32", lambda r: _times(r, "server", bench.beside(r).float32_seconds)),
        ("online / float32, 2 threads", lambda r: _times(r, "server", bench.beside(r).float32_two_threads)),
        ("whole / integer model", lambda r: _times(r, "whole", bench.beside(r).integer_seconds[r.model])),
        ("keys to the server, once", lambda r: size(r.figures.keys_bytes) if r.figures.keys_bytes else ""),
        ("question", lambda r: size(r.figures.question_bytes)),
        ("answer", lambda r: size(r.figures.answer_bytes)),
        ("dealt", lambda r: _shared(r, sum(r.figures.offline_bytes.values()))),
        ("between servers, each way", lambda r: _shared(r, max(r.figures.online_bytes.values(), default=0))),
        ("exchanges of servers", lambda r: f"{r.figures.exchanges}"),
        ("noise left", lambda r: "" if r.truth.noise_left is None else f"{r.truth.noise_left:.0f} bits"),
        ("peak memory, server", lambda r: f"{max(v for k, v in r.peak_rss_mb.items() if k in _SERVERS):,.0f} MB"),
        ("peak memory, dealer", lambda r: f"{r.peak_rss_mb[DEALER]:,.0f} MB" if DEALER in r.peak_rss_mb else ""),
        ("peak memory, client", lambda r: f"{r.peak_rss_mb['client']:,.0f} MB"),
    )
    made: list[Line] = [(name, [cell(each) for each in runs]) for name, cell in of]
    return [(name, cells) for name, cells in made if any(cells)]


def plain_lines(bench: Bench) -> list[str]:
    """Without privacy, one line per batch size."""
    out = []
    for plain in bench.plain:
        parts = [] if plain.float32_seconds is None else [f"float32 {_spread(plain.float32_seconds)}"]
        parts += [] if plain.float32_two_threads is None else [f"on two {_spread(plain.float32_two_threads)}"]
        parts += [f"{kind} model {_spread(spread)}" for kind, spread in plain.integer_seconds.items()]
        out.append(f"{plain.batch:,} at once, one thread: {', '.join(parts)}")
    return out


def accuracy_line(bench: Bench) -> str:
    """Accuracies over all inputs; empty where nothing is known."""
    found = [("float", bench.accuracies.floating)]
    found += [(f"{kind} model", value) for kind, value in bench.accuracies.integer.items()]
    return ", ".join(f"{name} {100 * value:.2f} %" for name, value in found if value is not None)


def layer_cells(layer: Layer) -> list[str]:
    """One layer's row, in the order of LAYER_COLUMNS. A count of bytes that is not the declared one says so."""
    offline = layer.offline
    parts = (layer.online, layer.linear, layer.other, layer.network)
    sent = size(layer.sent) if layer.as_declared else f"{size(layer.sent)}, NOT {size(layer.declared.online_bytes)}"
    return [
        layer.name,
        *(seconds(part) if part else "" for part in parts),
        *(["", ""] if offline is None else [seconds(offline.deal), seconds(offline.prepare)]),
        sent if layer.sent or layer.declared.online_bits else "",
        size(layer.declared.dealt_bytes) if layer.declared.dealt_bits else "",
    ]


def slowest(layers: Sequence[Layer], most: int) -> list[Layer]:
    """The layers that take longest online, in the network's order."""
    kept = sorted(layers, key=lambda layer: -layer.online)[:most]
    return [layer for layer in layers if layer in kept]


def layers_line(one: Run) -> str:
    """What the layers together say of a run, against its own clock."""
    parts = {
        "products": sum(layer.linear for layer in one.layers),
        "other work": sum(layer.other for layer in one.layers),
        "waiting": sum(layer.network for layer in one.layers),
    }
    online = one.figures.seconds["server"].median
    # Medians do not add up exactly; what no step has booked is the way to the worker's thread and back.
    parts["between steps"] = max(0.0, online - sum(parts.values()))
    told = ", ".join(f"{name} {seconds(value)}" for name, value in parts.items())
    held = "as declared, layer by layer" if all(layer.as_declared for layer in one.layers) else "NOT as declared"
    line = f"server online {seconds(online)}: {told}; bytes {held}"
    if one.offline is None:
        return line
    deal, prepare = seconds(one.offline.deal), seconds(one.offline.prepare)
    return f"{line}. Offline, alone on a core: dealing {deal}, preparing {prepare}"


def _right(one: Run) -> str:
    truth = one.truth
    if truth.equal is None:
        inside = truth.largest_error <= truth.error_bound
        return f"{'within' if inside else 'BEYOND'} {truth.error_bound:.2g} (off by {truth.largest_error:.1g})"
    return "all exact" if truth.equal == 1.0 else f"ONLY {100 * truth.equal:.3f} % EXACT"


def _shared(one: Run, count: int) -> str:
    return "" if one.figures.keys_bytes else size(count)


def _times(one: Run, what: str, plain: Spread | None) -> str:
    if plain is None:
        return ""
    times = one.figures.seconds[what].median / plain.median
    return f"{times:,.0f} x" if times >= 10 else f"{times:.2f} x"


def _spread(found: Spread | None) -> str:
    """The median, and the ends where there are several."""
    if found is None or found.high == 0:
        return ""
    if found.runs == 1:
        return seconds(found.median)
    unit, factor = ("s", 1.0) if found.median >= 0.9995 else ("ms", 1e3) if found.median >= 0.9995e-3 else ("us", 1e6)
    low, middle, high = (_three(factor * value) for value in (found.low, found.median, found.high))
    return f"{middle} {unit} ({low}-{high})"


def seconds(value: float) -> str:
    """3.2 ms, 1.24 s."""
    unit, factor = ("s", 1.0) if value >= 0.9995 else ("ms", 1e3) if value >= 0.9995e-3 else ("us", 1e6)
    return f"{_three(factor * value)} {unit}"


def size(count: float) -> str:
    """842 B, 53.7 kB, 45.0 MB."""
    value, unit = float(count), 0
    while value >= 999.5 and unit + 1 < len(_UNITS):
        value, unit = value / 1000, unit + 1
    return f"{value:.0f} B" if unit == 0 else f"{_three(value)} {_UNITS[unit]}"


def _three(value: float) -> str:
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"
