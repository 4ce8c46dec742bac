"""Bits of one server's shares of weights, turned at random: what memory errors do to private inference.

Under ``additive2`` a linear map is computed as W_b x^ + E r_b + c_b + bias_b at server b, with x^ = x - r opened and
the mask r fresh for each input. Turning bit j of one word of W_b adds d x^, d = +-2^j, where a weight in the clear
would add d x: x^ is uniform in the ring, so the map's output gains a uniform multiple of 2^j at every position of that
channel. The model's own arithmetic with such noise is the private run's, in distribution: x^ is one tensor for all
outputs of the layer and independent of everything else. Bits of E have the same effect through r_b.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pqi.audit.attack import Attack, Budget, Curve, Finding, Progress, Threat
from pqi.audit.attacks.bitflips import CHANCE
from pqi.audit.case import Case
from pqi.audit.errors import AuditError
from pqi.audit.memory import Flip
from pqi.audit.statistics import Estimate, share
from pqi.audit.subjects import INTEGERS
from pqi.graph.graph import OUTPUT
from pqi.graph.model import IntegerModel, chunks
from pqi.graph.ops import READERS, Conv2d, Dense
from pqi.graph.ranges import lift


class RandomShareFlips(Attack):
    """Any bit of any word of a server's share of the weights, each equally likely, one after the other.

    Nobody chooses: it is what faulty memory does, and the least that an attacker can. Figures: bits turned until
    accuracy is at most 1.1 / classes (all of ``most`` where it never is), the accuracy left, and that after one bit.
    layer: turn bits of this layer only.
    """

    name = "share-flips"
    family = "bit flips"
    threat = Threat("nothing", "memory", "a network that guesses", "of this library: docs/audit.md")

    def __init__(self, most: int = 40, layer: str | None = None) -> None:
        if most < 1:
            raise AuditError(f"most = {most}: at least 1 bit must be turned")
        self.most, self.layer = most, layer

    def run(self, case: Case, budget: Budget, progress: Progress | None = None) -> tuple[Finding, ...]:
        """One finding, on the integers with the noise that the private run would have."""
        clock, generator = budget.clock(), np.random.default_rng(budget.seed)
        judged = case.test.sample(budget.samples, budget.seed)
        codes = case.model.encode(judged.x, on_saturation="silent")
        flips = drawn(case.model, self.most, generator, self.layer)
        seen = {0: _accuracy(case.model, (), codes, judged.y, budget.seed)}
        for n in range(1, self.most + 1):
            if clock.is_over or seen[n - 1].value <= CHANCE / case.classes:
                break
            seen[n] = _accuracy(case.model, flips[:n], codes, judged.y, budget.seed + n)
            if progress is not None:
                progress(n, self.most)
        n = max(seen)
        guesses = seen[n].value <= CHANCE / case.classes
        return (
            self.finding(
                INTEGERS,
                budget,
                clock,
                figures={
                    "bits turned": Estimate(n, n, n, len(judged)),
                    "accuracy before": seen[0],
                    "accuracy after one": seen[min(1, n)],
                    "accuracy after": seen[n],
                },
                curves={
                    "accuracy": Curve(
                        x=list(seen),
                        y=[e.value for e in seen.values()],
                        low=[e.low for e in seen.values()],
                        high=[e.high for e in seen.values()],
                        x_name="bits turned",
                        y_name="accuracy",
                    )
                },
                settings={
                    "reaches chance": guesses,
                    "layer": self.layer,
                    "bits": [f"{flip.layer}[{flip.index}] bit {flip.bit}" for flip in flips[:n]],
                },
                stopped_early=not guesses and n < self.most,
            ),
        )


def drawn(model: IntegerModel, count: int, generator: np.random.Generator, layer: str | None = None) -> list[Flip]:
    """``count`` bits of the weights' ring words, each bit of each equally likely; of one layer if it is named."""
    sizes = {
        node.name: (node.op.weight.numel(), model.rings[node.name])
        for node in model.graph.nodes
        if isinstance(node.op, (Conv2d, Dense)) and layer in (None, node.name)
    }
    if not sizes:
        raise AuditError(f"there is no convolution or dense layer {layer!r} to turn bits of")
    names, share_of = list(sizes), np.array([n * bits for n, bits in sizes.values()], float)
    picked = generator.choice(len(names), count, p=share_of / share_of.sum())
    return [
        Flip(names[i], int(generator.integers(sizes[names[i]][0])), int(generator.integers(sizes[names[i]][1])))
        for i in picked
    ]


@torch.no_grad()
def with_noise(model: IntegerModel, flips: Iterable[Flip], codes: Tensor, seed: int = 0) -> Tensor:
    """The integers (N, *output shape) of a private run with these bits turned in one server's shares."""
    generator = torch.Generator().manual_seed(seed)
    changes = _changes(model, flips, generator)
    return torch.cat([_run(model, changes, part, generator) for part in chunks(model.graph, codes)])


def _changes(model: IntegerModel, flips: Iterable[Flip], generator: torch.Generator) -> dict[str, Tensor]:
    """By how much the share of each turned word moves: up or down as likely, for a share's bits are uniform."""
    changes: dict[str, Tensor] = {}
    for flip in flips:
        op = model.graph.by_name[flip.layer].op
        if not isinstance(op, (Conv2d, Dense)) or not 0 <= flip.bit < model.rings[flip.layer]:
            raise AuditError(f"{flip} names no bit of a weight's ring word")
        change = changes.setdefault(flip.layer, torch.zeros_like(op.weight))
        change.view(-1)[flip.index] += (1 << flip.bit) * (1 - 2 * int(torch.randint(2, (), generator=generator)))
    return changes


def _run(model: IntegerModel, changes: Mapping[str, Tensor], codes: Tensor, generator: torch.Generator) -> Tensor:
    values = {model.graph.nodes[0].name: codes}
    left = {name: len(readers) for name, readers in model.graph.consumers.items()}
    left[model.graph.output] += 1
    for node in model.graph.nodes[1:]:
        inputs = [values[name] for name in node.inputs]
        if isinstance(node.op, READERS):
            inputs = [lift(inputs[0], model.accumulators[node.name])]
        value = node.op.evaluate(inputs)
        if node.name in changes and isinstance(node.op, (Conv2d, Dense)):
            half = 1 << (model.rings[node.name] - 1)
            opened = torch.randint(-half, half, inputs[0].shape, generator=generator)
            moved = replace(node.op, weight=changes[node.name], bias=torch.zeros_like(node.op.bias))
            value = lift(value + moved.evaluate([opened]), model.rings[node.name])
        values[node.name] = value
        for name in set(node.inputs):
            left[name] -= 1
            if not left[name]:
                del values[name]
    return lift(values[model.graph.output], model.accumulators[OUTPUT])


def _accuracy(model: IntegerModel, flips: Iterable[Flip], codes: Tensor, y: NDArray[np.int64], seed: int) -> Estimate:
    answers = with_noise(model, flips, codes, seed).flatten(1)
    return share(answers.argmax(1).numpy() == y)
