"""What a candidate costs and how often it is right: the one place of the search that knows networks and protocols.

Lowering needs no data, so a candidate costs milliseconds until somebody asks for its accuracy. That is asked in two
stages: the divergence of its answers from the float network's on a small part of the validation set (smooth: it tells
good from better where the top class does not), then the accuracy on all of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pqi.graph.errors import InputError, PqiGraphError, QuantizationError
from pqi.graph.model import IntegerModel, chunks
from pqi.graph.ops import Requantize
from pqi.graph.ranges import lift
from pqi.program import Program, compile  # noqa: A004 (the field's word)
from pqi.program.errors import ProgramError
from pqi.program.network import Profile
from pqi.quant.api import improve
from pqi.quant.calibrate import with_input_bits
from pqi.quant.finish import finish
from pqi.quant.lower import lower
from pqi.quant.memory import Memory
from pqi.quant.stages import Calibration
from pqi.tuning.cost import Bill, bill
from pqi.tuning.levers import Candidate

PART = 512  # inputs of the validation set that the divergence is taken on
_KEPT = 4  # models and encoded inputs kept at hand
_FLOATS = 1 << 22  # of the widest layer at a time


@dataclass(frozen=True)
class Measured:
    """A model on labelled data, as shares: how often it is right, what that loses against the float network, and the
    standard errors of both: sqrt(p (1 - p) / n), and of the mean of the paired differences.
    """

    samples: int
    accuracy: float
    drop: float
    accuracy_error: float
    drop_error: float

    def together(self, other: Measured) -> Measured:
        """On both sets; the errors are those of a mean over two strata."""
        n, m = self.samples, other.samples
        both = n + m
        return Measured(
            both,
            (n * self.accuracy + m * other.accuracy) / both,
            (n * self.drop + m * other.drop) / both,
            math.hypot(n * self.accuracy_error, m * other.accuracy_error) / both,
            math.hypot(n * self.drop_error, m * other.drop_error) / both,
        )


class Labelled:
    """Inputs x (N, ...), their classes y (N,), and the float network's answers on them."""

    def __init__(self, name: str, x: Any, y: Any, calibration: Calibration) -> None:
        graph = calibration.placed.graph
        shape, answer = graph.shapes[graph.nodes[0].name], graph.shapes[graph.output]
        self.x = _array(name, x, shape)
        if len(answer) != 1 or answer[0] < 2:
            raise InputError(f"the network answers with shape {answer}: tuning needs one vector of at least 2 classes")
        labels = np.asarray(y) if y is not None else None
        if labels is None or labels.dtype.kind not in "iu" or labels.shape != (len(self.x),):
            what = "there are none" if labels is None else f"{labels.dtype} of shape {labels.shape}"
            raise InputError(f"{name}: labels are needed, {len(self.x)} integers, one for each input; {what}")
        if labels.min() < 0 or labels.max() >= answer[0]:
            raise InputError(
                f"{name}: labels run from {labels.min()} to {labels.max()}, but the network has {answer[0]} classes "
                f"(0 to {answer[0] - 1})"
            )
        self.y = torch.from_numpy(labels.astype(np.int64))
        self.logits = _float_answers(calibration, self.x)
        self.float_right = self.logits.argmax(1) == self.y

    def split(self, share: float, seed: int = 0) -> tuple[Labelled, Labelled | None]:
        """Two parts, drawn with a seed (sets have patterns in their order); the second holds ``share`` of the whole,
        rounded to whole inputs (None if that is nothing).
        """
        count = round(len(self.y) * share)
        if not count:
            return self, None
        order = torch.randperm(len(self.y), generator=torch.Generator().manual_seed(seed))
        return self._only(order[count:].sort().values), self._only(order[:count].sort().values)

    def _only(self, where: Tensor) -> Labelled:
        part = copy(self)
        part.x, part.y, part.logits = self.x[where], self.y[where], self.logits[where]
        part.float_right = self.float_right[where]
        return part

    @property
    def float_accuracy(self) -> float:
        """How often the float network is right."""
        return float(self.float_right.double().mean())

    def compare(self, answers: Tensor) -> Measured:
        """Integer answers (N, classes) beside the labels and the float network."""
        right = answers.argmax(1) == self.y
        n, p = len(right), float(right.double().mean())
        difference = self.float_right.double() - right.double()
        spread = float(difference.var(correction=0))
        return Measured(n, p, float(difference.mean()), math.sqrt(p * (1 - p) / n), math.sqrt(spread / n))


def _array(name: str, x: Any, shape: tuple[int, ...]) -> Tensor:
    array = x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)
    if array.dtype.kind not in "fiu" or array.ndim != len(shape) + 1 or array.shape[1:] != shape:
        wanted = ", ".join(map(str, ("N", *shape)))
        raise InputError(f"{name}: inputs are {array.dtype} of shape {array.shape}; numbers of ({wanted}) are needed")
    if len(array) < 2:
        raise InputError(f"{name}: {len(array)} inputs cannot tell one accuracy from another; some thousand are usual")
    return torch.from_numpy(np.ascontiguousarray(array))


