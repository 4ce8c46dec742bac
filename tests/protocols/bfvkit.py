"""Circuits of chosen shapes with random weights, and one query from end to end."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from protocols.bfv.plan import BfvPlan
from protocols.bfv.protocol import Bfv
from protocols.circuit import Circuit, Integers, Owned, Weights, prove
from protocols.keyed import KeyedCost, Opened

BFV = Bfv()


def network(
    sizes: tuple[int, ...],
    weight_bits: int = 4,
    low: int = -8,
    high: int = 7,
    polynomial: tuple[int, ...] = (0, 0, 1),
    seed: int = 0,
    support: NDArray[np.bool_] | None = None,
) -> tuple[Circuit, dict[str, Weights]]:
    """Affine maps of these sizes with the same polynomial between them; ``support`` is the first stage's."""
    rng = np.random.default_rng(seed)
    stages: list[object] = []
    owned = {}
    for number, (inputs, outputs) in enumerate(pairwise(sizes)):
        touched = np.ones((outputs, inputs), np.bool_) if number or support is None else support
        most = (1 << (weight_bits - 1)) - 1
        weight = np.where(touched, rng.integers(-most, most + 1, touched.shape), 0)
        bias = rng.integers(-100, 101, outputs).astype(object)
        owned[f"fc{number}"] = Weights(weight, bias)
        stages.append((f"fc{number}", touched, owned[f"fc{number}"]))
        if number < len(sizes) - 2:
            stages.append((f"act{number}", polynomial))
    return prove(low, high, stages), owned  # type: ignore[arg-type]


def codes(circuit: Circuit, n: int, seed: int = 0) -> Integers:
    """Random inputs in range."""
    return np.random.default_rng(seed).integers(circuit.low, circuit.high + 1, (n, circuit.inputs))


def ask(plan: BfvPlan, owned: Owned, x: Integers) -> tuple[Opened, KeyedCost]:
    """Keys, question, answer; and the bytes that were really sent."""
    holder = BFV.key_holder(plan)
    keys = holder.evaluation_keys()
    evaluator = BFV.evaluator(plan, owned, keys)
    questions = holder.encrypt(x)
    answers = [evaluator.evaluate(len(x), part, question) for part, question in enumerate(questions)]
    sent = KeyedCost(len(keys), tuple(map(len, questions)), tuple(map(len, answers)))
    return holder.decrypt(len(x), answers), sent
