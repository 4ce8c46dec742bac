"""Circuits of one affine stage, and a keyed session in one process."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import protocols
from protocols.circuit import Circuit, Weights, prove
from protocols.paillier.client import PaillierKeyHolder
from protocols.paillier.plan import PaillierPlan
from protocols.paillier.protocol import Paillier
from protocols.paillier.server import PaillierEvaluator

FAST = {"key_bits": 2048}


def weights(rows: list[list[int]], bias: list[int]) -> Weights:
    return Weights(np.array(rows, dtype=np.int64), np.array(bias, dtype=object))


def circuit(own: Weights, low: int = 0, high: int = 255, support: NDArray[np.bool_] | None = None) -> Circuit:
    return prove(low, high, [("fc", np.ones(own.weight.shape, dtype=bool) if support is None else support, own)])


@dataclass(frozen=True)
class Ends:
    plan: PaillierPlan
    client: PaillierKeyHolder
    server: PaillierEvaluator

    def ask(self, x: NDArray[np.int64]) -> NDArray[np.object_]:
        """The decrypted answers, with every message held to its declared length."""
        cost = self.plan.cost(len(x))
        questions = self.client.encrypt(x)
        answers = [self.server.evaluate(len(x), part, question) for part, question in enumerate(questions)]
        assert tuple(map(len, questions)) == cost.questions
        assert tuple(map(len, answers)) == cost.answers
        exact = self.client.decrypt(len(x), answers).exact
        assert exact is not None
        return exact.astype(object)


def protocol() -> Paillier:
    made = protocols.get_keyed("paillier")
    assert isinstance(made, Paillier)
    return made


def ends(own: Weights, made: Circuit) -> Ends:
    plan = protocol().plan(made, FAST)
    client = protocol().key_holder(plan)
    return Ends(plan, client, protocol().evaluator(plan, {"fc": own}, client.evaluation_keys()))
