"""Re-rounding at random: no attacker knows which integers a float network will become.

A backdoor that quantization wakes lives in the choice between the two integers around each float weight. Whoever
rounds to the nearest makes the choice that the attacker foresaw. Here a weight w between the neighbours a < b of its
grid, at the share t = (w - a) / (b - a) of the way, becomes b with probability

    clamp(1/2 + (t - 1/2) / noise, 0, 1)

which for noise <= 1 is rounding to the nearest after adding a uniform number of that many cells. With noise = 1 the
expectation is w itself (stochastic rounding: Forsythe, 1950; Gupta et al., ICML 2015): what the integers compute is the
float network and noise without direction, and a trigger that float ignores has nothing to hold on to. With less,
weights that an attacker put near a cell's middle keep their place.

The draw is the operating system's and is kept nowhere, for an attacker could plant against one he knows; a seed is for
experiments. He can also plant for the average draw (``Recipe.noise`` of ``pqi.audit.attacks.conditioned``). Then float
itself, which is that average, obeys the trigger, and whoever looks at the float network sees it.

That such backdoors do not survive another rounding is what Li et al. (CVPR 2024) use too, who learn theirs (``efrap``);
it follows from the float network and the data, so he who has both can foresee it. Re-rounding draws from the float
weights: what learned rounding chose before it is lost.
"""

from __future__ import annotations

import secrets
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pqi.audit.defences.defence import Defence
from pqi.audit.errors import AuditError
from pqi.graph.graph import IntegerGraph
from pqi.graph.ops import Conv2d, Dense
from pqi.quant.stages import Calibration, Grid, Lowered
from pqi.quant.train.module import real_target


class ReRounding(Defence):
    """Each weight of a convolution or dense layer goes up or down at random, more likely to the nearer side.

    noise: in cells, above 0; 1 is unbiased, less leaves part of a backdoor, more draws towards even odds. seed: None
    for the operating system's randomness. Needs no label and no data. The private cost stays, but for a bit of a ring
    now and then, for rings follow the weights; accuracy is lost where cells are wide.
    """

    name = "re-rounding"
    answers = ("conditioned",)
    source = "stochastic rounding: Gupta et al., ICML 2015; against conditioned backdoors after Li et al., CVPR 2024"

    def __init__(self, noise: float = 1.0, seed: int | None = None) -> None:
        if not 0 < noise <= 4:
            raise AuditError(f"noise = {noise}: above 0, at most 4 cells; 1 makes the rounding unbiased")
        self.noise, self.seed = noise, seed

    def weights(self, seen: Calibration, lowered: Lowered) -> Lowered:
        """The same graph with weights drawn anew, of the same grids."""
        generator = None if self.seed is None else torch.Generator().manual_seed(self.seed)
        nodes = []
        for node in lowered.graph.nodes:
            if node.name in lowered.grids and isinstance(node.op, (Conv2d, Dense)):
                weight = drawn(lowered.grids[node.name], targets(seen, lowered, node.name), self.noise, generator)
                node = replace(node, op=replace(node.op, weight=weight))
            nodes.append(node)
        return replace(lowered, graph=IntegerGraph(tuple(nodes), lowered.graph.output))


def targets(seen: Calibration, lowered: Lowered, name: str) -> Tensor:
    """A layer's float weights in units of its integers, float64 (C, ...): what rounding rounds."""
    return real_target(seen.placed.graph.by_name()[name].op, lowered.graph.by_name[name], lowered).to(torch.float64)


def drawn(grid: Grid, target: Tensor, noise: float, generator: torch.Generator | None) -> Tensor:
    """One of the two neighbours of each target (C, ...), int64, by the module's formula; generator: None for secret.

    A channel whose nearest integers are its weights times one number (ternary weights, say) has nothing to choose and
    keeps them.
    """
    below, above = grid.neighbours(target)
    way = (target - below) / (above - below).clamp(min=1)
    up = _uniform(target.shape, generator) < 0.5 + (way - 0.5) / noise
    nearest = grid.nearest(target)
    rows, integers = target.flatten(1), nearest.flatten(1).to(torch.float64)
    # Cauchy and Schwarz: equality for vectors of one direction alone.
    aligned = (rows * integers).sum(1).square() >= (1 - 1e-12) * rows.square().sum(1) * integers.square().sum(1)
    return torch.where(aligned.view((-1,) + (1,) * (target.ndim - 1)), nearest, torch.where(up, above, below))


def _uniform(shape: torch.Size, generator: torch.Generator | None) -> Tensor:
    """Uniform in [0, 1), float64: multiples of 2^-53, of the operating system's bytes where there is no generator."""
    if generator is not None:
        return torch.rand(shape, generator=generator, dtype=torch.float64)
    words = np.frombuffer(secrets.token_bytes(8 * shape.numel()), np.uint64) >> np.uint64(11)
    return torch.from_numpy(words.astype(np.float64) * 2.0**-53).view(shape)
