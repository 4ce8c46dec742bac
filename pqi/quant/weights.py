"""Integer weights: a scheme is the set of integers that a channel's weights may be, and quantization picks the nearest.

The accumulators of a layer have one unit u, so that one shift brings all channels to codes. Channel c may have the
integer weights level * m_c: the scheme's levels, times a whole number that fits the channel's weights w s / u on
inputs of scale s. When u is small against the weights, m_c is some whole number above 1 and every channel uses its
levels nearly fully: per-channel quantization with one accumulator unit, and no zero point ever meets an activation.

| scheme | levels | multiplier m_c |
|---|---|---|
| symmetric | -q..q, q = 2^(b-1) - 1 | ceil(max abs w / q); b <= 3: of least cubed error |
| affine | -z..2^b - 1 - z, z of each channel | ceil((max - min) / (2^b - 1)); b <= 3: of least cubed error |
| ternary | -1, 0, 1 | mean of the k largest abs w, with the k of least squared error (Li et al., 2016) |
| binary | -1, 1 | mean abs w (Rastegari et al., 2016) |
| power_of_two | 0, +-1, +-2, ..., +-2^(2^(b-1) - 2) | as symmetric, q the largest level |
| additive_powers_of_two | 0 and both signs of b - 1 bits (``pqi.quant.levels``) | of least cubed error |
| codebook | 2^b centres of k-means, rounded to whole units | 1 |

Weights that are such numbers already stay exact: whole weights that are levels, and channels of {-a, 0, a}.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pqi.graph.errors import QuantizationError
from pqi.graph.ops.base import MAX_WEIGHT
from pqi.quant.levels import additive_powers_of_two, both_signs, clusters, nearest, powers_of_two
from pqi.quant.scheme import Scheme
from pqi.quant.stages import Grid

# Up to so many bits, and for additive powers of two of any, the multiplier is searched for between these shares of the
# one that just holds the largest weight. The sum of cubed errors is minimised, not of squared ones: outliers matter
# more to a network than to its weights' mean squared error. Measured on ResNet-20, 6-bit activations, bias correction,
# 1,000 images: 3 bits 85.0 % held, 78.3 % by squared errors of shares from 0.4, 87.2 % from 0.75, 88.1 % by cubed ones;
# 4 bits 91.3 %, 91.2 %, 91.0 %, 91.5 %: not worth their wider rings. Of 500 images, additive powers of two of 4 bits:
# 91.2 % held, 91.8 % by squared errors, 92.0 % by cubed ones; powers of two of 4 bits: 89.4 %, 88.2 %, 89.2 %.
SEARCHED_BITS = 3
_SHARES = torch.linspace(0.75, 1.0, 11, dtype=torch.float64)
_WIDER = torch.linspace(0.75, 1.5, 25, dtype=torch.float64)  # levels that are not even may fit better with room above
_POWER = 3
_UNITS = 64  # of the accumulator for a typical channel's largest weight
_WHOLE = 1 << 12  # the largest whole weights that count as codes already, where a scheme has no bound of its own

Fit = tuple[Tensor, Tensor]  # levels, float64 (L,) or (C, L), and the step of each row, float64 (C,)


def fixed_levels(scheme: Scheme) -> Tensor | None:
    """The scheme's levels, int64, sorted; None where they are fitted to the weights (affine, codebook)."""
    if scheme.weights == "symmetric":
        top = (1 << (scheme.weight_bits - 1)) - 1
        return torch.arange(-top, top + 1)
    if scheme.weights == "power_of_two":
        return both_signs(powers_of_two(scheme.weight_bits - 1))
    if scheme.weights == "additive_powers_of_two":
        return both_signs(additive_powers_of_two(scheme.weight_bits - 1))
    return {"ternary": torch.tensor([-1, 0, 1]), "binary": torch.tensor([-1, 1])}.get(scheme.weights)


def typical_multiplier(scheme: Scheme) -> float:
    """Accumulator units per weight step in a typical channel: what the scheme says, or a rule by its largest level.

    About 64 units for a channel's largest weight, whatever the scheme: 8-bit weights then cost no wider rings than
    6-bit ones, at the price of a fraction of their last bit in channels of small weights; but at most 4 units and at
    least half a unit per step. The step of a code book is a 64th of the largest weight. Measured on ResNet-20 (8-bit
    weights, 6-bit activations): 1/2 keeps float accuracy with rings up to 20 bits, 1/4 loses half a point, 1 and 2 gain
    nothing for one and two bits more. Widest proven ring there: 20 bits (symmetric, 8 bits), 19 (4 and 3 bits), 20
    (affine and both powers of two, 4 bits), 21 (code books of 4 bits; affine of 8 and 6).
    """
    if scheme.multiplier is not None:
        return scheme.multiplier
    if scheme.weights == "codebook":
        return 1.0
    levels = fixed_levels(scheme)
    top = (1 << (scheme.weight_bits - 1)) - 1 if levels is None else int(levels[-1])
    return min(max(_UNITS / (top + 1), 0.5), 4.0)


