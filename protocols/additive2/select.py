"""Sign-and-select, and maxima from it.

``<x>_t -> <max(x, 0)>``: with ``x^ = x + r`` open, both read the xor-shared one-time table
``S[j] = msb(j - r) xor beta`` at x^ and open the masked sign b^ (1 bit). ``keep = (1 - b^) - (1 - 2 b^) beta``, and
where x >= 0, ``x = x^ - r`` if msb(x^) = 1, else ``x^ - r + 2^t msb(r)``; the product is linear in dealt shares of
beta, r, beta r, mu = msb(r), beta mu. Two exchanges, 2^t + 5k' bits dealt; worth it for small t. ``max(a, b) = b +
relu(a - b)``; a window is a tree. Differences of more than 8 bits go through the digit comparison of :mod:`clamp`
instead.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from protocols import api, ring
from protocols.additive2.clamp import ClampKernel
from protocols.additive2.kernel import Dealing, Kernel, Party
from protocols.additive2.material import Field, Kind
from protocols.cost import Cost, message
from protocols.rounds import Steps

Ready = dict[str, Tensor]

TABLE_LIMIT = 8
_SHARED = ("beta", "r", "betar", "mu", "betamu")


class ReluKernel(Kernel[api.Relu]):
    """Sign-and-select: two exchanges, ``bits`` + 1 bits each way, ``2^bits + 5 ring_out`` bits dealt."""

    def fields(self, step: api.Relu) -> tuple[Field, ...]:
        """The mask r, the sign table, and five ring elements."""
        return (
            Field("mask", Kind.MASK, step.count, step.bits),
            Field("sign", Kind.DEALT, step.count << step.bits, 1),
            *(Field(name, Kind.DEALT, step.count, step.ring_out) for name in _SHARED),
        )

    def online(self, step: api.Relu, n: int) -> Cost:
        """x^, then one bit."""
        return message(n * step.count, step.bits) + message(n * step.count, 1)

    def deal(self, step: api.Relu, name: str, inputs: tuple[str, ...], d: Dealing) -> None:
        """S, and the products the result is linear in."""
        r = ring.unsigned(d.mask(name, "mask"), step.bits).to(torch.int64)
        beta = ring.unsigned(d.random.words(tuple(r.shape), 1), 1).to(torch.int64)
        j = torch.arange(1 << step.bits)
        turned = (j - r.unsqueeze(-1)) & ((1 << step.bits) - 1)
        d.give_xor(name, "sign", ((turned >> (step.bits - 1)) ^ beta.unsqueeze(-1)).flatten(1))
        mu = r >> (step.bits - 1)
        for key, value in zip(_SHARED, (beta, r, beta * r, mu, beta * mu), strict=True):
            d.give(name, key, value)

    def prepare(self, step: api.Relu, name: str, inputs: tuple[str, ...], p: Party) -> Ready:
        """Read the material."""
        ready = {key: p.material.take(name, key) for key in ("mask", *_SHARED)}
        ready["sign"] = p.material.take(name, "sign").reshape(p.n, step.count, 1 << step.bits)
        return ready

    def run(self, step: api.Relu, name: str, p: Party, ready: Ready, x: Tensor) -> Steps[Tensor]:
        """Open x^, open the masked sign, select."""
        share = ring.to_word(x.reshape(p.n, step.count), step.bits) + ready["mask"]
        opened = yield from p.open(name, share, step.bits)
        x_hat = ring.unsigned(opened, step.bits)
        own = ready["sign"].gather(2, x_hat.to(torch.int64).unsqueeze(-1)).squeeze(-1)
        sign = yield from p.open_bits(f"{name}.sign", own, 1)
        b = (sign & 1).to(ring.word(step.ring_out))
        v = ring.to_word(x_hat, step.ring_out)
        wraps = 1 - ring.to_word(x_hat >> (step.bits - 1), step.ring_out)
        # 2^bits vanishes mod 2^ring_out where the result's ring is no wider than the index
        lift = wraps << step.bits if step.bits < step.ring_out else torch.zeros_like(v)
        secret = lift * ready["mu"] - ready["r"]
        times_beta = v * ready["beta"] + lift * ready["betamu"] - ready["betar"]
        y = (1 - b) * secret - (1 - 2 * b) * times_beta
        return (y + (1 - b) * v if p.first else y).reshape(p.n, *step.shape)


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
        x = ring.to_word(x.reshape(p.n, step.count, step.width), step.ring_out)
        for (part, kernel, sub), material in zip(self.parts(step), ready, strict=True):
            pairs = x.shape[-1] // 2
            a, b, rest = x[..., :pairs], x[..., pairs : 2 * pairs], x[..., 2 * pairs :]
            difference = (a - b).flatten(1)
            relu = yield from kernel.run(sub, f"{name}/{part}", p, material, difference)
            x = torch.cat([b + relu.reshape(b.shape), rest], dim=-1)
        return x.reshape(p.n, *step.shape)
