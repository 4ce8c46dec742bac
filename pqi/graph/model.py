"""The exact integer model: what every private answer must equal, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pqi.graph.errors import GraphError, InputError, RangeError
from pqi.graph.graph import OUTPUT, IntegerGraph
from pqi.graph.ops import Noise, Slice, Spread
from pqi.graph.ranges import (
    MAX_RING,
    Ranges,
    defined_accumulators,
    lift,
    prove,
    proven_accumulators,
    refuse_wide,
    rings,
)
from pqi.quant.dynamic import DynamicScale
from pqi.quant.inputs import decode_answer, encode_batch
from pqi.quant.quantizer import Quantizer

if TYPE_CHECKING:
    from pqi.graph.report import Report

POLICIES = ("proven", "calibrated")
_CHUNK_VALUES = 1 << 19  # int64 values of the widest layer held at a time: 4 MB, which stays in the cache


@dataclass(frozen=True)
class Verification:
    """What ``IntegerModel.verify`` established: the bits that every consumer needs, and the ring it reads in.

    proven_bits: no input needs more. A Lookup needs those of its definition, for it reads a residue; wrapping there
    is its meaning and never counts as a breach.
    """

    policy: str
    proven_bits: dict[str, int]
    accumulators: dict[str, int]

    @property
    def can_wrap(self) -> tuple[str, ...]:
        """Consumers whose ring is narrower than the proof (only under the calibrated policy)."""
        return tuple(name for name, k in self.accumulators.items() if k < self.proven_bits[name])


class IntegerModel:
    """An integer graph with its rings, the client's input quantizer and the scale of the answer.

    graph: the integer graph. rings: ring k of each node's value. accumulators: ring in which each Requantize, Step,
    Lookup and the answer ("output") read; a Lookup's is the one of its definition. input_quantizer: codes =
    lift(Q(x)) - Z. output_scale: answer = integer * scale. policy: "proven" (no input can wrap) or "calibrated"
    (arithmetic mod 2^k by definition). dynamic: how the client scales each input on its own (None: it does not); then
    the graph's input is flat, (numel + 1,), and answer = integer * scale / the input's own.
    """

    def __init__(
        self,
        graph: IntegerGraph,
        accumulators: Mapping[str, int],
        input_quantizer: Quantizer,
        output_scale: float,
        policy: str = "proven",
        ranges: Ranges | None = None,
        dynamic: DynamicScale | None = None,
    ) -> None:
        if policy not in POLICIES:
            raise GraphError(f"policy is {policy!r}: it must be one of {POLICIES}")
        if set(accumulators) != set(graph.readers()):
            raise GraphError(f"rings are given for {sorted(accumulators)}, needed for {sorted(graph.readers())}")
        if not (np.isfinite(output_scale) and output_scale > 0):
            raise GraphError(f"output_scale is {output_scale}: it must be positive and finite")
        for consumer, k in accumulators.items():
            if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= MAX_RING:
                raise RangeError(f"the ring read by {consumer!r} has {k!r} bits: 1 to {MAX_RING} are possible")
        for consumer, k in defined_accumulators(graph).items():
            if accumulators[consumer] != k:
                raise GraphError(
                    f"the lookup {consumer!r} reads mod 2^{k} by definition, but a ring of {accumulators[consumer]} "
                    f"bits is given for it: give {k}, or a table of 2^{accumulators[consumer]} entries"
                )
        self.graph = graph
        self.accumulators = dict(accumulators)
        self.input_quantizer = input_quantizer
        self.output_scale = float(output_scale)
        self.policy = policy
        self.dynamic = dynamic
        self._check_dynamic()
        self._check_noise()
        self.ranges = ranges if ranges is not None else prove(graph, self.accumulators)
        self.rings = rings(graph, self.accumulators, self.ranges)
        self._check_input_codes()
        self._check_rings(self.ranges)
        wide = [name for name, k in self.rings.items() if k > MAX_RING]
        if wide:
            raise RangeError(f"{wide} need rings of more than {MAX_RING} bits: use fewer activation bits")

    def _check_input_codes(self) -> None:
        q, node = self.input_quantizer, self.graph.input
        lowest, highest = q.code_range
        if q.axis is not None or lowest < node.lo or highest > node.hi:
            raise GraphError(
                f"the input quantizer gives codes from {lowest} to {highest} (axis {q.axis}), the graph's input "
                f"declares {node.lo} to {node.hi} for the whole tensor"
            )

    def _check_dynamic(self) -> None:
        """The graph's input is what the client will give, and what is proven of its scale holds for all of them."""
        scaled = [node for node in self.graph.nodes if isinstance(node.op, Spread)]
        if self.dynamic is None:
            if scaled:
                raise GraphError(f"{scaled[0].name!r} reads the scale of an input, but the model is not dynamic")
            return
        self.dynamic.check(self.input_quantizer)
        size, entry = self.dynamic.codes, self.graph.nodes[0].name
        if self.graph.input.shape != (size,):
            raise GraphError(
                f"a dynamic model of inputs {self.dynamic.shape} takes codes ({size},), its graph takes "
                f"{self.graph.input.shape}"
            )
        for node in scaled:
            read = self.graph.by_name[node.inputs[0]]
            last = isinstance(read.op, Slice) and (read.op.start, read.op.stop) == (size - 1, size)
            if not last or read.inputs != (entry,):
                raise GraphError(
                    f"{node.name!r} must read the scale, the last code of the input; it reads {read.name!r}"
                )
            if isinstance(node.op, Spread) and node.op.top < self.dynamic.levels:
                raise GraphError(f"{node.name!r} expects scales up to {node.op.top}, there are {self.dynamic.levels}")

    def _check_noise(self) -> None:
        """Only the answer has noise: then the private answer less the reference is the noise and nothing else."""
        for node in self.graph.nodes:
            if isinstance(node.op, Noise) and (node.name != self.graph.output or self.graph.consumers[node.name]):
                raise GraphError(
                    f"{node.name!r} is noise, but not the answer: what is computed from it has no reference"
                )
        if self.noise is not None and self.dynamic is not None:
            raise GraphError("a dynamic model's client divides the answer, and its noise, by a scale of its own")

    @property
    def noise(self) -> Noise | None:
        """The noise of private answers, which ``integers`` and ``predict`` are without; None where there is none."""
        op = self.graph.by_name[self.graph.output].op
        return op if isinstance(op, Noise) else None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input as a user gives it, without the batch axis; ``graph.input.shape`` is that of its codes."""
        return self.graph.input.shape if self.dynamic is None else self.dynamic.shape

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one answer, without the batch axis."""
        return self.graph.shapes[self.graph.output]

    def __repr__(self) -> str:
        widest = max(self.accumulators.values())
        noise = "" if self.noise is None else f", private answers with noise up to {self.noise.bound}"
        return (
            f"IntegerModel({self.input_shape} -> {self.output_shape}, {self.policy} rings up to {widest} bits{noise})"
        )

    def verify(self) -> Verification:
        """Prove every range anew and check the rings against it; raises RangeError naming the layers that fail."""
        return self._check_rings(prove(self.graph, self.accumulators))

    def _check_rings(self, ranges: Ranges) -> Verification:
        needed = proven_accumulators(self.graph, ranges)
        if self.policy == "proven":
            short = {c: k for c, k in self.accumulators.items() if k < needed[c]}
            if short:
                where = ", ".join(f"{c!r}: {needed[c]} bits needed, {k} given" for c, k in short.items())
                raise RangeError(f"rings that can wrap under the proven policy: {where}. Quantize the network again.")
        else:
            refuse_wide(self.graph, self.accumulators, ranges)
        return Verification(self.policy, needed, dict(self.accumulators))

    def encode(self, x: Any, on_saturation: str = "warn") -> Tensor:
        """Codes int64 (N, *input_shape) of a float batch: floor(C x + d) - Z, moved into the declared range.

        Of a dynamic model: those of j x and j itself, (N, numel + 1); see :class:`pqi.quant.dynamic.DynamicScale`.
        Values outside the range saturate at its nearest end; on_saturation says how that is told: "warn" (a
        SaturationWarning with their share), "error" (InputError) or "silent". Raises InputError on a wrong shape,
        a dtype that is not real numbers, NaN or infinity.
        """
        return encode_batch(x, self.input_shape, self.input_quantizer, on_saturation, dynamic=self.dynamic)

    def decode(self, integers: Any, codes: Any = None) -> NDArray[np.float64]:
        """The answer as real numbers: integers * output_scale; of a dynamic model, divided by each input's own scale.

        codes: what was asked; a dynamic model needs them. Raises InputError where they are missing.
        """
        return decode_answer(integers, self.output_scale, self.dynamic, codes)

    def integers(self, codes: Tensor) -> Tensor:
        """The integer answer, int64 (N, *output_shape), for codes int64 (N, *graph.input.shape). Exact.

        The private answer equals it, or, where the model has noise, differs from it by the noise.
        """
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
            if self.dynamic is not None:
                low, high = (int(v) for v in codes[:, -1].aminmax())
                if low < 1 or high > self.dynamic.levels:
                    raise InputError(f"scales run from {low} to {high}: 1 to {self.dynamic.levels} are possible")
        return torch.cat([self.graph.run(part, self._reduce) for part in chunks(self.graph, codes)])

    def _reduce(self, consumer: str, value: Tensor) -> Tensor:
        # A proven value is its own representative; only calibrated rings reduce, by definition of the model. A Lookup
        # takes the residue itself.
        return lift(value, self.accumulators[consumer]) if self.policy == "calibrated" else value

    def predict(self, x: Any, on_saturation: str = "warn") -> NDArray[np.float64]:
        """The integer model's answer for a float batch (N, *input_shape), as real numbers (N, *output_shape)."""
        codes = self.encode(x, on_saturation)
        return self.decode(self.integers(codes).numpy(), codes)

    def wraps(self, x: Any) -> dict[str, float]:
        """Share of values, per consumer (the answer under "output"), that leave their ring on the float batch x.

        For a Lookup of k bits that is the share outside [-2^(k-1), 2^(k-1)): wrapping is its meaning there, and the
        share says how much of it the network does.
        """
        wrapped = dict.fromkeys(self.accumulators, 0)
        total = dict.fromkeys(self.accumulators, 0)

        def count(consumer: str, value: Tensor) -> Tensor:
            reduced = lift(value, self.accumulators[consumer])
            wrapped[consumer] += int((reduced != value).sum())
            total[consumer] += value.numel()
            return reduced

        for part in chunks(self.graph, self.encode(x, "silent")):
            self.graph.run(part, count)
        return {name: wrapped[name] / total[name] if total[name] else 0.0 for name in wrapped}

    def report(self, data: Any = None, labels: Any = None, float_answers: Any = None) -> Report:
        """Per layer: shapes, rings, proof, shift and index bits, weights, operations, what each protocol would cost.

        data: a float batch, for the share of values that wrap. labels: its classes, for the accuracy.
        float_answers: the float network's answers (N, classes) on it, for the change of accuracy and the agreement.
        Raises InputError where these do not fit each other.
        """
        from pqi.graph.report import build_report, compare_answers
        from pqi.program.prices import prices  # what a protocol charges is known one floor above

        wrapped = self.wraps(data) if data is not None else None
        accuracy = compare_answers(self, data, labels, float_answers)
        return build_report(self, wrapped, prices(self), accuracy)

    def save(self, path: str | Path) -> None:
        """Write the model as one file (safetensors with a JSON graph), atomically."""
        from pqi.graph.store import save

        save(self, path)


def observe(graph: IntegerGraph, codes: Tensor) -> dict[str, tuple[int, int]]:
    """Ends of what each consumer (and "output") reads on a batch of codes, without any reduction."""
    seen: dict[str, tuple[int, int]] = dict.fromkeys(graph.readers(), (0, 0))

    def look(consumer: str, value: Tensor) -> Tensor:
        if value.numel():
            low, high = (int(v) for v in value.aminmax())
            seen[consumer] = (min(seen[consumer][0], low), max(seen[consumer][1], high))
        return value

    for part in chunks(graph, codes):
        graph.run(part, look)
    return seen


def chunks(graph: IntegerGraph, codes: Tensor) -> tuple[Tensor, ...]:
    """The batch in parts whose widest layer stays within a fixed size (one empty part for an empty batch)."""
    size = max(1, _CHUNK_VALUES // max(math.prod(shape) for shape in graph.shapes.values()))
    return torch.split(codes, size)


__all__ = ["OUTPUT", "IntegerModel", "Verification", "observe"]
