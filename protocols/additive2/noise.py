"""Noise that nobody but the dealer knows: drawn by it, dealt in shares, added to a value's shares.

The dealer draws e by a public law (:mod:`protocols.noise`) from its own key stream, whose key no server has. P0's share
of e is in its stream and P1 receives the rest, so each server's share alone is uniform. Nothing is opened:
``y_b = x_b + e_b``. A client that puts the answer together learns x + e, and no more with all that one server knows
beside it. Only the dealer could take the noise off. An item is used once, so every answer has noise of its own.

The coins come from the dealer's key stream and not straight from the operating system, because several workers may
deal one epoch: the same item must have the same noise, whoever makes its record.
"""

from __future__ import annotations

import torch
from torch import Tensor

from protocols import api, noise, planes, ring
from protocols.additive2.kernel import Dealing, Kernel, Party
from protocols.additive2.material import Field, Kind
from protocols.cost import Cost
from protocols.rounds import Steps


class NoiseKernel(Kernel[api.Noise]):
    """No exchange and nothing online; ``ring`` bits dealt a value."""

    def fields(self, step: api.Noise) -> tuple[Field, ...]:
        """The noise, and the dealer's coins for it."""
        return (
            Field("e", Kind.DEALT, step.count, step.ring),
            Field("coins", Kind.DEALER, step.count, noise.DRAW_BITS),
        )

    def online(self, step: api.Noise, n: int) -> Cost:
        """Nothing."""
        return Cost()

    def deal(self, step: api.Noise, name: str, inputs: tuple[str, ...], d: Dealing) -> None:
        """e."""
        coins, half = d.own(name, "coins"), noise.HALF_BITS
        low, high = (_words(part, d.n, step.count) for part in (coins[:half], coins[half:]))
        d.give(name, "e", noise.draw(low, high, d.operands[f"{name}.law"]))

    def prepare(self, step: api.Noise, name: str, inputs: tuple[str, ...], p: Party) -> Tensor:
        """Read the share of e."""
        return p.material.take(name, "e")

    def run(self, step: api.Noise, name: str, p: Party, ready: Tensor, x: Tensor) -> Steps[Tensor]:
        """Add it."""
        yield from ()
        return (ring.to_word(x.reshape(p.n, step.count), step.ring) + ready).reshape(p.n, *step.shape)


def _words(part: Tensor, n: int, count: int) -> Tensor:
    """Planes ``(31, n * width)`` as numbers of 31 bits, int32 ``(n, count)``."""
    line = torch.zeros(8 * part.shape[1], dtype=torch.int32, device=part.device)
    return planes.rows(planes.insert(part, 0, line), n, count)
