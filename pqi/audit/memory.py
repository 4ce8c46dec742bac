"""Weights as they lie in memory, and models with some of their bits turned.

An integer weight is a code times its channel's multiplier; what is stored is the code, in two's complement. A turned
bit j of a code of b bits adds or takes away 2^j, and 2^(b-1) where it is the sign. What the turned model computes is
what the rings do with it: values that no longer fit wrap, for nothing of what was proven holds of other weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pqi.audit.errors import AuditError
from pqi.graph.graph import IntegerGraph
from pqi.graph.model import IntegerModel
from pqi.graph.ops import Conv2d, Dense


@dataclass(frozen=True, order=True)
class Flip:
    """One bit: of the weight at a flat index of a layer."""

    layer: str
    index: int
    bit: int


@dataclass(frozen=True, eq=False)
class Stored:
    """One layer's codes, int64 of the weight's shape; multiplier (C,): what a unit of code is worth; bits of a code."""

    codes: Tensor
    multiplier: Tensor
    bits: int

    @property
    def unit(self) -> Tensor:
        """The multiplier, shaped to spread over the codes."""
        return self.multiplier.view((-1,) + (1,) * (self.codes.ndim - 1))

    def weight(self, codes: Tensor) -> Tensor:
        """The integers that codes stand for."""
        return codes * self.unit

    def change(self, bit: int) -> Tensor:
        """What turning this bit adds to each code, int64 of the codes' shape."""
        is_set = (self.codes >> bit) & 1
        step = -(1 << bit) if bit == self.bits - 1 else 1 << bit
        return torch.where(is_set == 1, -step, step)


def stored(model: IntegerModel, bits: int = 8) -> dict[str, Stored]:
    """Every convolution's and dense layer's codes, in ``bits`` bits or the fewest that hold them, by layer."""
    if not 2 <= bits <= 16:
        raise AuditError(f"codes of {bits} bits: 2 to 16")
    found = {}
    for node in model.graph.nodes:
        if isinstance(node.op, (Conv2d, Dense)):
            found[node.name] = _stored(node.op.weight, bits)
    return found


def _stored(weight: Tensor, bits: int) -> Stored:
    flat = weight.flatten(1)
    unit = flat[:, 0].clone()
    for column in flat.unbind(1):
        unit = torch.gcd(unit, column)
    unit = unit.clamp(min=1)  # a channel of zeros has any unit
    codes = weight // unit.view((-1,) + (1,) * (weight.ndim - 1))
    reach = int(torch.maximum(codes, -codes - 1).max()) if codes.numel() else 0
    return Stored(codes, unit, max(bits, reach.bit_length() + 1))


def turned(model: IntegerModel, flips: Iterable[Flip], bits: int = 8) -> IntegerModel:
    """The model with these bits turned, one after the other; in its rings as they are, so that values may wrap."""
    layers = stored(model, bits)
    codes = {name: layer.codes.clone() for name, layer in layers.items()}
    for flip in flips:
        if flip.layer not in codes or not 0 <= flip.index < codes[flip.layer].numel():
            raise AuditError(f"{flip} names no weight of this model")
        width = layers[flip.layer].bits
        flat = codes[flip.layer].view(-1)
        flat[flip.index] = _turn(int(flat[flip.index]), flip.bit, width)
    return with_weights(model, {name: layers[name].weight(code) for name, code in codes.items()})


def _turn(code: int, bit: int, bits: int) -> int:
    if not 0 <= bit < bits:
        raise AuditError(f"bit {bit} of a code of {bits} bits does not exist")
    word = (code & ((1 << bits) - 1)) ^ (1 << bit)
    return word - (1 << bits) if word >> (bits - 1) else word


def with_weights(model: IntegerModel, weights: Mapping[str, Tensor]) -> IntegerModel:
    """The model with other weights in the rings that it has: arithmetic mod 2^k, by definition and not by proof."""
    nodes = tuple(
        replace(node, op=replace(node.op, weight=weights[node.name]))
        if isinstance(node.op, (Conv2d, Dense)) and node.name in weights
        else node
        for node in model.graph.nodes
    )
    return IntegerModel(
        IntegerGraph(nodes, model.graph.output),
        model.accumulators,
        model.input_quantizer,
        model.output_scale,
        policy="calibrated",
    )
