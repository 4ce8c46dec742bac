"""A seed, sealed so that one aggregator can read it in one run, from one client.

X25519 between the client's key of this run and the aggregator's; HKDF-SHA256, bound to session, client, aggregator and
both public keys; AES-128-GCM. A key seals one message, so its nonce is zero.
"""

from __future__ import annotations

from collections.abc import Mapping

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from protocols.aggregation import SumPlan
from protocols.errors import PeerMisbehaved
from protocols.prg import KEY_BYTES, Key

PUBLIC_BYTES = 32
SEALED_BYTES = KEY_BYTES + 16
_NONCE = bytes(12)


def seal(plan: SumPlan, number: int, seeds: Mapping[str, Key], publics: Mapping[str, bytes]) -> bytes:
    """Client ``number``'s seeds: its fresh public key, then each aggregator's sealed seed, in the order of ``seeds``.

    Raises PeerMisbehaved on an aggregator's key with which every agreement is the same (a point of small order).
    """
    own = X25519PrivateKey.generate()
    public, out = own.public_key().public_bytes_raw(), []
    for name, seed in seeds.items():
        engine = _engine(plan, number, name, own, publics[name], public, publics[name])
        out.append(engine.encrypt(_NONCE, seed.expose_for_sending(), None))
    return public + b"".join(out)


def unseal(plan: SumPlan, number: int, name: str, own: X25519PrivateKey, public: bytes, sealed: bytes) -> Key:
    """Client ``number``'s seed for aggregator ``name``; raises PeerMisbehaved unless it was sealed for just these."""
    mine = own.public_key().public_bytes_raw()
    engine = _engine(plan, number, name, own, public, public, mine)
    try:
        return Key(engine.decrypt(_NONCE, sealed, None))
    except InvalidTag:
        raise PeerMisbehaved(
            f"client {number}'s seed was not sealed for aggregator {name!r} in this run, or was changed on its way"
        ) from None


def _engine(
    plan: SumPlan, number: int, name: str, own: X25519PrivateKey, other: bytes, client: bytes, aggregator: bytes
) -> AESGCM:
    try:
        agreed = own.exchange(X25519PublicKey.from_public_bytes(other))
    except ValueError:
        raise PeerMisbehaved(f"a public key between client {number} and aggregator {name!r} is not one") from None
    bound = b"pqi seed\0" + number.to_bytes(4, "little") + client + aggregator + name.encode()
    return AESGCM(HKDF(SHA256(), KEY_BYTES, plan.session, bound).derive(agreed))
