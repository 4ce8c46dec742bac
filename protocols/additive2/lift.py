"""From a small ring into a wide one, for values that leave half of the small ring empty: one exchange.

Let x lie in ``[0, 2^(k-1))`` and ``x^ = x + r mod 2^k`` be open, r uniform. The sum passed 2^k exactly if r's highest
bit mu is 1 and that of x^ is 0: a sum that passed is below 2^(k-1) afterwards and had ``r > 2^(k-1)``; one that did not
pass and is below 2^(k-1) has ``mu = 0``. So, over the integers,

    x = x^ - r + 2^k mu (1 - msb(x^)),

linear in dealt shares of r and mu. The latter is multiplied by 2^k: it is dealt in the ring of ring_out - k bits.
"""

from __future__ import annotations

from torch import Tensor

from protocols import api, ring
from protocols.additive2.kernel import Dealing, Kernel, Party
from protocols.additive2.material import Field, Kind
from protocols.cost import Cost, message
from protocols.rounds import Steps


class LiftKernel(Kernel[api.Lift]):
    """One exchange of ``bits`` bits each way; ``2 ring_out - bits`` bits dealt."""

    def fields(self, step: api.Lift) -> tuple[Field, ...]:
        """The mask, its lift, and its highest bit."""
        return (
            Field("mask", Kind.MASK, step.count, step.bits),
            Field("r", Kind.DEALT, step.count, step.ring_out),
            Field("mu", Kind.DEALT, step.count, step.ring_out - step.bits),
        )

    def online(self, step: api.Lift, n: int) -> Cost:
        """x^."""
        return message(n * step.count, step.bits)

    def deal(self, step: api.Lift, name: str, inputs: tuple[str, ...], d: Dealing) -> None:
        """r and mu."""
        r = ring.unsigned(d.mask(name, "mask"), step.bits)
        d.give(name, "r", r)
        d.give(name, "mu", r >> (step.bits - 1))

    def prepare(self, step: api.Lift, name: str, inputs: tuple[str, ...], p: Party) -> dict[str, Tensor]:
        """Read the material."""
        return {key: p.material.take(name, key) for key in ("mask", "r", "mu")}

    def run(self, step: api.Lift, name: str, p: Party, ready: dict[str, Tensor], x: Tensor) -> Steps[Tensor]:
        """Open ``x - low + r``, then the formula."""
        share = ring.to_word(x.reshape(p.n, step.count), step.bits) + ready["mask"]
        opened = yield from p.open(name, share - step.low if p.first else share, step.bits)
        x_hat = ring.unsigned(opened, step.bits)
        passed = 1 - ring.to_word(x_hat >> (step.bits - 1), step.ring_out)
        y = passed * (ring.to_word(ready["mu"], step.ring_out) << step.bits) - ready["r"]
        return (y + ring.to_word(x_hat, step.ring_out) + step.low if p.first else y).reshape(p.n, *step.shape)
