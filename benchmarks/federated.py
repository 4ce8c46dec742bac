"""Private federated learning: accuracy, bytes, wall clock, attacks; and whether every claim made of them holds.

    PQI_DATA=<folder> python benchmarks/federated.py [accuracy exact bytes clock privacy attacks] [--json FILE]
    python benchmarks/federated.py --json FILE --write      # docs/federated_figures.md from the kept figures

accuracy: digits and MNIST, 10 and 100 clients, plain averaging beside 16 bits a weight. exact: every protocol's sum of
the codes of real rounds. bytes: a round beside Flower's SecAgg+, over one grid. clock: a million parameters,
50 clients.
privacy: accuracy and epsilon under noise. attacks: gradient inversion and membership inference, with pictures (--page).
--small asks little of everything, to see that it runs. Figures are added to the JSON file, part by part.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parts import ROOT, Part, document, kept_in, options, run

from pqi.federated import Accountant, DistributedDiscreteGaussian, Encoding
from pqi.federated.study import attacks
from pqi.federated.study.averaging import Disagreement, EncodedAverage
from pqi.federated.study.page import Study, write_page
from pqi.federated.study.split import dirichlet_split, even_split
from pqi.federated.study.training import (
    Federation,
    Local,
    Task,
    average_floats,
    digits_task,
    local_update,
    mlp,
    start,
    to_vector,
)

SMALL = False
PAGE = Path(tempfile.gettempdir()) / "federated_attacks.html"
SETTINGS = ((1, 1, "one image, one step"), (8, 8, "8 images, one step"), (50, 10, "50 images, 2 epochs"))
ENCODING = Encoding(clip=2.0, modulus_bits=16)  # rotated; the bounds of both follow the updates
CLIPPED = Encoding(clip=None, value_clip=0.1, modulus_bits=16)


def mnist_task(hidden: int = 64, images: int = 20_000) -> Task:
    """The first 20,000 training images, all test images."""
    import data

    (x, y), (test_x, test_y) = data.load().mnist()

    def both(pixels: np.ndarray, labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy((pixels / 255).astype(np.float32)), torch.from_numpy(labels.astype(np.int64))

    return Task("MNIST", mlp(784, hidden), *both(x[:images], y[:images]), *both(test_x, test_y))


def federation(task: Task, clients: int, local: Local, seed: int, alpha: float = 0.3) -> Federation:
    """Non-IID clients."""
    return Federation(task, dirichlet_split(task.train_y.numpy(), clients, alpha, seed, least=4), local, seed)


def accuracy() -> Part:
    """Runs that differ in the averaging alone."""
    part = Part(
        "Accuracy: plain federated averaging and 16 bits a weight",
        "Every client in every round, images divided by Dirichlet(0.3) over labels, weighted by images; a network with "
        "one hidden layer. The sums of `shares` are decoded; on digits the codes of every round are summed by `clear` "
        "and `pairwise` as well, and the run fails where a sum is another one. *Rotated*: the bound is on an "
        "update's norm; *clipped*: on every value. Both bounds follow the updates; differences in points.",
        ("data", "clients", "rounds", "seed", "plain FedAvg", "rotated", "difference", "clipped", "difference"),
    )
    digits, every = digits_task(), ("shares", "pairwise", "clear")
    runs: list[tuple[Task, int, int, Local, Sequence[int], Sequence[str]]] = [
        (digits, 10, 30, Local(2, 16, 0.1), (0, 1, 2), every),
        (digits, 100, 40, Local(4, 16, 0.1), (0, 1, 2), every),
    ]
    if not SMALL:
        runs += [
            (mnist_task(), 10, 12, Local(1, 32, 0.1), (0,), ("shares",)),
            (mnist_task(), 100, 12, Local(2, 32, 0.1), (0,), ("shares",)),
        ]
    for task, clients, rounds, local, seeds, protocols in runs:
        off: dict[str, list[float]] = {"rotated": [], "clipped": []}
        for seed in seeds[: 1 if SMALL else None]:
            made = federation(task, clients, local, seed)
            number = 3 if SMALL else rounds
            plain = made.train(number, average_floats).accuracies[-1]
            cells = []
            for kind, encoding, by in (("rotated", ENCODING, protocols), ("clipped", CLIPPED, ("shares",))):
                private = made.train(number, EncodedAverage(encoding, by)).accuracies[-1]
                off[kind].append(100 * (private - plain))
                cells += [f"{private:.2%}", f"{off[kind][-1]:+.2f}"]
            part.row(task.name, clients, number, seed, f"{plain:.2%}", *cells)
        for kind, differences in off.items():
            mean = float(np.mean(np.abs(differences)))
            part.claim(
                f"{task.name}, {clients} clients, {kind}: accuracy of plain averaging",
                f"{mean:.2f} points off, mean over seeds",
                "within 0.3 points",
                mean <= 0.3,
            )
    return part


def exact() -> Part:
    """Real rounds of digits, every protocol."""
    part = Part(
        "Exactness: one round's codes, every protocol",
        "Federated training on digits (10 clients); every round's codes are summed by `clear` and by the protocol of "
        "the row, and compared integer by integer. The run ends at the first difference.",
        ("protocol", "parameters", "rounds", "sums equal", "seconds a round, all parties on one core"),
    )
    hidden = {"paillier": 8, "bfv": 48, "pairwise": 48, "shares": 48}
    for name, units in hidden.items():
        made = federation(digits_task(units), 10, Local(1, 16, 0.1), 0)
        rounds = 1 if SMALL else 2 if name == "paillier" else 5
        average, length = EncodedAverage(ENCODING, ("clear", name)), len(to_vector(start(made.task, 0)))
        started = time.perf_counter()
        try:
            made.train(rounds, average)
            equal = average.rounds
        except Disagreement:
            equal = average.rounds
        seconds = (time.perf_counter() - started) / rounds
        part.row(name, f"{length:,}", rounds, f"{equal} of {rounds}", f"{seconds:.2f}")
        part.claim(f"{name}: the integer sum of the encodings", f"{equal} of {rounds} rounds", "all", equal == rounds)
    return part


def count_bytes() -> Part:
    """One round of every aggregator over the grid that Flower's SecAgg+ runs over."""
    import flower_wire

    part = Part(
        "Bytes per client and round, beside Flower's SecAgg+",
        "Counted in one process: every object that Flower makes of a message's RecordDict, both ways, the float32 "
        "model to the client included. SecAgg+ by its own workflow and mod, with 3 shares (its cheapest; two "
        "neighbours hide a client) and with shares for all, as `pairwise` has here. Error: largest difference from the "
        "weighted mean of the clients' models, whose updates have norm 1.",
        (
            "model",
            "clients",
            "aggregator",
            "to the client",
            "from it",
            "both",
            "of 3 shares",
            "of shares for all",
            "error",
        ),
    )
    for task, clients in ((digits_task(), 10), *(() if SMALL else ((mnist_task(), 10), (mnist_task(), 50)))):
        model = [p.detach().numpy().copy() for p in start(task, 0).parameters()]
        made = federation(task, clients, Local(1, 32, 0.1), 0)
        updates, weights = made.updates(np.concatenate([a.reshape(-1) for a in model]), 0)
        updates /= np.linalg.norm(updates, axis=1, keepdims=True)
        arrays = [_moved(model, update) for update in updates]
        kept = flower_wire.secagg_plus(model, arrays, weights, 3, 2)
        whole = flower_wire.secagg_plus(model, arrays, weights, 1.0, 0.67)
        name = f"{task.name}, {updates.shape[1]:,} parameters"
        rows: list[tuple[str, Any]] = [("SecAgg+, 3 shares", kept), ("SecAgg+, shares for all", whole)]
        under_keys = ("bfv", "paillier") if task.name == "digits" else ("bfv",)
        for aggregator in ("shares", "pairwise", *(under_keys if clients == 10 else ())):
            rows.append((aggregator, flower_wire.private_round(aggregator, model, arrays, weights, 1.05)))
        for row, found in rows:
            least, like = (found.bytes["both"] / other.bytes["both"] for other in (kept, whole))
            sizes = (f"{found.bytes[way]:,.0f}" for way in ("down", "up", "both"))
            part.row(name, clients, row, *sizes, f"{least:.3f}", f"{like:.3f}", f"{found.error:.1e}")
            for what, ratio in (("with 3 shares", least), ("with shares for all", like)):
                if not row.startswith("SecAgg+"):
                    said = f"{name}, {clients} clients: {row}: bytes both ways, of SecAgg+ {what}"
                    part.claim(said, f"{ratio:.3f}", "at most 0.6", ratio <= 0.6)
    return part


