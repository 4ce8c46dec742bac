"""One server, one key: what the protocols under a client's key cost, and whether every claim made of them holds.

    python benchmarks/homomorphic.py cancer|mlp|cnn [--json FILE]
    PQI_DATA=<folder> python benchmarks/homomorphic.py mnist [--keep FOLDER] [--json FILE]

Every role is a process of its own over TLS on this machine. cancer: logistic regression under paillier, bfv and ckks.
mlp, cnn: 8 x 8 digits, in single questions, all 450 held-out rows, and a full batch. mnist: the shape of CryptoNets on
28 x 28 pixels, ``--private`` images exactly, single questions, a full batch. ``--small`` asks little of everything, to
see that it runs. The claims, each with its figure and its bound, end the output; the exit status says if all hold.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

import pqi
from pqi.demo.measure import machine, versions
from pqi.graph.polynomial import PolynomialModel
from pqi.measure import problems
from pqi.measure.bench import Bench
from pqi.measure.plain import Accuracies, measure_accuracy, measure_plain
from pqi.measure.private import Asked, Run, run
from pqi.measure.rows import lines, plain_lines
from pqi.measure.subject import Subject
from pqi.program.keyed import compile_keyed

PROTOCOLS = ("paillier", "bfv", "ckks")
SINGLES, MNIST_SINGLES = 20, 10
CONCRETE_ML = {"mlp": "7.65 s, keys of 116 MB", "cnn": "8.7 to 17 s"}  # 1 server, TFHE, the same kind of machine
TENSEAL_TUTORIAL = "2.9 s, a context of 97 MB"


@dataclass
class Report:
    """Runs of one subject, and claims: what, the figure, the bound, whether it holds."""

    subject: Subject
    accuracies: Accuracies
    runs: list[Run] = field(default_factory=list)
    claims: list[tuple[str, str, str, bool]] = field(default_factory=list)
    protocols: tuple[str, ...] = PROTOCOLS

    def ask(self, protocol: str, batch: int, queries: int) -> Run:
        """One more run, told on the error stream."""
        print(f"{self.subject.name}: {protocol}, {queries} batches of {batch}", file=sys.stderr, flush=True)
        started = time.perf_counter()
        self.runs.append(run(self.subject, protocol, Asked(batch, queries)))
        print(f"  {time.perf_counter() - started:.1f} s", file=sys.stderr, flush=True)
        return self.runs[-1]

    def claim(self, what: str, figure: str, bound: str, held: bool) -> None:
        """One line of the end."""
        self.claims.append((what, figure, bound, held))

    def right(self, one: Run, what: str) -> None:
        """The claim that every answer is exact, or within the bound, and every byte declared."""
        truth = one.truth
        exact = "exact" if truth.equal is not None else f"within {truth.error_bound:.2g} by proof"
        found = f"{100 * truth.equal:.3f} %" if truth.equal is not None else f"off by {truth.largest_error:.2g}"
        self.claim(f"{one.protocol}: {what}: {exact}, as long as declared", found, "all", truth.held)
        self.claim(f"{one.protocol}: {what}: same decisions", f"{100 * truth.same_decisions:.3f} %", "all",
                   truth.same_decisions == 1.0)  # fmt: skip

    def below(self, what: str, figure: float, bound: float, unit: str) -> None:
        """The claim that a figure is at most its bound."""
        self.claim(what, f"{figure:.4g} {unit}", f"at most {bound:g} {unit}", figure <= bound)


def cancer(report: Report, small: bool) -> None:
    """All 143 held-out rows at once, and one by one."""
    rows = len(report.subject.x)
    for protocol in report.protocols:
        single = report.ask(protocol, 1, 3 if small else SINGLES)
        every = report.ask(protocol, rows, 1 if small else 5)
        report.right(every, f"all {rows} rows")
        server = every.figures.seconds["server"].median / rows
        sent = (every.figures.question_bytes + every.figures.answer_bytes) / rows
        report.claim(
            f"{protocol}: a row, alone and of {rows}",
            f"server {1e3 * single.figures.seconds['server'].median:.3g} ms, {1e3 * server:.3g} ms; "
            f"{single.figures.question_bytes + single.figures.answer_bytes:,} B, {sent:,.0f} B",
            "",
            True,
        )


def digits(report: Report, small: bool, name: str) -> None:
    """Single questions, the whole test split, a full batch; keys; accuracy against the float network."""
    rows = 20 if small else len(report.subject.x)
    floating, kept = report.accuracies.floating or 0.0, report.accuracies.integer["polynomial"] or 0.0
    report.below("points lost against the ReLU network", 100 * (floating - kept), 1.5, "points")
    single = report.ask("bfv", 1, 3 if small else SINGLES)
    report.right(report.ask("bfv", rows, 1), f"all {rows} rows")
    seconds = single.figures.seconds["server"].median
    report.below(f"bfv: server, single (Concrete ML: {CONCRETE_ML[name]})", seconds, 0.7, "s")
    report.below("bfv: keys to the server", single.figures.keys_bytes / 1e6, 10.0, "MB")
    full(report, "bfv", 20.0, small)


def mnist(report: Report, small: bool, private: int) -> None:
    """The private images in batches, single questions, a full batch, and the whole test set in plaintext integers."""
    kept = report.accuracies.integer["polynomial"] or 0.0
    report.claim("integer model on the test set", f"{100 * kept:.2f} %", "at least 98.5 %", kept >= 0.985)
    for protocol in (name for name in report.protocols if name != "paillier"):
        single = report.ask(protocol, 1, 2 if small else MNIST_SINGLES)
        seconds = single.figures.seconds["whole"].median
        report.below(f"{protocol}: single image, whole (TenSEAL's tutorial: {TENSEAL_TUTORIAL})", seconds, 1.5, "s")
        count = 4 if small else private
        report.right(report.ask(protocol, count, 1), f"{count} images")
        full(report, protocol, None, small)


def full(report: Report, protocol: str, bound: float | None, small: bool) -> None:
    """As many inputs as one ciphertext has slots: what throughput there is."""
    plan: Any = compile_keyed(report.subject.model(protocol), protocol).plan
    slots = plan.degree if protocol == "bfv" else plan.degree // 2
    one = report.ask(protocol, 64 if small else slots, 1)
    report.right(one, f"a batch of {one.asked.batch}")
    seconds = 1e3 * one.figures.seconds["server"].median / one.asked.batch
    what = f"{protocol}: server, an input of a batch of {one.asked.batch}"
    if bound is None or small:
        report.claim(what, f"{seconds:.3g} ms", "", True)
    else:
        report.below(what, seconds, bound, "ms")


def subject_of(part: str, keep: Path | None) -> Subject:
    """By name; mnist's networks, which take minutes to train, are kept in a folder if one is named."""
    name = {"cancer": "breast-cancer", "mlp": "digits-mlp", "cnn": "digits-cnn", "mnist": "mnist-cryptonet"}[part]
    if part != "mnist" or keep is None or not (keep / "polynomial.pqi").is_file():
        made = problems.named(name, lambda stage: print(stage, file=sys.stderr, flush=True))
        if part == "mnist" and keep is not None and made.polynomial is not None and made.floating is not None:
            keep.mkdir(exist_ok=True)
            torch.save(made.floating.state_dict(), keep / "float.pt")
            made.polynomial.save(keep / "polynomial.pqi")
        return made
    model = pqi.load(keep / "polynomial.pqi")
    if not isinstance(model, PolynomialModel):
        raise SystemExit(f"{keep}/polynomial.pqi is no model of polynomials")
    net: nn.Module = problems.mnist_cnn()
    net.load_state_dict(torch.load(keep / "float.pt", weights_only=True))
    _, _, x, y = problems.mnist_images()
    return Subject(name, None, model, net.eval(), x, y, "kept")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["cancer", "mlp", "cnn", "mnist"])
    parser.add_argument("--private", type=int, default=500, help="images asked privately (mnist)")
    parser.add_argument("--small", action="store_true", help="ask little of everything")
    parser.add_argument("--keep", type=Path, help="a folder for mnist's trained networks: read if they are there")
    parser.add_argument("--protocol", action="append", choices=PROTOCOLS, help="of cancer and mnist: these only")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    subject = subject_of(arguments.part, arguments.keep)
    report = Report(subject, measure_accuracy(subject), protocols=tuple(arguments.protocol or PROTOCOLS))
    if arguments.part == "cancer":
        cancer(report, arguments.small)
    elif arguments.part == "mnist":
        mnist(report, arguments.small, arguments.private)
    else:
        digits(report, arguments.small, arguments.part)
    finish(report, arguments.json)


def finish(report: Report, path: Path | None) -> None:
    """The figures and the claims, on the screen and as JSON."""
    subject = report.subject
    plain = [measure_plain(subject, batch) for batch in dict.fromkeys(each.asked.batch for each in report.runs)]
    made = Bench(
        subject.name, subject.note, len(subject.x), report.accuracies, plain, report.runs, {}, versions(), machine()
    )
    for line in plain_lines(made):
        print(line)
    for each in report.runs:
        print(f"\n{each.protocol}, batch of {each.asked.batch}")
        for name, (cell,) in lines(made, [each]):
            print(f"  {name:<28} {cell}")
    print()
    for what, figure, bound, held in report.claims:
        print(f"{'holds ' if held else 'FAILS '} {what}: {figure}{f' ({bound})' if bound else ''}")
    if path is not None:
        claims = [dict(zip(("what", "figure", "bound", "held"), claim, strict=True)) for claim in report.claims]
        path.write_text(json.dumps({**made.to_json(), "claims": claims}, indent=1) + "\n")
    if not all(held for *_, held in report.claims):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
