"""Part "membership": what answers give away about training data, of float and integers, and what answers to that."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from data import load
from parts import Part
from torch import Tensor, nn

import pqi
from pqi.audit.attack import Budget
from pqi.audit.attacks.inversion import Inversion, figures
from pqi.audit.attacks.membership import AGAINST_REFERENCES, References, answered, halves, offline_ratio
from pqi.audit.case import Case, Data
from pqi.audit.defences.private_training import noise_for, private_training
from pqi.audit.statistics import Estimate, Reals, share
from pqi.audit.subjects import FLOAT, INTEGERS, FloatSubject, IntegerSubject
from pqi.audit.targets import each_in_turn, pooled, pooled_difference

PIXELS, HIDDEN, CLASSES = 14, 64, 10
LABELS, DELTA, SMALLEST = "8 bits, labels", 1e-4, "true positives at 0.001"
NOTES = """MNIST, averaged to 14 x 14. {models} networks of one hidden layer (64) are trained on random halves of a
pool of {pool}, until they err on almost none of them (Adam, 40 passes). Each is the target once, the others are its
references: {pairs} members and as many others for every line, one threshold for all targets. Intervals: targets and
examples both drawn again (pigeonhole bootstrap, {draws} draws). Every reference is quantized as the target is, with
256 public images for calibration. "2 bits" rounds to the nearest level and is a damaged network; "2 bits, learned" is
`learned_rounding=True`. "labels" are the answers of `pqi.quantize(..., answers="label")`, asked 13 times for each
image, moved by up to two pixels; "gap, lira" compares one label with how often references get it right, and finds the
examples that only networks trained on them get right. Private training: SGD with 30 passes, 250 examples a step, clip
0.5, rate 0.5, delta 1e-4, {private} networks on the same halves as the first {private} others; its settings and those
of all attacks were chosen on other images. Sampling and noise are seeded here so that the figures can be made again.
Inversion: an image of each of the 10 classes; margin is its correlation with the mean of the training images of its
class less the largest with another class's; the judge was trained on 2500 other images. Accuracies of private
networks and of those inverted are of float and of what is asked."""


def part(small: bool) -> Part:
    pool, spare = _images(600 if small else 4000)
    models, private, draws = (8, 4, 40) if small else (64, 16, 200)
    notes = NOTES.format(pool=len(pool), models=models, private=private, pairs=models * len(pool) // 2, draws=draws)
    columns = ["network", "accuracy in / out", "attack", "area", "TPR at 1 %", "TPR at 0.1 %"]
    made = Part("Membership and inversion: what answers give away", notes.replace("\n", " "), columns)
    seen = halves(len(pool), models, seed=1)
    nets = [net for first in range(0, models, 16) for net in _stack(pool, seen[first : first + 16], 1000 + first)]
    public = spare.take(slice(0, 256)).x
    told = partial(_told, made, pool, seen, draws)
    scores, known = _scores(told, nets, seen, pool, public)
    labels = _labels(told, nets, seen, pool, public)
    _membership_claims(made, scores, labels, known, seen, draws)
    guarded = _private(made, nets, seen, pool, known, private, draws)
    _inversion(made, nets[0], guarded, pool.take(seen[0]), spare, public)
    return made


def _images(n: int) -> tuple[Data, Data]:
    """The pool, and others. Settings were tried on the first 10000 of this order, which are in neither."""
    (x, y), _ = load().mnist()
    order = np.random.default_rng(99).permutation(len(x))
    small = x.reshape(-1, 1, PIXELS, 2, PIXELS, 2).mean((3, 5)).astype(np.float32) / 255
    data = Data(small, y.astype(np.int64))
    return data.take(order[10_000 : 10_000 + n]), data.take(order[20_000:24_000])


# --- many networks at once ------------------------------------------------------------------------------------------


def _net(seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = nn.Linear(PIXELS * PIXELS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES)
    return nn.Sequential(nn.Flatten(), *layers).eval()


def _stack(pool: Data, seen: np.ndarray, seed: int, epochs: int = 40, batch: int = 50) -> list[nn.Sequential]:
    """Networks trained side by side, each on its own half: one product of stacks does what so many would do."""
    generator = torch.Generator().manual_seed(seed)
    nets = [_net(seed + i) for i in range(len(seen))]
    x, y = torch.from_numpy(pool.x).flatten(1), torch.from_numpy(pool.y)
    rows = torch.stack([torch.from_numpy(np.flatnonzero(mine)) for mine in seen])
    own = [[p.detach() for p in net.parameters()] for net in nets]
    stacked = [torch.stack(each).requires_grad_() for each in zip(*own, strict=True)]
    optimizer = torch.optim.Adam(stacked, 2e-3)
    for _ in range(epochs):
        order = torch.stack([mine[torch.randperm(len(mine), generator=generator)] for mine in rows])
        for part_of in order.split(batch, dim=1):
            w1, b1, w2, b2 = stacked
            hidden = torch.baddbmm(b1[:, None], x[part_of], w1.transpose(1, 2)).relu()
            answers = torch.baddbmm(b2[:, None], hidden, w2.transpose(1, 2))
            loss = nn.functional.cross_entropy(answers.flatten(0, 1), y[part_of].flatten(), reduction="sum")
            optimizer.zero_grad()
            (loss / part_of.shape[1]).backward()
            optimizer.step()
    for i, net in enumerate(nets):
        _put(net, [values[i] for values in stacked])
    return nets


@torch.no_grad()
def _put(net: nn.Module, values: list[Tensor]) -> None:
    for p, value in zip(net.parameters(), values, strict=True):
        p.copy_(value)


# --- membership -----------------------------------------------------------------------------------------------------


def _told(
    made: Part, pool: Data, seen: np.ndarray, draws: int, network: str, right: np.ndarray, attack: str, score: Reals
) -> dict[str, Estimate]:
    """One line of the table."""
    found = pooled(score, seen, seed=2, draws=draws)
    accuracy = f"{100 * right[seen].mean():.2f} % / {100 * right[~seen].mean():.2f} %"
    made.row(
        network,
        accuracy,
        attack,
        f"{found['area']}",
        *(_percent(found[f"true positives at {r}"]) for r in ("0.01", "0.001")),
    )
    return found


def _scores(
    told: Callable[..., dict[str, Estimate]], nets: list[nn.Sequential], seen: np.ndarray, pool: Data, public: Any
) -> tuple[dict[str, dict[str, Any]], References]:
    """Attacks on scores, by network and method: figures and the scores that gave them."""
    ways = {f"{bits} bits": partial(pqi.quantize, calibration=public, weight_bits=bits) for bits in (8, 4, 2)}
    ways["2 bits, learned"] = partial(ways["2 bits"], learned_rounding=True)
    known = answered(nets, seen, pool, ways)
    found: dict[str, dict[str, Any]] = {}
    for form, phi in known.phi.items():
        right = known.right[form] > 0
        methods = {"threshold": phi, "gap": known.right[form]}
        methods |= {name: each_in_turn(phi, seen, score) for name, score in AGAINST_REFERENCES.items()}
        found[form] = {name: (told(form, right, name, score), score) for name, score in methods.items()}
    return found, known


def _labels(
    told: Callable[..., dict[str, Estimate]], nets: list[nn.Sequential], seen: np.ndarray, pool: Data, public: Any
) -> dict[str, Any]:
    """Attacks on the hardened model: its own answers, which are one-hot."""
    way = {LABELS: partial(pqi.quantize, calibration=public, answers="label")}
    known = answered(nets, seen, pool, way, shifts=2)
    gap, moved = known.right[LABELS], known.moved[LABELS]
    methods = {"gap": gap, "gap, lira": each_in_turn(gap, seen, offline_ratio)}
    methods |= {"shifts": moved, "shifts, lira": each_in_turn(moved, seen, offline_ratio)}
    return {name: (told(LABELS, gap > 0, name, score), score) for name, score in methods.items()}


def _membership_claims(
    made: Part, scores: dict[str, Any], labels: dict[str, Any], known: References, seen: np.ndarray, draws: int
) -> None:
    for form in (FLOAT, "8 bits", "4 bits"):
        figure = scores[form]["lira"][0][SMALLEST]
        made.claim(f"LiRA tells members of {form} apart", _percent(figure), "interval above 0.1 %", figure.low > 0.001)
    in_float, in_eight = (scores[form]["lira"] for form in (FLOAT, "8 bits"))
    whole, eight = in_float[0][SMALLEST], in_eight[0][SMALLEST].value
    made.claim(
        "8 bits leave to LiRA what float leaves",
        f"{100 * eight:.2f} %, float {_percent(whole)}",
        "within the interval of float",
        whole.low <= eight <= whole.high,
    )
    for form in ("8 bits", "4 bits", "2 bits, learned", "2 bits"):
        less = pooled_difference(in_float[1], scores[form]["lira"][1], seen, seed=2, draws=draws)
        made.row(f"float less {form}", "", "lira", "", "", _percent(less))
    by_scores, by_labels = (_best(found) for found in (scores["8 bits"], labels))
    best = scores["8 bits"][by_scores][1], labels[by_labels][1]
    less = pooled_difference(*best, seen, seed=2, draws=draws)
    made.claim(
        f"labels alone leave less than scores (the best on each: {by_labels}; {by_scores})",
        f"{_percent(less)} less at 0.1 % false positives",
        "interval above 0",
        less.low > 0,
    )
    left = labels["gap, lira"][0][SMALLEST]
    made.claim("labels alone do not end it (gap, lira)", _percent(left), "interval above 0.1 %", left.low > 0.001)


def _best(found: dict[str, Any]) -> str:
    return max(found, key=lambda name: found[name][0][SMALLEST].value)


def _private(
    made: Part, nets: list[nn.Sequential], seen: np.ndarray, pool: Data, known: References, count: int, draws: int
) -> nn.Module:
    """The same halves, trained privately; a network of the largest epsilon."""
    some, n = seen[:count], len(pool) // 2
    before = each_in_turn(known.phi[FLOAT][:count], some, offline_ratio)
    right = known.right[FLOAT][:count] > 0
    _told(made, pool, some, draws, f"float, {count} targets", right, "lira", before)
    batch, epochs, kept = min(250, n // 2), 30, nets[0]
    for epsilon in (2.0, 8.0):
        noise = noise_for(epsilon, batch / n, round(epochs * n / batch), DELTA)
        trained = []
        for i, mine in enumerate(some):
            net, spent = private_training(
                _net(i), pool.take(mine), noise, 0.5, epochs, batch, delta=DELTA, seed_without_privacy=i
            )
            trained.append(net)
        kept = trained[0]
        given = answered(trained, some, pool, {})
        phi, right = given.phi[FLOAT], given.right[FLOAT] > 0
        after, name = each_in_turn(phi, some, offline_ratio), f"private, epsilon {spent.epsilon:.2f}"
        found = _told(made, pool, some, draws, name, right, "lira", after)
        less = pooled_difference(before, after, some, seed=2, draws=draws)
        made.claim(
            f"private training at epsilon {spent.epsilon:.2f} takes from LiRA what it had",
            f"{_percent(less)} less at 0.1 % false positives",
            "interval above 0",
            less.low > 0,
        )
        bound = float(np.exp(spent.epsilon)) * 0.001 + DELTA
        if bound >= 1:  # says nothing
            continue
        figure = found[SMALLEST]
        what = f"true positives keep to the bound of epsilon {spent.epsilon:.2f}"
        made.claim(what, _percent(figure), f"e^epsilon 0.1 % + delta = {100 * bound:.2f} %", figure.high <= bound)
    return kept


def _percent(figure: Estimate) -> str:
    return f"{100 * figure.value:.2f} % [{100 * figure.low:.2f}, {100 * figure.high:.2f}]"


# --- inversion ------------------------------------------------------------------------------------------------------


def _inversion(made: Part, net: nn.Module, guarded: nn.Module, train: Data, spare: Data, public: Any) -> None:
    others = spare.take(slice(256, 2756))
    (judge,) = _stack(others, np.ones((1, len(others)), bool), seed=3)
    test = spare.take(slice(2756, None))
    made.row("*inversion*", "*accuracy out*", "*what is asked*", "*margin*", "*nearest is its class*", "*recognised*")
    budget, attack = Budget(queries=3000, seed=4), Inversion(judge=judge)
    case = Case(net, pqi.quantize(net, public), test, train)
    for finding in attack.run(case, budget):
        _shown(made, finding.subject, case, finding.threat.knows, finding.figures)
        margin = finding.figures["margin"]
        made.claim(
            f"an image made from {finding.subject} is of its class",
            f"margin {margin}",
            "interval above 0",
            margin.low > 0,
        )
    hard = case.with_model(pqi.quantize(net, public, answers="label"))
    _shown(made, LABELS, hard, "labels", figures(attack.images(hard, INTEGERS, budget), train, judge, 4))
    private = Case(guarded, pqi.quantize(guarded, public), test, train)
    for form, knows in ((FLOAT, "weights"), (INTEGERS, "scores")):
        found = figures(attack.images(private, form, budget), train, judge, 4)
        _shown(made, f"private (epsilon 8), {form}", private, knows, found)


def _shown(made: Part, name: str, case: Case, knows: str, found: Any) -> None:
    subject = FloatSubject(case.net) if FLOAT in name else IntegerSubject(case.model)
    accuracy = f"{share(subject.labels(case.test.x) == case.test.y).value:.3f}"
    cells = (f"{found[key]}" for key in ("margin", "nearest is its class", "recognised"))
    made.row(name, accuracy, knows, *cells)