def _moved(model: list[np.ndarray], update: np.ndarray) -> list[np.ndarray]:
    arrays, at = [], 0
    for array in model:
        arrays.append((array + update[at : at + array.size].reshape(array.shape)).astype(np.float32))
        at += array.size
    return arrays


def clock() -> Part:
    """Encode, protect, aggregate, decode."""
    import federated_clock as fc

    parameters, clients, runs = (20_000, 10, 2) if SMALL else (1_000_000, 50, 7)
    part = Part(
        f"Wall clock of a round: {parameters:,} parameters, {clients} clients",
        f"One process, one thread; milliseconds, the smallest of {runs} runs of every step (medians of whole rounds in "
        "brackets). Plain: the faster of Flower's `aggregate` and `aggregate_arrayrecords` on the same float32 arrays, "
        "three calls in every run. *Everybody*: all clients' encoding and protection one after another, helpers, "
        "server and decoding. *A round*: as it passes where every client has its own machine: one client's encoding "
        "and protection, then helpers, server, decoding. *Clipped*: a bound on every value; *rotated*: on the norm, "
        "the default. Private rounds count every client once, plain averaging weighs by images.",
        ("round", "encode", "protect", "helpers", "server", "decode", "everybody", "of plain", "a round", "of plain"),
    )
    clipped = Encoding(clip=None, value_clip=5e-3, modulus_bits=16)
    rotated = Encoding(clip=1.2, modulus_bits=16)
    rows = {
        "shares, clipped": fc.Row("shares", clipped),
        "shares, rotated": fc.Row("shares", rotated),
        "pairwise, clipped, all neighbours": fc.Row("pairwise", clipped),
    }
    if not SMALL:  # for fewer clients there are no bounds with few neighbours
        few = {"neighbours": 22, "colluding": 5}
        rows["pairwise, clipped, 22 neighbours (45 stay, 5 collude)"] = fc.Row("pairwise", clipped, 45, few)
    plain, found = fc.measure(rows, parameters, clients, runs)
    least, median = (min(plain[k][s] for s in ("average records", "average arrays")) for k in ("smallest", "median"))
    part.row("plain averaging", *[""] * 5, f"{1e3 * least:.0f} ({1e3 * median:.0f})", "1", f"{1e3 * least:.0f}", "1")
    for row, figures in found.items():
        steps = figures["smallest"]
        cells = [f"{1e3 * steps[step]:.0f}" for step in ("encode", "clients protect", "helpers", "server", "decode")]
        cells += [
            f"{1e3 * steps[fc.TOTAL]:.0f} ({1e3 * figures['median'][fc.TOTAL]:.0f})",
            f"{steps[fc.TOTAL] / least:.2f}",
        ]
        part.row(row, *cells, f"{1e3 * steps[fc.PATH]:.0f}", f"{steps[fc.PATH] / least:.2f}")
        bound = 10 if row.startswith("pairwise") else 3
        for what, step in (("everybody on one core", fc.TOTAL), ("a round, clients side by side", fc.PATH)):
            ratio = steps[step] / least
            part.claim(f"{row}: {what}", f"{ratio:.2f} of plain averaging", f"at most {bound}", ratio <= bound)
    return part


