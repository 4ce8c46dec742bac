"""The client and the aggregator."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from protocols import identity, masks
from protocols.aggregation import SumPlan
from protocols.bitpack import pack_words, packed_bytes, word
from protocols.errors import BadParameters, Misuse, PeerMisbehaved
from protocols.prg import KEY_BYTES, Key
from protocols.shares.sealing import PUBLIC_BYTES, SEALED_BYTES, seal, unseal
from protocols.uploads import KEYS, SteppingHelper, UploadingClient, empty_total

AGGREGATORS, DEFAULT_AGGREGATORS, MAX_AGGREGATORS = "aggregators", 2, 8
SEEDS, SUMS = "seeds", "sums"
NUMBER_BYTES = 4
SEED_BYTES = NUMBER_BYTES + PUBLIC_BYTES + SEALED_BYTES


def aggregators(plan: SumPlan) -> tuple[str, ...]:
    """Names of the aggregators besides the server; raises BadParameters on a number that is not served."""
    count = plan.options.get(AGGREGATORS, DEFAULT_AGGREGATORS)
    if type(count) is not int or not 2 <= count <= MAX_AGGREGATORS:
        raise BadParameters(
            f"aggregators = {str(count)[:20]} is not within 2 .. {MAX_AGGREGATORS}: the server, and others that do not "
            "collude with it"
        )
    return tuple(f"aggregator-{i}" for i in range(1, count))


def clients_of(bitmap: bytes, plan: SumPlan, what: str) -> frozenset[int]:
    """Clients whose bit is set; raises PeerMisbehaved on a wrong length, or bits of clients that do not exist."""
    if len(bitmap) != packed_bytes(plan.clients, 1):
        raise PeerMisbehaved(f"{what} has {len(bitmap)} bytes; {plan.clients} clients take {-(-plan.clients // 8)}")
    bits = np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little")
    if bits[plan.clients :].any():
        raise PeerMisbehaved(f"{what} names clients beyond the {plan.clients} invited")
    return frozenset(np.flatnonzero(bits).tolist())


def bitmap_of(numbers: Collection[int], plan: SumPlan) -> bytes:
    """One bit a client; the inverse of :func:`clients_of`."""
    bits = np.zeros(plan.clients, np.uint8)
    bits[list(numbers)] = 1
    return np.packbits(bits, bitorder="little").tobytes()


class SharesClient(UploadingClient):
    """Masks its vector, and seals the masks' seeds."""

    protocol = "shares"

    def protected(self, message: bytes, values: np.ndarray) -> Sequence[bytes | memoryview]:
        """``x - sum_h m_h`` packed, then the sealed seeds. message: the aggregators' keys, in the order of names."""
        plan, names = self._plan, aggregators(self._plan)
        size = PUBLIC_BYTES + identity.signature_bytes(plan)
        if len(message) != size * len(names):
            raise PeerMisbehaved(
                f"the keys of {len(names)} aggregators have {len(message)} bytes; {size * len(names)} were agreed"
            )
        publics = {
            name: identity.verified(plan, name, message[i * size : (i + 1) * size], PUBLIC_BYTES)
            for i, name in enumerate(names)
        }
        if len(set(publics.values())) != len(names):
            raise PeerMisbehaved("two aggregators have the same key: one party would hold what two must")
        seeds = {name: Key.fresh() for name in names}
        sealed = seal(plan, self._number, seeds, publics)
        own = values.astype(word(plan.bits))  # a copy: the caller's vector stays as it is
        masks.apply(own, (), [seed.expose_for_sending() for seed in seeds.values()])
        # Copied once, into the message: fresh pages cost as much as the mask.
        return [own.data if own.itemsize * 8 == plan.bits else pack_words(own, plan.bits), sealed]


class SharesAggregator(SteppingHelper):
    """Holds seeds, sees no vector. Sums the masks of one set of clients, once, if it is large enough."""

    protocol = "shares"
    order = (KEYS, SEEDS, SUMS)

    def begin(self) -> None:
        """A fresh key for this run."""
        self._own, self._seeds = X25519PrivateKey.generate(), dict[int, Key]()

    def kept(self) -> bytes:
        """The key, and the seeds that came."""
        seeds = [i.to_bytes(NUMBER_BYTES, "little") + seed.expose_for_sending() for i, seed in self._seeds.items()]
        return self._own.private_bytes_raw() + b"".join(seeds)

    def resume(self, content: bytes) -> None:
        """The inverse of :meth:`kept`."""
        step = NUMBER_BYTES + KEY_BYTES
        if len(content) < PUBLIC_BYTES or (len(content) - PUBLIC_BYTES) % step:
            raise Misuse(f"the state of helper {self._name!r} is damaged; start a new run")
        self._own = X25519PrivateKey.from_private_bytes(content[:PUBLIC_BYTES])
        self._seeds = {
            int.from_bytes(content[at : at + NUMBER_BYTES], "little"): Key(content[at + NUMBER_BYTES : at + step])
            for at in range(PUBLIC_BYTES, len(content), step)
        }

    def respond(self, stage: str, message: bytes) -> bytes:
        """keys: this run's public key. seeds: which could be opened. sums: the sum of the named clients' masks."""
        if stage == SEEDS:
            return self._take(message)
        if stage == SUMS:
            return self._sum(message)
        if message:
            raise PeerMisbehaved(f"the question for keys has {len(message)} bytes; it has none")
        return self.advertised(self._own.public_key().public_bytes_raw())

    def _take(self, message: bytes) -> bytes:
        count, rest = divmod(len(message), SEED_BYTES)
        if rest or count > self._plan.clients:
            raise PeerMisbehaved(
                f"sealed seeds of {len(message)} bytes; each takes {SEED_BYTES}, at most {self._plan.clients} come"
            )
        found: dict[int, Key] = {}
        last = -1
        for at in range(0, len(message), SEED_BYTES):
            number = int.from_bytes(message[at : at + NUMBER_BYTES], "little")
            if not last < number < self._plan.clients:
                raise PeerMisbehaved(
                    f"the seed of client {number} comes behind that of {last}: each client once, in order"
                )
            last, public = number, message[at + NUMBER_BYTES : at + NUMBER_BYTES + PUBLIC_BYTES]
            sealed = message[at + NUMBER_BYTES + PUBLIC_BYTES : at + SEED_BYTES]
            try:
                found[number] = unseal(self._plan, number, self._name, self._own, public, sealed)
            except PeerMisbehaved:
                continue  # one client's fault must not end the run: the server hears that this one is not there
        self._seeds = found
        return bitmap_of(found, self._plan)

    def _sum(self, message: bytes) -> bytes:
        wanted = clients_of(message, self._plan, "the set of clients")
        if len(wanted) < self._plan.threshold:
            raise PeerMisbehaved(
                f"masks of {len(wanted)} clients were asked for; of fewer than {self._plan.threshold} none are summed"
            )
        if not wanted <= self._seeds.keys():
            raise PeerMisbehaved(f"masks of clients {sorted(wanted - self._seeds.keys())[:8]} were asked for, not held")
        total = empty_total(self._plan)
        masks.apply(total, [self._seeds[i].expose_for_sending() for i in sorted(wanted)], ())
        self._seeds = {}
        return pack_words(total, self._plan.bits)
