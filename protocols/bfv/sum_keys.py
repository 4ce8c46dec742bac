"""The key holder of a sum under BFV: makes a key pair for one run, and opens one masked sum with it."""

from __future__ import annotations

import secrets

import numpy as np
import tenseal.sealapi as seal

from protocols.bfv.sum_ring import SumContext, SumRing
from protocols.bfv.sum_server import OPEN
from protocols.bitpack import pack_words
from protocols.errors import Misuse, NoiseExhausted, PeerMisbehaved
from protocols.lattice import wire
from protocols.lattice.context import ID_BYTES
from protocols.uploads import KEYS, SteppingHelper


class BfvSumKeyHolder(SteppingHelper):
    """Sees a sum under a mask, and never a vector; not the server, and not in league with it.

    The secret is ternary, drawn by SEAL's generator, which the operating system seeds.
    """

    protocol = "bfv"
    order = (KEYS, OPEN)

    def begin(self) -> None:
        """A fresh secret key."""
        self._context = SumContext(SumRing(self._plan))
        self._own, self._key_name = seal.KeyGenerator(self._context.seal).secret_key(), secrets.token_bytes(ID_BYTES)

    def kept(self) -> bytes:
        """The key's name, and the secret key."""
        return self._key_name + wire.saved(self._own)

    def resume(self, content: bytes) -> None:
        """The inverse of :meth:`kept`."""
        self._context = SumContext(SumRing(self._plan))
        self._key_name, stream = content[:ID_BYTES], wire.envelope(content[ID_BYTES:])
        try:
            self._own = wire.loaded(seal.SecretKey(), self._context.seal, stream, "the kept key")
        except PeerMisbehaved as error:
            raise Misuse(f"the state of helper {self._name!r} is damaged ({error}); start a new run") from None

    def respond(self, stage: str, message: bytes) -> bytes:
        """keys: the public key. open: the coefficients of the masked sum."""
        if stage == OPEN:
            return self._opened(message)
        if message:
            raise PeerMisbehaved(f"the question for keys has {len(message)} bytes; it has none")
        public = seal.PublicKey()
        seal.KeyGenerator(self._context.seal, self._own).create_public_key(public)
        return self.advertised(self._key_name + wire.dump(public, self._context.key))

    def _opened(self, message: bytes) -> bytes:
        context, ring = self._context, self._context.ring
        sizes = (ID_BYTES, *(ring.data.ciphertext_bytes,) * ring.ciphertexts)
        name, *bodies = wire.cut(message, sizes, "the masked sum")
        if bytes(name) != self._key_name:
            raise PeerMisbehaved("the masked sum is under another key than that of this run")
        decryptor, plain, out = seal.Decryptor(context.seal, self._own), seal.Plaintext(), []
        for body in bodies:
            ciphertext = wire.load(context.seal, context.top, body, "the masked sum")
            if decryptor.invariant_noise_budget(ciphertext) < 1:
                raise NoiseExhausted(
                    "the masked sum has no noise budget left: some client sent what is no fresh encryption. "
                    "Start a new run"
                )
            decryptor.decrypt(ciphertext, plain)
            out.append(context.coefficients(plain))
        return pack_words(np.concatenate(out)[: self._plan.length], self._plan.bits)
