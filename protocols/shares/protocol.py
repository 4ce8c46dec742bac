"""``shares`` as a protocol: the server, declared bytes, the security statement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from protocols import identity
from protocols.aggregation import Server, Sum, SumCost, SumPlan
from protocols.api import SecurityStatement
from protocols.bitpack import packed_bytes, unpack_words
from protocols.errors import PeerMisbehaved
from protocols.helped import HelpedSum
from protocols.shares.parties import (
    AGGREGATORS,
    NUMBER_BYTES,
    SEED_BYTES,
    SEEDS,
    SUMS,
    SharesAggregator,
    SharesClient,
    aggregators,
    bitmap_of,
    clients_of,
)
from protocols.shares.sealing import PUBLIC_BYTES, SEALED_BYTES
from protocols.uploads import (
    KEYS,
    VECTORS,
    collected,
    declared,
    empty_total,
    enough,
    of_helper,
    opened,
    question,
    told,
)


class SharesSum(HelpedSum):
    """Additive shares. Options: ``aggregators``, the server counted (2 by default); ``helper_keys``, to pin them."""

    name: ClassVar[str] = "shares"
    own_options = (AGGREGATORS,)
    client_class = SharesClient

    def named(self, plan: SumPlan) -> tuple[str, ...]:
        """``aggregator-1`` and so on."""
        return aggregators(plan)

    def helper_class(self) -> type[SharesAggregator]:
        """An aggregator."""
        return SharesAggregator

    def serve(self, plan: SumPlan) -> Server:
        """Four stages: the aggregators' keys, the vectors, the seeds, the sums of masks.

        Who is in the sum is settled before any mask is told: clients whose vector has the right length, and whose seeds
        every aggregator could open.
        """
        names = aggregators(plan)
        found = yield question(plan, KEYS, dict.fromkeys(names, b""))
        publics = [of_helper(plan, found, name, KEYS) for name in names]
        for name, public in zip(names, publics, strict=True):
            identity.verified(plan, name, public, PUBLIC_BYTES)
        answers = yield question(plan, VECTORS, dict.fromkeys(range(plan.clients), b"".join(publics)))
        cut, sealed = packed_bytes(plan.length, plan.bits), dict[int, bytes]()

        def hold(number: int, message: memoryview) -> None:
            want = cut + PUBLIC_BYTES + SEALED_BYTES * len(names)
            if len(message) != want:
                raise PeerMisbehaved(f"its vector has {len(message)} bytes; {want} were agreed")
            sealed[number] = bytes(message[cut:])

        there = collected(plan, answers, hold)
        found = yield question(plan, SEEDS, {name: _seeds(sealed, place) for place, name in enumerate(names)})
        for name in names:
            there &= clients_of(of_helper(plan, found, name, SEEDS), plan, f"the answer of {name!r} about seeds")
        enough(plan, there)
        total = empty_total(plan)

        def add(_: int, message: memoryview) -> None:
            np.add(total, unpack_words(message[:cut], plan.length, plan.bits), out=total)

        included = collected(plan, {number: answers[number] for number in there}, add)
        found = yield question(plan, SUMS, dict.fromkeys(names, bitmap_of(included, plan)))
        for name in names:
            np.add(total, told(plan, found, name, SUMS), out=total)
        return Sum(opened(plan, total), included)

    def cost(self, plan: SumPlan) -> SumCost:
        """A vector at ``bits`` a value, and constants."""
        helpers, vector = len(aggregators(plan)), packed_bytes(plan.length, plan.bits)
        key, set_of_clients = PUBLIC_BYTES + identity.signature_bytes(plan), packed_bytes(plan.clients, 1)
        stages = [(0, key), (plan.clients * SEED_BYTES, set_of_clients), (set_of_clients, vector)]
        return declared(key * helpers, vector + PUBLIC_BYTES + SEALED_BYTES * helpers, stages)

    def statement(self, plan: SumPlan) -> SecurityStatement:
        """Who learns what, and from whom it is safe."""
        names = ", ".join(aggregators(plan))
        return SecurityStatement(
            adversary="semi-honest server, aggregators and clients (X25519, AES-128: 128-bit security); vectors stay "
            f"hidden unless the server and all of {names} collude. {identity.remark(plan)}. Nobody's arithmetic is "
            "proven: any party can spoil the sum",
            learns={
                "server": f"who took part, and the sum mod 2^{plan.bits} of at least {plan.threshold} vectors: with "
                "some of their clients it knows the sum of the others",
                "aggregators": "who took part, the length; nothing about vectors or their sum",
                "client": "nothing",
            },
        )


def _seeds(sealed: Mapping[int, bytes], place: int) -> bytes:
    """What one aggregator gets: number, the client's key, the seed sealed for it; clients in order."""
    at = PUBLIC_BYTES + SEALED_BYTES * place
    return b"".join(
        number.to_bytes(NUMBER_BYTES, "little") + mine[:PUBLIC_BYTES] + mine[at : at + SEALED_BYTES]
        for number, mine in sorted(sealed.items())
    )
