"""What sums have in common in which a client speaks once, with its protected vector, and helpers do the rest.

``clear``, ``shares``, ``paillier`` and ``bfv`` are such sums: the server collects keys of the helpers (stage ``keys``),
then the vectors (``vectors``, the only stage that clients see), then asks the helpers to open the sum. A protocol says
what it does to a vector; that each party answers each stage once and in order, is checked here.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from protocols import identity
from protocols.aggregation import Answers, Ask, Party, SumCost, SumPlan
from protocols.bitpack import unpack_words, word
from protocols.errors import BadParameters, BelowThreshold, Misuse, PeerMisbehaved
from protocols.labels import ANSWER, ASK, LABEL_BYTES, body, labelled
from protocols.prg import Secret

KEYS, VECTORS = "keys", "vectors"
_TAG_BYTES = 16

log = logging.getLogger("pqi.sums")


def new_plan(clients: int, length: int, bits: int, threshold: int, options: Mapping[str, Any] | None) -> SumPlan:
    """A plan with a fresh session."""
    return SumPlan(clients, length, bits, threshold, secrets.token_bytes(16), dict(options or {}))


def known_options(protocol: str, plan: SumPlan, names: Collection[str]) -> None:
    """Raise BadParameters on an option that the protocol does not have."""
    for name in plan.options:
        if name not in names:
            raise BadParameters(
                f"sum protocol {protocol!r} has no option {str(name)[:40]!r}; it has {', '.join(names) or 'none'}"
            )


def checked_values(plan: SumPlan, values: np.ndarray) -> np.ndarray:
    """A client's own vector, as it was given; raises Misuse unless it is unsigned, ``(length,)``, below 2^bits."""
    if not isinstance(values, np.ndarray) or values.dtype.kind != "u" or values.shape != (plan.length,):
        found = f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else type(values).__name__
        raise Misuse(f"a vector to be summed is unsigned integers ({plan.length},), not {found}")
    if values.dtype.itemsize * 8 > plan.bits and int(values.max()) >> plan.bits:
        raise Misuse(f"a value does not fit the ring: all must lie below 2^{plan.bits}")
    return values


def opened(plan: SumPlan, total: np.ndarray) -> np.ndarray:
    """What was added up in words, as uint64 below 2^bits."""
    out: np.ndarray = total.astype(np.uint64)
    out &= np.uint64((1 << plan.bits) - 1)
    return out


def empty_total(plan: SumPlan) -> np.ndarray:
    """Zeros to add to, in the smallest word of the ring: sums in it are right modulo 2^bits."""
    return np.zeros(plan.length, word(plan.bits))


def question(plan: SumPlan, stage: str, messages: Mapping[str, bytes] | Mapping[int, bytes]) -> Ask:
    """What the server asks in a stage, labelled; of clients it is their vectors."""
    asked: dict[Party, bytes] = {party: labelled(plan, stage, party, ASK, data) for party, data in messages.items()}
    return Ask(stage, asked, upload=stage == VECTORS)


def collected(plan: SumPlan, answers: Answers, take: Callable[[int, memoryview], None]) -> frozenset[int]:
    """Hand every client's vector to ``take``, and say whose were good.

    ``take`` raises PeerMisbehaved on a bad one, having changed nothing: that client is left out, as if it had dropped
    out, and the log says so. Raises BelowThreshold where too few are left.
    """
    good = set()
    for number, message in answers.items():
        if not isinstance(number, int) or not 0 <= number < plan.clients:
            raise Misuse(f"an answer of {number!r} in a stage that clients 0 .. {plan.clients - 1} were asked in")
        try:
            take(number, body(plan, VECTORS, number, ANSWER, message))
        except PeerMisbehaved as error:
            log.warning("client %d is left out of the sum: %s", number, error)
        else:
            good.add(number)
    enough(plan, good)
    return frozenset(good)


def enough(plan: SumPlan, left: Collection[int]) -> None:
    """Raise BelowThreshold unless so many clients are left."""
    if len(left) < plan.threshold:
        raise BelowThreshold(
            f"vectors of {len(left)} clients arrived, of {plan.clients} invited; the threshold is {plan.threshold}. "
            "Nothing was learnt; start a new run with the clients that are there"
        )


def of_helper(plan: SumPlan, answers: Answers, name: str, stage: str) -> bytes:
    """A helper's answer; raises PeerMisbehaved where it did not come, since nobody can stand in for it."""
    if name not in answers:
        raise PeerMisbehaved(f"helper {name!r} did not answer stage {stage!r}: without it there is no sum")
    return bytes(body(plan, stage, name, ANSWER, answers[name]))


def told(plan: SumPlan, answers: Answers, name: str, stage: str) -> np.ndarray:
    """A helper's answer that is a vector of the plan; raises PeerMisbehaved where it is none."""
    with blaming(name, stage):
        return unpack_words(of_helper(plan, answers, name, stage), plan.length, plan.bits)


@contextmanager
def blaming(name: str, stage: str) -> Iterator[None]:
    """Put a helper's name to whatever is found wrong with what it said."""
    try:
        yield
    except PeerMisbehaved as error:
        raise PeerMisbehaved(f"helper {name!r}, stage {stage!r}: {error}") from None


def declared(to_client: int, from_client: int, helper: Sequence[tuple[int, int]] = ()) -> SumCost:
    """Bytes of a run, labels added. helper: bytes to and from each helper in each of its stages."""
    labels, there, back = LABEL_BYTES * len(helper), sum(to for to, _ in helper), sum(back for _, back in helper)
    return SumCost(
        client_sends=from_client + LABEL_BYTES,
        client_receives=to_client + LABEL_BYTES,
        helper_sends=back + labels,
        helper_receives=there + labels,
        stages=len(helper) + 1,
    )


