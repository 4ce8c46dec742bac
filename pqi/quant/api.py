"""``pqi.quantize``: from a trained network and some data to an exact integer model; the stages in a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from pqi.audit.defences.defence import Defences, chosen
from pqi.audit.defences.outputs import Policy, harden, policy_of
from pqi.graph.model import IntegerModel
from pqi.graph.ranges import MAX_RING
from pqi.quant.calibrate import Progress, calibrate
from pqi.quant.correct import corrected
from pqi.quant.finish import finish
from pqi.quant.lower import lower
from pqi.quant.rounding import learn_rounding
from pqi.quant.scheme import Recipe, Scheme, check_bits
from pqi.quant.stages import Calibration, Lowered


def quantize(
    net: nn.Module | ExportedProgram,
    calibration: Any,
    weight_bits: int = 8,
    activation_bits: int = 6,
    *,
    weights: str = "symmetric",
    activations: str = "uniform",
    per_channel: bool = True,
    multiplier: float | None = None,
    observer: str = "percentile",
    percentile: float = 99.99,
    index_bits: int | None = None,
    ends: str = "same",
    layers: Mapping[str, Mapping[str, Any]] | None = None,
    equalize: bool = False,
    bias_correction: bool = False,
    learned_rounding: bool = False,
    input_bits: int = 8,
    input_range: tuple[float, float] | None = None,
    dynamic: bool | int = False,
    rings: str = "proven",
    margin_bits: int = 1,
    max_ring: int = MAX_RING,
    answers: Any = "scores",
    defences: Sequence[Any] = (),
    progress: Progress | None = None,
    look: Callable[[Calibration, Lowered, IntegerModel], None] | None = None,
) -> IntegerModel:
    """An exact integer model of ``net``.

    net: a torch module (left as it is) or an exported program. calibration: typical inputs (N, ...) or an iterable of
    batches, from which every range is taken. What every layer gets (``pqi.quant.scheme.Scheme``): weight_bits and
    weights (levels of a weight), per_channel, multiplier; activation_bits and activations (levels of the codes between
    layers), observer, percentile, index_bits. ends="eight_bits": the weights of the first and the last layer at 8 bits.
    layers: fields of single layers by name, e.g. ``{"conv1": {"weight_bits": 6}}``. Improved without labels: equalize
    (channels' ranges shared out between layers), learned_rounding (which of its two nearest levels a weight takes),
    bias_correction (channels' mean errors).

    input_bits, input_range: of the client's codes; integers that fit input_bits keep their grid. dynamic: True, or how
    many times quieter than the loudest inputs may be: each gets a scale of its own (``pqi.quant.loudness``). rings:
    "proven" (no input can wrap) or "calibrated" (observed ranges and margin_bits more, or index_bits; mod 2^k by
    definition). max_ring: refuse rings wider than this. answers: what clients are told, computed inside the protocol
    (``pqi.audit.defences.outputs``): "scores", "label", ("top", k), ("ranked", k), ("rounded", bits), ("noisy", s):
    with fresh noise of standard deviation s from the dealer, but for which private answers are then exact. defences:
    against attacks on quantization, by name or as objects (``pqi.audit.defences``), in this order. progress(done,
    total): per batch. look(calibration, lowered, model): called before answers are hardened, for ``pqi.quant.compare``.

    Raises UnsupportedOperator, QuantizationError, RangeError or AuditError (answers, defences); each says what to do.
    """
    check_bits("input_bits", input_bits, 1, 12)
    policy, guarded = policy_of(answers), Defences(chosen(defences))
    widths, ranges = (weight_bits, weights, per_channel, multiplier), (index_bits, observer, percentile)
    recipe = Recipe(Scheme(*widths, activation_bits, activations, *ranges), layers or {}, ends)
    net, calibration = guarded.before(net, calibration)
    see = partial(calibrate, net, calibration, progress=progress)
    seen = see(input_bits=input_bits, input_range=input_range, equalize=equalize, dynamic=dynamic)
    lowered = guarded.weights(seen, improve(lower(seen, recipe), seen, learned_rounding, bias_correction, progress))
    model = guarded.model(finish(lowered, seen, rings=rings, margin_bits=margin_bits, max_ring=max_ring))
    return _hardened(model, policy, seen, look and partial(look, seen, lowered))


def _hardened(
    model: IntegerModel, policy: Policy, seen: Calibration, look: Callable[[IntegerModel], None] | None
) -> IntegerModel:
    if look is not None:
        look(model)
    return harden(model, policy, torch.from_numpy(seen.quantizer.saturating_codes(seen.sample)[0]))


def improve(
    lowered: Lowered,
    calibration: Calibration,
    learned_rounding: bool,
    bias_correction: bool,
    progress: Progress | None = None,
) -> Lowered:
    """The stages that look at the data again: learned rounding first, then what error of the mean remains."""
    if learned_rounding:
        lowered = learn_rounding(calibration, lowered, progress=progress)
    return corrected(calibration, lowered) if bias_correction else lowered
