"""Linear maps with shared weights.

Once per model the owner gives both parties ``E = W - B`` and additive shares of W and of the bias; the dealer knows B.
Per item, with ``r`` the mask of the opened input and ``c = B . r`` dealt:

    offline   m_b = E . r_b + c_b + bias_b          (m_0 + m_1 = W . r + bias)
    online    z_b = W_b . x^ + m_b,  x^ = x - r      (z_0 + z_1 = W . x + bias)

The opening of x^ is its own step, so that a value used by several maps (a convolution and a shortcut) is opened once.
Online there is one ring product per party, whose shape and time depend on public shapes only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from protocols import api, ring
from protocols.additive2.kernel import Dealing, Kernel, Party
from protocols.additive2.material import Field, Kind
from protocols.cost import Cost, message
from protocols.errors import Misuse
from protocols.prg import Random
from protocols.rounds import PartyId, Steps


class OpenKernel(Kernel[api.Open]):
    """``x^ = x - r`` is opened: one exchange, ``ring`` bits each way; r is uniform and comes from both keys."""

    def fields(self, step: api.Open) -> tuple[Field, ...]:
        """The mask r."""
        return (Field("r", Kind.MASK, step.count, step.ring),)

    def online(self, step: api.Open, n: int) -> Cost:
        """One opening."""
        return message(n * step.count, step.ring)

    def deal(self, step: api.Open, name: str, inputs: tuple[str, ...], d: Dealing) -> None:
        """Nothing is sent; the dealer remembers r for the maps that use it."""
        d.masks[name] = d.mask(name, "r").reshape(d.n, *step.shape)

    def prepare(self, step: api.Open, name: str, inputs: tuple[str, ...], p: Party) -> Tensor:
        """This party's share of r, kept for the maps that use it."""
        r = p.material.take(name, "r")
        p.masks[name] = r.reshape(p.n, *step.shape)
        return r

    def run(self, step: api.Open, name: str, p: Party, ready: Tensor, x: Tensor) -> Steps[Tensor]:
        """Open ``x - r``."""
        share = ring.to_word(x.reshape(p.n, step.count), step.ring) - ready
        opened = yield from p.open(name, share, step.ring)
        return opened.reshape(p.n, *step.shape)


class LinearKernel(Kernel[api.Linear]):
    """One ring product per party online, no communication of its own."""

    def fields(self, step: api.Linear) -> tuple[Field, ...]:
        """``c = B . r``."""
        return (Field("c", Kind.DEALT, step.count, step.ring),)

    def online(self, step: api.Linear, n: int) -> Cost:
        """Nothing is sent."""
        return Cost()

    def deal(self, step: api.Linear, name: str, inputs: tuple[str, ...], d: Dealing) -> None:
        """``c = B . r``."""
        r = ring.to_word(d.masks[inputs[0]], step.ring)
        c = step.map.apply(d.operands[f"{name}.mask"], r, step.ring)
        d.give(name, "c", c.reshape(d.n, step.count))

    def prepare(self, step: api.Linear, name: str, inputs: tuple[str, ...], p: Party) -> Tensor:
        """``m_b = E . r_b + c_b + bias_b``."""
        if inputs[0] not in p.masks:
            raise Misuse(f"linear step {name!r} must take its input from an Open step, not from {inputs[0]!r}")
        r = ring.to_word(p.masks[inputs[0]], step.ring)
        bias: Tensor = p.operands[f"{name}.bias"]
        c = p.material.take(name, "c").reshape(p.n, *step.shape)
        return step.map.apply(p.operands[f"{name}.masked"], r, step.ring) + c + bias

    def run(self, step: api.Linear, name: str, p: Party, ready: Tensor, x: Tensor) -> Steps[Tensor]:
        """``z_b = W_b . x^ + m_b`` for the public x^."""
        yield from ()
        return step.map.apply(p.operands[f"{name}.share"], ring.to_word(x, step.ring), step.ring) + ready


def share_operands(
    name: str, step: api.Linear, weight: Tensor, bias: Tensor, rng: Random
) -> dict[PartyId, dict[str, Tensor]]:
    """Model owner, once per split: W and bias (int64) -> what each role stores. Fresh masks every time.

    P0 and P1: ``E = W - B``, shares of W and of the bias; dealer: B. Ring words; nobody but the owner can put W
    together alone, and the dealer's B is independent of W.
    """
    step.map.check(weight)
    word = ring.word(step.ring)
    mask = rng.words(tuple(weight.shape), step.ring)
    first = rng.words(tuple(weight.shape), step.ring)
    bias_first = rng.words(tuple(bias.shape), step.ring)
    masked = weight.to(word) - mask
    return {
        PartyId.P0: {f"{name}.masked": masked, f"{name}.share": first, f"{name}.bias": bias_first},
        PartyId.P1: {
            f"{name}.masked": masked,
            f"{name}.share": weight.to(word) - first,
            f"{name}.bias": bias.to(word) - bias_first,
        },
        PartyId.DEALER: {f"{name}.mask": mask},
    }


def prepare_operands(name: str, step: api.Linear, stored: Mapping[str, Tensor]) -> dict[str, Any]:
    """Ring words of a role -> digits for the int8 units (once per process)."""
    out: dict[str, Any] = {}
    for key in ("masked", "share", "mask"):
        if (w := stored.get(f"{name}.{key}")) is not None:
            out[f"{name}.{key}"] = step.map.prepare(_checked(name, key, w, step.ring), step.ring)
    if (b := stored.get(f"{name}.bias")) is not None:
        fits = all(have in (1, want) for have, want in zip(b.shape[::-1], step.shape[::-1], strict=False))
        if b.dim() > len(step.shape) or not fits:
            raise Misuse(f"the bias of {name!r} has shape {tuple(b.shape)}, which does not fit {step.shape}")
        out[f"{name}.bias"] = _checked(name, "bias", b, step.ring)
    return out


def _checked(name: str, key: str, w: Tensor, bits: int) -> Tensor:
    if w.dtype is not ring.word(bits):
        raise Misuse(f"{name}.{key} is stored as {w.dtype}; a ring of 2^{bits} takes {ring.word(bits)}")
    return w