def privacy() -> Part:
    """Accuracy under client-level differential privacy."""
    part = Part(
        "Differential privacy: accuracy and epsilon",
        "100 clients, all in every round (nothing is amplified by sampling), Dirichlet(1), unweighted; distributed "
        "discrete Gaussian noise of every client, 18-bit ring. Client-level, zero-out; epsilon at delta = 0.001 after "
        "all rounds.",
        ("data", "rounds", "clip", "noise multiplier", "accuracy", "epsilon"),
    )
    rounds = 2 if SMALL else 25
    settings = [(digits_task(32), Local(4, 16, 0.2), 1.0)]
    if not SMALL:
        settings.append((mnist_task(32), Local(2, 32, 0.1), 1.0))
    for task, local, clip in settings:
        made = federation(task, 100, local, 0, alpha=1.0)
        number = rounds if task.name == "digits" else min(rounds, 12)
        plain = made.train(number, average_floats).accuracies[-1]
        part.row(task.name, number, "none", "none", f"{plain:.2%}", "infinite")
        for multiplier in (1.0, 2.0, 4.0, 8.0)[: 1 if SMALL else None]:
            accountant = Accountant(delta=1e-3)
            mechanism = DistributedDiscreteGaussian(noise_multiplier=multiplier)
            encoding = Encoding(clip=clip, modulus_bits=18, mechanism=mechanism)
            average = EncodedAverage(encoding, ("shares",), accountant=accountant)
            reached = made.train(number, average).accuracies[-1]
            spent = accountant.spent()
            part.row(task.name, number, clip, f"{multiplier:g}", f"{reached:.2%}", f"{spent.epsilon:.2f}")
    return part


def views(clip: float, clients: int) -> dict[str, attacks.See]:
    """What the server sees: the sums really go through the protocol; the noisy ones through the mechanism as well."""
    threshold_noise = {z: DistributedDiscreteGaussian(noise_multiplier=z) for z in (0.1, 1.0)}
    fixed = {
        f"average of {clients}, noise {z:g}": EncodedAverage(
            Encoding(clip=clip, modulus_bits=20, mechanism=mechanism), ("clear",)
        )
        for z, mechanism in threshold_noise.items()
    }
    summed = EncodedAverage(Encoding(clip=10 * clip, modulus_bits=20), ("clear",), adaptive=False)
    return {"one client": attacks.one_client, f"average of {clients}": summed, **fixed}


