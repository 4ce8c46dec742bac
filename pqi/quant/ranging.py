"""Range search: how much of each value's range its codes cover, chosen by what the answers need.

An observer sees one value at a time and weighs clipping against rounding there. How much either harms depends on what
follows: with few bits, a layer early in the network may be better off clipped harder than its own squared error says.
So each requantization's ``headroom`` (its range, times a factor) is stepped by 0.85 or 1/0.85 while that brings the
answers of the integer network nearer to the float ones; layer after layer, each with the choices before it made.
(Loss-aware ranges: Nahshan et al., Loss Aware Post-training Quantization, Machine Learning 110, 2021; here one
coordinate at a time, without labels.)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from pqi.graph.floating import Clamp, FloatDense, FloatSpread, Linear, Sign, Threshold
from pqi.graph.ops import Add
from pqi.quant.lower import lower
from pqi.quant.memory import Memory
from pqi.quant.scheme import Recipe
from pqi.quant.stages import Calibration, Lowered
from pqi.quant.walk import channel_means, in_parts

SAMPLES = 256
STEP, STEPS = 0.85, 4
_LIMITS = (1 / 32, 32.0)  # of a headroom

Progress = Callable[[int, "int | None"], None]


def tuned_ranges(
    calibration: Calibration,
    recipe: Recipe,
    *,
    samples: int = SAMPLES,
    bias_correction: bool = True,
    progress: Progress | None = None,
) -> Recipe:
    """The recipe with a ``headroom`` for every requantization at which the integer answers are nearest to the float.

    Near is the Kullback-Leibler divergence of the softmaxes of the answers, divided by the standard deviation of the
    float ones (one vector for each input), or the mean squared error (any other shape). samples: inputs of the
    calibration sample that are run; no labels are needed. bias_correction: judge the networks with corrected biases,
    for those who will correct them. progress(layers done, layers in all). Each step lowers the recipe and runs what
    follows the layer: about three runs of the network on the samples for each layer.
    """
    search = _Search(calibration, samples, bias_correction)
    best, names = search.distance(recipe), search.clamps
    for done, name in enumerate(names):
        own = recipe.of(name).headroom
        for factor in (STEP, 1 / STEP):
            headroom, better = own, False
            for _ in range(STEPS):
                headroom *= factor
                if not _LIMITS[0] <= headroom <= _LIMITS[1]:
                    break
                tried = recipe.changed(name, headroom=headroom)
                distance = search.distance(tried)
                if not distance < best:
                    break
                best, recipe, better = distance, tried, True
            if better:
                break
        search.settle(recipe, done)
        if progress is not None:
            progress(done + 1, len(names))
    return recipe


class _Search:
    """The integer network behind one requantization after the other, on values that no later choice changes."""

    def __init__(self, calibration: Calibration, samples: int, bias_correction: bool) -> None:
        self.calibration, self.correct, self.memory = calibration, bias_correction, Memory()
        self.graph = calibration.placed.graph
        self.known = self.graph.by_name()
        self.place = {n.name: i for i, n in enumerate(self.graph.nodes)}
        self.readers = self.graph.consumers()
        self.clamps = [n.name for n in self.graph.nodes if isinstance(n.op, Clamp)]
        self.begin = [self._begin(name) for name in self.clamps]
        self.last = {name: max((self.place[r.name] for r in read), default=-1) for name, read in self.readers.items()}
        self.last[self.graph.output] = len(self.graph.nodes)
        self.means: dict[str, Tensor] = {}
        x = calibration.sample[:samples].to(torch.float32)
        self.want = self.graph.run(x, self._note).to(torch.float64)
        self.front = {self.graph.nodes[0].name: torch.from_numpy(calibration.quantizer.saturating_codes(x)[0])}
        self.position = 1  # of the first node that the front does not hold

    def distance(self, recipe: Recipe) -> float:
        """How far the integer answers under a recipe are from the float ones."""
        lowered, want = lower(self.calibration, recipe, self.memory), self.want
        integers = self._values(lowered, len(self.graph.nodes))[self.graph.output]
        answers = integers.to(torch.float64) * lowered.output_scale
        if want.ndim != 2 or want.shape[1] < 2:
            return float(((answers - want) ** 2).mean())
        heat = float(want.std().clamp(min=1e-30))
        found, given = (functional.log_softmax(a / heat, 1) for a in (answers, want))
        return float(functional.kl_div(found, given, reduction="batchmean", log_target=True))

    def settle(self, recipe: Recipe, done: int) -> None:
        """Move the front to the first node that a later choice can still change."""
        until = min(self.begin[done + 1 :], default=self.position)
        if until > self.position:
            self.front = self._values(lower(self.calibration, recipe, self.memory), until)
            self.position = until

    def _begin(self, name: str) -> int:
        """The first node whose integers depend on a clamp's range: the layers before it, and before its group."""
        placed, known = self.calibration.placed, self.known
        first = len(self.graph.nodes)
        for other in (c for c in self.clamps if placed.group(c) == placed.group(name)):
            source = known[known[other].inputs[0]]
            terms = source.inputs if isinstance(source.op, Add) else (source.name,)
            first = min(first, *(self.place[t] for t in terms))
        return first

    def _values(self, lowered: Lowered, until: int) -> dict[str, Tensor]:
        """The integers that are alive before node number ``until``."""
        values = dict(self.front)
        for index in range(self.position, until):
            node = lowered.graph.nodes[index]
            inputs = [values[i] for i in node.inputs]
            values[node.name] = self._corrected(lowered, node.name, torch.cat(in_parts(node.op, inputs)))
            for name in [n for n in values if self.last[n] <= index]:
                del values[name]
        return values

    def _note(self, name: str, value: Tensor) -> None:
        """Keep the float means of the channels whose biases can be corrected."""
        axis = self._axis(name) if self.correct else None
        if axis is not None:
            self.means[name] = channel_means(value, axis)

    def _axis(self, name: str) -> int | None:
        """The channels' axis of a value that ``corrected`` would correct; None for others."""
        node = self.known[name]
        terms = [self.known[i] for i in node.inputs] if isinstance(node.op, Add) else [node]
        layers = [t.op for t in terms if isinstance(t.op, Linear) and not isinstance(t.op, FloatSpread)]
        if not layers or any(isinstance(r.op, (Add, Threshold, Sign)) for r in self.readers[name]):
            return None
        return len(self.graph.shapes[name]) if isinstance(layers[0], FloatDense) else 1

    def _corrected(self, lowered: Lowered, name: str, value: Tensor) -> Tensor:
        axis = self._axis(name)
        if name not in self.means or axis is None:
            return value
        scale = torch.as_tensor(lowered.scales[name], dtype=torch.float64)
        error = self.means[name] / scale + lowered.offsets.get(name, 0) - channel_means(value, axis)
        view = [1] * value.ndim
        view[axis] = -1
        return value + torch.round(error).to(torch.int64).view(view)
