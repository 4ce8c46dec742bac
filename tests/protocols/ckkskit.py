"""Circuits and weights for the tests of ckks, and one whole conversation."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocols.circuit import Circuit, Integers, Weights, Wide, prove
from protocols.ckks.plan import CkksPlan
from protocols.ckks.protocol import Ckks
from protocols.ckks.server import CkksEvaluator
from protocols.clear.circuit import define_circuit
from protocols.keyed import KeyHolder, Opened


def network(
    widths: list[int], coefficients: tuple[int, ...] = (3, 5, 1), seed: int = 0, density: float = 1.0, most: int = 9
) -> tuple[Circuit, dict[str, Weights]]:
    """Affine stages of these widths with a polynomial between each and the next; inputs in 0..15."""
    g = np.random.default_rng(seed)
    supports = [g.random((out, into)) < density for into, out in pairwise(widths)]
    weights = [np.where(s, g.integers(-most, most + 1, s.shape), 0) for s in supports]
    return proven(supports, weights, coefficients, seed)


def proven(
    supports: list[NDArray[np.bool_]], weights: list[Integers], coefficients: tuple[int, ...] = (3, 5, 1), seed: int = 0
) -> tuple[Circuit, dict[str, Weights]]:
    """The circuit of given weights, with random biases."""
    g = np.random.default_rng(seed)
    owned, stages = {}, list[Any]()
    for number, (support, weight) in enumerate(zip(supports, weights, strict=True)):
        name = f"linear{number}"
        owned[name] = Weights(weight, g.integers(-99, 100, len(weight)).astype(object))
        stages.append((name, support, owned[name]))
        if number + 1 < len(supports):
            stages.append((f"act{number}", coefficients))
    return prove(0, 15, stages), owned


@dataclass
class Session:
    """Both ends of a plan, and what they make of inputs."""

    circuit: Circuit
    weights: dict[str, Weights]
    plan: CkksPlan
    client: KeyHolder
    server: CkksEvaluator

    def inputs(self, n: int, seed: int = 1) -> Integers:
        return np.random.default_rng(seed).integers(self.circuit.low, self.circuit.high + 1, (n, self.circuit.inputs))

    def ask(self, x: Integers) -> tuple[list[bytes], list[bytes]]:
        questions = self.client.encrypt(x)
        return questions, [self.server.evaluate(len(x), part, asked) for part, asked in enumerate(questions)]

    def answer(self, x: Integers) -> tuple[Opened, Wide]:
        _, answers = self.ask(x)
        return self.client.decrypt(len(x), answers), define_circuit(self.circuit, self.weights, x)


def session(circuit: Circuit, weights: dict[str, Weights], **options: Any) -> Session:
    """A plan with the weights' norms, read back from plain data as the other side does, and both ends."""
    protocol = Ckks()
    options = {**protocol.declare(circuit, weights), **options}
    plan = protocol.read(protocol.plan(circuit, options).to_json())
    client = protocol.key_holder(plan)
    server = protocol.evaluator(plan, weights, client.evaluation_keys())
    if not isinstance(server, CkksEvaluator):
        raise TypeError(type(server))
    return Session(circuit, weights, plan, client, server)


def error(opened: Opened, exact: Wide) -> float:
    """The largest distance to the exact answer."""
    return float(np.abs(opened.approximate - exact.astype(np.float64)).max())