def typical_norm(task: Task, local: Local, images: int) -> float:
    """The median norm of a client's update at the start: a clip that a careful user would choose."""
    net = start(task, 0)
    before = to_vector(net)
    norms = []
    for k in range(20):
        some = np.arange(k * images, (k + 1) * images)
        norms.append(np.linalg.norm(local_update(net, before, task.train_x[some], task.train_y[some], local, (k,))))
    return float(np.median(norms))


def attack() -> Part:
    """Both attacks, every view."""
    part = Part(
        "Attacks on what the server sees",
        "Inversion: similarity leaked, correlation over pixels of the best candidate less that of images that nobody "
        "sent. Membership: area under the curve by loss and by gradient, 0.5 is a guess. 95 % intervals over trials; "
        "*less*: difference to one client's update in the same trials. Noise: multiplier of the clip, which is the "
        "median norm of an update. Digits: 80 clients of 16 or 17 images; MNIST: 200 of 100. A sum of ten single "
        "images' gradients is the gradient of ten images: it still gives some away (not whose), which noise or more "
        "images take.",
        ("attack", "the server sees", "figure", "less"),
    )
    tasks = [digits_task()] if SMALL else [digits_task(), mnist_task()]
    inverted, inferred, trials = {}, {}, 6 if SMALL else 40
    for task in tasks:
        for images, batch, words in SETTINGS:
            local, setting = Local(2 if images > 8 else 1, batch, 0.1), f"{task.name}: {words}, 10 clients"
            seen = views(typical_norm(task, local, images), 10)
            inverted[setting] = attacks.invert(task, seen, 10, local, images, trials if images < 50 else trials // 2)
            for one in inverted[setting]:
                part.row(f"inversion, {setting}", one.view, one.leaked, one.less)
            _falls(part, f"inversion, {setting}", {one.view: one.less for one in inverted[setting]})
        clients = 80 if task.name == "digits" else 200
        local = Local(10, 8, 0.1) if task.name == "digits" else Local(10, 20, 0.1)
        made = Federation(task, even_split(task.train_y.numpy(), clients, 0), local, per_round=10)
        seen = views(typical_norm(task, local, len(made.parts[0])), 10)
        setting = f"{task.name}: {len(made.parts[0])} images a client, 10 epochs, 10 clients a round"
        inferred[setting] = attacks.infer(made, seen, (0, 3) if SMALL else (0, 3, 6, 9))
        for got in inferred[setting]:
            part.row(f"membership by {got.score}, {setting}", got.view, got.area, got.less)
        for score in ("loss", "gradient"):
            of_score = {got.view: got.less for got in inferred[setting] if got.score == score}
            _falls(part, f"membership by {score}, {setting}", of_score)
    facts = {
        "one client": "the update as plain federated averaging shows it to the server",
        "average of 10": "what secure aggregation shows: the decoded mean, through encoding and the definition of sums",
        "noise z": "the same with discrete Gaussian noise of every client, together z times the clip",
        "clip": "the median norm of one client's update in the setting",
    }
    write_page(PAGE, Study("What a server reads from updates, sums, and noisy sums", facts, inverted, inferred))
    print(f"pictures: {PAGE}", file=sys.stderr)
    return part


def _falls(part: Part, what: str, less: dict[str, attacks.Spread]) -> None:
    """Claims that aggregation, and noise, take something away: the interval of the difference is above zero."""
    for view, difference in less.items():
        if view != "one client":
            part.claim(f"{what}: {view} gives away less", f"{difference} less", "interval above 0", difference.low > 0)


PARTS: dict[str, Callable[[], Part]] = {
    "accuracy": accuracy,
    "exact": exact,
    "bytes": count_bytes,
    "clock": clock,
    "privacy": privacy,
    "attacks": attack,
}


def main() -> None:
    global PAGE, SMALL
    parser = options(__doc__.splitlines()[0], PARTS)
    parser.add_argument("--page", type=Path, default=PAGE, help="where the attacks' pictures go")
    arguments = parser.parse_args()
    PAGE, SMALL = arguments.page, arguments.small
    if arguments.write:
        made_by = "benchmarks/federated.py --json FILE --write"
        page = document("Private federated learning: measured", made_by, list(PARTS), kept_in(arguments.json))
        (ROOT / "docs" / "federated_figures.md").write_text(page)
        return
    raise SystemExit(0 if run(PARTS, arguments.parts, arguments.json) else 1)


if __name__ == "__main__":
    main()
