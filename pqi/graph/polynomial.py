"""The exact integer model of a network with polynomial activations: what an encrypted answer must equal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pqi.graph.errors import GraphError, InputError
from pqi.graph.graph import IntegerGraph
from pqi.graph.model import chunks
from pqi.graph.ops import WEIGHTED, WIDE, Input, Op
from pqi.graph.wide import MOVING, PRIMES, Proof, check_growth, lifted, prove, residues, words
from pqi.quant.inputs import decode_answer, encode_batch
from pqi.quant.quantizer import Quantizer

if TYPE_CHECKING:
    from pqi.graph.polynomial_report import PolynomialReport

_SERVED: tuple[type[Op], ...] = (Input, *WEIGHTED, *MOVING, *WIDE)


class PolynomialModel:
    """An integer graph of linear operators and polynomials, the client's input quantizer and the scale of the answer.

    There are no rings: a value is an integer of any size, and ``bits`` says how large the answer can become. Everything
    in between may be computed modulo whatever holds the answer, for sums and products do not mind.

    graph: Conv2d, Dense, Scale, SumPool2d, Add, Reshape, Permute, Slice, Pad, Concat, Polynomial and Offset.
    input_quantizer: codes = lift(Q(x)) - Z. output_scale: answer = integer * scale. proof: ends of every value, proven
    anew unless given. Raises GraphError or RangeError, naming the layer.
    """

    def __init__(
        self, graph: IntegerGraph, input_quantizer: Quantizer, output_scale: float, proof: Proof | None = None
    ) -> None:
        for node in graph.nodes:
            if not isinstance(node.op, _SERVED):
                raise GraphError(
                    f"layer {node.name!r} is a {node.op.kind}, which is no polynomial of its input: an IntegerModel "
                    "(pqi.quantize) holds such layers, and protocol additive2 computes them"
                )
        if not (np.isfinite(output_scale) and output_scale > 0):
            raise GraphError(f"output_scale is {output_scale}: it must be positive and finite")
        lowest, highest = input_quantizer.code_range
        if input_quantizer.axis is not None or lowest < graph.input.lo or highest > graph.input.hi:
            raise GraphError(
                f"the input quantizer gives codes from {lowest} to {highest} (axis {input_quantizer.axis}), the "
                f"graph's input declares {graph.input.lo} to {graph.input.hi} for the whole tensor"
            )
        check_growth(graph)
        self.graph = graph
        self.input_quantizer = input_quantizer
        self.output_scale = float(output_scale)
        self.proof = prove(graph) if proof is None else proof

    @property
    def bits(self) -> int:
        """Signed bits that hold every answer: what the modulus of an exact protocol must cover."""
        return self.proof.bits[self.graph.output]

    @property
    def depth(self) -> int:
        """Products of two encrypted values that follow on each other: ceil(log2(degree)) for every polynomial."""
        deep: dict[str, int] = {}
        for node in self.graph.nodes:
            degree = getattr(node.op, "degree", 1)
            deep[node.name] = max((deep[name] for name in node.inputs), default=0) + (degree - 1).bit_length()
        return deep[self.graph.output]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the batch axis."""
        return self.graph.input.shape

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one answer, without the batch axis."""
        return self.graph.shapes[self.graph.output]

    def __repr__(self) -> str:
        return f"PolynomialModel({self.input_shape} -> {self.output_shape}, answers of {self.bits} bits)"

    def encode(self, x: Any, on_saturation: str = "warn") -> Tensor:
        """Codes int64 (N, *input_shape) of a float batch: floor(C x + d) - Z, moved into the declared range.

        on_saturation: how values outside the range are told: "warn" (a SaturationWarning with their share), "error"
        (InputError) or "silent". Raises InputError on a wrong shape, no real numbers, NaN or infinity.
        """
        return encode_batch(x, self.input_shape, self.input_quantizer, on_saturation)

    def integers(self, codes: Tensor) -> Tensor | NDArray[np.object_]:
        """The integer answer (N, *output_shape) for codes int64 (N, *input_shape). Exact.

        int64 tensor where the answer's proof says at most 63 bits; a numpy array of Python integers otherwise. The
        graph is computed mod 2^64 and, if that is too little, modulo as many primes as the proof asks for.
        """
        self._check_codes(codes)
        parts = [self._integers(part) for part in chunks(self.graph, codes)]
        if self.bits <= 63:
            return torch.cat([torch.as_tensor(part) for part in parts])
        return np.concatenate([np.asarray(part) for part in parts])

    def _integers(self, codes: Tensor) -> Tensor | NDArray[np.object_]:
        low = words(self.graph, codes)
        if self.bits <= 63:
            return low
        found: list[tuple[Any, int]] = [(low.numpy(), 1 << 64)]
        covered = 64
        for prime in PRIMES:
            if covered > self.bits:
                break
            found.append((residues(self.graph, codes, prime).numpy(), prime))
            covered += prime.bit_length() - 1
        return lifted(found)

    def _check_codes(self, codes: Tensor) -> None:
        node = self.graph.input
        if not isinstance(codes, Tensor) or codes.dtype != torch.int64 or tuple(codes.shape[1:]) != node.shape:
            what = f"{codes.dtype} {tuple(codes.shape)}" if isinstance(codes, Tensor) else type(codes).__name__
            raise InputError(
                f"codes are {what}: an int64 tensor of shape (N, {', '.join(map(str, node.shape))}) is needed"
            )
        if codes.numel():
            low, high = (int(v) for v in codes.aminmax())
            if low < node.lo or high > node.hi:
                raise InputError(f"codes run from {low} to {high}: [{node.lo}, {node.hi}] is the declared range")

    def decode(self, integers: Any) -> NDArray[np.float64]:
        """The answer as real numbers: integers * output_scale."""
        return decode_answer(integers, self.output_scale)

    def predict(self, x: Any, on_saturation: str = "warn") -> NDArray[np.float64]:
        """The integer model's answer for a float batch (N, *input_shape), as real numbers (N, *output_shape)."""
        return self.decode(self.integers(self.encode(x, on_saturation)))

    def verify(self) -> Proof:
        """Prove every range anew."""
        return prove(self.graph)

    def report(self, data: Any = None, labels: Any = None, float_answers: Any = None) -> PolynomialReport:
        """Per layer: shape, degree, proven bits, weights and products; and the accuracy on data with labels, if given.

        float_answers: the float network's answers (N, classes) on the data, for the change of accuracy and the
        agreement. Raises InputError where these do not fit each other.
        """
        from pqi.graph.polynomial_report import build_report

        return build_report(self, data, labels, float_answers)

    def save(self, path: str | Path) -> None:
        """Write the model as one file (safetensors with a JSON graph), atomically."""
        from pqi.graph.store import save

        save(self, path)


__all__ = ["PolynomialModel"]
