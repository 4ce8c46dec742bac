"""The server of a sum under BFV: adds what it cannot read, hides the sum, has it opened. Holds no secret key."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import tenseal.sealapi as seal

from protocols import identity
from protocols.aggregation import Server, Sum, SumPlan
from protocols.bfv.sum_ring import SumContext, SumRing
from protocols.errors import PeerMisbehaved
from protocols.lattice import wire
from protocols.lattice.context import ID_BYTES
from protocols.lattice.residues import Words, added, flood
from protocols.uploads import KEYS, VECTORS, blaming, collected, of_helper, opened, question, told

KEY_HOLDER = "key-holder"
OPEN = "open"
_LAZY = 255  # residues have at most 56 bits: so many vectors are added before they are reduced


def serve(plan: SumPlan) -> Server:
    """Three stages: the public key, the vectors, the masked sum opened."""
    context = SumContext(SumRing(plan))
    found = yield question(plan, KEYS, {KEY_HOLDER: b""})
    message = of_helper(plan, found, KEY_HOLDER, KEYS)
    with blaming(KEY_HOLDER, KEYS):
        key = identity.verified(plan, KEY_HOLDER, message, context.ring.key_bytes)
        name, encryptor = key[:ID_BYTES], context.encryptor(key[ID_BYTES:], "the public key")
    answers = yield question(plan, VECTORS, dict.fromkeys(range(plan.clients), message))
    total = _Total(context.ring)

    def take(_: int, sent: memoryview) -> None:
        total.add(read(context, name, sent, "its vector"))

    included = collected(plan, answers, take)
    masks = np.frombuffer(os.urandom(8 * total.words.shape[0] * context.ring.degree), "<u8")
    masks = (masks & np.uint64(context.ring.plain - 1)).reshape(-1, context.ring.degree)
    hidden = [_hidden(context, encryptor, c, mask) for c, mask in zip(total.reduced(), masks, strict=True)]
    found = yield question(plan, OPEN, {KEY_HOLDER: b"".join([name, *hidden])})
    masked = told(plan, found, KEY_HOLDER, OPEN)
    return Sum(opened(plan, masked.astype(np.uint64) - masks.reshape(-1)[: plan.length]), included)


class _Total:
    """A sum of vectors of ciphertexts, as residues ``(ciphertexts, 2, primes, N)``."""

    def __init__(self, ring: SumRing) -> None:
        self._moduli = np.array(ring.data.moduli, np.uint64).reshape(-1, 1)
        self.words = np.zeros((ring.ciphertexts, 2, len(ring.data.moduli), ring.degree), np.uint64)
        self._pending = 0

    def add(self, words: Words) -> None:
        """One more vector."""
        if self._pending == _LAZY - 1:
            self.reduced()
        self.words += words
        self._pending += 1

    def reduced(self) -> Words:
        """The sum, every residue below its prime."""
        self.words %= self._moduli
        self._pending = 1
        return self.words


def read(context: SumContext, name: bytes, message: memoryview, what: str) -> Words:
    """A vector's ciphertexts as residues ``(ciphertexts, 2, primes, N)``.

    Raises PeerMisbehaved on a wrong length (judged first), another key's name, a residue that is not below its prime.
    """
    ring = context.ring
    if len(message) != ring.message_bytes:
        raise PeerMisbehaved(f"{what} has {len(message)} bytes; {ring.message_bytes} were agreed")
    if bytes(message[:ID_BYTES]) != name:
        raise PeerMisbehaved(f"{what} is under another key than that of this run")
    size = ring.data.polynomial_bytes
    halves = [wire.unpack(message[at : at + size], ring.data) for at in range(ID_BYTES, len(message), size)]
    words = np.stack(halves).reshape(ring.ciphertexts, 2, len(ring.data.moduli), ring.degree)
    if any((words[:, :, j] >= np.uint64(prime)).any() for j, prime in enumerate(ring.data.moduli)):
        raise PeerMisbehaved(f"{what} has residues that are not below their prime")
    return words


def _hidden(context: SumContext, encryptor: Any, words: Words, mask: np.ndarray) -> bytes:
    """A sum's ciphertext with a fresh encryption of the mask added, and the flood."""
    ring = context.ring
    noise = flood(ring.flood_bits, ring.degree, ring.data.moduli)
    for row, drawn, prime in zip(words[0], noise, ring.data.moduli, strict=True):
        row[:] = added(row, drawn, prime)
    out, fresh = wire.from_residues(context.seal, context.top, words), seal.Ciphertext()
    encryptor.encrypt(context.plaintext(mask), fresh)
    context.evaluator.add_inplace(out, fresh)
    return wire.dump(out, context.top)
