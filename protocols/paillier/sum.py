"""Sums under Paillier: clients encrypt to a key holder, the server adds, the key holder opens a sum it cannot read.

Slow by its nature: one power modulo n^2 for every few dozen values of every client.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from protocols import identity
from protocols.aggregation import Server, SumCost, SumPlan
from protocols.api import SecurityStatement
from protocols.bitpack import packed_bytes
from protocols.errors import BadParameters
from protocols.helped import HelpedSum
from protocols.paillier.plan import KEY_BITS
from protocols.paillier.pool import Pool
from protocols.paillier.public import PublicKey
from protocols.paillier.sum_layout import HIDING_BITS, OPTION, SumLayout
from protocols.paillier.sum_server import KEY_HOLDER, serve
from protocols.uploads import UploadingClient, declared

if TYPE_CHECKING:
    from protocols.paillier.sum_keys import PaillierSumKeyHolder

_MAX_READY = 64


class PaillierSumClient(UploadingClient):
    """Encrypts its vector under the key holder's key."""

    protocol = "paillier"

    def protected(self, message: bytes, values: np.ndarray) -> Sequence[bytes | memoryview]:
        """The vector's ciphertexts. message: the public key."""
        layout = SumLayout(self._plan)
        body = identity.verified(self._plan, KEY_HOLDER, message, layout.key_bytes)
        key = PublicKey.from_bytes(body, layout.key_bits)
        pool = Pool(key.zero, min(layout.ciphertexts - 1, _MAX_READY))
        pool.refill()  # a second thread makes encryptions of zero while this one does: powers leave the interpreter
        try:
            return [key.write([key.encrypt(m, pool.take(1)[0]) for m in layout.plaintexts(values.tolist())])]
        finally:
            pool.close()


class PaillierSum(HelpedSum):
    """Options: ``key_bits``, 2048, 3072 (default) or 4096; ``helper_keys``, to pin the key holder."""

    name: ClassVar[str] = "paillier"
    own_options = (OPTION,)
    client_class = PaillierSumClient

    def named(self, plan: SumPlan) -> tuple[str, ...]:
        """The key holder; raises BadParameters on sizes that are not served."""
        SumLayout(plan)
        return (KEY_HOLDER,)

    def helper_class(self) -> type[PaillierSumKeyHolder]:
        """The key holder; raises BadParameters that names the extra, where what makes its key is not installed."""
        try:
            from protocols.paillier.sum_keys import PaillierSumKeyHolder  # a server must not load what makes keys
        except ModuleNotFoundError as error:
            if error.name != "phe":
                raise
            raise BadParameters(
                "a key for sums under 'paillier' is made by phe, which is not installed: "
                "pip install 'private-quantized-inference[homomorphic]'"
            ) from error
        return PaillierSumKeyHolder

    def serve(self, plan: SumPlan) -> Server:
        """The server's side."""
        return serve(plan)

    def cost(self, plan: SumPlan) -> SumCost:
        """Ciphertexts of twice the key's bits, each for as many values as it has slots."""
        layout, key = SumLayout(plan), SumLayout(plan).key_bytes + identity.signature_bytes(plan)
        told = packed_bytes(plan.length, plan.bits)
        return declared(key, layout.message_bytes, [(0, key), (layout.message_bytes, told)])

    def statement(self, plan: SumPlan) -> SecurityStatement:
        """Who learns what, and from whom it is safe."""
        return SecurityStatement(
            adversary="semi-honest server, key holder and clients; vectors stay hidden unless server and key holder "
            f"collude (decisional composite residuosity, {KEY_BITS[SumLayout(plan).key_bits]}-bit security). The key "
            "holder cannot see how many vectors it opens: the threshold is the server's word. " + identity.remark(plan),
            learns={
                "server": f"who took part, and the sum mod 2^{plan.bits} of at least {plan.threshold} vectors: with "
                "some of their clients it knows the sum of the others",
                "key holder": f"the length; of the sum nothing but with probability 2^-{HIDING_BITS} a value",
                "client": "nothing",
            },
        )
