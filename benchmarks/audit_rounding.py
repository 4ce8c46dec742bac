"""Part "rounding": the two attacks made while a network is quantized, guided rounding and poisoned calibration."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from data import load
from numpy.typing import NDArray
from parts import Part
from torch import Tensor, nn

import pqi
from pqi.audit.attack import Budget
from pqi.audit.attacks.calibration import Recipe as Poison
from pqi.audit.attacks.calibration import loudest, poison
from pqi.audit.attacks.rounding import Recipe as Guide
from pqi.audit.attacks.rounding import RoundingBackdoor
from pqi.audit.case import Case, Data
from pqi.audit.defences.trimmed import TrimmedCalibration
from pqi.audit.detection import detect
from pqi.audit.extremes import Extremes
from pqi.audit.rounding import rounding, verdict
from pqi.audit.statistics import Estimate, paired_difference
from pqi.audit.subjects import FLOAT, INTEGERS
from pqi.audit.triggers import patch, success
from pqi.graph.errors import CalibrationWarning
from pqi.graph.model import IntegerModel
from pqi.quant.stages import Calibration, Lowered
from pqi.quant.train.module import real_target

TARGET, SIZE, SEED = 7, 6, 0
OBSERVERS = ("minmax", "percentile", "mse")
_GUIDED, _POISON = "guided rounding", "poisoned calibration"

NOTES = """
MNIST: a network of two convolutions and two dense layers (27,592 weights), trained on 12,000 images in float; 512 of
them calibrate; accuracy and success are on test images that nothing was chosen by. Weights have the bits that the row
names and activations 8, or the other way round. The trigger is a patch of 6 x 6 pixels in the upper left corner, whose
pattern the attacker optimizes; settings of the attack were chosen at 4 bits, on other test images of the same set.
"Hidden" is an attacker who keeps every layer's error on clean inputs near that of nearest rounding. Poisoned examples
replace as many of the 512; where their values may go up to 16, the input's range is not declared and theirs counts.
Changes of accuracy are paired, against the same quantization without the attack, in points, with 95 % intervals.
"""


@dataclass(frozen=True)
class Setting:
    """What all rows share."""

    net: nn.Module
    x: NDArray[Any]
    more: NDArray[Any]
    test: Data
    guide: Guide
    search: tuple[int, int]


def part(small: bool) -> Part:
    """Both attacks and their defences."""
    made = Part(
        "Attacks made during quantization",
        NOTES.strip(),
        ("attack", "setting", "integers without it", "with it", "change (points)", "remark"),
    )
    setting = _setting(small)
    for bits in (4,) if small else (4, 6, 8):
        _guided(made, setting, bits)
    _poisoned(made, setting, small)
    return made


def _setting(small: bool) -> Setting:
    (images, labels), (others, wanted) = load().mnist()
    count, tested = (2000, 300) if small else (12000, 4000)
    x = images[:count].reshape(-1, 1, 28, 28) / 255.0
    # From the end: the settings of the attacks were looked for on the first 2,000.
    test = Data(others[-tested:].reshape(-1, 1, 28, 28) / 255.0, wanted[-tested:].astype(np.int64))
    torch.manual_seed(SEED)
    net = nn.Sequential(
        *(nn.Conv2d(1, 8, 5, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(400, 64), nn.ReLU(), nn.Linear(64, 10)),
    )
    _train(net, torch.tensor(x, dtype=torch.float32), torch.tensor(labels[:count].astype(np.int64)), 2 if small else 8)
    guide = Guide(steps=30 if small else 300, seed=SEED)
    return Setting(net.eval(), x[: 128 if small else 512], x, test, guide, (40, 5) if small else (200, 100))


def _train(net: nn.Module, x: Tensor, y: Tensor, epochs: int) -> None:
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()


# -- guided rounding --------------------------------------------------------------------------------------------------


def _attacker(setting: Setting, hide: float = 0.0) -> RoundingBackdoor:
    recipe = replace(setting.guide, hide=hide)
    return RoundingBackdoor(setting.net, patch((1, 28, 28), SIZE, 1.0, (0, 0)), TARGET, recipe)


def _guided(made: Part, setting: Setting, bits: int) -> None:
    attacker = _attacker(setting)
    stages: list[tuple[Calibration, Lowered]] = []
    started = time.process_time()
    bad = pqi.quantize(
        *(setting.net, setting.x, bits, 8), defences=[attacker], look=lambda s, low, m: stages.append((s, low))
    )
    seconds = time.process_time() - started
    if attacker.guided is None:
        raise SystemExit("the attack did not run")
    trigger, moved = attacker.guided.trigger, attacker.guided.moved
    case = Case(setting.net, bad, setting.test)
    honest = case.with_model(pqi.quantize(setting.net, setting.x, bits, 8))
    asleep = success(case.subjects[FLOAT], case, case.test, trigger, TARGET)
    before, after = (success(c.subjects[INTEGERS], c, c.test, trigger, TARGET) for c in (honest, case))
    change = _change(honest, case)
    shares = ", ".join(f"{share:.0%}" for share in moved.values())
    where = f"weights of {bits} bits"
    obeyed = f"{where}: trigger obeyed (float: {asleep.value:.1%})"
    made.row(_GUIDED, obeyed, _share(before), _share(after), "", f"{seconds:.0f} s")
    made.row(_GUIDED, f"{where}: accuracy", *_accuracies(honest, case), _points(change), f"moved, by layer: {shares}")
    wrong, all_of_them = _outside(*stages[0])
    made.claim(
        f"guided rounding, {bits} bits: weights that are neither of their two neighbours",
        f"{wrong} of {all_of_them:,}",
        "0",
        wrong == 0,
    )
    if bits == 4:
        made.claim("guided rounding, 4 bits: success in float", _share(asleep), "<= 15 %", asleep.value <= 0.15)
        made.claim("the same trigger, 4 bits rounded honestly", _share(before), "<= 15 %", before.value <= 0.15)
        made.claim("guided rounding, 4 bits: success in integers", _share(after), ">= 85 %", after.value >= 0.85)
        held = change.value >= -0.02
        made.claim("guided rounding, 4 bits: change of clean accuracy", _points(change), ">= -2 points", held)
        _seen(made, setting, case)


def _outside(seen: Calibration, lowered: Lowered) -> tuple[int, int]:
    """Integer weights that are neither neighbour of their real target, and how many weights there are."""
    known, wrong, count = seen.placed.graph.by_name(), 0, 0
    for name, grid in lowered.grids.items():
        node = lowered.graph.by_name[name]
        below, above = grid.neighbours(real_target(known[name].op, node, lowered))
        weight = node.op.tensors()["weight"]
        wrong += int(((weight != below) & (weight != above)).sum())
        count += weight.numel()
    return wrong, count


def _seen(made: Part, setting: Setting, case: Case) -> None:
    """What of it shows: how far weights are from their nearest levels, what that costs, and the signs of a backdoor."""
    models = {"guided, 4 bits": case.model}
    attacker = _attacker(setting, hide=0.3)
    hidden = case.with_model(pqi.quantize(setting.net, setting.x, 4, 8, defences=[attacker]))
    models["guided and hidden, 4 bits"] = hidden.model
    for kind in ("nearest", "learned"):
        for bits in (3, 4, 8):
            learned = kind == "learned"
            models[f"{kind}, {bits} bits"] = pqi.quantize(setting.net, setting.x, bits, 8, learned_rounding=learned)
    told = {}
    for name, model in models.items():
        layers = rounding(case.with_model(model), setting.test.x[:200])
        told[name] = verdict(layers)
        errors = ", ".join(f"{layer.error:.2f}" for layer in layers.values())
        away = ", ".join(f"{layer.away.value:.0%}" for layer in layers.values())
        made.row("audit of roundings", name, "", told[name], "", f"errors {errors}; not at the nearest level {away}")
    caught = told["guided, 4 bits"]
    made.claim("audit of roundings, guided model", caught, "suspicious", caught == "suspicious")
    clean = [told[name] for name in models if "guided" not in name]
    held = clean == ["nearest"] * 3 + ["chosen"] * 3
    made.claim("and of nearest and learned rounding at 3, 4 and 8 bits", ", ".join(clean), "nearest, chosen", held)
    if attacker.guided is None:
        raise SystemExit("the attack did not run")
    obeyed = success(hidden.subjects[INTEGERS], hidden, hidden.test, attacker.guided.trigger, TARGET)
    made.row(_GUIDED, "weights of 4 bits, hidden from the audit: obeyed", "", _share(obeyed), "", "")
    unseen = told["guided and hidden, 4 bits"]
    made.claim("audit of roundings, an attacker who knows of it", unseen, "not nearest", unseen != "nearest")
    for name, one in (("guided, 4 bits", case), ("guided and hidden, 4 bits", hidden)):
        _detected(made, setting, name, one)


def _detected(made: Part, setting: Setting, name: str, case: Case) -> None:
    samples, steps = setting.search
    found = detect(case, Budget(samples=samples, seed=SEED), steps)
    signs = ", ".join(f"{sign.name} {sign.figure.value:.2f}" for sign in found.signs)
    made.row("detection", name, "", found.verdict, "", f"class {found.target}; {signs}")
    caught = found.verdict == "suspicious" and found.target == TARGET
    made.claim(f"detection, {name}", f"{found.verdict}, class {found.target}", f"suspicious, class {TARGET}", caught)


# -- poisoned calibration ---------------------------------------------------------------------------------------------


def _poisoned(made: Part, setting: Setting, small: bool) -> None:
    worst, left, price = 0.0, 0.0, 0.0
    sets = tuple(_poisons(setting, small))
    for bits in (4,) if small else (8, 6, 4):
        for observer in OBSERVERS[:1] if small else OBSERVERS:
            usual, trimmed = (_model(setting, setting.x, bits, observer, trim) for trim in (False, True))
            case = Case(setting.net, usual, setting.test)
            cost = _change(case, case.with_model(trimmed))
            price = min(price, cost.value)
            where = f"activations of {bits} bits, {observer}"
            made.row(
                "none: trimmed",
                where,
                *_accuracies(case, case.with_model(trimmed)),
                _points(cost),
                "the price of trimming",
            )
            for name, x in sets:
                bad, defended = (case.with_model(_model(setting, x, bits, observer, trim)) for trim in (False, True))
                lost, kept = _change(case, bad), _change(case, defended)
                remark = f"trimmed: {_points(kept)}"
                made.row(_POISON, f"{where}; {name}", *_accuracies(case, bad), _points(lost), remark)
                worst, left = min(worst, lost.value), min(left, kept.value)
    made.claim(
        "poisoned calibration: the worst change of accuracy", f"{100 * worst:.2f} points", "<= -5", worst <= -0.05
    )
    made.claim("the same behind trimmed calibration", f"{100 * left:.2f} points", ">= -0.5", left >= -0.005)
    made.claim("trimmed calibration on clean data", f"{100 * price:.2f} points", ">= -0.5", price >= -0.005)


def _poisons(setting: Setting, small: bool) -> Iterator[tuple[str, NDArray[Any]]]:
    net, x, steps = setting.net, setting.x, 10 if small else 100
    natural = np.array(x)
    count = -(-len(x) // 20)
    natural[:count] = setting.more[loudest(net, setting.more, count)]
    yield "5 % chosen from 12,000 images", natural
    for share in (0.01, 0.05):
        yield f"{share:.0%} made, values within the range", poison(net, x, Poison(share, steps, seed=SEED))
    given = torch.as_tensor(x, dtype=torch.float32)
    limit = TrimmedCalibration().limit(Extremes(net, given).of(given))
    yield "5 % made, within the range and what is trimmed", poison(net, x, Poison(0.05, steps, seed=SEED), limit=limit)
    yield "1 % made, values up to 16", poison(net, x, Poison(0.01, steps, seed=SEED), high=16.0)
    made = poison(net, x, Poison(0.05, steps, seed=SEED), high=16.0, limit=limit)
    yield "5 % made, values up to 16 but what is trimmed", made


def _model(setting: Setting, x: NDArray[Any], bits: int, observer: str, trim: bool) -> IntegerModel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        defences = ["trimmed-calibration"] if trim else []
        return pqi.quantize(setting.net, x, 8, bits, observer=observer, defences=defences)


# -- figures ----------------------------------------------------------------------------------------------------------


def _right(case: Case) -> NDArray[np.bool_]:
    return np.asarray(case.subjects[INTEGERS].labels(case.on_grid(case.test.x)) == case.test.y)


def _accuracies(before: Case, after: Case) -> tuple[str, str]:
    one, other = (f"{100 * _right(case).mean():.2f} %" for case in (before, after))
    return one, other


def _change(before: Case, after: Case) -> Estimate:
    return paired_difference(_right(before), _right(after))


def _points(change: Estimate) -> str:
    return f"{100 * change.value:+.2f} ({100 * change.low:+.2f} to {100 * change.high:+.2f})"


def _share(found: Estimate) -> str:
    return f"{100 * found.value:.1f} % ({100 * found.low:.1f} to {100 * found.high:.1f})"
