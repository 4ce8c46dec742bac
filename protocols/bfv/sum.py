"""Sums under BFV: clients encrypt to a key holder, the server adds, the key holder opens a sum that it cannot read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import tenseal.sealapi as seal

from protocols import identity
from protocols.aggregation import Server, SumCost, SumPlan
from protocols.api import SecurityStatement
from protocols.bfv.sum_ring import HIDING_BITS, SumContext, SumRing
from protocols.bfv.sum_server import KEY_HOLDER, serve
from protocols.bitpack import packed_bytes
from protocols.helped import HelpedSum
from protocols.lattice import wire
from protocols.lattice.context import ID_BYTES, SECURITY_BITS
from protocols.uploads import UploadingClient, declared

if TYPE_CHECKING:
    from protocols.bfv.sum_keys import BfvSumKeyHolder


class BfvSumClient(UploadingClient):
    """Encrypts its vector under the key holder's public key."""

    protocol = "bfv"

    def protected(self, message: bytes, values: np.ndarray) -> Sequence[bytes | memoryview]:
        """The vector's ciphertexts. message: the public key."""
        ring = SumRing(self._plan)
        key, context = identity.verified(self._plan, KEY_HOLDER, message, ring.key_bytes), SumContext(ring)
        encryptor = context.encryptor(key[ID_BYTES:], f"the public key of {KEY_HOLDER!r}")
        out: list[bytes | memoryview] = [key[:ID_BYTES]]
        made = seal.Ciphertext()
        for first in range(0, len(values), ring.degree):
            encryptor.encrypt(context.plaintext(values[first : first + ring.degree]), made)
            out.append(wire.dump(made, context.top))
        return out


class BfvSum(HelpedSum):
    """Option: ``helper_keys``, to pin the key holder. Rings up to 2^59."""

    name: ClassVar[str] = "bfv"
    client_class = BfvSumClient

    def named(self, plan: SumPlan) -> tuple[str, ...]:
        """The key holder; raises BadParameters on rings that are not served."""
        SumRing(plan)
        return (KEY_HOLDER,)

    def helper_class(self) -> type[BfvSumKeyHolder]:
        """The key holder."""
        from protocols.bfv.sum_keys import BfvSumKeyHolder  # a server must not load what makes keys

        return BfvSumKeyHolder

    def serve(self, plan: SumPlan) -> Server:
        """The server's side."""
        return serve(plan)

    def cost(self, plan: SumPlan) -> SumCost:
        """Ciphertexts of two ring elements, N values each, whole ones."""
        ring = SumRing(plan)
        key = ring.key_bytes + identity.signature_bytes(plan)
        told = packed_bytes(plan.length, plan.bits)
        return declared(key, ring.message_bytes, [(0, key), (ring.message_bytes, told)])

    def statement(self, plan: SumPlan) -> SecurityStatement:
        """Who learns what, and from whom it is safe."""
        return SecurityStatement(
            adversary="semi-honest server, key holder and clients; vectors stay hidden unless server and key holder "
            f"collude (ring learning with errors, {SECURITY_BITS}-bit security). The key holder cannot see how many "
            f"vectors it opens: the threshold is the server's word. {identity.remark(plan)}",
            learns={
                "server": f"who took part, and the sum mod 2^{plan.bits} of at least {plan.threshold} vectors: with "
                "some of their clients it knows the sum of the others",
                "key holder": f"the length; of the sum nothing; of rounding errors nothing but with probability "
                f"2^-{HIDING_BITS} a value",
                "client": "nothing",
            },
        )
