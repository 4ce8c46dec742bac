"""Linear maps of weights that nobody knows (shared), that P0 alone knows (owned), or that everybody knows (public).

Per item, with ``r`` the mask of the opened input and ``c = B . r`` dealt, B the dealer's mask of the weights:

=======  ==================================  =================================  ======================================
weights  once per model                      offline                            online
=======  ==================================  =================================  ======================================
shared   both ``E = W - B`` and shares of    ``m_b = E . r_b + c_b + bias_b``   both open ``x^ = x - r``;
         W and bias                                                             ``z_b = W_b . x^ + m_b``
owned    P0 W and bias, P1 ``E = W - B``     r is P1's; P0 ``m_0 = c_0 + bias`` P1 sends ``x_1 - r``;
                                             P1 ``m_1 = E . r + c_1``           ``z_0 = W . x^ + m_0``, ``z_1 = m_1``
public   both W, P0 bias                     nothing                            ``z_b = W . x_b`` (+ bias at P0)
=======  ==================================  =================================  ======================================

In every row ``z_0 + z_1 = W . x + bias``: of shared and owned weights ``m_0 + m_1 = W . r + bias``, for
``c_0 + c_1 = B . r``. B is uniform, so E is, and c_0 comes from K_0, so ``c_1 = B . r - c_0`` is uniform to P1: it
learns nothing of W. Of owned weights P0 sees ``x_1 - r``, uniform since r comes from K_1 alone; P1 receives nothing and
computes no product while anybody waits.

The opening of x^ is its own step, so that a value used by several maps (a convolution and a shortcut) is opened once.
Shapes and time of the products depend on public shapes only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from protocols import api, ring
from protocols.additive2.kernel import Dealing, Kernel, Party
from protocols.additive2.material import Field, Kind
from protocols.cost import Cost, message, one_way
from protocols.errors import Misuse
from protocols.prg import Random
from protocols.protocol import NamedStep
from protocols.rounds import PartyId, Round, Steps

_NOBODY_KNOWS = ("masked", "share", "bias")
HELD: dict[str, dict[PartyId, tuple[str, ...]]] = {
    "shared": {PartyId.P0: _NOBODY_KNOWS, PartyId.P1: _NOBODY_KNOWS, PartyId.DEALER: ("mask",)},
    "owned": {PartyId.P0: ("weight", "bias"), PartyId.P1: ("masked",), PartyId.DEALER: ("mask",)},
    "public": {PartyId.P0: ("weight", "bias"), PartyId.P1: ("weight",), PartyId.DEALER: ()},
}
"""What each role stores of a linear step, by the visibility of its weights: this and no more."""


class OpenKernel(Kernel[api.Open]):
    """``x^ = x - r``: one exchange, ``ring`` bits from each party that sends; r is uniform.

    Opened to both, r comes from both keys and nobody knows it. Opened to P0, r comes from K_1, and P1 alone sends.
    """

    def fields(self, step: api.Open) -> tuple[Field, ...]:
        """The mask r."""
        return (Field("r", Kind.MASK if step.to == "both" else Kind.OWN, step.count, step.ring),)

    def online(self, step: api.Open, n: int) -> Cost:
        """One opening."""
        return (message if step.to == "both" else one_way)(n * step.count, step.ring)

    def deal(self, step: api.Open, name: str, inputs: tuple[str, ...], d: Dealing) -> None:
        """Nothing is sent; the dealer remembers r for the maps that use it."""
        d.masks[name] = d.mask(name, "r").reshape(d.n, *step.shape)

    def prepare(self, step: api.Open, name: str, inputs: tuple[str, ...], p: Party) -> Tensor | None:
        """This party's share of r, kept for the maps that use it; None at P0 if r is P1's alone."""
        if step.to == "P0" and p.first:
            return None
        r = p.material.take(name, "r")
        p.masks[name] = r.reshape(p.n, *step.shape)
        return r

    def run(self, step: api.Open, name: str, p: Party, ready: Tensor | None, x: Tensor) -> Steps[Tensor]:
        """Open ``x - r``; at P1, what is opened to P0 alone is an empty tensor."""
        share = ring.to_word(x.reshape(p.n, step.count), step.ring)
        if step.to == "P0":
            return (yield from _tell_p0(p, name, share if ready is None else share - ready, step))
        opened = yield from p.open(name, share, step.ring, ready)
        return opened.reshape(p.n, *step.shape)


def _tell_p0(p: Party, label: str, share: Tensor, step: api.Open) -> Steps[Tensor]:
    """P1 sends its ``share`` ``(n, count)``; P0 adds it to its own and knows the sum. P1 waits for nothing."""
    if p.first:
        size = ring.packed_bytes(share.numel(), step.ring)
        received = yield Round({}, (p.peer,), label, {p.peer: size})
        theirs = ring.unpack(received[p.peer], step.ring, share.numel(), share.device)
        return (share + theirs.reshape(share.shape)).reshape(p.n, *step.shape)
    yield Round({p.peer: ring.pack(share.reshape(-1), step.ring).tobytes()}, (), label)
    return share.new_zeros((p.n, 0))


class LinearKernel(Kernel[api.Linear]):
    """At most one ring product per party online, no communication of its own."""

    def fields(self, step: api.Linear) -> tuple[Field, ...]:
        """``c = B . r``, unless the weights are public."""
        return () if step.visibility == "public" else (Field("c", Kind.DEALT, step.count, step.ring),)

    def online(self, step: api.Linear, n: int) -> Cost:
        """Nothing is sent."""
        return Cost()

    def deal(self, step: api.Linear, name: str, inputs: tuple[str, ...], d: Dealing) -> None:
        """``c = B . r``."""
        if step.visibility == "public":
            return
        r = ring.to_word(d.masks[inputs[0]], step.ring)
        c = step.map.apply(d.operands[f"{name}.mask"], r, step.ring)
        d.give(name, "c", c.reshape(d.n, step.count))

    def prepare(self, step: api.Linear, name: str, inputs: tuple[str, ...], p: Party) -> Tensor | None:
        """What this party adds online to its product, or, without a product, its share of the result. None: nothing."""
        bias: Tensor | None = p.operands.get(f"{name}.bias")
        if step.visibility == "public":
            return bias
        c = p.material.take(name, "c").reshape(p.n, *step.shape)
        if (masked := p.operands.get(f"{name}.masked")) is not None:
            c = step.map.apply(masked, ring.to_word(p.masks[inputs[0]], step.ring), step.ring, c)
        return c if bias is None else c + bias

    def run(self, step: api.Linear, name: str, p: Party, ready: Tensor | None, x: Tensor) -> Steps[Tensor]:
        """``W_b . x^``, ``W . x^`` or ``W . x_b``, and what is ready; P1 of owned weights has everything ready."""
        yield from ()
        weight = p.operands.get(f"{name}.{'share' if step.visibility == 'shared' else 'weight'}")
        if weight is None and ready is not None:
            return ready
        return step.map.apply(weight, ring.to_word(x, step.ring), step.ring, ready)


def share_operands(
    name: str, step: api.Linear, weight: Tensor, bias: Tensor, rng: Random
) -> dict[PartyId, dict[str, Tensor]]:
    """Model owner, once per split: W and bias (int64) -> what each role stores (:data:`HELD`). Fresh masks every time.

    masked: ``E = W - B``; mask: B. share, bias of shared weights: additive shares; weight, bias of the others: as they
    are. All in ring words. Nobody but the owner can put shared weights together alone; E and B are each independent
    of W.
    """
    step.map.check(weight)
    word = ring.word(step.ring)
    clear = {"weight": weight.to(word), "bias": bias.to(word)}
    if step.visibility == "public":
        made = {PartyId.P0: clear, PartyId.P1: clear}
    else:
        mask = rng.words(tuple(weight.shape), step.ring)
        masked = clear["weight"] - mask
        made = {PartyId.P0: clear, PartyId.P1: {"masked": masked}, PartyId.DEALER: {"mask": mask}}
        if step.visibility == "shared":
            first = rng.words(tuple(weight.shape), step.ring)
            bias_first = rng.words(tuple(bias.shape), step.ring)
            made[PartyId.P0] = {"masked": masked, "share": first, "bias": bias_first}
            made[PartyId.P1] |= {"share": clear["weight"] - first, "bias": clear["bias"] - bias_first}
    held = HELD[step.visibility]
    return {role: {f"{name}.{key}": tensors[key] for key in held[role]} for role, tensors in made.items()}


def prepare_operands(name: str, step: api.Linear, stored: Mapping[str, Tensor]) -> dict[str, Any]:
    """Ring words of a role -> digits for the int8 units (once per process)."""
    out: dict[str, Any] = {}
    for key in ("masked", "share", "weight", "mask"):
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


def check_part(steps: Sequence[NamedStep], role: PartyId, stored: Mapping[str, Any]) -> None:
    """A role holds of every linear step what its visibility says, no less and no more; every input comes opened to
    those who must know it. Raises :class:`Misuse` that names the steps."""
    opened = {name: step.to for name, step, _ in steps if isinstance(step, api.Open)}
    missing, surplus = [], []
    for name, step, inputs in steps:
        if not isinstance(step, api.Linear):
            continue
        if opened.get(inputs[0]) != step.opened_to:
            wanted = "not be opened" if step.opened_to is None else f"come from an Open step to {step.opened_to}"
            raise Misuse(
                f"the input of {name!r}, a map of {step.visibility} weights, must {wanted}; it is {inputs[0]!r}"
            )
        held = HELD[step.visibility][role]
        missing += [f"{name}.{key}" for key in held if f"{name}.{key}" not in stored]
        others = {key for roles in HELD.values() for keys in roles.values() for key in keys}.difference(held)
        surplus += [f"{name}.{key}" for key in sorted(others) if f"{name}.{key}" in stored]
    if missing:
        raise Misuse(f"{role} lacks its part of the model: {', '.join(missing[:5])}; the bundle is of another program")
    if surplus:
        raise Misuse(f"{role} holds what it must not know: {', '.join(surplus[:5])}; the bundle is not its own")
