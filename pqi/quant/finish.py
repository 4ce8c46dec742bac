"""The last stage: rings for a lowered graph, and the model."""

from __future__ import annotations

import torch

from pqi.graph.errors import QuantizationError
from pqi.graph.model import POLICIES, IntegerModel, observe
from pqi.graph.ops import Requantize
from pqi.graph.ranges import MAX_RING, calibrated_accumulators, prove, proven_accumulators, refuse_wide
from pqi.quant.scheme import check_bits
from pqi.quant.stages import Calibration, Lowered


def finish(
    lowered: Lowered, calibration: Calibration, *, rings: str = "proven", margin_bits: int = 1, max_ring: int = MAX_RING
) -> IntegerModel:
    """The model with its rings.

    rings: "proven" (no input can wrap) or "calibrated" (the ranges of the calibration sample and margin_bits more, or
    shift + index_bits where a layer's scheme says so; arithmetic mod 2^k by definition). max_ring: refuse wider ones.
    Raises RangeError naming every layer that needs more than max_ring, QuantizationError on contradictions.
    """
    check_bits("max_ring", max_ring, 1, MAX_RING)
    check_bits("margin_bits", margin_bits, 0, MAX_RING)
    if rings not in POLICIES:
        raise QuantizationError(f"rings is {rings!r}: it must be one of {POLICIES}")
    graph = lowered.graph
    indexed = _indexed(lowered, calibration)
    if indexed and rings == "proven":
        raise QuantizationError(
            f"index_bits is set for {sorted(indexed)}: rings of a chosen width can wrap, so they need "
            "rings='calibrated' (arithmetic mod 2^k by definition). Proven rings choose their own width."
        )
    proof = prove(graph)
    accumulators = proven_accumulators(graph, proof)
    if rings == "calibrated":
        codes = torch.from_numpy(calibration.quantizer.saturating_codes(calibration.sample)[0])
        seen = observe(graph, codes)
        accumulators = calibrated_accumulators(graph, proof, seen, margin_bits)
        for name, k in indexed.items():
            accumulators[name] = min(k, proof.bits[graph.readers()[name]])
        proof = prove(graph, accumulators)
    refuse_wide(graph, accumulators, proof, max_ring)
    scale, dynamic = lowered.output_scale, calibration.dynamic
    return IntegerModel(graph, accumulators, calibration.quantizer, scale, rings, proof, dynamic)


def _indexed(lowered: Lowered, calibration: Calibration) -> dict[str, int]:
    """The rings, shift + index_bits, that schemes define. Thresholds and signs have no index, and keep their rings."""
    return {
        node.name: node.op.shift + bits
        for node in lowered.graph.nodes
        if isinstance(node.op, Requantize)
        and node.name in calibration.seen
        and (bits := lowered.schemes[node.name].index_bits) is not None
    }
