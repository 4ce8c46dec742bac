"""What every *keyed* protocol is: a client with a key, one server without, and nobody else.

The client encrypts its input under a key that never leaves it; the server evaluates a circuit of its own weights on the
ciphertexts; the client decrypts the answer. One question, one answer, no rounds in between. A query may fall into
*parts* that the server can work on independently of each other, in processes of their own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from protocols.api import SecurityStatement
from protocols.circuit import Circuit, Integers, Owned, Wide


@dataclass(frozen=True)
class KeyedCost:
    """Payload bytes of a batch of n. keys: once a session. questions, answers: one entry per part, in order."""

    keys: int
    questions: tuple[int, ...]
    answers: tuple[int, ...]

    @property
    def question(self) -> int:
        """Bytes from the client."""
        return sum(self.questions)

    @property
    def answer(self) -> int:
        """Bytes to the client."""
        return sum(self.answers)


@dataclass(frozen=True, repr=False)
class Opened:
    """A decrypted answer.

    exact: Python or int64 integers ``(n, outputs)``; None for an approximate protocol. approximate: float64 ``(n,
    outputs)`` in the unit of the integers. error_bound: no approximate value is further from the exact one.
    left: what is left of the noise budget, in bits (None where there is none).
    """

    exact: Integers | Wide | None
    approximate: NDArray[np.float64]
    error_bound: float = 0.0
    left: float | None = None


class Plan(ABC):
    """Everything both sides know: the circuit, parameters, packing, costs. Public, checked when made, never changed."""

    circuit: Circuit

    @abstractmethod
    def cost(self, n: int) -> KeyedCost:
        """Declared bytes of a batch of n; what crosses the wire has exactly these lengths."""

    @property
    @abstractmethod
    def max_batch(self) -> int:
        """Most inputs of one query."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Plain data; ``KeyedProtocol.read`` is the inverse."""

    @abstractmethod
    def facts(self) -> Mapping[str, str]:
        """What a person wants to know, in order: parameters, security level and its reason, depth, key bytes, noise."""


class KeyHolder(ABC):
    """The client's end: makes the keys when it is made. Never leaves its process; refuses repr, copy and pickling."""

    @abstractmethod
    def evaluation_keys(self) -> bytes:
        """What the server needs to compute, ``plan.cost(..).keys`` bytes; no secret can be derived from it."""

    @abstractmethod
    def encrypt(self, codes: Integers) -> list[bytes]:
        """Codes int64 ``(n, inputs)`` in [low, high] -> one message per part. Fresh randomness at every call."""

    @abstractmethod
    def decrypt(self, n: int, answers: list[bytes]) -> Opened:
        """The answers of all parts, in order. Raises PeerMisbehaved on what is no answer, NoiseExhausted."""


class Evaluator(ABC):
    """The server's end for one client: weights and evaluation keys. Holds no secret key and has no field for one."""

    def warm(self, part: int) -> None:
        """Prepare what the part of that number of a small query needs, before it comes. Changes no result."""
        return

    @abstractmethod
    def evaluate(self, n: int, part: int, question: bytes) -> bytes:
        """One part of a query of n inputs. Raises PeerMisbehaved on what is no question of this plan and these keys."""


class KeyedProtocol(ABC):
    """A way to evaluate circuits under a client's key. Stateless; plans and ends are made from it."""

    name: ClassVar[str]
    exact: ClassVar[bool]
    max_degree: ClassVar[int]  # of polynomials it serves; 1: affine circuits only
    security: ClassVar[SecurityStatement]

    def declare(self, circuit: Circuit, weights: Owned) -> dict[str, Any]:
        """Options for :meth:`plan` that the model owner takes from the weights, and thereby publishes: nothing here."""
        return {}

    @abstractmethod
    def plan(self, circuit: Circuit, options: Mapping[str, Any] | None = None) -> Plan:
        """Parameters for a circuit. Raises BadParameters that names the stage, the bound and what would help."""

    @abstractmethod
    def read(self, data: Mapping[str, Any]) -> Plan:
        """A plan from plain data, believed nothing. Raises BadParameters."""

    @abstractmethod
    def key_holder(self, plan: Plan) -> KeyHolder:
        """The client's end, with fresh keys."""

    @abstractmethod
    def evaluator(self, plan: Plan, weights: Owned, keys: bytes) -> Evaluator:
        """The server's end for the keys of one client. Raises PeerMisbehaved on keys that are not of this plan."""


@dataclass(frozen=True)
class Remaining:
    """A stage and the noise budget, in bits, that the estimate leaves after it."""

    stage: str
    bits: float
    note: str = ""
