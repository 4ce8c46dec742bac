"""The model owner's end. Knows n; has no field for a secret key, and no import that could make one."""

from __future__ import annotations

from typing import Any

from protocols.circuit import Owned
from protocols.errors import Misuse, PeerMisbehaved
from protocols.keyed import Evaluator
from protocols.paillier.plan import PaillierPlan
from protocols.paillier.pool import Pool
from protocols.paillier.product import Matrix
from protocols.paillier.public import PublicKey

MAX_READY = 64


class PaillierEvaluator(Evaluator):
    """Weights, one client's public key, and encryptions of zero made ahead under that key.

    What leaves is ``(1 + n)^y r^n`` with a fresh uniform r: distributed as the client's own encryption of the answer
    y, whatever the weights. So the answer tells y and nothing else, without any assumption.
    """

    def __init__(self, plan: PaillierPlan, weights: Owned, keys: bytes) -> None:
        stage = plan.stage
        own = weights.get(stage.name)
        if own is None or own.weight.shape != stage.support.shape or own.bias.shape != (stage.outputs,):
            raise Misuse(f"the weights of stage {stage.name!r} are missing or of another shape")
        if own.weight[~stage.support].any():
            raise Misuse(f"stage {stage.name!r} has a weight where its layer has none")
        self._plan, self._key = plan, PublicKey.from_bytes(keys, plan.key_bits)
        self._matrix, self._bias = Matrix(stage.support, own.weight), [int(b) for b in own.bias]
        self._hidden = self._key.zero()
        most = max(plan.answers(1), plan.answers(plan.packing.slots))
        self.pool = Pool(self._key.zero, min(2 * most, MAX_READY))
        self.pool.refill()

    def __repr__(self) -> str:
        return f"PaillierEvaluator({self._plan.key_bits} bits)"

    def evaluate(self, n: int, part: int, question: bytes) -> bytes:
        """The answers to one group of samples. Takes ``plan.answers(group)`` encryptions of zero from the pool."""
        if not 0 <= n <= self._plan.max_batch:
            raise PeerMisbehaved(f"a batch of {n}; one query takes up to {self._plan.max_batch} inputs")
        groups = self._plan.groups(n)
        if not 0 <= part < len(groups):
            raise PeerMisbehaved(f"part {part} of a query of {len(groups)} parts")
        x = self._key.read(question, self._plan.circuit.inputs, f"the question of part {part}")
        y = self._matrix.times(self._key, x, self._hidden)
        together, group = self._plan.outputs_together(groups[part]), groups[part]
        chunks = [range(first, min(first + together, len(y))) for first in range(0, len(y), together)]
        zeros = self.pool.take(len(chunks))
        answers = [self._join(y, chunk, group, zero) for chunk, zero in zip(chunks, zeros, strict=True)]
        self.pool.refill()
        return self._key.write(answers)

    def _join(self, y: list[Any], outputs: range, group: int, zero: Any) -> Any:
        """Some outputs of a group side by side, with their biases, blinded by a zero that nobody else has."""
        key, width = self._key, self._plan.packing.width
        total, bias = y[outputs[-1]], self._bias[outputs[-1]]
        for o in reversed(outputs[:-1]):
            total = key.add([key.scale(total, 1 << (width * group)), y[o]])
            bias = (bias << (width * group)) + self._bias[o]
        every_sample = sum(1 << (width * s) for s in range(group))
        return key.add([total, key.encrypt(bias * every_sample, zero)])