def channel_reach(weight: Tensor) -> Tensor:
    """max |w| per output channel (axis 0)."""
    return weight.abs().reshape(weight.shape[0], -1).amax(1)


def weight_steps(weight: Tensor, scheme: Scheme) -> Tensor:
    """The real number that level 1 should stand for in each channel, float64 (C,); 0 where all weights are zero."""
    rows = _rows(weight.to(torch.float64), scheme)
    step = torch.where(rows.abs().amax(1) > 0, _fit(rows, scheme, whole=False)[1], 0.0)
    return step.expand(weight.shape[0])


def exact_unit(weight: Tensor, scheme: Scheme) -> float | None:
    """A positive number of which all weights are levels of the scheme, if one is plain to see.

    Found are: weights that are such integers already, and weights in {-a, 0, a} (for binary, {-a, a}).
    """
    reach = float(weight.abs().max())
    if reach == 0.0:
        return None
    if _whole_levels(weight, scheme) is not None:
        return 1.0
    signs = (weight.abs() == reach) | ((weight == 0) & (scheme.weights != "binary"))
    return reach if bool(signs.all()) else None


def weight_grid(name: str, weight: Tensor, ratio: Tensor | float, scheme: Scheme) -> tuple[Grid, Tensor]:
    """The integer weights that a layer may have, and the target weight * ratio, with ratio = s / u (or per channel).

    weight: float (C, ...). Without per_channel all channels get the same levels and the same multiplier.
    Raises QuantizationError when the integers would be too large.
    """
    channels = weight.shape[0]
    ratio = torch.as_tensor(ratio, dtype=torch.float64).expand(channels)
    target = weight.to(torch.float64) * ratio.view((-1,) + (1,) * (weight.ndim - 1))
    reach = float(target.abs().max())
    if not reach <= MAX_WEIGHT:
        raise QuantizationError(
            f"layer {name!r}: integer weights would reach {reach:.3g}; at most {MAX_WEIGHT} is possible. "
            "Its output range is tiny against its weights: check the calibration data, or use fewer weight bits."
        )
    units = ratio.round()
    whole = bool(((ratio - units).abs() <= 1e-9 * ratio).all()) and bool((units >= 1).all())
    if whole and (levels := _whole_levels(weight, scheme)) is not None:  # codes already, and u divides their unit
        return Grid(levels, units.to(torch.int64)), target
    levels, step = _fit(_rows(target, scheme), scheme, whole=True)
    levels = levels.round().to(torch.int64)
    levels = levels[0] if levels.ndim == 2 and not scheme.per_channel else levels
    return Grid(levels, step.to(torch.int64).expand(channels).clone()), target


def integer_scale(name: str, weight: Tensor, ratio: float) -> Tensor:
    """Integer factors near weight * ratio for a per-channel Scale, without a limit on their bits."""
    target = weight.to(torch.float64) * ratio
    if float(target.abs().max()) > MAX_WEIGHT:
        raise QuantizationError(f"layer {name!r}: integer factors would reach {float(target.abs().max()):.3g}")
    return torch.round(target).to(torch.int64)


def _rows(weight: Tensor, scheme: Scheme) -> Tensor:
    """What is fitted together: each channel's weights (C, n), or all of them (1, C n)."""
    return weight.reshape(weight.shape[0] if scheme.per_channel else 1, -1)


def _whole_levels(weight: Tensor, scheme: Scheme) -> Tensor | None:
    """Levels, int64, among which all weights are as they stand; None if they are not."""
    if not bool((weight == weight.round()).all()):
        return None
    rows, levels = _rows(weight, scheme), fixed_levels(scheme)
    if levels is not None:
        return levels if bool(torch.isin(rows, levels.to(rows.dtype)).all()) else None
    count = 1 << scheme.weight_bits
    if float(rows.abs().max()) > _WHOLE:
        return None
    if scheme.weights == "affine":
        fits = bool((rows.amax(1) - rows.amin(1) <= count - 1).all())
        fitted = _consecutive(rows.amin(1), count)
    else:
        fitted = clusters(rows, count)
        fits = torch.equal(nearest(rows.to(torch.float64), fitted), rows.to(torch.float64))
    fitted = fitted.to(torch.int64)
    return (fitted if scheme.per_channel else fitted[0]) if fits else None


