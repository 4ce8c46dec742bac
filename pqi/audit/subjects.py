"""The three forms in which a network is attacked, and the one interface through which attacks see them.

float             the network before quantization
straight-through  the integer model with gradients: values are those of the integers, rounding and clamping pass
                  gradients as training does (Bengio et al., 2013). What an attacker has who knows the integer model,
                  and what quantization-aware training and most published attacks call "fake quantization"
integers          the integer model itself: codes in, integers out, no gradient. It equals the private run bit for
                  bit, so what holds for it holds for the private service; with noise, where the answers have noise

Attacks that follow gradients can be fooled by the second form; what counts is what they do to the third.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pqi.audit.errors import AuditError
from pqi.graph.graph import OUTPUT, Node
from pqi.graph.model import IntegerModel
from pqi.graph.ops import READERS, WEIGHTED, Lookup
from pqi.graph.ranges import lift
from pqi.quant.train.module import GraphModule, Weights

FLOAT, STRAIGHT_THROUGH, INTEGERS = "float", "straight-through", "integers"
_BATCH = 500

Reals = NDArray[np.float64]


class Subject(ABC):
    """A network under attack. ``module``: the differentiable form, or None where there is no gradient."""

    name: ClassVar[str]
    module: nn.Module | None = None

    @property
    def repeats(self) -> bool:
        """Whether the same input is always given the same answer."""
        return True

    @abstractmethod
    def _scores(self, x: NDArray[Any]) -> Reals: ...

    def scores(self, x: NDArray[Any]) -> Reals:
        """Logits, float64 (N, classes), for inputs (N, *input shape)."""
        parts = [self._scores(x[i : i + _BATCH]) for i in range(0, len(x), _BATCH)]
        return np.concatenate(parts) if parts else np.empty((0, 0))

    def labels(self, x: NDArray[Any]) -> NDArray[np.int64]:
        """The class of each input; ties go to the lower number, in every form."""
        found: NDArray[np.int64] = self.scores(x).argmax(axis=1).astype(np.int64)
        return found

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class _Differentiable(Subject):
    def __init__(self, module: nn.Module) -> None:
        self.module = module.eval()

    @torch.no_grad()
    def _scores(self, x: NDArray[Any]) -> Reals:
        if self.module is None:
            raise AuditError(f"the {self.name} form has no module")
        first = next(self.module.parameters(), None)
        dtype = torch.float32 if first is None else first.dtype
        return self.module(torch.as_tensor(np.ascontiguousarray(x), dtype=dtype)).to(torch.float64).numpy()  # type: ignore[no-any-return]


class FloatSubject(_Differentiable):
    """The float network, in evaluation mode."""

    name = FLOAT


class StraightThroughSubject(_Differentiable):
    """The integer model with gradients; see :class:`StraightThrough`."""

    name = STRAIGHT_THROUGH

    def __init__(self, model: IntegerModel) -> None:
        super().__init__(StraightThrough(model))


class IntegerSubject(Subject):
    """The integer model: exactly what a client of the private service is answered.

    Of a model whose answers have noise: with noise of the same law, drawn anew for every question from ``seed``.
    """

    name = INTEGERS

    def __init__(self, model: IntegerModel, seed: int = 0) -> None:
        self.model = model
        self._draws = np.random.default_rng(seed)

    @property
    def repeats(self) -> bool:
        """Whether answers are without noise."""
        return self.model.noise is None

    def _scores(self, x: NDArray[Any]) -> Reals:
        answers: Reals = self.model.predict(x, on_saturation="silent")
        answers = answers.reshape(len(answers), -1)
        if self.model.noise is None:
            return answers
        law = self.model.noise.law.numpy()
        e = np.searchsorted(law, self._draws.integers(0, law[-1], answers.shape), side="right") - len(law) // 2
        return np.asarray(answers + e * self.model.output_scale, np.float64)


class _Encode(torch.autograd.Function):
    """The client's codes, exactly; the gradient is the scale of the codes, 0 where they saturate."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, model: IntegerModel, real: torch.dtype) -> Tensor:
        low, high = model.input_quantizer.value_range
        ctx.scale, ctx.given = float(model.input_quantizer.scale), x.dtype  # type: ignore[arg-type]
        ctx.save_for_backward((x >= low) & (x <= high))
        # Judged as it was given: a value between two codes may fall on the other side once it is shortened.
        return model.encode(x.detach(), on_saturation="silent").to(real)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return (grad * inside * ctx.scale).to(ctx.given), None, None


