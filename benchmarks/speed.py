"""Two servers and a dealer against float32 on the same machine in the same minutes: every claim with its figure.

    PQI_DATA=<folder> python benchmarks/speed.py [mlp lenet resnet20 vgg16 resnet18-64 resnet18 resnet50 mobilenet]
                      [--rings proven calibrated] [--without wan memory] [--seconds 3600] [--small] [--json FILE]

Every role is a process of its own and talks TLS over loopback; exact rounding, shared weights, warm. Without names all
networks are measured, small ones first; what the seconds do not suffice for is left out, and said so. Terms:

online            the slower server's clock, from having its share of the input to having its share of the answer, with
                  the dealer at rest (in the field it has a machine of its own)
online / float32  median of that by the median of float32 torch on one thread, timed in between the private batches
offline + online  the client's clock from its question to the answer where nothing is kept ahead (``pool_items`` 0): the
                  question has server B order what it needs, and nothing else is dealt meanwhile. The order, dealing,
                  its way to server B, both servers' preparation, the rounds, the answer. Where dealing takes longer
                  than a server waits: the sum of the medians of dealing (to its arrival), preparing (the slower
                  server) and online
in batches        a batch is one query; seconds of it by its size
bytes             payload, MB of 10^6; "in all" is what the dealer sent plus what both servers sent

The exit status is 0 if every claim of proven rings holds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import pqi
from pqi.demo.measure import machine, versions
from pqi.measure import problems
from pqi.measure.bench import ratio
from pqi.measure.facts import facts
from pqi.measure.nets.registry import ACTIVATION_BITS, NETWORKS, WEIGHT_BITS
from pqi.measure.private import Asked, Run, run
from pqi.measure.rows import layer_cells, layers_line, slowest
from pqi.measure.spread import Spread
from pqi.measure.subject import Subject
from pqi.session.ledger import peak_rss_of
from pqi.session.roles import DEALER, SERVER_B
from protocols import api

ORDER = ("mlp", "lenet", "resnet20", "mobilenet", "vgg16", "resnet18-64", "resnet18", "resnet50")
QUERIES = {"mlp": 30, "lenet": 30, "resnet20": 20, "mobilenet": 8, "vgg16": 10, "resnet18-64": 10, "resnet18": 5,
           "resnet50": 3}  # fmt: skip
BATCHES = {"mlp": (32, 10), "lenet": (32, 8), "resnet20": (32, 4), "vgg16": (16, 4)}  # size, how many
TIMES_FLOAT32 = {"resnet18": 3.0, "vgg16": 4.0}
ONLINE = {"resnet20": 0.025, "lenet": 0.006, "mlp": 0.002}
TOTAL = {"resnet20": 0.15, "lenet": 0.040, "mlp": 0.005, "resnet18": 1.5, "vgg16": 0.21, "resnet50": 3.6}
TOTAL_IN_BATCHES = {"vgg16": 0.11}
MB_IN_ALL = {"resnet50": 600.0}
HALVED = ("resnet20", "lenet", "mlp")  # by batches: time of an input
MEMORY_MB = {"resnet18": 1500.0}
WAN_TOTAL, WAN_GAIN = 3.5, 2.0
AHEAD = 100  # queries dealt ahead whose memory is looked at

# Measured on this kind of machine, parties as processes on loopback, batch 1: seconds, least/median; MB sent per party.
PEERS = {
    "mlp": "MP-SPDZ replicated .0029/.0036 s, .012 MB; SPU ABY3 .029, .021; SPU SEMI2K .026, .97; MP-SPDZ dealer "
    ".0083/.010, .97; CrypTen TTP .11, 1.03; SPU Cheetah .52, 1.40",
    "lenet": "MP-SPDZ replicated .186/.225 s, .71 MB; SPU SEMI2K .29, 4.98; SPU ABY3 .33, 1.22; MP-SPDZ dealer "
    ".42/.47, 19.4; CrypTen TTP .68, 18.7; SPU Cheetah 1.89, 4.0",
    "resnet20": "MP-SPDZ replicated .56/.60 s, 9.0 MB; CrypTen TTP 1.28, 59.7; SPU SEMI2K 1.73, 28.8; SPU ABY3 2.0, "
    "14.8; MP-SPDZ dealer 3.1, 339; SPU Cheetah 20.6, 33.5",
    "vgg16": "HPMPC Trio (inexact) .214 s, 17.9 MB in all; batch 16 .112 s an image",
    "resnet18-64": "CrypTen TFP 2.66 s, 248 MB; MP-SPDZ replicated 4.65, 13; SPU SEMI2K 5.3, 170; SPU ABY3 9.3, 22.8",
    "resnet18": "SPU ABY3 21.7 s, 809 MB in all; CrypTen TFP 23.9, 3989 in all; SPU SEMI2K 34.9, 1008 in all",
    "resnet50": "HPMPC Trio (inexact) 3.66 s, 770 MB in all, 451 exchanges",
}
LEAST_MB = {"mlp": 0.012, "lenet": 0.71, "resnet20": 9.0, "resnet18-64": 13.0}  # per party, of all rows above
LEAST_MB_IN_ALL = {"resnet18": 809.0, "resnet50": 770.0, "vgg16": 17.9}


@dataclass
class Report:
    """Runs, and claims: network, rings, what, the figure, the bound, whether it holds."""

    runs: list[tuple[str, str, Run]] = field(default_factory=list)
    claims: list[tuple[str, str, str, str, str, bool]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def claim(self, name: str, rings: str, what: str, figure: str, bound: str, held: bool) -> None:
        """One line of the table."""
        self.claims.append((name, rings, what, figure, bound, held))
        print(f"{'holds ' if held else 'FAILS '} {name}, {rings}: {what}: {figure}{f' ({bound})' if bound else ''}")

    def below(self, name: str, rings: str, what: str, found: Spread, bound: float) -> None:
        """The claim that a median of seconds is at most its bound."""
        self.claim(name, rings, what, told(found), f"at most {1e3 * bound:g} ms", found.median <= bound)


def told(found: Spread) -> str:
    """Median, least and largest in ms."""
    low, middle, high = (1e3 * value for value in (found.low, found.median, found.high))
    return f"{middle:.4g} ms ({low:.4g} to {high:.4g}, {found.runs} times)"


def say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


def total(one: Run) -> Spread:
    """Offline and online: measured with nothing kept ahead, or the sum of its parts."""
    seconds = one.figures.seconds
    if "total" in seconds:
        return seconds["total"]
    parts = [seconds[name] for name in ("deal", "offline", "server")]
    sums = {end: sum(getattr(part, end) for part in parts) for end in ("median", "low", "high")}
    return Spread(**sums, runs=min(part.runs for part in parts))


def per_input(found: Spread, batch: int) -> Spread:
    """The same, by the size of the batch."""
    return Spread(found.median / batch, found.low / batch, found.high / batch, found.runs)


def in_all(one: Run) -> float:
    """MB of one batch over all parties."""
    figures = one.figures
    return (sum(figures.offline_bytes.values()) + sum(figures.online_bytes.values())) / 1e6


def network(report: Report, subject: Subject, rings: str, small: bool) -> None:
    """One network with one kind of rings: single inputs, then batches; figures, then claims."""
    name = subject.name
    size = "" if subject.integer is None else str(facts(subject.integer))
    print(f"\n{name}, {rings} rings: {size}")
    single = ask(report, subject, rings, Asked(1, 2 if small else QUERIES[name], profile=True))
    of_single(report, single, name, rings)
    of_bytes(report, single, subject, rings)
    if name in BATCHES:
        batch, queries = BATCHES[name]
        many = ask(report, subject, rings, Asked(batch, 1 if small else queries))
        of_batches(report, single, many, name, rings)
    for layer in slowest(single.layers, 10):
        print("    " + "  ".join(f"{cell:<{24 if at == 0 else 9}}" for at, cell in enumerate(layer_cells(layer))))


def ask(report: Report, subject: Subject, rings: str, asked: Asked) -> Run:
    """One run, with its figures on the screen."""
    say(f"{subject.name}, {rings}: {asked.queries} batches of {asked.batch}")
    one = run(subject, "additive2", asked)
    report.runs.append((subject.name, rings, one))
    seconds = one.figures.seconds
    print(f"  batch {asked.batch}{f', link {asked.link}, planned for {asked.network}' if asked.link else ''}")
    for what, key in (("online", "server"), ("client's clock", "whole"), ("preparing", "offline"), ("dealing", "deal")):
        if key in seconds:
            print(f"    {what:<22} {told(seconds[key])}")
    print(f"    {'offline + online':<22} {told(total(one))}")
    if one.plain is not None and one.plain.float32_seconds is not None and one.plain.float32_two_threads is not None:
        print(f"    {'float32, 1 thread':<22} {told(one.plain.float32_seconds)}")
        print(f"    {'float32, 2 threads':<22} {told(one.plain.float32_two_threads)}")
        print(f"    {'integers, 1 thread':<22} {told(one.plain.integer_seconds['integer'])}")
        print(f"    {'online / float32':<22} {ratio(one, one.plain):.3g}")
    sent, dealt = max(one.figures.online_bytes.values()) / 1e6, sum(one.figures.offline_bytes.values()) / 1e6
    print(f"    {'MB':<22} {sent:.4g} each way online, {dealt:.4g} dealt; {one.figures.exchanges} exchanges")
    memory = ", ".join(f"{role} {value:,.0f}" for role, value in one.peak_rss_mb.items())
    print(f"    {'peak memory, MB':<22} {memory}")
    print(f"    {layers_line(one)}")
    return one


def of_single(report: Report, one: Run, name: str, rings: str) -> None:
    """Claims of single inputs: right, fast, small."""
    truth = one.truth
    report.claim(name, rings, "every answer is the integer model's", f"{100 * (truth.equal or 0):g} %", "", truth.held)
    online = one.figures.seconds["server"]
    if name in ONLINE:
        report.below(name, rings, "online", online, ONLINE[name])
    if name in TIMES_FLOAT32 and one.plain is not None:
        times, bound = ratio(one, one.plain) or 0.0, TIMES_FLOAT32[name]
        report.claim(name, rings, "online / float32", f"{times:.2f}", f"at most {bound:g}", times <= bound)
    if name in TOTAL:
        report.below(name, rings, "offline + online", total(one), TOTAL[name])
    if name in MEMORY_MB:
        peak = max(value for role, value in one.peak_rss_mb.items() if role != "client")
        report.claim(name, rings, "peak memory of servers and dealer", f"{peak:,.0f} MB", f"below {MEMORY_MB[name]:g}",
                     peak < MEMORY_MB[name])  # fmt: skip
    if name in PEERS:
        print(f"    peers: {PEERS[name]}")


def of_bytes(report: Report, one: Run, subject: Subject, rings: str) -> None:
    """Claims of bytes: as declared, below the peers', and none that grows with the weights."""
    name, figures = subject.name, one.figures
    if subject.integer is None:
        return
    program = pqi.compile(subject.integer)
    sent, declared = max(figures.online_bytes.values()), program.cost(1).online_bytes
    alike = one.truth.as_declared and all(layer.as_declared for layer in one.layers)
    report.claim(name, rings, "online bytes per party are the formula's, in all and of every layer",
                 f"{sent:,} B", f"declared {declared:,} B", alike and sent == declared)  # fmt: skip
    if name in LEAST_MB:
        report.claim(name, rings, "online MB per party below every peer's", f"{sent / 1e6:.4g}", f"{LEAST_MB[name]:g}",
                     sent / 1e6 < LEAST_MB[name])  # fmt: skip
    if name in LEAST_MB_IN_ALL:
        online = sum(figures.online_bytes.values()) / 1e6
        report.claim(name, rings, "online MB of both servers below the peers' in all", f"{online:.4g}",
                     f"{LEAST_MB_IN_ALL[name]:g}", online < LEAST_MB_IN_ALL[name])  # fmt: skip
    if name in MB_IN_ALL:
        report.claim(name, rings, "MB over all parties, dealing included", f"{in_all(one):.4g}",
                     f"at most {MB_IN_ALL[name]:g}", in_all(one) <= MB_IN_ALL[name])  # fmt: skip
    linear = [(step, program.backend.cost(step, 1)) for _, step, _ in program.steps if isinstance(step, api.Linear)]
    values = sum((step.count + 64) * step.ring for step, _ in linear)  # planes of bits are filled up to whole words
    online_bits, dealt_bits = (sum(getattr(cost, kind) for _, cost in linear) for kind in ("online_bits", "dealt_bits"))
    report.claim(name, rings, "nothing grows with the weights: products send nothing and are dealt one value a result",
                 f"{online_bits // 8:,} B, {dealt_bits // 8:,} B", f"0 B, at most {values // 8:,} B",
                 online_bits == 0 and dealt_bits <= values)  # fmt: skip