def stored(plan: SumPlan, protocol: str, who: int | str, content: bytes) -> bytes:
    """A party's state: bound to protocol, plan and party, so that it cannot be taken up elsewhere."""
    return _tag(plan, protocol, who) + content


def read_back(plan: SumPlan, protocol: str, who: int | str, state: bytes) -> bytes:
    """The content of :func:`stored`; raises Misuse where the state is another party's or another run's."""
    if state[:_TAG_BYTES] != _tag(plan, protocol, who):
        raise Misuse(f"this is no state of {who!r} in this run of {protocol!r}")
    return state[_TAG_BYTES:]


def _tag(plan: SumPlan, protocol: str, who: int | str) -> bytes:
    facts = (protocol, plan.clients, plan.length, plan.bits, plan.threshold, plan.session.hex(), who)
    return hashlib.sha256(repr(facts).encode()).digest()[:_TAG_BYTES]


class UploadingClient(Secret, ABC):
    """A client that is asked once, for its vector. ``state``: of an earlier object of the same client and run."""

    protocol: str

    def __init__(self, plan: SumPlan, number: int, state: bytes | None = None) -> None:
        if not 0 <= number < plan.clients:
            raise BadParameters(f"client {number} of a plan of {plan.clients}: numbers are 0 .. {plan.clients - 1}")
        self._plan, self._number = plan, number
        content = b"\0" if state is None else read_back(plan, self.protocol, number, state)
        if content not in (b"\0", b"\1"):
            raise Misuse(f"the state of client {number} is damaged; start a new run")
        self._sent = content == b"\1"

    @abstractmethod
    def protected(self, message: bytes, values: np.ndarray) -> Sequence[bytes | memoryview]:
        """The vector as it leaves, in parts that are put together once.

        message: what came with the question; raises PeerMisbehaved on a bad one.
        """

    def answer(self, stage: str, message: bytes) -> bytes:
        """There is no stage but the one for vectors."""
        raise PeerMisbehaved(f"client {self._number} was asked for stage {stage!r}; it is asked for {VECTORS!r} alone")

    def upload(self, stage: str, message: bytes, values: np.ndarray) -> bytes:
        """The protected vector, once; raises PeerMisbehaved on what the server must not ask, Misuse on bad values."""
        if stage != VECTORS:
            raise PeerMisbehaved(f"client {self._number} was asked for its vector in stage {stage!r}, not {VECTORS!r}")
        if self._sent:
            raise PeerMisbehaved(
                f"client {self._number} was asked for its vector a second time: two messages could tell more than a sum"
            )
        data = bytes(body(self._plan, stage, self._number, ASK, message))
        parts = self.protected(data, checked_values(self._plan, values))
        self._sent = True
        return labelled(self._plan, stage, self._number, ANSWER, *parts)

    def expose_state(self) -> bytes:
        """Whether the vector has left; to be put away before the answer is sent."""
        return stored(self._plan, self.protocol, self._number, bytes([self._sent]))


class SteppingHelper(Secret, ABC):
    """A helper that answers each of its stages once, in order.

    order: the stages. ``state``: of an earlier object of the same helper and run; only the newest may be restored, for
    an older one would answer a stage a second time. ``secret``: that of a helper whom the plan pins
    (:mod:`protocols.identity`).
    """

    protocol: str
    order: Sequence[str]

    def __init__(self, plan: SumPlan, name: str, state: bytes | None = None, secret: bytes | None = None) -> None:
        self._plan, self._name, self._at = plan, name, 0
        if state is None:
            identity.check_secret(plan, name, secret)
            self._secret = secret
            self.begin()
            return
        content = read_back(plan, self.protocol, name, state)
        own = identity.SECRET_BYTES if identity.pinned(plan) else 0
        if len(content) <= own or content[0] > len(self.order):
            raise Misuse(f"the state of helper {name!r} is damaged; start a new run")
        self._at, self._secret = content[0], content[1 : 1 + own] or None
        self.resume(content[1 + own :])

    @abstractmethod
    def begin(self) -> None:
        """Make the keys of this run."""

    @abstractmethod
    def resume(self, content: bytes) -> None:
        """Take up what :meth:`kept` gave."""

    @abstractmethod
    def kept(self) -> bytes:
        """What a later process needs to go on, secret."""

    @abstractmethod
    def respond(self, stage: str, message: bytes) -> bytes:
        """The answer in one stage; raises PeerMisbehaved, having changed nothing."""

    def advertised(self, body: bytes) -> bytes:
        """The keys of this run as they are sent, signed where the plan pins this helper."""
        return identity.signed(self._plan, self._name, self._secret, body)

    def answer(self, stage: str, message: bytes) -> bytes:
        """The answer, once a stage; raises PeerMisbehaved on a stage out of order."""
        expected = self.order[self._at] if self._at < len(self.order) else None
        if stage != expected:
            wanted = "nothing more: every stage is answered once" if expected is None else f"{expected!r}"
            raise PeerMisbehaved(f"helper {self._name!r} was asked for stage {str(stage)[:40]!r}; it expects {wanted}")
        data = self.respond(stage, bytes(body(self._plan, stage, self._name, ASK, message)))
        self._at += 1
        return labelled(self._plan, stage, self._name, ANSWER, data)

    def expose_state(self) -> bytes:
        """The stage, and the keys."""
        content = bytes([self._at]) + (self._secret or b"") + self.kept()
        return stored(self._plan, self.protocol, self._name, content)
