"""``pqi.quantize``: from a trained network and some data to an exact integer model."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from pqi.graph.capture import capture
from pqi.graph.errors import CalibrationWarning, QuantizationError
from pqi.graph.floating import Clamp
from pqi.graph.model import POLICIES, IntegerModel, observe
from pqi.graph.ranges import MAX_RING, calibrated_accumulators, prove, proven_accumulators, refuse_wide
from pqi.graph.rewrite import simplify
from pqi.quant.calibrate import Progress, calibration_batch, observe_ranges
from pqi.quant.lower import Lowering
from pqi.quant.place import place
from pqi.quant.quantizer import Quantizer
from pqi.quant.weights import WeightScheme

DEFAULT_PERCENTILE = 99.99


def quantize(
    net: nn.Module | ExportedProgram,
    calibration: Any,
    weight_bits: int = 8,
    activation_bits: int = 6,
    *,
    input_bits: int = 8,
    input_range: tuple[float, float] | None = None,
    percentile: float | None = DEFAULT_PERCENTILE,
    per_channel: bool = True,
    rings: str = "proven",
    margin_bits: int = 1,
    max_ring: int = MAX_RING,
    multiplier: float | None = None,
    progress: Progress | None = None,
) -> IntegerModel:
    """An exact integer model of ``net``.

    net: a torch module (its mode and weights are left as they are) or an exported program. calibration: typical inputs
    (N, ...), from which every range is taken. weight_bits: bits of a weight code, 2 to 12. activation_bits: bits of the
    codes between layers, 1 to 12. input_bits: bits of the client's codes. input_range: (lo, hi) of the input instead of
    the range seen (integers that fit input_bits keep their grid). percentile: of the activations, where
    codes saturate; None takes the largest value seen. per_channel: a weight scale for each output channel. rings:
    "proven" (no input can wrap) or "calibrated" (observed ranges and margin_bits more; arithmetic mod 2^k by
    definition). max_ring: refuse rings wider than this. multiplier: accumulator units per weight step in a typical
    channel; larger keeps more of the weights' precision and needs wider rings. progress(done, total): called per batch.

    Raises UnsupportedOperator, QuantizationError or RangeError; each says what to do.
    """
    _check_bits("weight_bits", weight_bits, 2, 12)
    _check_bits("activation_bits", activation_bits, 1, 12)
    _check_bits("input_bits", input_bits, 1, 12)
    _check_bits("max_ring", max_ring, 1, MAX_RING)
    _check_bits("margin_bits", margin_bits, 0, MAX_RING)
    if rings not in POLICIES:
        raise QuantizationError(f"rings is {rings!r}: it must be one of {POLICIES}")
    data = calibration_batch(calibration)
    quantizer = input_quantizer(data, input_bits, input_range)
    placed = place(simplify(capture(net, _as_the_network_wants(net, data[:1]))))
    clamps = [n.name for n in placed.graph.nodes if isinstance(n.op, Clamp)]
    ranges = observe_ranges(placed.graph, data, clamps, percentile, progress)
    _warn_of_constants(ranges)
    chosen = default_multiplier(weight_bits) if multiplier is None else multiplier
    scheme = WeightScheme(weight_bits, per_channel, chosen)
    graph, output_scale = Lowering(placed, ranges, quantizer, activation_bits, scheme).run()
    proof = prove(graph)
    accumulators = proven_accumulators(graph, proof)
    if rings == "calibrated":
        codes = torch.from_numpy(quantizer.saturating_codes(data)[0])
        accumulators = calibrated_accumulators(graph, proof, observe(graph, codes), margin_bits)
        proof = prove(graph, accumulators)
    refuse_wide(graph, accumulators, proof, max_ring)
    return IntegerModel(graph, accumulators, quantizer, output_scale, rings, proof)


def _warn_of_constants(ranges: dict[str, tuple[float, float]]) -> None:
    constant = [name for name, (lo, hi) in ranges.items() if lo == hi]
    if constant:
        warnings.warn(
            f"the calibration data leave {constant} constant: their scale is arbitrary. "
            "Give more varied data, or remove layers that never do anything.",
            CalibrationWarning,
            stacklevel=3,
        )


def default_multiplier(weight_bits: int) -> float:
    """Accumulator units per weight step in a typical channel.

    About 64 units for a channel's largest weight, whatever the bits: 8-bit weights then cost no wider rings than 6-bit
    ones, at the price of a fraction of their last bit in channels of small weights. Measured on ResNet-20 (8-bit
    weights, 6-bit activations): 1/2 keeps float accuracy with rings up to 20 bits, 1/4 loses half a point, 1 and 2 gain
    nothing for one and two bits more.
    """
    return min(max(2.0 ** (7 - weight_bits), 0.5), 4.0)


def input_quantizer(data: Tensor, bits: int, declared: tuple[float, float] | None = None) -> Quantizer:
    """The client's quantizer: the declared range, or the range seen; integer data keep their own grid (C = 1)."""
    if declared is not None:
        lo, hi = (float(v) for v in declared)
        if not (math.isfinite(lo) and math.isfinite(hi) and lo < hi):
            raise QuantizationError(f"input_range is {declared}: two finite numbers, the lower first, are needed")
        return Quantizer.affine(lo, hi, bits)
    lo, hi = (float(v) for v in data.aminmax())
    half = 1 << (bits - 1)
    # 0 and 1 alone may be black and white of a finer scale: the grid is kept only if it is plainly one of integers.
    if max(-lo, hi) > 1 and bool((data == data.round()).all()):
        if lo >= 0 and hi <= 2 * half - 1:
            return Quantizer(1.0, 0.5, 2 * half, None, signed=False)
        if lo >= -half and hi <= half - 1:
            return Quantizer(1.0, 0.5, 2 * half, None, signed=True)
    return Quantizer.affine(lo, hi, bits)


def _as_the_network_wants(net: nn.Module | ExportedProgram, example: Tensor) -> Tensor:
    """The example in the dtype of the network's parameters."""
    if isinstance(net, nn.Module):
        for tensor in [*net.parameters(), *net.buffers()]:
            if tensor.is_floating_point():
                return example.to(tensor.device, tensor.dtype)
    return example


def _check_bits(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise QuantizationError(f"{name} is {value!r}: it must be an integer from {low} to {high}")
