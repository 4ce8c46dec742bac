"""Bias correction: the mean error of every channel, measured on the sample, taken back through the integer biases.

Rounded weights and clipped activations move the mean of a channel, and a moved mean adds up over the layers where
noise averages out. Layer by layer, with all layers before already corrected, the mean over batch and positions of
(float accumulator - real value of the integer accumulator) is added to the bias in the accumulator's units.
(Nagel et al., Data-Free Quantization, ICCV 2019, section 4.2; here with data: Banner et al., NeurIPS 2019.)
"""

from __future__ import annotations

from dataclasses import replace

import torch

from pqi.graph.floating import Sign, Threshold
from pqi.graph.ops import Conv2d, Dense, Op, Scale
from pqi.graph.ops.base import MAX_BIAS
from pqi.quant.stages import Calibration, Lowered
from pqi.quant.walk import Site, Walk, channel_means

SAMPLE_VALUES = 1 << 23  # of the widest layer: 512 inputs of a CIFAR ResNet


def corrected(calibration: Calibration, lowered: Lowered) -> Lowered:
    """The lowered graph with biases at which every channel's mean over the sample is that of the float graph.

    An addition is corrected as a whole, through the bias of one of its terms. Whole units are added: what remains is
    at most half a unit of the accumulator. What a threshold or a sign reads is left alone: only its sign matters, its
    bias holds the exact floor at which ties fall to the right side, and a shift that suits the mean would break
    networks (binarised ones) that are exact as they are. One run of both graphs over a bounded part of the sample.
    """
    walk = Walk(calibration, lowered, SAMPLE_VALUES)
    for site in walk.sites():
        if any(isinstance(reader.op, (Threshold, Sign)) for reader in site.readers):
            continue
        term = site.terms[0] if site.terms else None
        if term is not None:
            walk.change(site, {term: _moved(walk, site, term)})
    return walk.result()


def _moved(walk: Walk, site: Site, term: str) -> Op:
    """The term with the site's mean error in its bias."""
    op = walk.ops[term]
    if not isinstance(op, (Conv2d, Dense, Scale)):
        return op
    axis = walk.floats[site.name].ndim - 1 if isinstance(op, Dense) else 1
    want = channel_means(walk.floats[site.name], axis) / torch.as_tensor(site.scale, dtype=torch.float64)
    have = channel_means(walk.integers[site.name], axis) - site.offset
    bias = op.bias + torch.round(want - have).to(torch.int64)
    return replace(op, bias=bias.clamp(-MAX_BIAS, MAX_BIAS))