def _float_answers(calibration: Calibration, x: Tensor) -> Tensor:
    graph = calibration.placed.graph
    size = max(1, _FLOATS // max(math.prod(shape) for shape in graph.shapes.values()))
    dtype = calibration.sample.dtype if calibration.sample.is_floating_point() else torch.float32
    with torch.no_grad():
        return torch.cat([graph.run(part.to(dtype)).double() for part in torch.split(x, size)])


class Judge:
    """Builds candidates and judges them; remembers the last few models."""

    def __init__(
        self, calibration: Calibration, validation: Labelled, protocol: str, network: Profile, seed: int = 0
    ) -> None:
        self.calibration, self.validation = calibration, validation
        self.protocol, self.network, self.seed = protocol, network, seed
        self._models: dict[str, tuple[IntegerModel, Program] | None] = {}
        self._codes: dict[tuple[int, int], Tensor] = {}
        self._memory = Memory()

    def build(self, candidate: Candidate) -> tuple[IntegerModel, Program] | None:
        """The model and its program; None where the candidate's numbers fit no integers, rings or primitives."""
        key = candidate.key
        if key not in self._models:
            _drop_oldest(self._models)
            try:
                self._models[key] = self._build(candidate)
            except (PqiGraphError, ProgramError):
                self._models[key] = None
        return self._models[key]

    def _build(self, candidate: Candidate) -> tuple[IntegerModel, Program]:
        seen = with_input_bits(self.calibration, candidate.input_bits)
        lowered = lower(seen, candidate.recipe, self._memory)
        if candidate.improved:
            learned, corrected = (name in candidate.improved for name in ("learned_rounding", "bias_correction"))
            lowered = improve(lowered, seen, learned, corrected)
        model = finish(lowered, seen, rings=candidate.rings, margin_bits=candidate.margin_bits)
        return model, compile(model, self.protocol, self.network, candidate.rounding)

    def bill(self, candidate: Candidate) -> Bill | None:
        """The declared cost for one input; None where there is no such program."""
        built = self.build(candidate)
        return None if built is None else bill(*built, self.network)

    def divergence(self, candidate: Candidate) -> float:
        """Mean Kullback-Leibler divergence (nats) of the answers' softmax from the float network's, on a part."""
        built = self.build(candidate)
        if built is None:
            return math.inf
        wanted = self.validation.logits[:PART].log_softmax(1)
        found = (self._answers(candidate, built, PART) * built[0].output_scale).log_softmax(1)
        return max(float((wanted.exp() * (wanted - found)).sum(1).mean()), 0.0)

    def measure(self, candidate: Candidate, on: Labelled | None = None) -> Measured:
        """The candidate's model on the whole validation set, or on other labelled data; exact integers."""
        built = self.build(candidate)
        if built is None:
            raise QuantizationError(f"there is no program for {candidate.key}")
        if on is not None:
            codes = built[0].encode(on.x, "silent")
            return on.compare(answers(built[0], codes, candidate.rounding, self.seed))
        return self.validation.compare(self._answers(candidate, built, len(self.validation.x)).double())

    def _answers(self, candidate: Candidate, built: tuple[IntegerModel, Program], n: int) -> Tensor:
        model, where = built[0], (candidate.input_bits, n)
        if where not in self._codes:
            _drop_oldest(self._codes)
            self._codes[where] = model.encode(self.validation.x[:n], "silent")
        return answers(model, self._codes[where], candidate.rounding, self.seed).double()


def _drop_oldest(kept: dict[Any, Any]) -> None:
    while len(kept) >= _KEPT:
        del kept[next(iter(kept))]


def answers(model: IntegerModel, codes: Tensor, rounding: str = "exact", seed: int = 0) -> Tensor:
    """Integer answers int64 (N, classes). Stochastic shifts are drawn as the protocol's shares would make them: the
    result is one higher with probability (z mod 2^shift + 1) / 2^shift, and the index wraps mod 2^(ring - shift).
    """
    if rounding == "exact":
        return model.integers(codes)
    generator = torch.Generator().manual_seed(seed)
    hook = _stochastic(model, generator)
    return torch.cat([model.graph.run(part, hook) for part in chunks(model.graph, codes)])


def _stochastic(model: IntegerModel, generator: torch.Generator) -> Callable[[str, Tensor], Tensor]:
    shifts = {n.name: n.op.shift for n in model.graph.nodes if isinstance(n.op, Requantize)}

    def read(consumer: str, value: Tensor) -> Tensor:
        k, shift = model.accumulators[consumer], shifts.get(consumer, 0)
        if shift:
            value = value + torch.randint(1, (1 << shift) + 1, value.shape, generator=generator)
            # What is added may leave a ring that the value itself just fits: the share's index wraps, and so does this.
            return lift(value, max(k, shift + 1, 2))
        return lift(value, k)

    return read
