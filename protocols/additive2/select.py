"""Sign-and-select, and maxima from it.

``<x>_t -> <max(x, 0)>``: with ``x^ = x + r`` open, the sign of x is a comparison with one digit (:mod:`compare`), read
from a one-time table at x^'s low bits; the parties open it masked, ``b^ = [x >= 0] xor beta``. With ``keep = b^ +
(1 - 2 b^) beta``, and ``x = x^ - r`` if msb(x^) = 1, else ``x^ - r + 2^t msb(r)``, where x >= 0, the product is linear
in dealt shares of beta, r, beta r, mu = msb(r), beta mu. Two exchanges, 2^(t-1) + 5k' + 2 bits dealt; worth it for
small t. ``max(a, b) = b + relu(a - b)``; a window is a tree. Differences of more than 8 bits go through the digit
comparison of :mod:`clamp` instead.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from protocols import api, ring
from protocols.additive2 import compare
from protocols.additive2.clamp import ClampKernel, Material
from protocols.additive2.kernel import Dealing, Kernel, Party
from protocols.additive2.material import Field
from protocols.cost import Cost
from protocols.rounds import Steps

TABLE_LIMIT = 8


@cache
def _one_digit(bits: int) -> compare.Plan:
    return compare.Plan(bits, 0, bits - 1, (bits - 1,), ("in",))


class ReluKernel(Kernel[api.Relu]):
    """A clamp at the sign alone whose comparison has one digit, so that nothing but x^ and the masked sign is opened.

    Two exchanges, ``bits`` + 1 bits each way; ``2^(bits-1) + 5 ring_out + 2`` bits dealt.
    """

    _clamp = ClampKernel(lambda step: _one_digit(step.ring))

    def _step(self, step: api.Relu) -> api.Clamp:
        return api.Clamp(step.shape, step.bits, 0, step.bits - 1, 0, step.ring_out)

    def fields(self, step: api.Relu) -> tuple[Field, ...]:
        """Those of the clamp."""
        return self._clamp.fields(self._step(step))

    def online(self, step: api.Relu, n: int) -> Cost:
        """x^, then one bit."""
        return self._clamp.online(self._step(step), n)

    def deal(self, step: api.Relu, name: str, inputs: tuple[str, ...], d: Dealing) -> None:
        """The sign's table, and the products the result is linear in."""
        self._clamp.deal(self._step(step), name, inputs, d)

    def prepare(self, step: api.Relu, name: str, inputs: tuple[str, ...], p: Party) -> Material:
        """Read the material."""
        return self._clamp.prepare(self._step(step), name, inputs, p)

    def run(self, step: api.Relu, name: str, p: Party, ready: Material, x: Tensor) -> Steps[Tensor]:
        """Open x^, open the masked sign, select."""
        return (yield from self._clamp.run(self._step(step), name, p, ready, x))


class MaximumKernel(Kernel[api.Maximum]):
    """A tree of ``b + relu(a - b)``: ceil(log2(width)) levels of two exchanges (three by digits)."""

    def parts(self, step: api.Maximum) -> list[tuple[str, Kernel[Any], api.Step]]:
        """One comparison per level, over all its pairs; an odd value passes to the next level."""
        out: list[tuple[str, Kernel[Any], api.Step]] = []
        width, bits = step.width, step.bits + 1
        while width > 1:
            shape = (step.count * (width // 2),)
            by_table = bits <= TABLE_LIMIT
            out.append(
                (f"{len(out)}", ReluKernel(), api.Relu(shape, bits, step.ring_out))
                if by_table
                else (f"{len(out)}", ClampKernel(), api.Clamp(shape, bits, 0, bits - 1, 0, step.ring_out))
            )
            width -= width // 2
        return out

    def fields(self, step: api.Maximum) -> tuple[Field, ...]:
        """None of its own."""
        return ()

    def online(self, step: api.Maximum, n: int) -> Cost:
        """None of its own."""
        return Cost()

    def deal(self, step: api.Maximum, name: str, inputs: tuple[str, ...], d: Dealing) -> None:
        """Every level."""
        for part, kernel, sub in self.parts(step):
            kernel.deal(sub, f"{name}/{part}", (), d)

    def prepare(self, step: api.Maximum, name: str, inputs: tuple[str, ...], p: Party) -> list[Any]:
        """Every level."""
        return [kernel.prepare(sub, f"{name}/{part}", (), p) for part, kernel, sub in self.parts(step)]

    def run(self, step: api.Maximum, name: str, p: Party, ready: list[Any], x: Tensor) -> Steps[Tensor]:
        """Halve the window until one value is left."""
        window = list(ring.to_word(x, step.ring_out).reshape(p.n, *step.shape, step.width).unbind(-1))
        for (part, kernel, sub), material in zip(self.parts(step), ready, strict=True):
            pairs = len(window) // 2
            left, right = window[:pairs], window[pairs : 2 * pairs]
            differences = torch.stack([a - b for a, b in zip(left, right, strict=True)], 1)
            relu = yield from kernel.run(sub, f"{name}/{part}", p, material, differences)
            larger = relu.reshape(differences.shape).unbind(1)
            window = [b + more for b, more in zip(right, larger, strict=True)] + window[2 * pairs :]
        return window[0]