# -- fits: levels and step for rows of weights, in any unit -----------------------------------------------------------


def _fit(rows: Tensor, scheme: Scheme, whole: bool) -> Fit:
    """Levels and steps of least error; whole: the steps are whole numbers of at least 1, the rows in their unit."""
    reach = rows.abs().amax(1)
    if scheme.weights == "codebook":
        step = torch.ones_like(reach) if whole else reach / _UNITS
        return clusters(rows, 1 << scheme.weight_bits) if whole else torch.zeros(1), step
    if scheme.weights == "affine":
        levels, step = _fit_affine(rows, scheme.weight_bits, whole)
    else:
        fixed = fixed_levels(scheme)
        levels = torch.tensor([0.0]) if fixed is None else fixed.to(torch.float64)
        step = _fixed_step(rows, levels, scheme, whole)
    # Channels of {-a, 0, a} keep their values, whatever would be the least error in whole numbers.
    signs = ((rows == 0) | (rows.abs() == reach[:, None])).all(1)
    if scheme.weights == "binary":
        dead = reach == 0
        return (levels * ~dead[:, None] if bool(dead.any()) else levels), step
    if levels.ndim == 2:
        levels = torch.where(signs[:, None], _consecutive(-torch.ones_like(reach), levels.shape[1]), levels)
    return levels, torch.where(signs, _as_step(reach, whole), step)


def _as_step(step: Tensor, whole: bool) -> Tensor:
    return step.round().clamp(min=1) if whole else step


def _fixed_step(rows: Tensor, levels: Tensor, scheme: Scheme, whole: bool) -> Tensor:
    if scheme.weights == "binary":
        return _as_step(rows.abs().mean(1), whole)
    if scheme.weights == "ternary":
        return _as_step(_ternary_step(rows), whole)
    full = rows.abs().amax(1) / levels[-1]
    holding = torch.ceil(full * (1 - 1e-12)).clamp(min=1) if whole else full
    additive = scheme.weights == "additive_powers_of_two"
    if scheme.weight_bits > SEARCHED_BITS and not additive:
        return holding
    shares = _WIDER if additive else _SHARES
    candidates = [_as_step(full * share, whole) for share in shares] + [holding]
    return _best([(levels, step) for step in candidates], rows)[1]


def _ternary_step(rows: Tensor) -> Tensor:
    """The a of least sum of (w - a t)^2 over t in {-1, 0, 1}.

    With t nonzero for the k largest |w| of sum S_k, the best a is S_k / k and takes S_k^2 / k off the error.
    """
    sums = rows.abs().sort(dim=1, descending=True).values.cumsum(1)
    counts = torch.arange(1, rows.shape[1] + 1, dtype=torch.float64)
    best = (sums**2 / counts).argmax(1, keepdim=True)
    return (sums.gather(1, best) / (best + 1))[:, 0]


def _consecutive(lowest: Tensor, count: int) -> Tensor:
    return lowest[:, None] + torch.arange(count, dtype=torch.float64)


def _fit_affine(rows: Tensor, bits: int, whole: bool) -> Fit:
    """2^bits consecutive levels from the zero point on: the channel's range, or the middle part of it."""
    low, high, top = rows.amin(1), rows.amax(1), (1 << bits) - 1
    full = (high - low) / top
    full = torch.where(full > 0, full, rows.abs().amax(1))  # of one value only
    holding = torch.ceil(full * (1 - 1e-12)).clamp(min=1) if whole else full
    shares = [] if bits > SEARCHED_BITS else [_as_step(full * share, whole) for share in _SHARES]
    fits = []
    for step in [*shares, holding]:
        safe = torch.where(step > 0, step, 1.0)
        fits.append((_consecutive(torch.round((low + high) / 2 / safe - top / 2), top + 1), step))
    return _best(fits, rows)


def _best(fits: list[Fit], rows: Tensor) -> Fit:
    """For each row the fit of least error, the last of equal ones."""
    levels, step = fits[-1]
    least = _error(rows, levels, step)
    for other, candidate in reversed(fits[:-1]):
        error = _error(rows, other, candidate)
        better = error < least
        least, step = torch.where(better, error, least), torch.where(better, candidate, step)
        levels = torch.where(better[:, None], other, levels) if levels.ndim == 2 else levels
    return levels, step


def _error(rows: Tensor, levels: Tensor, step: Tensor) -> Tensor:
    steps = torch.where(step > 0, step, 1.0)[:, None]
    return (rows - nearest(rows / steps, levels) * steps).abs().pow(_POWER).sum(1)
