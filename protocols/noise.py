"""Noise by a public law: a table of its cumulative function, and one uniform number for each draw.

A law over the integers ``-bound .. bound`` is given as counts, int64 ``(2 bound + 1,)``: entry j says how many of the
2^62 equally likely numbers u give ``e <= j - bound``. So every probability is a multiple of 2^-62, the law is exactly
what its table says, and a draw is the number of entries that are at most u, less the bound. Which distribution it is
(a discrete Gaussian, a constant in tests) is the affair of who makes the table.

A draw takes as many random bits whatever it gives, so it has a place of its own in a key stream. The search walks the
table by what is drawn: who draws must not share its caches with those who are not to know. A dealer works ahead of
time and on its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from protocols.errors import Misuse

DRAW_BITS = 62
HALF_BITS = DRAW_BITS // 2
WHOLE = 1 << DRAW_BITS


def check_law(law: Tensor, bound: int, name: str) -> None:
    """Refuse what is no law over ``-bound .. bound``; raises :class:`Misuse`."""
    if law.dtype is not torch.int64 or tuple(law.shape) != (2 * bound + 1,):
        raise Misuse(
            f"the law of {name!r} is {law.dtype} {tuple(law.shape)}: int64 ({2 * bound + 1},) is needed, one count for "
            f"each number from {-bound} to {bound}"
        )
    if int(law[0]) < 0 or int(law[-1]) != WHOLE or bool((law.diff() < 0).any()):
        raise Misuse(f"the law of {name!r} must never fall, begin at 0 or above and end at 2^{DRAW_BITS}")


def draw(low: Tensor, high: Tensor, law: Tensor) -> Tensor:
    """e, int64, of the law for each uniform number ``high 2^31 + low``; low, high: 31 bits each, any integer dtype."""
    u = (high.to(torch.int64) << HALF_BITS) | low.to(torch.int64)
    return torch.searchsorted(law, u, right=True) - law.shape[0] // 2
