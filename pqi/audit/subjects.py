"""The three forms in which a network is attacked, and the one interface through which attacks see them.

float             the network before quantization
straight-through  the integer model with gradients: values are those of the integers, rounding and clamping pass
                  gradients as training does (Bengio et al., 2013). What an attacker has who knows the integer model,
                  and what quantization-aware training and most published attacks call "fake quantization"
integers          the integer model itself: codes in, integers out, no gradient. It equals the private run bit for
                  bit, so what holds for it holds for the private service

Attacks that follow gradients can be fooled by the second form; what counts is what they do to the third.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pqi.audit.errors import AuditError
from pqi.graph.graph import OUTPUT
from pqi.graph.model import IntegerModel
from pqi.graph.ops import READERS, WEIGHTED, Lookup, Requantize, Step
from pqi.graph.ranges import lift
from pqi.quant.train.estimators import looked_up, requantized, stepped
from pqi.quant.train.module import linear

FLOAT, STRAIGHT_THROUGH, INTEGERS = "float", "straight-through", "integers"
_BATCH = 500

Reals = NDArray[np.float64]


class Subject(ABC):
    """A network under attack. ``module``: the differentiable form, or None where there is no gradient."""

    name: ClassVar[str]
    module: nn.Module | None = None

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
    """The integer model: exactly what a client of the private service is answered."""

    name = INTEGERS

    def __init__(self, model: IntegerModel) -> None:
        self.model = model

    def _scores(self, x: NDArray[Any]) -> Reals:
        answers: Reals = self.model.predict(x, on_saturation="silent")
        return answers.reshape(len(answers), -1)


class _Encode(torch.autograd.Function):
    """The client's codes, exactly; the gradient is the scale of the codes, 0 where they saturate."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, model: IntegerModel) -> Tensor:
        low, high = model.input_quantizer.value_range
        ctx.scale = float(model.input_quantizer.scale)  # type: ignore[arg-type]
        ctx.save_for_backward((x >= low) & (x <= high))
        return model.encode(x.detach().to(torch.float64), on_saturation="silent").to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (inside,) = ctx.saved_tensors
        return grad * inside * ctx.scale, None


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


class StraightThrough(nn.Module):
    """An integer model as a torch module: real inputs in, real logits out, every value between an exact integer.

    Values are floating-point numbers that hold integers: float32 where every accumulator fits its 24 bits, else
    float64. ``forward`` equals ``model.predict`` but for the last multiplication by the output's scale. Weights are
    parameters (of integers), so an attack on weights finds their gradients too.

    Raises AuditError for a dynamic model, whose every input has a scale of its own.
    """

    def __init__(self, model: IntegerModel) -> None:
        super().__init__()
        if model.dynamic is not None:
            raise AuditError("a dynamic model scales every input on its own; audit it with dynamic=False")
        self.model, self.graph = model, model.graph
        self.real = torch.float32 if max(model.accumulators.values()) <= 24 else torch.float64
        # Modules and parameters are kept by position: a layer's own name may hold anything.
        self.key = {node.name: str(position) for position, node in enumerate(self.graph.nodes)}
        self.weight, self.bias = nn.ParameterDict(), nn.ParameterDict()
        for node in self.graph.nodes:
            if isinstance(node.op, WEIGHTED):
                self.weight[self.key[node.name]] = nn.Parameter(node.op.weight.to(self.real))
                self.bias[self.key[node.name]] = nn.Parameter(node.op.bias.to(self.real))
            elif isinstance(node.op, Requantize) and node.op.values is not None:
                self.register_buffer(f"table_{self.key[node.name]}", node.op.values.to(self.real))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) for real inputs (N, *input shape)."""
        codes: Tensor = _Encode.apply(x.to(self.real), self.model)  # type: ignore[no-untyped-call]
        return self.run(codes) * self.model.output_scale

    def run(self, codes: Tensor) -> Tensor:
        """The answer's integers as floats, flat: (N, classes)."""
        values = {self.graph.nodes[0].name: codes}
        for node in self.graph.nodes[1:]:
            values[node.name] = self._value(node.name, node.op, [values[i] for i in node.inputs])
        return self._read(OUTPUT, values[self.graph.output]).flatten(1)

    def _read(self, consumer: str, value: Tensor) -> Tensor:
        if self.model.policy != "calibrated":
            return value
        wrapped: Tensor = _Wrapped.apply(value, self.model.accumulators[consumer])  # type: ignore[no-untyped-call]
        return wrapped

    def _value(self, name: str, op: Any, inputs: list[Tensor]) -> Tensor:
        if isinstance(op, WEIGHTED):
            return linear(op, inputs[0], self.weight[self.key[name]], self.bias[self.key[name]])
        if isinstance(op, Lookup):
            looked: Tensor = _Cyclic.apply(inputs[0], op)  # type: ignore[no-untyped-call]
            return looked
        if isinstance(op, READERS):
            inputs = [self._read(name, inputs[0])]
        if isinstance(op, Step):
            return stepped(inputs[0])
        if isinstance(op, Requantize):
            index = requantized(inputs[0], op.shift, op.bits)
            if op.values is None:
                return index + op.low if op.low else index
            return looked_up(index, getattr(self, f"table_{self.key[name]}"))
        computed: Tensor = op.evaluate(inputs)
        return computed
