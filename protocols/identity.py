"""Helpers that clients know by name: a helper keeps an Ed25519 key, and clients have it from a source they trust.

A helper's keys for one run reach the clients through the server. A server that put its own keys in their place would
read every vector. So a plan may *pin* helpers: its option ``helper_keys`` gives the public key of each by name, and the
keys of a run are then signed, bound to the run's session and the helper's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from protocols.aggregation import SumPlan
from protocols.errors import BadParameters, PeerMisbehaved

OPTION = "helper_keys"
SECRET_BYTES, SIGNATURE_BYTES = 32, 64


def new_identity() -> tuple[bytes, str]:
    """A helper's secret, 32 bytes, to be kept; and its public key in hex, for the plans that pin it."""
    made = Ed25519PrivateKey.generate()
    return made.private_bytes_raw(), made.public_key().public_bytes_raw().hex()


def check_pins(plan: SumPlan, helpers: Sequence[str]) -> None:
    """Raise BadParameters unless the plan pins nobody, or every helper by 32 bytes in hex."""
    if OPTION not in plan.options:
        return
    pins = plan.options[OPTION]
    if not isinstance(pins, Mapping) or set(pins) != set(helpers):
        raise BadParameters(f"option {OPTION!r} gives the public key of each helper by name: {', '.join(helpers)}")
    for name in helpers:
        _public(plan, name)


def pinned(plan: SumPlan) -> bool:
    """Whether clients know the helpers."""
    return OPTION in plan.options


def remark(plan: SumPlan) -> str:
    """What pinning, or not, means for a security statement."""
    if pinned(plan):
        return (
            "The plan pins the helpers' keys: a server that swaps them is refused. It must not invent clients, so the "
            "channel has to say who they are"
        )
    return (
        "The helpers' keys come through the server, which must not swap them: pin them by the option "
        f"{OPTION!r} against a server that would"
    )


def signature_bytes(plan: SumPlan) -> int:
    """What pinning adds to each helper's keys on the wire."""
    return SIGNATURE_BYTES if pinned(plan) else 0


def check_secret(plan: SumPlan, name: str, secret: bytes | None) -> None:
    """Raise BadParameters unless the secret is there exactly when it is wanted, and is the pinned helper's."""
    if pinned(plan) == (secret is None):
        raise BadParameters(
            f"the plan pins helper {name!r}, which therefore needs its secret"
            if pinned(plan)
            else f"helper {name!r} has a secret, but the plan does not pin it: set option {OPTION!r}"
        )
    if secret is not None:
        if len(secret) != SECRET_BYTES:
            raise BadParameters(f"the secret of helper {name!r} has {len(secret)} bytes; it is {SECRET_BYTES}")
        own = Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()
        if own != _public(plan, name).public_bytes_raw():
            raise BadParameters(f"the secret of helper {name!r} is not that of the key pinned in option {OPTION!r}")


def signed(plan: SumPlan, name: str, secret: bytes | None, body: bytes) -> bytes:
    """A helper's keys as they are sent: signed where the plan pins it."""
    if secret is None:
        return body
    return body + Ed25519PrivateKey.from_private_bytes(secret).sign(_bound(plan, name, body))


def verified(plan: SumPlan, name: str, message: bytes, size: int) -> bytes:
    """A helper's keys, ``size`` bytes, out of what :func:`signed` made.

    Raises PeerMisbehaved on a wrong length, and where the plan pins the helper and it did not sign them for this run.
    """
    if len(message) != size + signature_bytes(plan):
        raise PeerMisbehaved(
            f"the keys of helper {name!r} have {len(message)} bytes; {size + signature_bytes(plan)} were agreed"
        )
    body = bytes(message[:size])
    if pinned(plan):
        try:
            _public(plan, name).verify(bytes(message[size:]), _bound(plan, name, body))
        except InvalidSignature:
            raise PeerMisbehaved(
                f"the keys of helper {name!r} are not signed by the pinned key for this run: somebody swapped them"
            ) from None
    return body


def _public(plan: SumPlan, name: str) -> Ed25519PublicKey:
    try:
        return Ed25519PublicKey.from_public_bytes(bytes.fromhex(plan.options[OPTION][name]))
    except (ValueError, TypeError, KeyError):
        raise BadParameters(f"option {OPTION!r} gives no public key of 32 bytes in hex for helper {name!r}") from None


def _bound(plan: SumPlan, name: str, body: bytes) -> bytes:
    return b"pqi helper keys\0" + plan.session + name.encode() + b"\0" + body