def of_batches(report: Report, single: Run, many: Run, name: str, rings: str) -> None:
    """Claims of batches against single inputs."""
    batch = many.asked.batch
    report.claim(name, rings, f"batch {batch}: every answer is the integer model's",
                 f"{100 * (many.truth.equal or 0):g} %", "", many.truth.held)  # fmt: skip
    if name in TOTAL_IN_BATCHES:
        what = f"batch {batch}: offline + online an image"
        report.below(name, rings, what, per_input(total(many), batch), TOTAL_IN_BATCHES[name])
    pairs = [("online", many.figures.seconds["server"], single.figures.seconds["server"])]
    pairs += [("offline + online", total(many), total(single))]
    for what, of_many, of_one in pairs:
        share = of_many.median / batch / of_one.median
        bound = 0.5 if name in HALVED and what == "online" else 1.0
        report.claim(name, rings, f"batch {batch}: {what} of an input by that of batch 1",
                     f"{1e3 * of_many.median / batch:.4g} ms, {share:.2f}", f"at most {bound:g}",
                     share <= bound)  # fmt: skip
    same = many.figures.exchanges == single.figures.exchanges
    report.claim(name, rings, f"batch {batch}: as many exchanges", f"{many.figures.exchanges}", "", same)


def wan(report: Report, subject: Subject, small: bool) -> None:
    """The planner's choice for the WAN against its choice for the LAN, both on the emulated WAN."""
    print("\nresnet20 over 100 Mbit/s and 40 ms")
    queries = 1 if small else 3
    chosen, other = (
        ask(report, subject, "proven", Asked(1, queries, plan, "wan", on_demand=queries)) for plan in ("wan", "lan")
    )
    gain = other.figures.seconds["server"].median / chosen.figures.seconds["server"].median
    report.claim("resnet20", "proven", "WAN: online, planned for the LAN by planned for the WAN", f"{gain:.2f}",
                 f"at least {WAN_GAIN:g}", gain >= WAN_GAIN)  # fmt: skip
    report.below("resnet20", "proven", "WAN: offline + online", total(chosen), WAN_TOTAL)