class _Cyclic(torch.autograd.Function):
    """V[x mod 2^bits]; the gradient is the table's slope between the two neighbours of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, op: Lookup) -> Tensor:
        residues = x.detach().to(torch.int64)
        around = [op.evaluate([residues + step]).to(x.dtype) for step in (-1, 1)]
        ctx.save_for_backward((around[1] - around[0]) / 2)
        return op.evaluate([residues]).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return grad * slope, None


class _Wrapped(torch.autograd.Function):
    """The representative of x mod 2^k; gradient 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, k: int) -> Tensor:
        return lift(x.detach().to(torch.int64), k).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class ExactGraph(GraphModule):
    """A finished model's graph with training's gradients: codes in, the answer's integers out, rings as the model's.

    Values are floating-point numbers that hold integers: float32 where each is proven to fit its 24 bits before any
    ring reduces it, else float64. Weights are parameters (of integers).
    """

    def __init__(self, model: IntegerModel) -> None:
        super().__init__()
        # Calibrated rings say how a value is read, not how large it gets: what is proven of it decides.
        self.real = torch.float32 if max(model.ranges.bits.values()) <= 24 else torch.float64
        self.keep(model.graph)
        self.rings = model.accumulators if model.policy == "calibrated" else {}
        self.weight, self.bias = nn.ParameterDict(), nn.ParameterDict()
        for node in self.graph.nodes:
            if isinstance(node.op, WEIGHTED):
                self.weight[self.key[node.name]] = nn.Parameter(node.op.weight.to(self.real))
                self.bias[self.key[node.name]] = nn.Parameter(node.op.bias.to(self.real))

    def integers(self) -> dict[str, Weights]:
        """The model's weights and biases."""
        linear = [node.name for node in self.graph.nodes if isinstance(node.op, WEIGHTED)]
        return {name: (self.weight[self.key[name]], self.bias[self.key[name]]) for name in linear}

    def value(self, node: Node, inputs: list[Tensor], weights: Mapping[str, Weights]) -> Tensor:
        """As in training, but for rings that wrap: calibrated ones where they are read, and cyclic tables."""
        if isinstance(node.op, Lookup):
            looked: Tensor = _Cyclic.apply(inputs[0], node.op)  # type: ignore[no-untyped-call]
            return looked
        if isinstance(node.op, READERS):
            inputs = [self._read(node.name, inputs[0])]
        return super().value(node, inputs, weights)

    def forward(self, codes: Tensor, weights: Mapping[str, Weights] | None = None) -> Tensor:
        """As its base, read in the answer's ring."""
        return self._read(OUTPUT, super().forward(codes, weights))

    def _read(self, consumer: str, value: Tensor) -> Tensor:
        if consumer not in self.rings:
            return value
        wrapped: Tensor = _Wrapped.apply(value, self.rings[consumer])  # type: ignore[no-untyped-call]
        return wrapped


class StraightThrough(nn.Module):
    """An integer model as a torch module: real inputs in, real logits out, every value between an exact integer.

    ``forward`` equals ``model.predict`` but for the last multiplication by the output's scale, which float32 may round.
    Weights are parameters (of integers), so an attack on weights finds their gradients too.

    Raises AuditError for a dynamic model, whose every input has a scale of its own.
    """

    def __init__(self, model: IntegerModel) -> None:
        super().__init__()
        if model.dynamic is not None:
            raise AuditError("a dynamic model scales every input on its own; audit it with dynamic=False")
        self.model, self.exact = model, ExactGraph(model)

    @property
    def real(self) -> torch.dtype:
        """The type of the numbers that hold the integers."""
        return self.exact.real

    @property
    def weight(self) -> nn.ParameterDict:
        """Weights by ``key``; what is written there is what the module computes with."""
        return self.exact.weight

    @property
    def key(self) -> dict[str, str]:
        """Under what name ``weight`` holds a layer's, by the layer's own."""
        return self.exact.key

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) for real inputs (N, *input shape)."""
        codes: Tensor = _Encode.apply(x, self.model, self.real)  # type: ignore[no-untyped-call]
        return self.run(codes) * self.model.output_scale

    def run(self, codes: Tensor) -> Tensor:
        """The answer's integers as floats, flat: (N, classes)."""
        answer: Tensor = self.exact(codes)
        return answer.flatten(1)
