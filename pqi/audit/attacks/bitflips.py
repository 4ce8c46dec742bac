"""Bits of stored weights, turned one by one where it hurts most (Rakin, He, Fan, ICCV 2019; Bai et al., ICLR 2021)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import log
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pqi.audit.attack import Attack, Budget, Clock, Curve, Finding, Progress, Threat
from pqi.audit.case import Case, Data
from pqi.audit.defences.guards import MakeGuard, NoGuard
from pqi.audit.errors import AuditError
from pqi.audit.memory import Flip, Stored, stored, with_weights
from pqi.audit.statistics import Estimate, share
from pqi.audit.subjects import INTEGERS, IntegerSubject, StraightThrough
from pqi.graph.model import IntegerModel

CHANCE = 1.1  # times 1 / classes: at or below it, every class counted alike, the network guesses
_PROMISING = 1.0  # times log(classes), the loss of whoever guesses with equal scores
_JUDGED_EVERY = 10  # bits, at the latest
Move = tuple[Flip, ...]  # bits turned together: one where the guard needs no more
Loss = Callable[[StraightThrough], Tensor]


class Memory:
    """A model's weights in memory, the guard in front of them, and the bits turned so far."""

    def __init__(self, model: IntegerModel, guard: MakeGuard | None, bits: int = 8) -> None:
        self.layers = stored(model, bits)
        self.guard = NoGuard() if guard is None else guard(self.layers)
        # A turned weight is outside what was proven: from the first bit on, rings wrap as the private run's do.
        self.module = StraightThrough(with_weights(model, {})).eval()
        self.model, self.flips = model, list[Flip]()

    def parameter(self, layer: str) -> nn.Parameter:
        """The weight that the module computes with."""
        found: nn.Parameter = self.module.weight[self.module.key[layer]]
        return found

    @torch.no_grad()
    def show(self, layer: str, codes: Tensor) -> None:
        """Let the module compute with what the guard makes of these codes."""
        kept = self.layers[layer]
        self.parameter(layer).copy_(kept.weight(self.guard.settle(layer, codes)))

    def altered(self, move: Move) -> Stored:
        """The layer of a move with these bits turned as well."""
        now = self.layers[move[0].layer]
        codes = now.codes.clone()
        for flip in move:
            codes.view(-1)[flip.index] += now.change(flip.bit).view(-1)[flip.index]
        return replace(now, codes=codes)

    def turn(self, move: Move) -> None:
        """Turn the bits for good."""
        layer = move[0].layer
        self.layers[layer] = self.altered(move)
        self.show(layer, self.layers[layer].codes)
        self.flips.extend(move)

    def computed_with(self) -> IntegerModel:
        """The integer model as it computes now, guard included."""
        settled = {n: layer.weight(self.guard.settle(n, layer.codes)) for n, layer in self.layers.items()}
        return with_weights(self.model, settled)

    def candidates(self, loss: Loss, count: int) -> list[Move]:
        """The ``count`` layers' best single moves, by the first-order rise of the loss a bit, best first."""
        self.module.zero_grad()
        loss(self.module).backward()  # type: ignore[no-untyped-call]
        best = []
        for name, now in self.layers.items():
            gradient = self.parameter(name).grad
            if gradient is None:
                continue
            gains = self.guard.gains(name, now, gradient * now.unit)
            for flip in self.flips:  # a bit turned back undoes what was done
                if flip.layer == name:
                    gains = gains.clone()
                    gains[flip.bit, flip.index] = -torch.inf
            at = int(gains.argmax())
            flip = Flip(name, at % now.codes.numel(), at // now.codes.numel())
            best.append((float(gains.flatten()[at]), flip))
        return [self.guard.move(flip, self.flips) for gain, flip in sorted(best, reverse=True)[:count] if gain > 0]

    @torch.no_grad()
    def risen(self, loss: Loss, move: Move) -> float:
        """The loss with these bits turned as well."""
        layer = move[0].layer
        self.show(layer, self.altered(move).codes)
        value = float(loss(self.module))
        self.show(layer, self.layers[layer].codes)
        return value

    def step(self, loss: Loss, tries: int) -> float | None:
        """Turn what raises the loss most among the best candidates; the loss then, None where nothing raises it."""
        found = [(self.risen(loss, move), move) for move in self.candidates(loss, tries)]
        if not found:
            return None
        value, best = max(found, key=lambda each: each[0])
        self.turn(best)
        return value


class ProgressiveBitFlips(Attack):
    """Each turn: the best bit of every layer to first order, the ``tries`` most promising tried out, the worst kept.

    From ``batch`` examples the attacker holds. Figures: bits turned until the network guesses (all of ``most`` where it
    never does), and the accuracy left. It guesses where accuracy, every class counted alike, is at most 1.1 / classes,
    or its interval reaches down to 1 / classes. guard: what protects the memory; the attack knows all of it but its
    keys, and turns as many bits at once as it takes for one move to tell.
    """

    name = "bit-flips"
    family = "bit flips"
    threat = Threat("weights", "memory", "a network that guesses", "Rakin et al. (BFA), ICCV 2019")

    def __init__(self, most: int = 40, batch: int = 128, tries: int = 5, guard: MakeGuard | None = None) -> None:
        if min(most, batch, tries) < 1:
            raise AuditError(f"most = {most}, batch = {batch} and tries = {tries} must be at least 1")
        self.most, self.batch, self.tries, self.guard = most, batch, tries, guard

    def run(self, case: Case, budget: Budget, progress: Progress | None = None) -> tuple[Finding, ...]:
        """One finding, on the integers."""
        clock, memory = budget.clock(), Memory(case.model, self.guard)
        rows = np.random.default_rng(budget.seed).permutation(len(case.test))
        if len(rows) <= self.batch:
            raise AuditError(f"{len(rows)} test examples: more than the batch of {self.batch} are needed to judge by")
        held, judged = case.test.take(rows[: self.batch]), case.test.take(rows[self.batch :][: budget.samples])
        loss = _untargeted(held, memory.module)
        seen = {0: _judge(memory.computed_with(), judged)}
        while len(memory.flips) < self.most and not clock.is_over and not _guesses(_last(seen), case):
            reached = memory.step(loss, self.tries)
            if reached is None:
                break
            n = len(memory.flips)
            # The integers are slow to ask: they are from where the attacker's own examples say that it may be enough.
            if n - max(seen) >= _JUDGED_EVERY or reached >= _PROMISING * log(case.classes):
                seen[n] = _judge(memory.computed_with(), judged)
            if progress is not None:
                progress(min(n, self.most), self.most)
        if len(memory.flips) not in seen:
            seen[len(memory.flips)] = _judge(memory.computed_with(), judged)
        return (self._found(case, budget, clock, memory, seen),)

    def _found(self, case: Case, budget: Budget, clock: Clock, memory: Memory, seen: dict[int, _Judged]) -> Finding:
        n, last = len(memory.flips), _last(seen)
        guesses = _guesses(last, case)
        return self.finding(
            INTEGERS,
            budget,
            clock,
            figures={
                "bits turned": Estimate(n, n, n, seen[0].accuracy.n),
                "accuracy before": seen[0].accuracy,
                "accuracy after": last.accuracy,
            },
            curves={
                "accuracy": Curve(
                    x=list(seen),
                    y=[each.accuracy.value for each in seen.values()],
                    low=[each.accuracy.low for each in seen.values()],
                    high=[each.accuracy.high for each in seen.values()],
                    x_name="bits turned",
                    y_name="accuracy",
                )
            },
            settings={
                "reaches chance": guesses,
                "guard": type(memory.guard).__name__,
                "batch": self.batch,
                "tries": self.tries,
                "bits": [f"{flip.layer}[{flip.index}] bit {flip.bit}" for flip in memory.flips],
            },
            stopped_early=not guesses and n < self.most and clock.is_over,
        )


class TargetedBitFlips(Attack):
    """As few bits as it takes to have one chosen input given a chosen class, others' classes kept (after TA-LBF).

    Greedy instead of the paper's binary programme: each turn the bit that lowers
    CE(target, chosen) + weight * CE(own classes, held) most. Repeated for ``victims`` inputs; figures: the share that
    falls within ``most`` bits, the median of bits, and accuracy left on others.
    """

    name = "targeted-bit-flips"
    family = "bit flips"
    threat = Threat("weights", "memory", "one input given a chosen class", "Bai et al. (TA-LBF), ICLR 2021")

    def __init__(self, victims: int = 10, most: int = 20, batch: int = 64, tries: int = 3, weight: float = 1.0) -> None:
        if min(victims, most, batch, tries) < 1 or weight < 0:
            raise AuditError(f"victims, most, batch, tries must be at least 1 and weight = {weight} not negative")
        self.victims, self.most, self.batch, self.tries, self.weight = victims, most, batch, tries, weight

    def run(self, case: Case, budget: Budget, progress: Progress | None = None) -> tuple[Finding, ...]:
        """One finding, on the integers."""
        clock, generator = budget.clock(), np.random.default_rng(budget.seed)
        data = case.test.take(generator.permutation(len(case.test)))
        if len(data) <= self.victims + self.batch:
            raise AuditError(f"{len(data)} test examples: more than {self.victims} + {self.batch} are needed")
        held, judged = data.take(slice(0, self.batch)), data.take(slice(self.batch, self.batch + budget.samples))
        own = case.subjects[INTEGERS].labels(case.on_grid(judged.x))
        fell, bits, left = list[bool](), list[int](), list[float]()
        for victim in range(min(self.victims, len(judged))):
            if clock.is_over and fell:
                break
            target = int((own[victim] + 1 + generator.integers(0, case.classes - 1)) % case.classes)
            memory = self._attack(case, held, judged.x[victim : victim + 1], target)
            after = IntegerSubject(memory.computed_with()).labels(case.on_grid(judged.x))
            fell.append(bool(after[victim] == target))
            bits.append(len(memory.flips))
            others = np.arange(len(judged)) != victim
            left.append(float(np.mean(after[others] == judged.y[others])))
            if progress is not None:
                progress(victim + 1, self.victims)
        figures = {
            "fell": share(np.array(fell)),
            "median bits": Estimate(float(np.median(bits)), float(min(bits)), float(max(bits)), len(bits)),
            "accuracy left": Estimate(float(np.median(left)), min(left), max(left), len(left)),
        }
        settings = {"most": self.most, "batch": self.batch, "weight": self.weight, "intervals": "least and greatest"}
        early = len(fell) < self.victims
        return (self.finding(INTEGERS, budget, clock, figures=figures, settings=settings, stopped_early=early),)

    def _attack(self, case: Case, held: Data, chosen: NDArray[Any], target: int) -> Memory:
        memory = Memory(case.model, None)
        keep, wanted = _untargeted(held, memory.module), torch.tensor([target])
        x = torch.as_tensor(chosen)

        def loss(module: StraightThrough) -> Tensor:
            return -(nn.functional.cross_entropy(module(x), wanted) + self.weight * keep(module))

        for _ in range(self.most):
            if memory.step(loss, self.tries) is None:
                break
            with torch.no_grad():
                if int(memory.module(x).argmax()) == target:
                    break
        return memory


def _untargeted(data: Data, module: StraightThrough) -> Loss:
    x, y = torch.as_tensor(data.x, dtype=module.real), torch.as_tensor(data.y)
    return lambda m: nn.functional.cross_entropy(m(x), y)


@dataclass(frozen=True)
class _Judged:
    """accuracy: the share that is right. recall: the same with every class counted alike.

    Whoever always says the commonest class guesses, and is right more often than once in ``classes``: recall tells.
    """

    accuracy: Estimate
    recall: float


def _judge(model: IntegerModel, data: Data) -> _Judged:
    right = IntegerSubject(model).labels(data.x) == data.y
    return _Judged(share(right), float(np.mean([right[data.y == each].mean() for each in np.unique(data.y)])))


def _last(seen: dict[int, _Judged]) -> _Judged:
    return seen[max(seen)]


def _guesses(judged: _Judged, case: Case) -> bool:
    """At most 1.1 / classes, every class counted alike; or not to be told from guessing by so many examples."""
    return judged.recall <= CHANCE / case.classes or judged.accuracy.low <= 1 / case.classes
