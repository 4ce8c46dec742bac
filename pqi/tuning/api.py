"""``pqi.tune``: the cheapest program within an accuracy budget; the parts in a row."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.export import ExportedProgram

import protocols
from pqi.graph.errors import QuantizationError
from pqi.graph.model import POLICIES, IntegerModel
from pqi.program import Program
from pqi.program.network import Profile, profile
from pqi.program.plan import ROUNDINGS
from pqi.quant.calibrate import calibrate
from pqi.quant.scheme import WEIGHTS, Recipe
from pqi.tuning.cost import Bill, Objective
from pqi.tuning.curve import Curve, Point
from pqi.tuning.judge import Judge, Labelled, Measured
from pqi.tuning.levers import IMPROVEMENTS, Allowed, Candidate, Levers
from pqi.tuning.search import Found, Limits, NothingFits, Search, State, Tried

KEEP = 256  # calibration inputs that calibrated rings and improvements look at, for every candidate anew


@dataclass(frozen=True)
class Tuned:
    """The cheapest program within the budget. model, program: ready to be split. candidate: what decided them.

    curve: everything that was measured. confirmed: the model on the part of the validation set that the search did not
    see, if some was held back. test: on the test data, if they were given. ended: why the search stopped. evaluations:
    how many programs it looked at.
    """

    model: IntegerModel
    program: Program
    candidate: Candidate
    curve: Curve
    confirmed: Measured | None
    test: Measured | None
    evaluations: int
    ended: str

    @property
    def recipe(self) -> Recipe:
        """The schemes of the layers."""
        return self.candidate.recipe

    @property
    def rounding(self) -> str:
        """What to split the model with: "exact" or "stochastic"."""
        return self.candidate.rounding

    @property
    def network(self) -> str:
        """What to split the model with: "lan" or "wan"."""
        return self.curve.network.name

    @property
    def bill(self) -> Bill:
        """What one input costs."""
        return self.curve.choice.bill

    def save(self, path: str | Path) -> None:
        """Write the model, as any other model."""
        self.model.save(path)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "chosen": self.curve.choice.to_dict(),
            "network": self.network,
            "rounding": self.rounding,
            "confirmed": None if self.confirmed is None else dict(vars(self.confirmed)),
            "test": None if self.test is None else dict(vars(self.test)),
            "evaluations": self.evaluations,
            "ended": self.ended,
            "curve": self.curve.to_dict(),
        }


def tune(
    net: nn.Module | ExportedProgram,
    calibration: Any,
    validation: tuple[Any, Any],
    *,
    accuracy_drop: float = 0.5,
    objective: str | Mapping[str, float] | Objective = "offline_bytes",
    network: str | Profile = "lan",
    protocol: str = "additive2",
    test: tuple[Any, Any] | None = None,
    rings: str = "proven",
    rounding: str = "exact",
    weights: Sequence[str] = ("symmetric",),
    improvements: Sequence[str] = ("bias_correction",),
    ends: str = "same",
    input_range: tuple[float, float] | None = None,
    equalize: bool = False,
    standard_errors: float = 2.0,
    held_back: float = 0.5,
    minutes: float | None = 5.0,
    evaluations: int | None = None,
    progress: Callable[[State], None] | None = None,
) -> Tuned:
    """The cheapest program whose model loses at most ``accuracy_drop`` points of accuracy, and the trade-off curve.

    net, calibration, input_range, equalize: as for ``pqi.quantize``; the data are read once. validation: inputs
    (N, ...) and their classes (N,), not those that the network was trained on. test: others, for the final figure.

    objective: offline_bytes, online_bytes, exchanges, seconds (for the ``network`` profile), or weights of several.
    Costs are the declared ones of the compiled program, as they will be on the wire; seconds are an estimate.

    What is searched: bits of inputs, weights, activations and (with rings="calibrated") accumulator indices; the
    accumulators' unit and the range of every layer; ``weights``: kinds of levels allowed; ``improvements``: allowed
    ones of bias_correction and learned_rounding. rings="proven" keeps to rings that no input can wrap, "calibrated"
    allows narrower ones, which are arithmetic mod 2^k by definition. rounding="stochastic" allows shifts that are
    cheaper and not bit-exact; what they lose is then measured with drawn shifts.

    A choice among many programs flatters the chosen one, so the search does not see the share ``held_back`` of the
    validation set. The cheapest program is chosen that keeps the budget there, and on what was seen and on the whole
    with ``standard_errors`` standard errors of the paired difference on top of its loss.

    minutes, evaluations: when to stop; an interrupt (Ctrl-C) returns what was found. progress(State) is called per
    evaluation. The search is deterministic but for where the clock ends it.

    Raises NothingFits naming the best that was reached, InputError on data that cannot judge anything, and what
    ``pqi.quantize`` raises.
    """
    goal, wires = Objective.of(objective), profile(network)
    allowed = _allowed(rings, rounding, weights, improvements)
    limits = _limits(accuracy_drop, standard_errors, minutes, evaluations)
    if not 0 <= held_back <= 0.9:
        raise QuantizationError(f"held_back is {held_back}: a share of the validation set, from 0 to 0.9")
    protocols.get(protocol)
    seen = calibrate(net, calibration, input_range=input_range, equalize=equalize, keep=KEEP)
    searched, back = Labelled("validation", *_pair("validation", validation), seen).split(held_back)
    final = None if test is None else Labelled("test", *_pair("test", test), seen)
    task = _Task(Judge(seen, searched, protocol, wires), Levers.of(seen.placed.graph, allowed), goal, limits)
    return _chosen(task, _search(task, ends, progress), back, final)


def _chosen(task: _Task, found: Found[Candidate], back: Labelled | None, final: Labelled | None) -> Tuned:
    candidate, confirmed = task.confirm(found, back)
    built = task.judge.build(candidate)
    if built is None:
        raise QuantizationError(f"the chosen program cannot be built again: {candidate.key}")
    measured = None if final is None else task.judge.measure(candidate, final)
    curve = task.curve(found, candidate)
    return Tuned(*built, candidate, curve, confirmed, measured, found.evaluations, found.ended)


def _search(task: _Task, ends: str, progress: Callable[[State], None] | None) -> Found[Candidate]:
    moves = task.levers.moves()
    slow = [move for move in moves if dict(move.put).get("improved") == "learned_rounding"]
    quick = [move for move in moves if move not in slow]
    uniform = [move for move in quick if len(move.layers) != 1]
    ladder = task.levers.ladder(ends)
    return Search(task, ladder, (uniform, quick), task.limits, late=slow, progress=progress).run()


class _Task:
    """What the search asks for, and a record of what it was told."""

    def __init__(self, judge: Judge, levers: Levers, objective: Objective, limits: Limits) -> None:
        self.judge, self.levers, self.objective, self.limits = judge, levers, objective, limits
        self.bills: dict[str, Bill] = {}
        self.records: dict[str, Measured] = {}

    def cost(self, candidate: Candidate) -> float | None:
        """The objective's value of the declared cost."""
        made = self.judge.bill(candidate)
        if made is None:
            return None
        self.bills[candidate.key] = made
        return self.objective.value(made)

    def divergence(self, candidate: Candidate) -> float:
        """Of the answers from the float network's, on a part of the validation set."""
        return self.judge.divergence(candidate)

    def loss(self, candidate: Candidate) -> tuple[float, float]:
        """On the validation set, with the standard error."""
        measured = self.records[candidate.key] = self.judge.measure(candidate)
        return measured.drop, measured.drop_error

    def confirm(self, found: Found[Candidate], back: Labelled | None) -> tuple[Candidate, Measured | None]:
        """The cheapest that fits what the search saw, and also the whole with what was held back, and keeps the bare
        budget on that alone. Passed over are those plainly less accurate than a cheaper one, so that this is no second
        search.
        """
        if found.best is None:
            raise NothingFits(self._regret(found, self.records, self.judge.validation))
        if back is None:
            return found.best.candidate, None
        again: dict[str, Measured] = {}
        least = math.inf
        for tried in sorted((t for t in found.measured if self._fits(self.records[t.candidate.key])), key=self._order):
            seen = self.records[tried.candidate.key]
            if seen.drop > least + seen.drop_error:
                continue
            least = min(least, seen.drop)
            other = again[tried.candidate.key] = self.judge.measure(tried.candidate, back)
            if other.drop <= self.limits.loss and self._fits(seen.together(other)):
                return tried.candidate, other
        raise NothingFits(self._regret(found, again, back))

    def _fits(self, measured: Measured) -> bool:
        return measured.drop + self.limits.errors * measured.drop_error <= self.limits.loss

    def _loss(self, tried: Tried[Candidate]) -> float:
        return self.records[tried.candidate.key].drop

    def _order(self, tried: Tried[Candidate]) -> tuple[float, float, str]:
        return tried.cost, self._loss(tried), tried.candidate.key

    def curve(self, found: Found[Candidate], chosen: Candidate) -> Curve:
        """All that was measured."""
        judged = self.judge.validation
        return Curve(
            objective=self.objective.name,
            network=self.judge.network,
            protocol=self.judge.protocol,
            float_accuracy=judged.float_accuracy,
            samples=len(judged.y),
            budget=100 * self.limits.loss,
            errors=self.limits.errors,
            points=tuple(self._point(tried) for tried in found.measured),
            chosen=[t.candidate.key for t in found.measured].index(chosen.key),
        )

    def _point(self, tried: Tried[Candidate]) -> Point:
        measured, summary = self.records[tried.candidate.key], self.levers.summary(tried.candidate)
        bill = self.bills[tried.candidate.key]
        return Point(tried.candidate, summary, tried.cost, bill, measured, self._fits(measured))

    def _regret(self, found: Found[Candidate], records: Mapping[str, Measured], on: Labelled) -> str:
        """Why there is nothing to choose, with the numbers of what came nearest."""
        if not found.measured:
            return f"no program could be measured within the limits ({found.ended}): allow more minutes or evaluations"
        near = min(
            (t for t in found.measured if t.candidate.key in records), key=lambda t: records[t.candidate.key].drop
        )
        measured, errors = records[near.candidate.key], self.limits.errors
        return (
            f"no program is within {100 * self.limits.loss:g} points of float accuracy {on.float_accuracy:.2%} on "
            f"{len(on.y):,} inputs ({found.evaluations} were looked at; {found.ended}). The best reached loses "
            f"{100 * measured.drop:.2f} points, standard error {100 * measured.drop_error:.2f}, of which {errors:g} "
            f"count: {self.levers.summary(near.candidate)}; {self.objective.name} {near.cost:,.6g}. Allow a larger "
            "accuracy drop, more validation data (smaller errors), rings='calibrated', or train the network for it."
        )


