"""One client: it masks its vector once, and afterwards gives up one share of one secret of every neighbour, once."""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from protocols import masks
from protocols.aggregation import SumPlan
from protocols.bitpack import pack_words, word
from protocols.errors import Misuse, PeerMisbehaved
from protocols.field import ELEMENT_BYTES, PRIME, encode, share
from protocols.labels import ANSWER, ASK, body, labelled
from protocols.pairwise import graph, keys, wire
from protocols.pairwise.state import State, write_state
from protocols.prg import Secret


class PairwiseClient(Secret):
    """Client ``number`` of one run; see :class:`protocols.aggregation.SumClient`.

    A message that it refuses changes nothing. Every stage is answered once: the vector leaves masked once, and of
    each neighbour's two secrets a share of one is given up, never of both.
    """

    __slots__ = ("_degree", "_neighbours", "_number", "_plan", "_state")

    def __init__(self, plan: SumPlan, degree: graph.Degree, number: int, state: State | None = None) -> None:
        if not 0 <= number < plan.clients:
            raise Misuse(f"client {number} of {plan.clients}: numbers are 0 .. {plan.clients - 1}")
        self._plan, self._degree, self._number = plan, degree, number
        self._neighbours = graph.neighbours(plan.session, plan.clients, degree.neighbours, number)
        self._state = State.new() if state is None else state

    def answer(self, stage: str, message: bytes) -> bytes:
        """Stages "keys", "shares" and "unmask"."""
        if stage == wire.VECTORS:
            raise Misuse("stage 'vectors' is answered by upload(), with the vector")
        data = self._expected(stage, message)
        if stage == wire.KEYS:
            parts, after = self._advertise(data)
        elif stage == wire.SHARES:
            parts, after = self._share(data)
        else:
            parts, after = self._give_up(data)
        self._state = after
        return labelled(self._plan, stage, self._number, ANSWER, *parts)

    def upload(self, stage: str, message: bytes, values: np.ndarray) -> bytes:
        """``values + self mask +- pairwise masks mod 2^bits``, packed. Once."""
        if stage != wire.VECTORS:
            raise Misuse(f"the vector is uploaded in stage 'vectors', not in {stage!r}")
        data = self._expected(stage, message)
        total, own = self._checked(values), self._state
        some, data = self._present(data, tuple(own.pairs), stage)
        wire.exactly(data, len(some) * wire.SEALED_BYTES, stage, f"what {len(some)} neighbours sealed")
        held = dict(own.held)
        for client, sealed in zip(some, wire.cut(data, wire.SEALED_BYTES), strict=True):
            held[client] = self._opened(client, sealed)
        above = [own.pairs[client] for client in some if client > self._number]
        below = [own.pairs[client] for client in some if client < self._number]
        masks.apply(total, [own.self_key, *above], below)
        self._state = State(wire.UNMASK, held=held)
        return labelled(self._plan, stage, self._number, ANSWER, pack_words(total, self._plan.bits))

    def expose_state(self) -> bytes:
        """All that is needed to go on, as JSON. Secret. Put it away before the answer is sent: a state from before
        the upload masks a second vector with the same masks, and their difference would show.
        """
        return write_state(self._plan, self._number, self._state)

    def _expected(self, stage: str, message: bytes) -> memoryview:
        due = self._state.stage
        if stage != due:
            raise PeerMisbehaved(
                f"client {self._number} was asked for stage {stage!r}, but waits for "
                + (
                    f"{due!r}; every stage is answered once, in the order {', '.join(wire.STAGES)}"
                    if due != wire.DONE
                    else "nothing more: this run is over, and no stage of it is answered twice"
                )
            )
        return body(self._plan, stage, self._number, ASK, message)

    def _advertise(self, data: memoryview) -> tuple[list[bytes], State]:
        wire.exactly(data, 0, wire.KEYS, "the question for keys")
        own = self._state
        after = State(wire.SHARES, own.mask_seed, own.self_seed, own.seal_private)
        commitment = keys.commitment(own.self_seed, self._plan.session)
        return [*(public for _, public in self._privates()), commitment], after

    def _privates(self) -> list[tuple[X25519PrivateKey, bytes]]:
        """The keys for masks and for sealing, each with its public half."""
        mask = keys.mask_private(self._state.mask_seed, self._plan.session)
        seal = X25519PrivateKey.from_private_bytes(self._state.seal_private)
        return [(mask, keys.public_bytes(mask)), (seal, keys.public_bytes(seal))]

    def _share(self, data: memoryview) -> tuple[list[bytes], State]:
        plan, own, me = self._plan, self._state, self._number
        some, data = self._present(data, self._neighbours, wire.SHARES)
        wire.exactly(data, len(some) * wire.PAIR_BYTES, wire.SHARES, f"public keys of {len(some)} neighbours")
        (mask, mask_public), (seal, seal_public) = self._privates()
        theirs = wire.cut(data, keys.PUBLIC_BYTES)
        if len({*theirs, mask_public, seal_public}) != len(theirs) + 2:
            raise PeerMisbehaved("stage 'shares': two of the public keys are the same, and every one is its owner's")
        points = [client + 1 for client in (*some, me)]
        rows = share([own.mask_seed, own.self_seed], points, self._degree.needed)
        plain = [(encode(of_mask), encode(of_self)) for of_mask, of_self in rows]
        after = State(wire.VECTORS, self_key=keys.self_key(own.self_seed, plan.session), held={me: plain[-1]})
        sealed = []
        for place, client in enumerate(some):
            after.pairs[client] = keys.pair_key(mask, mask_public, theirs[2 * place], plan.session)
            sealing, after.opening[client] = keys.seal_keys(seal, seal_public, theirs[2 * place + 1], plan.session)
            sealed.append(keys.seal(sealing, b"".join(plain[place]), plan.session, me, client))
        return sealed, after

    def _opened(self, sender: int, sealed: bytes) -> tuple[bytes, bytes] | None:
        """The sender's two shares; None if it sealed something else: then there are none here to give up."""
        plain = keys.unseal(self._state.opening[sender], sealed, self._plan.session, sender, self._number)
        if plain is None or len(plain) != 2 * ELEMENT_BYTES:
            return None
        pair = plain[:ELEMENT_BYTES], plain[ELEMENT_BYTES:]
        return pair if all(int.from_bytes(one, "little") < PRIME for one in pair) else None

    def _give_up(self, data: memoryview) -> tuple[list[bytes], State]:
        held, me = self._state.held, self._number
        others = tuple(client for client in held if client != me)
        arrived, rest = self._present(data, others, wire.UNMASK)
        wire.exactly(rest, 0, wire.UNMASK, "what follows the list")
        parts = [wire.write_list([client for client in others if held[client]], self._neighbours)]
        for client in (me, *others):
            if (pair := held[client]) is not None:
                # The self seed of whose vector is in the sum, the mask seed of whose vector is not: one of the two.
                parts.append(pair[1] if client == me or client in arrived else pair[0])
        return parts, State(wire.DONE)

    def _present(self, data: memoryview, known: tuple[int, ...], stage: str) -> tuple[tuple[int, ...], memoryview]:
        """A list of neighbours: all of them known from before, and with this client enough for its secrets."""
        some, rest = wire.read_list(data, self._neighbours, stage)
        if not set(some) <= set(known):
            raise PeerMisbehaved(f"stage {stage!r}: clients {sorted(set(some) - set(known))} were not there before")
        if len(some) + 1 < self._degree.needed:
            raise PeerMisbehaved(
                f"stage {stage!r}: {len(some)} neighbours are left besides client {self._number}, and "
                f"{self._degree.needed} are needed in all; with fewer a sum would not hide its vectors"
            )
        return some, rest

    def _checked(self, values: np.ndarray) -> np.ndarray:
        """The caller's vector as words of its own, to be masked in place."""
        plan = self._plan
        if values.dtype.kind != "u" or values.shape != (plan.length,):
            raise Misuse(f"a vector is unsigned integers ({plan.length},), not {values.dtype} {values.shape}")
        if values.itemsize * 8 > plan.bits and int(values.max()) >> plan.bits:
            raise Misuse(f"a value of the vector is not below 2^{plan.bits}")
        return values.astype(word(plan.bits))
