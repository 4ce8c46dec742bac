"""The meaning of each step, written as plainly as it can be."""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatch

import torch
from torch import Tensor

from protocols import api, noise, ring
from protocols.errors import Misuse
from protocols.prg import Random


def define(step: api.Step, x: Tensor, operands: Mapping[str, Tensor]) -> Tensor:
    """Result of ``step`` on x ``(n, ...)``, in the word of the result's ring; operands are in the clear."""
    return _define(step, x, operands)


@singledispatch
def _define(step: api.Step, x: Tensor, operands: Mapping[str, Tensor]) -> Tensor:
    raise Misuse(f"'clear' has no definition of {type(step).__name__}")


@_define.register
def _(step: api.Open, x: Tensor, operands: Mapping[str, Tensor]) -> Tensor:
    return x


@_define.register
def _(step: api.Linear, x: Tensor, operands: Mapping[str, Tensor]) -> Tensor:
    prepared = step.map.prepare(ring.to_word(operands["weight"], step.ring), step.ring)
    z = step.map.apply(prepared, ring.to_word(x, step.ring), step.ring)
    return z + ring.to_word(operands["bias"], step.ring)


@_define.register
def _(step: api.Shift, x: Tensor, operands: Mapping[str, Tensor]) -> Tensor:
    return ring.to_word(ring.centred(x, step.ring) >> step.shift, step.ring - step.shift)


@_define.register
def _(step: api.Table, x: Tensor, operands: Mapping[str, Tensor]) -> Tensor:
    return ring.to_word(_look_up(operands["table"], x.to(torch.int64), step.bits), step.ring_out)


@_define.register
def _(step: api.FusedTable, x: Tensor, operands: Mapping[str, Tensor]) -> Tensor:
    index = ring.centred(x, step.ring) >> step.shift
    return ring.to_word(_look_up(operands["table"], index, step.ring - step.shift), step.ring_out)


def _look_up(table: Tensor, x: Tensor, bits: int) -> Tensor:
    index = x & ((1 << bits) - 1)
    if table.shape[0] == 1:
        return table[0][index]
    channel = torch.arange(table.shape[0]).reshape(-1, *([1] * (x.dim() - 2)))
    return table[channel.expand(x.shape[1:]), index]


@_define.register
def _(step: api.Clamp, x: Tensor, operands: Mapping[str, Tensor]) -> Tensor:
    index = ring.centred(x, step.ring) >> step.shift
    return ring.to_word(step.low + index.clamp(0, (1 << step.bits) - 1), step.ring_out)


@_define.register
def _(step: api.Lift, x: Tensor, operands: Mapping[str, Tensor]) -> Tensor:
    above = (x.to(torch.int64) - step.low) & ((1 << step.bits) - 1)
    return ring.to_word(step.low + above, step.ring_out)


@_define.register
def _(step: api.Sign, x: Tensor, operands: Mapping[str, Tensor]) -> Tensor:
    return ring.to_word(torch.where(ring.centred(x, step.ring) >= 0, 1, -1), step.ring_out)


@_define.register
def _(step: api.Maximum, x: Tensor, operands: Mapping[str, Tensor]) -> Tensor:
    return ring.to_word(ring.centred(x, step.bits + 1).amax(-1), step.ring_out)


@_define.register
def _(step: api.Relu, x: Tensor, operands: Mapping[str, Tensor]) -> Tensor:
    return ring.to_word(ring.centred(x, step.bits).clamp(min=0), step.ring_out)


@_define.register
def _(step: api.Noise, x: Tensor, operands: Mapping[str, Tensor]) -> Tensor:
    noise.check_law(operands["law"], step.bound, "Noise")
    coins, mask = Random(), (1 << noise.HALF_BITS) - 1  # its own: what is defined is the law, not the draw
    low, high = (coins.words(tuple(x.shape), 32) & mask for _ in range(2))
    return ring.to_word(x, step.ring) + ring.to_word(noise.draw(low, high, operands["law"]), step.ring)
