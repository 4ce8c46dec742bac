"""Which attacks an audit makes, with what budget, and why others are left out.

The minutes are shared out before anything runs: every attack has a weight, and of the seconds that its weight gives it
follow how many examples and questions it can afford, from the measured speed of each form. What was decided is in the
report, number by number, and nothing later changes it but an attack's own clock.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pqi.audit.attack import Budget
from pqi.audit.case import Case
from pqi.audit.errors import AuditError
from pqi.audit.subjects import FLOAT, INTEGERS, STRAIGHT_THROUGH

STRENGTHS = (1 / 255, 2 / 255, 4 / 255, 8 / 255, 16 / 255)
QUICK_STRENGTHS = (4 / 255, 16 / 255, 32 / 255)
MINUTES, QUICK_MINUTES = 10.0, 1.25
ASKS = ("square", "hopskipjump")
"""Attacks whose questions are counted and limited."""
_ON_ALL = ("fidelity", "fairness")  # attacks that are measured on every test example
_GRADIENT = 3  # forward passes that a gradient is worth
_PRIVATE = 50  # answers that a full audit has a protocol compute, whose groups are told beside the integers'
_LEAST_SAMPLES, _LEAST_QUERIES, _LEAST_STEPS = 30, 50, 30


@dataclass(frozen=True)
class Wish:
    """What an audit may cost and should try.

    minutes: in all, soft; None: 10, or 1.25 if quick. quick: fewer attacks, examples and questions. attacks: only
    these, by name; None: all that serve. samples, queries: exactly so many for every attack that takes samples or
    queries, whatever the minutes; None: as many as the minutes allow, up to 500 and 1000 (quick: 150 and 200).
    strengths: of altered inputs, rising shares of the input's range.
    """

    minutes: float | None = None
    quick: bool = False
    attacks: Sequence[str] | None = None
    seed: int = 0
    samples: int | None = None
    queries: int | None = None
    strengths: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.minutes is not None and not self.minutes > 0:
            raise AuditError(f"minutes = {self.minutes}: more than 0 are needed")
        if self.strengths is not None and not all(0 < strength <= 1 for strength in self.strengths):
            raise AuditError(f"strengths are {self.strengths}: shares of the input's range, above 0 and at most 1")
        for name in self.attacks or ():
            if name not in KINDS:
                raise AuditError(f"there is no attack {name!r} in an audit; there are: {', '.join(KINDS)}")

    @property
    def seconds(self) -> float:
        """The whole budget."""
        return 60 * (self.minutes or (QUICK_MINUTES if self.quick else MINUTES))

    @property
    def epsilons(self) -> tuple[float, ...]:
        """The strengths asked for, or their default."""
        return tuple(self.strengths or (QUICK_STRENGTHS if self.quick else STRENGTHS))

    def budget(self, seconds: float) -> Budget:
        """The largest that an attack gets."""
        samples, queries = (150, 200) if self.quick else (500, 1000)
        return Budget(self.samples or samples, self.queries or queries, seconds, self.seed)


@dataclass(frozen=True)
class Speed:
    """Seconds that one input takes, forward, in each form; measured on a few inputs at a time."""

    floating: float
    straight: float
    integers: float

    @property
    def gradients(self) -> float:
        """A gradient in float and one straight through the integers."""
        return _GRADIENT * (self.floating + self.straight)

    @property
    def answers(self) -> float:
        """An answer in float and one in integers."""
        return self.floating + self.integers


@dataclass(frozen=True)
class Kind:
    """One attack of an audit. weight: of the minutes. quick: also made under --quick.

    arguments: its settings for this case. work: estimated seconds. lacks: why it cannot be made of this case, or "".
    """

    name: str
    family: str
    weight: float
    quick: bool
    work: Callable[[Speed, Case, Budget, Mapping[str, Any]], float]
    arguments: Callable[[Case, Wish], dict[str, Any]] = lambda case, wish: {}
    lacks: Callable[[Case], str] = lambda case: ""


@dataclass(frozen=True)
class Job:
    """One attack that will be made: attacks.get(name, **arguments).run(case, budget)."""

    name: str
    family: str
    budget: Budget
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LeftOut:
    """One attack that will not be made, and why."""

    name: str
    family: str
    reason: str


def plan(case: Case, wish: Wish, speed: Speed | None = None) -> tuple[tuple[Job, ...], tuple[LeftOut, ...]]:
    """The jobs, in the order in which they run (what decides most first), and what is left out."""
    kept, left = list[Kind](), list[LeftOut]()
    for kind in KINDS.values():
        reason = _reason(kind, case, wish)
        if reason:
            left.append(LeftOut(kind.name, kind.family, reason))
        else:
            kept.append(kind)
    speed = speed or measured(case)
    weights = sum(kind.weight for kind in kept)
    return tuple(_job(kind, case, wish, speed, wish.seconds * kind.weight / weights) for kind in kept), tuple(left)


def _reason(kind: Kind, case: Case, wish: Wish) -> str:
    if wish.attacks is not None and kind.name not in wish.attacks:
        return "not asked for"
    if wish.attacks is None and wish.quick and not kind.quick:
        return "left out of a quick audit"
    return kind.lacks(case)


def _job(kind: Kind, case: Case, wish: Wish, speed: Speed, seconds: float) -> Job:
    """Examples and questions shrink together until the work fits; steps of a search do where it has some."""
    budget, arguments = wish.budget(seconds), kind.arguments(case, wish)
    if kind.name in _ON_ALL or (kind.name == "membership" and wish.samples is None):
        budget = replace(budget, samples=len(case.test))  # of membership: rare events are to be seen
    need = kind.work(speed, case, budget, arguments)
    if need <= seconds or kind.name in _ON_ALL:
        return Job(kind.name, kind.family, budget, arguments)
    if kind.name == "detection":
        steps = max(_LEAST_STEPS, int(arguments["steps"] * seconds / need))
        return Job(kind.name, kind.family, budget, {**arguments, "steps": steps})
    if kind.name == "inversion" and wish.queries is None:
        return Job(
            kind.name,
            kind.family,
            replace(budget, queries=max(_LEAST_QUERIES, int(budget.queries * seconds / need))),
            arguments,
        )
    asks = kind.name in ASKS
    factor = math.sqrt(seconds / need) if asks and wish.samples is None and wish.queries is None else seconds / need
    if wish.samples is None:
        budget = replace(budget, samples=max(_LEAST_SAMPLES, int(budget.samples * factor)))
    if asks and wish.queries is None:
        budget = replace(budget, queries=max(_LEAST_QUERIES, int(budget.queries * factor)))
    return Job(kind.name, kind.family, budget, arguments)


def measured(case: Case) -> Speed:
    """The faster of two looks at up to 32 inputs, for each form."""
    x = case.on_grid(case.test.x[:32])
    found = {}
    for name in (FLOAT, STRAIGHT_THROUGH, INTEGERS):
        subject, seconds = case.subjects[name], list[float]()
        subject.scores(x)  # the first time compiles
        for _ in range(2):
            started = time.perf_counter()
            subject.scores(x)
            seconds.append((time.perf_counter() - started) / len(x))
        found[name] = min(seconds)
    return Speed(found[FLOAT], found[STRAIGHT_THROUGH], found[INTEGERS])


def _everything(speed: Speed, case: Case, budget: Budget, arguments: Mapping[str, Any]) -> float:
    return len(case.test) * speed.answers


def _members(speed: Speed, case: Case, budget: Budget, arguments: Mapping[str, Any]) -> float:
    return 2 * budget.samples * speed.answers


def _gradients(speed: Speed, case: Case, budget: Budget, arguments: Mapping[str, Any]) -> float:
    return len(arguments["strengths"]) * budget.samples * int(arguments.get("steps", 1)) * speed.gradients


def _questions(speed: Speed, case: Case, budget: Budget, arguments: Mapping[str, Any]) -> float:
    return len(arguments.get("strengths", (0,))) * budget.samples * budget.queries * speed.answers


def _walks(speed: Speed, case: Case, budget: Budget, arguments: Mapping[str, Any]) -> float:
    # It walks input by input, so that an answer costs some times what it does in a batch; and it has no clock.
    return 3 * _questions(speed, case, budget, arguments)


def _inverted(speed: Speed, case: Case, budget: Budget, arguments: Mapping[str, Any]) -> float:
    by_weights = int(arguments["steps"]) * speed.gradients
    return case.classes * (by_weights + 2 * budget.queries * speed.integers)


def _search(speed: Speed, case: Case, budget: Budget, arguments: Mapping[str, Any]) -> float:
    return case.classes * int(arguments["steps"]) * 64 * speed.gradients


def _flips(speed: Speed, case: Case, budget: Budget, arguments: Mapping[str, Any]) -> float:
    one = arguments["batch"] * (_GRADIENT + arguments["tries"]) * speed.straight
    if "victims" in arguments:
        return float(arguments["victims"] * arguments["most"] * one)
    return float(arguments["most"] * (one + budget.samples * speed.integers))


def _evasion(steps: int | None = None, quick_steps: int = 10) -> Callable[[Case, Wish], dict[str, Any]]:
    def arguments(case: Case, wish: Wish) -> dict[str, Any]:
        made: dict[str, Any] = {"strengths": wish.epsilons}
        return made if steps is None else {**made, "steps": quick_steps if wish.quick else steps}

    return arguments


def _fairness(case: Case, wish: Wish) -> dict[str, Any]:
    return {"private": 0 if wish.quick else _PRIVATE}


def _bit_flips(case: Case, wish: Wish) -> dict[str, Any]:
    # The attacker's batch leaves at least two thirds of the examples to judge by.
    return {"most": 20 if wish.quick else 40, "batch": max(1, min(128, len(case.test) // 3)), "tries": 5}


def _targeted(case: Case, wish: Wish) -> dict[str, Any]:
    return {"victims": 10, "most": 20, "batch": max(1, min(64, len(case.test) // 3)), "tries": 3}


def _images(case: Case) -> str:
    shape = case.model.input_shape
    return "" if len(shape) == 3 else f"it alters images (C, H, W); inputs here are {shape}"


def _three_classes(case: Case) -> str:
    return "" if case.classes > 2 else "its loss divides by the third largest score; there are two classes"


def _training_data(case: Case) -> str:
    return "" if case.train is not None else "no training examples were given (arrays x_train and y_train)"


def _groups(case: Case) -> str:
    return "" if case.test.groups is not None else "no groups were given (array groups)"


_ALL = (
    Kind("fidelity", "fidelity", 1, True, _everything),
    Kind("fairness", "fairness", 1, True, _everything, _fairness, _groups),
    Kind("membership", "privacy", 1, True, _members, lacks=_training_data),
    Kind("detection", "backdoor", 5, True, _search, lambda case, wish: {"steps": 60 if wish.quick else 150}),
    Kind("pgd", "adversarial", 3, True, _gradients, _evasion(20)),
    Kind("square", "adversarial", 5, True, _questions, _evasion(), _images),
    Kind("transfer", "adversarial", 3, True, _gradients, _evasion(20)),
    Kind("bit-flips", "bit flips", 3, True, _flips, _bit_flips),
    Kind("fgsm", "adversarial", 1, False, _gradients, _evasion()),
    Kind("apgd-ce", "adversarial", 3, False, _gradients, _evasion(20)),
    Kind("apgd-dlr", "adversarial", 3, False, _gradients, _evasion(20), _three_classes),
    Kind("hopskipjump", "adversarial", 4, False, _walks, lambda case, wish: {"rounds": 10}),
    Kind("differential", "adversarial", 3, False, _gradients, _evasion(20)),
    Kind("inversion", "privacy", 2, False, _inverted, lambda case, wish: {"steps": 100}, _training_data),
    Kind("targeted-bit-flips", "bit flips", 3, False, _flips, _targeted),
)
KINDS = {kind.name: kind for kind in _ALL}
"""Every attack that an audit of a finished model can make, by name, in the order in which they run."""
