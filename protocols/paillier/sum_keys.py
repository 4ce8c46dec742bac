"""The key holder of a sum under Paillier: makes a key pair for one run, and opens one masked sum with it."""

from __future__ import annotations

from protocols.bitpack import pack_words
from protocols.errors import PeerMisbehaved
from protocols.paillier.private import PrivateKey
from protocols.paillier.sum_layout import SumLayout
from protocols.paillier.sum_server import OPEN
from protocols.uploads import KEYS, SteppingHelper


class PaillierSumKeyHolder(SteppingHelper):
    """Sees a sum under a mask, and never a vector; not the server, and not in league with it."""

    protocol = "paillier"
    order = (KEYS, OPEN)

    def begin(self) -> None:
        """A fresh key pair."""
        self._key = PrivateKey(SumLayout(self._plan).key_bits)

    def kept(self) -> bytes:
        """The secret key."""
        return self._key.expose_for_keeping()

    def resume(self, content: bytes) -> None:
        """The inverse of :meth:`kept`."""
        self._key = PrivateKey(SumLayout(self._plan).key_bits, content)

    def respond(self, stage: str, message: bytes) -> bytes:
        """keys: the public key. open: the slots of the masked sum, modulo 2^bits."""
        layout = SumLayout(self._plan)
        if stage == OPEN:
            ciphertexts = self._key.public.read(message, layout.ciphertexts, "the masked sum")
            return pack_words(layout.residues([self._key.decrypt(c) for c in ciphertexts]), self._plan.bits)
        if message:
            raise PeerMisbehaved(f"the question for keys has {len(message)} bytes; it has none")
        return self.advertised(self._key.public.to_bytes())