def _allowed(rings: str, rounding: str, weights: Sequence[str], improvements: Sequence[str]) -> Allowed:
    checks: tuple[tuple[str, Sequence[str], Sequence[str]], ...] = (
        ("rings", (rings,), POLICIES),
        ("rounding", (rounding,), ROUNDINGS),
        ("weights", tuple(weights), WEIGHTS),
        ("improvements", tuple(improvements), IMPROVEMENTS),
    )
    for name, given, known in checks:
        strange = [word for word in given if word not in known]
        if strange or (name == "weights" and not given):
            raise QuantizationError(f"{name} is {strange or 'empty'}: choose from {', '.join(known)}")
    both = ("proven", "calibrated") if rings == "calibrated" else ("proven",)
    roundings = ("exact", "stochastic") if rounding == "stochastic" else ("exact",)
    return Allowed(both, roundings, tuple(dict.fromkeys(weights)), tuple(dict.fromkeys(improvements)))


def _limits(drop: float, errors: float, minutes: float | None, evaluations: int | None) -> Limits:
    if not 0 <= drop <= 100:
        raise QuantizationError(f"accuracy_drop is {drop}: points of accuracy that may be lost, from 0 to 100")
    if not 0 <= errors <= 10:
        raise QuantizationError(f"standard_errors is {errors}: it must be from 0 (trust the validation set) to 10")
    if minutes is not None and not minutes > 0:
        raise QuantizationError(f"minutes is {minutes}: it must be positive, or None for no limit")
    if evaluations is not None and evaluations < 1:
        raise QuantizationError(f"evaluations is {evaluations}: at least one program must be looked at")
    return Limits(drop / 100, errors, evaluations, None if minutes is None else 60 * minutes)


def _pair(name: str, data: Any) -> tuple[Any, Any]:
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise QuantizationError(f"{name} must be a pair (inputs, labels); it is {type(data).__name__}")
    return data[0], data[1]
