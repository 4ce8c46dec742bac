"""Whether private answers are what they should be: equal to the integer model's, and as long as declared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

import pqi.program
from pqi.measure.layers import declared_bytes
from pqi.measure.plain import decisions, right
from pqi.measure.subject import Subject
from pqi.program.circuits import Model
from pqi.program.keyed import KeyedProgram
from pqi.session.client import Answer
from pqi.session.ledger import OwnLedger
from protocols.cost import Cost

Served: TypeAlias = pqi.program.Program | KeyedProgram


@dataclass(frozen=True)
class Reply:
    """One prediction: the answer, the client's seconds, the sizes of the queries it went as, and which input of the
    subject's was the first of its batch.
    """

    answer: Answer
    seconds: float
    sizes: tuple[int, ...]
    at: int = 0


@dataclass(frozen=True)
class Truth:
    """Whether the private answers are what they should be, over all samples.

    equal: share of answers of which every integer is the reference's; None under an approximate protocol, and of
    answers with noise, for which no value may be further from the reference's than error_bound. as_declared: whether
    every byte was declared beforehand.
    """

    equal: float | None
    largest_error: float
    error_bound: float
    same_decisions: float
    accuracy: float | None
    as_declared: bool
    noise_left: float | None

    @property
    def held(self) -> bool:
        """Exact where that is promised, within the bound where not, every byte declared."""
        exact = self.largest_error <= self.error_bound if self.equal is None else self.equal == 1.0
        return exact and self.as_declared


def compare(subject: Subject, model: Model, program: Served, replies: Sequence[Reply]) -> Truth:
    """Compare every answer, the warming one too, with the integer model's to the same inputs.

    The first reply is the warming one. Accuracy is of distinct inputs.
    """
    answers = [reply.answer for reply in replies]
    asked = np.concatenate([reply.at + np.arange(len(reply.answer.values)) for reply in replies]) % len(subject.x)
    rows, first, back = np.unique(asked, return_index=True, return_inverse=True)
    x = np.ascontiguousarray(subject.x[rows])
    values, expected = np.concatenate([answer.values for answer in answers]), model.predict(x, "silent")[back]
    known = [own.noise_left for answer in answers if (own := answer.ledger.own) and own.noise_left is not None]
    exact = all(answer.integers is not None for answer in answers) and not getattr(program, "noise", 0)
    reference = np.asarray(model.integers(model.encode(x, "silent")))[back] if exact else None
    return Truth(
        equal=equal(answers, reference),
        largest_error=float(np.abs(values - expected).max()),
        error_bound=max(answer.error_bound for answer in answers),
        same_decisions=float((decisions(values) == decisions(expected)).mean()),
        accuracy=None if subject.y is None else right(values[first], subject.y[rows]),
        as_declared=all(as_declared(program, reply, k == 0) for k, reply in enumerate(replies)),
        noise_left=min(known) if known else None,
    )


def equal(answers: Sequence[Answer], reference: Any) -> float | None:
    """The share of answers whose every integer is the reference's; None where there are no integers."""
    got = [np.asarray(answer.integers) for answer in answers if answer.integers is not None]
    if len(got) < len(answers) or reference is None:
        return None
    flat = [part.reshape(len(reference), -1) for part in (np.concatenate(got), np.asarray(reference))]
    return float((flat[0] == flat[1]).all(1).mean())


def as_declared(program: Served, reply: Reply, first: bool) -> bool:
    """Whether the bytes of one prediction are, to the byte, what the program declares for its queries."""
    ledger = reply.answer.ledger
    if isinstance(program, KeyedProgram):
        (party,) = ledger.parties.values()
        costs, own = [program.cost(n) for n in reply.sizes], ledger.own or OwnLedger()
        return (
            party.client_received == sum(cost.question for cost in costs)
            and party.client_sent == sum(cost.answer for cost in costs)
            and own.key_bytes == (costs[0].keys if first else 0)
        )
    total = sum((program.cost(n) for n in reply.sizes), Cost())
    sent = dict.fromkeys(declared_bytes(program, 1), 0)
    for n in reply.sizes:
        sent = {role: sent[role] + count for role, count in declared_bytes(program, n).items()}
    dealt = sum(ledger.offline_bytes.values())
    return (ledger.exchanges, ledger.online_bytes, dealt) == (total.exchanges, sent, total.dealt_bytes)
