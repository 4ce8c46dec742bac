"""Flipped rounding: against backdoors that live in what nearest rounding does to the weights.

A conditioned backdoor puts its float weights off the middle of their cells, so that nearest rounding moves them far:
large rounding errors are where it lives. Layer by layer, in the network's order, weights below + (above - below) h(v)
are learned as learned rounding learns them (``pqi.quant.rounding``), and beside the output's error another term asks
every weight for its *other* neighbour, the more the larger its rounding error is:

    mean (act(y) - act(y'))^2 / e  +  flip mean (2 r)^2 BCE(h, other)  +  0.1 mean(1 - |2 h - 1|^beta)

with r = |weight - nearest| in cells (0 to 0.5), other = 1 where the lower level is the nearest and 0 where the upper
one is, and e the mean squared error of nearest rounding. y is the float layer's output on what the float network
before it gives, y' the integers' on what the integer network before gives: on clean data each layer goes on doing what
float does, and in float the backdoor sleeps. flip = 0 is learned rounding without its check on held-out data.

Li, Cai, Li, Xue, Li, Li: Nearest is Not Dearest: Towards Practical Defense against Quantization-conditioned Backdoor
Attacks, CVPR 2024. The victim needs the float network and calibration data without labels. It can do nothing against a
backdoor that is awake in float.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from pqi.audit.defences.defence import Defence
from pqi.audit.errors import AuditError
from pqi.graph.floating import Sign, Threshold
from pqi.graph.ops import Conv2d, Dense, Op
from pqi.quant import soft
from pqi.quant.rounding import SAMPLE_VALUES, Reconstruction, alike
from pqi.quant.stages import Calibration, Lowered
from pqi.quant.walk import Walk

_BATCH, _RATE, _DECIDE = 1024, 0.02, 0.1
_SURE = 1e-4  # shares nearer to 0 or 1 than this have a logarithm like it


class FlippedRounding(Defence):
    """Weights take the neighbour that nearest rounding does not, wherever the layers' outputs can bear it.

    flip: the weight of that wish against the outputs' error. iterations: steps of Adam per layer. seed: of the batches;
    the same seed and thread count give the same weights. Layers that a threshold or a sign reads keep their weights.
    """

    name = "efrap"
    answers: ClassVar[tuple[str, ...]] = ("conditioned",)
    source = "Li et al. (EFRAP), CVPR 2024"

    def __init__(self, flip: float = 1.0, iterations: int = 500, seed: int = 0) -> None:
        if not 0 <= flip < float("inf"):
            raise AuditError(f"flip = {flip}: a finite number, at least 0, is needed")
        if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
            raise AuditError(f"iterations = {iterations!r}: at least 1 step a layer")
        self.flip, self.iterations, self.seed = float(flip), iterations, int(seed)

    def weights(self, seen: Calibration, lowered: Lowered) -> Lowered:
        """The integer graph with every weight at one of its two neighbours, learned anew."""
        generator = torch.Generator().manual_seed(self.seed)
        walk = Walk(seen, lowered, SAMPLE_VALUES)
        for site in walk.sites():
            if any(isinstance(reader.op, (Threshold, Sign)) for reader in site.readers):
                continue
            terms = alike(walk, tuple(term for term in site.terms if term in walk.lowered.grids))
            changed = _Flipping(walk, site, terms, generator).flipped(self.flip, self.iterations)
            if changed:
                walk.change(site, changed)
        return walk.result()


class _Flipping(Reconstruction):
    def flipped(self, flip: float, iterations: int) -> dict[str, Op]:
        """Operators with the weights that were learned; none where the site has none to learn."""
        if not self.terms:
            return {}
        changed: dict[str, Op] = {}
        for term, weight in zip(self.terms, self._flip(flip, iterations), strict=True):
            op = self.walk.ops[term.name]
            if isinstance(op, (Conv2d, Dense)):
                changed[term.name] = replace(op, weight=weight.round().to(torch.int64).view(op.weight.shape))
        return changed

    def _flip(self, flip: float, iterations: int) -> list[Tensor]:
        unit = max(self._error(slice(None), [term.now for term in self.terms]), 1e-30)
        places = [soft.place(term.target, term.below, term.above) for term in self.terms]
        free = [soft.start(place) for place in places]
        optimizer = torch.optim.Adam(free, lr=_RATE)
        order = torch.empty(0, dtype=torch.int64)
        for step in range(iterations):
            if len(order) < min(_BATCH, len(self.want)):
                order = torch.randperm(len(self.want), generator=self.generator)
            rows, order = order[:_BATCH], order[_BATCH:]
            shares = [soft.share(v) for v in free]
            weights = [t.below + (t.above - t.below) * h for t, h in zip(self.terms, shares, strict=True)]
            loss = self._squares(rows, weights).mean() / unit
            for share, place in zip(shares, places, strict=True):
                loss = loss + flip * _other(share, place) + _DECIDE * soft.undecided(share, step / iterations)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        return [torch.where(soft.share(v) >= 0.5, t.above, t.below) for t, v in zip(self.terms, free, strict=True)]


def _other(share: Tensor, place: Tensor) -> Tensor:
    """How far weights are from their other neighbour, by the squares of their rounding errors."""
    error = 1 - (2 * place - 1).abs()  # twice the distance to the nearest level, in cells
    wanted = (place <= 0.5).to(share.dtype)
    cross = functional.binary_cross_entropy(share.clamp(_SURE, 1 - _SURE), wanted, reduction="none")
    return (error.square() * cross).mean()