def memory(report: Report, subject: Subject, small: bool) -> None:
    """A hundred queries dealt ahead: peaks of the dealer and of server B, when the first tenth is there and at the end.

    Server B keeps as many in memory as for a handful of queries, and the rest on disk.
    """
    ahead = AHEAD // 10 if small else AHEAD
    if subject.integer is None:
        return
    item = pqi.compile(subject.integer).record_bytes
    mib = 1 + (4 * item >> 20)
    options = {"pool_items": ahead, "pool_mib": mib, "spill_mib": 2 + (ahead * item >> 20)}
    say(f"{subject.name}: {ahead} queries ahead")
    found: dict[str, list[int]] = {SERVER_B: [], DEALER: []}
    with pqi.local(subject.integer, server_options=options) as service:
        pids = {role: service.processes[role].pid for role in found}
        for level in (ahead // 10, ahead - ahead // 8):
            service.await_items(level, timeout=600.0)
            for role, pid in pids.items():
                found[role].append(peak_rss_of(pid) or 0)
    for role, (before, after) in found.items():
        figure = f"{before / 1e6:.0f} MB, then {after / 1e6:.0f} MB"
        report.claim(subject.name, "proven", f"{role}: peak memory with {ahead // 10} and {ahead} queries dealt ahead",
                     figure, "within 5 %", 0 < after <= 1.05 * before)  # fmt: skip


def to_json(report: Report) -> dict[str, Any]:
    """Everything that was found."""
    names = ("network", "rings", "what", "figure", "bound", "held")
    return {
        "claims": [dict(zip(names, claim, strict=True)) for claim in report.claims],
        "peers": PEERS,
        "left_out": report.left_out,
        "runs": [
            {
                "network": name,
                "rings": rings,
                "batch": one.asked.batch,
                "link": one.asked.link,
                "planned_for": one.asked.network,
                "seconds": {key: spread.to_json() for key, spread in one.figures.seconds.items()},
                "total": total(one).to_json(),
                "plain": None if one.plain is None else one.plain.to_json(),
                "online_bytes": dict(one.figures.online_bytes),
                "offline_bytes": dict(one.figures.offline_bytes),
                "exchanges": one.figures.exchanges,
                "equal": one.truth.equal,
                "as_declared": one.truth.as_declared,
                "peak_rss_mb": dict(one.peak_rss_mb),
                "offline_alone": None if one.offline is None else dict(one.offline.__dict__),
                "layers": [layer.to_json() for layer in one.layers],
            }
            for name, rings, one in report.runs
        ],
        "machine": machine(),
        "versions": versions(),
    }


def subjects(name: str, rings: Iterable[str]) -> Iterable[tuple[str, Subject]]:
    """The network, trained or read once, with each kind of rings."""
    made = problems.named(name, say)
    for kind in rings:
        if kind == "proven" or made.made is None:
            yield kind, made
        else:
            yield kind, replace(made, integer=made.made(WEIGHT_BITS, ACTIVATION_BITS, kind))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"of {', '.join(NETWORKS)} (default: all)")
    parser.add_argument("--rings", nargs="+", default=["proven", "calibrated"], choices=["proven", "calibrated"])
    parser.add_argument("--without", nargs="+", default=[], choices=["wan", "memory"])
    parser.add_argument("--seconds", type=float, default=3600.0, help="after which no further network is begun")
    parser.add_argument("--small", action="store_true", help="ask little of everything, to see that it runs")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if unknown := set(arguments.networks) - set(NETWORKS):
        parser.error(f"there is no network {', '.join(sorted(unknown))}; there are: {', '.join(NETWORKS)}")
    torch.set_num_threads(1)
    report, started = Report(), time.perf_counter()
    for name in [each for each in ORDER if each in (arguments.networks or ORDER)]:
        if time.perf_counter() - started > arguments.seconds:
            report.left_out.append(name)
            continue
        for rings, subject in subjects(name, arguments.rings):
            network(report, subject, rings, arguments.small)
            if name == "resnet20" and rings == "proven":
                for part, measured in (("wan", wan), ("memory", memory)):
                    if part not in arguments.without:
                        measured(report, subject, arguments.small)
    if report.left_out:
        print(f"\nleft out after {arguments.seconds:g} s: {', '.join(report.left_out)}")
    print()
    for name, rings, what, figure, bound, held in report.claims:
        print(f"{'holds ' if held else 'FAILS '} {name}, {rings}: {what}: {figure}{f' ({bound})' if bound else ''}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(to_json(report), indent=1) + "\n")
    if not all(held for _, rings, *_, held in report.claims if rings == "proven"):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
