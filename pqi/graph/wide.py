"""Integers of any size through operators on int64: by limbs for what is linear, by residues for everything.

*Limbs.* x = sum_j x_j 2^(24 j) with int64 limbs; a linear map acts on each limb alone, and the results are put together
as Python integers. *Residues.* Sums and products do not mind a modulus: computed mod 2^64 (which is what int64 does by
itself) and mod primes below 2^31, the answer follows from its residues where a proof bounds it (CRT).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pqi.graph.errors import RangeError
from pqi.graph.graph import IntegerGraph, Node
from pqi.graph.ops import (
    WEIGHTED,
    Add,
    Concat,
    Conv2d,
    Dense,
    Input,
    Offset,
    Op,
    Pad,
    Permute,
    Polynomial,
    Reshape,
    Scale,
    Slice,
    SumPool2d,
)
from pqi.graph.ranges import bits_needed

Wide: TypeAlias = NDArray[np.object_]
"""Python integers of any size."""

MOVING: tuple[type[Op], ...] = (Add, Concat, Pad, Permute, Reshape, Slice, SumPool2d)
"""Linear operators without weights."""

MAX_BITS = 1000  # answers are decoded through float64, which ends at 2^1024
PRIMES = (2147483647, 2147483629, 2147483587, 2147483579, 2147483563, 2147483549, 2147483543, 2147483497,
          2147483489, 2147483477, 2147483423, 2147483399, 2147483353, 2147483323, 2147483269, 2147483249,
          2147483237, 2147483179, 2147483171, 2147483137, 2147483123, 2147483077, 2147483069, 2147483059,
          2147483053, 2147483033, 2147483029, 2147482951, 2147482949, 2147482943, 2147482937)  # fmt: skip
_LIMB = 24


@dataclass(frozen=True)
class Proof:
    """Ends of every node's value for all inputs in range, the bits that hold them, and the reach of the answer."""

    lo: dict[str, int] = field(default_factory=dict)
    hi: dict[str, int] = field(default_factory=dict)
    bits: dict[str, int] = field(default_factory=dict)


def prove(graph: IntegerGraph) -> Proof:
    """Interval arithmetic with Python integers, element by element: W+ [lo, hi] + W- [hi, lo] + b for linear operators.

    Raises RangeError naming a layer whose value needs more than 1000 bits.
    """
    proof = Proof()
    alive: dict[str, tuple[Wide, Wide]] = {}
    last = {name: at for at, node in enumerate(graph.nodes) for name in node.inputs}
    for at, node in enumerate(graph.nodes):
        lo, hi = _bounds(node, [alive[name] for name in node.inputs])
        bits = bits_needed(int(lo.min()), int(hi.max()))
        if bits > MAX_BITS:
            raise RangeError(
                f"layer {node.name!r} can need {bits} bits, {MAX_BITS} are possible: use fewer squares in a row, "
                "fewer weight bits or fewer input bits"
            )
        proof.lo[node.name], proof.hi[node.name], proof.bits[node.name] = int(lo.min()), int(hi.max()), bits
        alive[node.name] = (lo, hi)
        for name in set(node.inputs):
            if last[name] == at:
                del alive[name]
    return proof


def _bounds(node: Node, given: Sequence[tuple[Wide, Wide]]) -> tuple[Wide, Wide]:
    op = node.op
    if isinstance(op, Input):
        return np.full(op.shape, op.lo, dtype=object), np.full(op.shape, op.hi, dtype=object)
    if isinstance(op, Polynomial):
        return polynomial_bounds(op.coefficients, *given[0])
    if isinstance(op, Offset):
        moved = np.array(op.integers(), dtype=object).reshape((-1,) + (1,) * (given[0][0].ndim - 1))
        return given[0][0] + moved, given[0][1] + moved
    if isinstance(op, (Conv2d, Dense, Scale)):
        zero = torch.zeros_like(op.bias)
        up = replace(op, weight=op.weight.clamp(min=0), bias=zero)
        down = replace(op, weight=op.weight.clamp(max=0), bias=zero)
        bias = _bias_of(op, given[0][0].ndim)
        (lo, hi) = given[0]
        return apply(up, [lo]) + apply(down, [hi]) + bias, apply(up, [hi]) + apply(down, [lo]) + bias
    return apply(op, [lo for lo, _ in given]), apply(op, [hi for _, hi in given])


def _bias_of(op: Conv2d | Dense | Scale, ndim: int) -> Wide:
    bias: Wide = np.array(op.bias.tolist(), dtype=object)
    return bias if isinstance(op, Dense) else bias.reshape((-1,) + (1,) * (ndim - 1))


