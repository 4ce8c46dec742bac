"""Agreement, derivation and sealing: X25519, HKDF-SHA256 and AES-128-GCM, every key bound to the run's session."""

from __future__ import annotations

import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from protocols.errors import PeerMisbehaved
from protocols.field import encode

PUBLIC_BYTES = 32
COMMITMENT_BYTES = 32
STREAM_KEY_BYTES = 16
NONCE_BYTES = 12
TAG_BYTES = 16


def derive(secret: bytes, session: bytes, purpose: str, *public: bytes, size: int = STREAM_KEY_BYTES) -> bytes:
    """``size`` bytes of HKDF-SHA256; salt: the session; info: the purpose and what else is public (fixed lengths)."""
    return HKDF(SHA256(), size, session, b"\0".join((b"pairwise sum", purpose.encode(), b"".join(public)))).derive(
        secret
    )


def mask_private(seed: int, session: bytes) -> X25519PrivateKey:
    """The key whose agreements give the pairwise masks. Its seed, a field element, is what is shared."""
    return X25519PrivateKey.from_private_bytes(derive(encode(seed), session, "mask key", size=32))


def self_key(seed: int, session: bytes) -> bytes:
    """The key of the stream of the mask that a client adds by itself."""
    return derive(encode(seed), session, "self mask")


def commitment(seed: int, session: bytes) -> bytes:
    """Tells a recovered seed from another number; hides the seed, which has 255 bits."""
    return derive(encode(seed), session, "self commitment", size=COMMITMENT_BYTES)


def public_bytes(private: X25519PrivateKey) -> bytes:
    """32 bytes."""
    return private.public_key().public_bytes_raw()


def agree(private: X25519PrivateKey, public: bytes) -> bytes:
    """The agreed secret; raises :class:`PeerMisbehaved` for a public key that agrees on zero with everybody."""
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise PeerMisbehaved("a public key is a point of small order: it agrees on zero with everybody") from None


def pair_key(private: X25519PrivateKey, own: bytes, other: bytes, session: bytes) -> bytes:
    """The stream key of a pairwise mask, the same at both ends. own, other: the public keys of the two."""
    return derive(agree(private, other), session, "pair mask", min(own, other), max(own, other))


def seal_keys(private: X25519PrivateKey, own: bytes, other: bytes, session: bytes) -> tuple[bytes, bytes]:
    """Keys of what I seal to the other, and of what it seals to me."""
    both = derive(agree(private, other), session, "seal", min(own, other), max(own, other), size=2 * STREAM_KEY_BYTES)
    first, second = both[:STREAM_KEY_BYTES], both[STREAM_KEY_BYTES:]
    return (first, second) if own < other else (second, first)


def seal(key: bytes, plain: bytes, session: bytes, sender: int, receiver: int) -> bytes:
    """Nonce and AES-GCM ciphertext, bound to the session and to who sends to whom: 28 bytes more than the plaintext."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plain, _bound(session, sender, receiver))


def unseal(key: bytes, sealed: bytes, session: bytes, sender: int, receiver: int) -> bytes | None:
    """The plaintext; None if this is not what that sender sealed to this receiver in this session."""
    try:
        nonce, body = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
        return AESGCM(key).decrypt(nonce, body, _bound(session, sender, receiver))
    except InvalidTag:
        return None


def _bound(session: bytes, sender: int, receiver: int) -> bytes:
    return session + sender.to_bytes(4, "big") + receiver.to_bytes(4, "big")
