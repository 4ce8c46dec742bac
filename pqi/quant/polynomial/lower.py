"""From the trained network to integers: codes as weights, biases counted in the unit of what they are added to."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pqi.graph.floating import Affine, AvgPool2d, Entry, FloatConv2d, FloatDense, FloatNode, Square
from pqi.graph.graph import IntegerGraph, Node
from pqi.graph.ops import Conv2d, Dense, Input, Offset, Op, Permute, Polynomial, Scale
from pqi.graph.ops.base import MAX_BIAS
from pqi.graph.polynomial import PolynomialModel
from pqi.quant.polynomial.form import is_sign
from pqi.quant.polynomial.student import Student
from pqi.quant.quantizer import Quantizer

_MANTISSA = 60


def lowered(student: Student, quantizer: Quantizer) -> PolynomialModel:
    """The exact integer model of a quantized student, its ranges proven."""
    return _Lowering(student, quantizer).run()


class _Lowering:
    def __init__(self, student: Student, quantizer: Quantizer) -> None:
        self.student, self.quantizer, self.units = student, quantizer, student.units()
        self.nodes: list[Node] = []
        self.value: dict[str, str] = {}

    def run(self) -> PolynomialModel:
        weights = {name: bias.detach().double() for name, (_, bias) in self.student.weights().items()}
        for node in self.student.graph.nodes:
            inputs = tuple(self.value[name] for name in node.inputs)
            if node.name in weights:
                self._linear(node, inputs, weights[node.name] / self.units[node.name])
            else:
                self._put(node.name, self._plain(node.op), inputs, node)
        output = self.student.graph.output
        graph = IntegerGraph(tuple(self.nodes), self.value[output])
        return PolynomialModel(graph, self.quantizer, self.units[output])

    def _put(self, name: str, op: Op, inputs: tuple[str, ...], node: FloatNode) -> None:
        self.nodes.append(Node(name, op, inputs, node.source))
        self.value[node.name] = name

    def _plain(self, op: Op) -> Op:
        if isinstance(op, Entry):
            return Input(op.shape, *self.quantizer.code_range)
        if isinstance(op, Square):
            return Polynomial((0, 0, 1))
        return op.pool if isinstance(op, AvgPool2d) else op

    def _linear(self, node: FloatNode, inputs: tuple[str, ...], bias: Tensor) -> None:
        """The operator with its bias inside where that is small, in front of an Offset where it is not."""
        op, codes = node.op, self.student.codes(node.name)
        small = float(bias.abs().max()) <= MAX_BIAS
        own = bias.round().to(torch.int64) if small else torch.zeros(len(bias), dtype=torch.int64)
        if isinstance(op, Affine) and is_sign(op) and bool((codes == 1).all()):
            self._offset(node, inputs, bias, node.name)
            return
        made: Op
        if isinstance(op, FloatConv2d):
            made = Conv2d(codes, own, op.stride, op.padding, op.dilation, op.groups)
        else:
            made = Dense(codes, own) if isinstance(op, FloatDense) else Scale(codes, own)
        self._put(node.name, made, inputs, node)
        if not small:
            self._offset(node, (node.name,), bias, f"{node.name}.bias")

    def _offset(self, node: FloatNode, inputs: tuple[str, ...], bias: Tensor, name: str) -> None:
        """x + bias along the layer's channels, which an Offset wants first."""
        rank = len(self.student.graph.shapes[node.name])
        op = offset(bias)
        if rank == 1 or not isinstance(node.op, FloatDense):
            self._put(name, op, inputs, node)
            return
        swap = Permute((rank - 1, *range(1, rank - 1), 0))
        self._put(f"{name}.there", swap, inputs, node)
        self._put(f"{name}.add", op, (f"{name}.there",), node)
        self._put(name, swap, (f"{name}.add",), node)


def offset(constants: Tensor) -> Offset:
    """The Offset nearest to real constants (C,): 60 bits of the largest one, at least to the integer."""
    largest = float(constants.abs().max())
    shift = max(math.frexp(largest)[1] - _MANTISSA, 0)
    return Offset(torch.tensor([round(value / 2.0**shift) for value in constants.tolist()]), shift)
