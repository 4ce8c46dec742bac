"""Sums of many clients' integer vectors, of which the server learns the sum and no summand.

Every client holds a vector of ring elements, ``x_i`` in ``Z_{2^bits}^length``; the server is to learn
``sum_{i in S} x_i mod 2^bits`` for the set S of clients whose vectors arrived, and nothing else. Clients come and go:
whoever misses a stage is left out, before its vector arrived or after it.

The server leads. It asks in *stages*: one message to each party that is still there, one answer from each that
replies. So the server is a generator that yields :class:`Ask` and is resumed with the answers that came; a client, and
a helper (a party with a key or with shares, and no vector), is an object that answers. Nobody here sees a socket: the
same code runs in a loop of one process, in a federation's simulator, and between machines.

A client's object may have to outlive the process it was made in: ``expose_state`` and ``restore`` carry it over on the
client's own machine. The state is secret. An object that has sent its vector refuses to send another, restored or not.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np

from protocols.api import SecurityStatement
from protocols.errors import BadParameters

MAX_CLIENTS = 10_000
MAX_LENGTH = 1 << 31

# A client by its number, 0 .. clients-1, or a helper by its name.
Party: TypeAlias = int | str


@dataclass(frozen=True)
class SumPlan:
    """What everybody knows of one aggregation; constructor refuses what cannot work.

    clients: how many were invited; their numbers are 0 .. clients-1. length: values in a vector. bits: the ring is
    ``Z_{2^bits}``, 1 to 64. threshold: the fewest vectors of which a sum is told; with fewer the run fails and nothing
    is learnt. session: public name of this run, 16 bytes, fresh each time; every key and mask is bound to it. options:
    what a protocol wants to know beyond this, public and serialisable as JSON.
    """

    clients: int
    length: int
    bits: int
    threshold: int
    session: bytes
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _within("clients", self.clients, 2, MAX_CLIENTS, "a sum of one vector is that vector")
        _within("length", self.length, 1, MAX_LENGTH, "values in each client's vector")
        _within("bits", self.bits, 1, 64, "the ring is Z_{2^bits}")
        _within("threshold", self.threshold, 2, self.clients, "a sum of one vector is that vector")
        if len(self.session) != 16:
            raise BadParameters(f"session has {len(self.session)} bytes; it is 16 fresh ones, used for one run")


def _within(name: str, value: int, low: int, high: int, why: str) -> None:
    if not low <= value <= high:
        raise BadParameters(f"{name} = {value} is not within {low} .. {high}: {why}")


@dataclass(frozen=True)
class Ask:
    """One stage as the server sees it: what it asks of whom. Who does not answer in time is left out from here on.

    stage: its name, public. upload: whether clients are to answer with their vectors (once in a run). messages: payload
    for each party asked.
    """

    stage: str
    messages: Mapping[Party, bytes]
    upload: bool = False

    def __repr__(self) -> str:
        # Payloads may be sealed shares: lengths only.
        return f"Ask({self.stage!r}, { ({p: len(m) for p, m in self.messages.items()}) } bytes)"


@dataclass(frozen=True)
class Sum:
    """What the server learns. values: uint64 ``(length,)``, each below 2^bits. included: whose vectors they sum."""

    values: np.ndarray
    included: frozenset[int]


Answers: TypeAlias = Mapping[Party, bytes]
Server: TypeAlias = Generator[Ask, Answers, Sum]


class SumClient(Protocol):
    """One client in one run. Every message is checked: :class:`PeerMisbehaved` says what was wrong, changes nothing."""

    def answer(self, stage: str, message: bytes) -> bytes:
        """The answer in a stage without vectors."""
        ...

    def upload(self, stage: str, message: bytes, values: np.ndarray) -> bytes:
        """The protected vector. values: unsigned integers ``(length,)``, each below 2^bits. Once: then it refuses."""
        ...

    def expose_state(self) -> bytes:
        """All that a later process needs to go on, secrets included; for the client's own memory only."""
        ...


class SumHelper(Protocol):
    """A party without a vector: a second aggregator, a key holder. Made anew for each run."""

    def answer(self, stage: str, message: bytes) -> bytes:
        """The answer in one stage."""
        ...

    def expose_state(self) -> bytes:
        """As :meth:`SumClient.expose_state`."""
        ...


@dataclass(frozen=True)
class SumCost:
    """Payload bytes of a run in which nobody drops out, declared by the protocol and equal to those on the wire.

    client_sends, client_receives: per client, all stages together. helper_sends, helper_receives: per helper.
    stages: how many times the server asks.
    """

    client_sends: int
    client_receives: int
    helper_sends: int
    helper_receives: int
    stages: int


class SumProtocol(Protocol):
    """One way to sum. name: its line in ``protocols.SUMS``. secure: False where the server sees summands."""

    name: str
    secure: bool

    def plan(
        self, clients: int, length: int, bits: int, threshold: int, options: Mapping[str, Any] | None = None
    ) -> SumPlan:
        """A checked plan with a fresh session; raises :class:`BadParameters` for what this protocol cannot do."""
        ...

    def helpers(self, plan: SumPlan) -> tuple[str, ...]:
        """Names of the helpers that this run needs besides clients and server."""
        ...

    def client(self, plan: SumPlan, number: int) -> SumClient:
        """Client ``number`` at the start of a run."""
        ...

    def restore_client(self, plan: SumPlan, number: int, state: bytes) -> SumClient:
        """The client that ``expose_state`` was called on."""
        ...

    def helper(self, plan: SumPlan, name: str, secret: bytes | None = None) -> SumHelper:
        """A helper at the start of a run. secret: of its identity, where the plan pins it."""
        ...

    def restore_helper(self, plan: SumPlan, name: str, state: bytes) -> SumHelper:
        """The helper that ``expose_state`` was called on."""
        ...

    def server(self, plan: SumPlan) -> Server:
        """The server's side; raises :class:`BelowThreshold` when too few are left, having learnt nothing."""
        ...

    def cost(self, plan: SumPlan) -> SumCost:
        """Bytes of a run without dropouts."""
        ...

    def statement(self, plan: SumPlan) -> SecurityStatement:
        """The adversary, and who learns what."""
        ...