def polynomial_bounds(coefficients: Sequence[int], lo: Wide, hi: Wide) -> tuple[Wide, Wide]:
    """Ends of every power on [lo, hi] times its coefficient, summed; exact for a single power."""
    low, high = np.zeros(lo.shape, dtype=object), np.zeros(lo.shape, dtype=object)
    crosses = (lo < 0) & (hi > 0)
    for power, c in enumerate(coefficients):
        if not c:
            continue
        a, b = lo**power, hi**power
        least, most = np.minimum(a, b), np.maximum(a, b)
        if power and power % 2 == 0:
            least = np.where(crosses, 0, least)
        low, high = low + c * (least if c > 0 else most), high + c * (most if c > 0 else least)
    return low, high


def apply(op: Op, inputs: Sequence[Wide]) -> Wide:
    """A linear operator without bias on Python integers of shape (*shape,): limb by limb, exactly."""
    count = max(_limbs_of(x) for x in inputs)
    result = op.evaluate([_split(x, count) for x in inputs]).numpy().astype(object)
    total: Wide = result[0]
    for j in range(1, count):
        total = total + result[j] * (1 << (_LIMB * j))
    return total


def _limbs_of(x: Wide) -> int:
    return int(max(abs(int(x.min())), abs(int(x.max())))).bit_length() // _LIMB + 1


def _split(x: Wide, count: int) -> Tensor:
    """int64 (count, *shape): all limbs in [0, 2^24) but the last, which has the sign."""
    parts = []
    for _ in range(count - 1):
        parts.append((x & ((1 << _LIMB) - 1)).astype(np.int64))
        x = x >> _LIMB
    return torch.from_numpy(np.stack([*parts, x.astype(np.int64)]))


def residues(graph: IntegerGraph, codes: Tensor, prime: int) -> Tensor:
    """The answer modulo a prime below 2^31, int64 in [0, prime)."""

    def step(node: Node, inputs: Sequence[Tensor]) -> Tensor:
        op = node.op
        if isinstance(op, Polynomial):
            x, value = inputs[0], torch.full_like(inputs[0], op.coefficients[-1] % prime)
            for c in reversed(op.coefficients[:-1]):
                value = (value * x + c) % prime
            return value
        if isinstance(op, Offset):
            moved = torch.tensor([value % prime for value in op.integers()])
            return (inputs[0] + moved.view((-1,) + (1,) * (inputs[0].ndim - 2))) % prime
        return op.evaluate(inputs) % prime

    return _run(graph, codes % prime, step)


def words(graph: IntegerGraph, codes: Tensor) -> Tensor:
    """The answer modulo 2^64, as int64: what the operators compute by themselves."""
    return _run(graph, codes, lambda node, inputs: node.op.evaluate(inputs))


def _run(graph: IntegerGraph, codes: Tensor, step: Callable[[Node, Sequence[Tensor]], Tensor]) -> Tensor:
    left = {name: len(readers) for name, readers in graph.consumers.items()}
    left[graph.output] += 1
    values = {graph.nodes[0].name: codes}
    for node in graph.nodes[1:]:
        values[node.name] = step(node, [values[name] for name in node.inputs])
        for name in set(node.inputs):
            left[name] -= 1
            if not left[name]:
                del values[name]
    return values[graph.output]


def check_growth(graph: IntegerGraph) -> None:
    """Refuse a node that could leave int64 on inputs below 2^31; raises RangeError naming it."""
    for node in graph.nodes:
        op = node.op
        if isinstance(op, WEIGHTED):
            grown = int(op.weight.abs().flatten(1).sum(1).max()) if op.weight.ndim > 1 else int(op.weight.abs().max())
            most = (grown << 31) + int(op.bias.abs().max())
        elif isinstance(op, SumPool2d):
            most = math.prod(op.kernel) << 31
        else:
            most = max(len(node.inputs), 1) << 31
        if most >= 1 << 63:
            raise RangeError(f"layer {node.name!r}: its weights add up to 2^{most.bit_length() - 31}; 2^31 is possible")


def lifted(parts: Sequence[tuple[Any, int]]) -> Wide:
    """Python integers from (residues, modulus) of coprime moduli: the representatives nearest to 0 (Garner)."""
    value: Wide = np.asarray(parts[0][0]).astype(object) % parts[0][1]
    modulus = parts[0][1]
    for rest, m in parts[1:]:
        digit = (np.asarray(rest).astype(object) - value) * pow(modulus, -1, m) % m
        value, modulus = value + modulus * digit, modulus * m
    return np.where(value > modulus // 2, value - modulus, value)
