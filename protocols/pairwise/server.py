"""The server: it passes keys and sealed shares on, adds masked vectors, and takes off what masks are left."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping
from typing import TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from protocols import masks
from protocols.aggregation import Answers, Ask, Party, Server, Sum, SumPlan
from protocols.bitpack import unpack_words, word
from protocols.errors import BelowThreshold, PeerMisbehaved
from protocols.field import ELEMENT_BYTES, decode, recover
from protocols.labels import ANSWER, ASK, body, labelled
from protocols.pairwise import graph, keys, wire

log = logging.getLogger("pqi.pairwise")
_T = TypeVar("_T")
_Stage = Generator[Ask, Answers, dict[int, _T]]


class PairwiseServer:
    """The server's side of one run. left_out: client -> stage in which what it said was refused (public)."""

    def __init__(self, plan: SumPlan, degree: graph.Degree) -> None:
        self._plan, self._degree = plan, degree
        self._neighbours = [
            graph.neighbours(plan.session, plan.clients, degree.neighbours, i) for i in range(plan.clients)
        ]
        self.left_out: dict[int, str] = {}

    def run(self) -> Server:
        """The four stages. Raises :class:`BelowThreshold` as soon as too few are left."""
        plan = self._plan
        adverts = yield from self._stage(wire.KEYS, dict.fromkeys(range(plan.clients), b""), self._read_keys)
        adverts = self._kept(self._without_copies(adverts), wire.KEYS)
        sealed = yield from self._stage(wire.SHARES, self._list_keys(adverts), self._reader_of_shares(adverts))
        sealed = self._kept(sealed, wire.SHARES)
        total = np.zeros(plan.length, word(plan.bits))
        arrived = set((yield from self._stage(wire.VECTORS, self._forward(sealed), self._adder(total))))
        self._enough(arrived, sealed)
        given = yield from self._stage(wire.UNMASK, self._list_arrived(arrived), self._reader_of_given(sealed))
        self._take_off(total, adverts, arrived, sealed, given)
        return Sum(total.astype(np.uint64) & np.uint64((1 << plan.bits) - 1), frozenset(arrived))

    def _stage(self, stage: str, bodies: Mapping[int, bytes], read: Callable[[int, memoryview], _T]) -> _Stage[_T]:
        """Ask, and read what came. Who answers nothing is gone; who answers nonsense is gone too, and noted."""
        plan, found = self._plan, dict[int, _T]()
        asked: dict[Party, bytes] = {i: labelled(plan, stage, i, ASK, data) for i, data in bodies.items()}
        answers = yield Ask(stage, asked, upload=stage == wire.VECTORS)
        for client in bodies:
            if client not in answers:
                continue
            try:
                found[client] = read(client, body(plan, stage, client, ANSWER, answers[client]))
            except PeerMisbehaved as error:
                self.left_out[client] = stage
                log.warning("client %d is left out in stage %r: %s", client, stage, error)
        self._threshold(len(found), stage)
        return found

    def _threshold(self, count: int, stage: str) -> None:
        if count < self._plan.threshold:
            raise BelowThreshold(
                f"stage {stage!r}: {count} of {self._plan.clients} clients are left, and a sum is told of "
                f"{self._plan.threshold} or more; invite again, with a fresh session"
            )

    def _kept(self, there: dict[int, _T], stage: str) -> dict[int, _T]:
        """Those whose secrets enough neighbours can hold; without the others, in turn, some may have too few."""
        while few := [i for i in there if not self._held_by_enough(i, there)]:
            there = {i: value for i, value in there.items() if i not in few}
        self._threshold(len(there), stage)
        return there

    def _held_by_enough(self, client: int, there: Mapping[int, object]) -> bool:
        return 1 + sum(j in there for j in self._neighbours[client]) >= self._degree.needed

    def _read_keys(self, client: int, data: memoryview) -> bytes:
        advert = bytes(wire.exactly(data, wire.ADVERT_BYTES, wire.KEYS, "two public keys and a commitment"))
        probe = X25519PrivateKey.generate()
        for public in wire.cut(data[: wire.PAIR_BYTES], keys.PUBLIC_BYTES):
            keys.agree(probe, public)  # what agrees on zero with one agrees on zero with all
        return advert

    def _without_copies(self, adverts: Mapping[int, bytes]) -> dict[int, bytes]:
        """Without clients that advertise a key of another; the neighbours of both would refuse to go on."""
        seen, kept = set[bytes](), dict[int, bytes]()
        for client, advert in adverts.items():
            own = set(wire.cut(memoryview(advert)[: wire.PAIR_BYTES], keys.PUBLIC_BYTES))
            if len(own) < 2 or own & seen:
                self.left_out[client] = wire.KEYS
                log.warning("client %d is left out in stage 'keys': its public keys were advertised before", client)
            else:
                seen |= own
                kept[client] = advert
        return kept

    def _list_keys(self, adverts: Mapping[int, bytes]) -> dict[int, bytes]:
        def listed(i: int) -> bytes:
            theirs = (adverts[j][: wire.PAIR_BYTES] for j in self._neighbours[i] if j in adverts)
            return b"".join((wire.write_list(adverts, self._neighbours[i]), *theirs))

        return {i: listed(i) for i in adverts}

    def _reader_of_shares(self, adverts: Mapping[int, bytes]) -> Callable[[int, memoryview], dict[int, bytes]]:
        """Reads what a client sealed: neighbour -> ciphertext."""

        def read(client: int, data: memoryview) -> dict[int, bytes]:
            some = [j for j in self._neighbours[client] if j in adverts]
            wire.exactly(data, len(some) * wire.SEALED_BYTES, wire.SHARES, f"shares for {len(some)} neighbours")
            return dict(zip(some, wire.cut(data, wire.SEALED_BYTES), strict=True))

        return read

    def _forward(self, sealed: Mapping[int, Mapping[int, bytes]]) -> dict[int, bytes]:
        def forwarded(i: int) -> bytes:
            to_me = (sealed[j][i] for j in self._neighbours[i] if j in sealed)
            return b"".join((wire.write_list(sealed, self._neighbours[i]), *to_me))

        return {i: forwarded(i) for i in sealed}

    def _adder(self, total: np.ndarray) -> Callable[[int, memoryview], None]:
        """Reads a vector by adding it to the total."""

        def add(_: int, data: memoryview) -> None:
            np.add(total, unpack_words(data, self._plan.length, self._plan.bits), out=total)

        return add

    def _list_arrived(self, arrived: set[int]) -> dict[int, bytes]:
        return {i: wire.write_list(arrived, self._neighbours[i]) for i in arrived}

    def _enough(self, arrived: set[int], sealed: Mapping[int, object]) -> None:
        """Whether what is left can take every mask off; asked before anybody gives up a share."""
        for client in sealed:
            left = (client in arrived) + sum(j in arrived for j in self._neighbours[client])
            if left < self._degree.needed and self._matters(client, arrived):
                raise BelowThreshold(_too_few(client, left, self._degree.needed))

    def _matters(self, client: int, arrived: set[int]) -> bool:
        """Whether a mask of the client's is in the total: its own, or one that a neighbour shares with it."""
        return client in arrived or any(j in arrived for j in self._neighbours[client])

    def _reader_of_given(self, sealed: Mapping[int, object]) -> Callable[[int, memoryview], dict[int, int]]:
        """Reads the shares a client gave up: of whom -> share."""

        def read(client: int, data: memoryview) -> dict[int, int]:
            some, rest = wire.read_list(data, self._neighbours[client], wire.UNMASK)
            if not all(j in sealed for j in some):
                raise PeerMisbehaved("stage 'unmask': shares of somebody who sealed none")
            wire.exactly(rest, (1 + len(some)) * ELEMENT_BYTES, wire.UNMASK, f"{1 + len(some)} shares")
            return dict(zip((client, *some), map(decode, wire.cut(rest, ELEMENT_BYTES)), strict=True))

        return read

    def _take_off(
        self,
        total: np.ndarray,
        adverts: Mapping[int, bytes],
        arrived: set[int],
        sealed: Mapping[int, object],
        given: Mapping[int, Mapping[int, int]],
    ) -> None:
        """Subtract the self masks of those in the total, and their pairwise masks with those who are not."""
        added, taken = list[bytes](), list[bytes]()
        for client in sealed:
            if not self._matters(client, arrived):
                continue
            seed = self._recovered(client, given)
            if client in arrived:
                self._verify(client, keys.commitment(seed, self._plan.session), adverts[client][wire.PAIR_BYTES :])
                taken.append(keys.self_key(seed, self._plan.session))
                continue
            private = keys.mask_private(seed, self._plan.session)
            own = keys.public_bytes(private)
            self._verify(client, own, adverts[client][: keys.PUBLIC_BYTES])
            for j in set(self._neighbours[client]) & arrived:
                key = keys.pair_key(private, own, adverts[j][: keys.PUBLIC_BYTES], self._plan.session)
                # The lower number of a pair added the mask.
                (taken if j < client else added).append(key)
        masks.apply(total, added, taken)

    def _recovered(self, client: int, given: Mapping[int, Mapping[int, int]]) -> int:
        holders = [i for i in sorted((client, *self._neighbours[client])) if client in given.get(i, ())]
        if len(holders) < self._degree.needed:
            raise BelowThreshold(_too_few(client, len(holders), self._degree.needed))
        holders = holders[: self._degree.needed]
        return recover([i + 1 for i in holders], [given[i][client] for i in holders])

    def _verify(self, client: int, found: bytes, advertised: bytes) -> None:
        if found != advertised:
            raise PeerMisbehaved(
                f"stage 'unmask': the shares of client {client}'s secret do not give what it advertised; "
                "it shared something else, or a neighbour changed its share. No sum rather than a wrong one"
            )


def _too_few(client: int, left: int, needed: int) -> str:
    return (
        f"stage 'unmask': {left} holders of client {client}'s shares are left, and {needed} are needed to take its "
        "mask off the total, which stays masked; invite again, with a fresh session"
    )
