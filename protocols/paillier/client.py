"""The key holder's end."""

from __future__ import annotations

import numpy as np

from protocols.circuit import Integers, Wide
from protocols.errors import PeerMisbehaved
from protocols.keyed import KeyHolder, Opened
from protocols.paillier.plan import PaillierPlan
from protocols.paillier.pool import Pool
from protocols.paillier.private import PrivateKey
from protocols.prg import Secret

MAX_READY = 1024


class PaillierKeyHolder(Secret, KeyHolder):
    """A secret key, and encryptions of zero made ahead for the next question."""

    def __init__(self, plan: PaillierPlan) -> None:
        self._plan, self._key = plan, PrivateKey(plan.key_bits)
        self.pool = Pool(self._key.zero, min(plan.circuit.inputs, MAX_READY))
        self.pool.refill()

    def evaluation_keys(self) -> bytes:
        """The public key."""
        return self._key.public.to_bytes()

    def encrypt(self, codes: Integers) -> list[bytes]:
        """One message per group of samples, one ciphertext per input in it."""
        self._plan.circuit.check_inputs(codes)
        key = self._key.public
        messages, first = [], 0
        for group in self._plan.groups(len(codes)):
            columns = codes[first : first + group].T.tolist()
            zeros = self.pool.take(len(columns))
            packed = [self._plan.packing.pack(column) for column in columns]
            messages.append(key.write([key.encrypt(m, zero) for m, zero in zip(packed, zeros, strict=True)]))
            first += group
        self.pool.refill()
        return messages

    def decrypt(self, n: int, answers: list[bytes]) -> Opened:
        """The answers, exact. Raises PeerMisbehaved on what no server of this plan and key returns."""
        groups = self._plan.groups(n)
        if len(answers) != len(groups):
            raise PeerMisbehaved(f"{len(answers)} answers to a question of {len(groups)} parts")
        parts = [self._open(part, group, answers[part]) for part, group in enumerate(groups)]
        values = np.concatenate([np.empty((0, self._plan.circuit.outputs), dtype=object), *parts])
        small = self._plan.circuit.bits <= 63
        return Opened(values.astype(np.int64) if small else values, values.astype(np.float64))

    def _open(self, part: int, group: int, answer: bytes) -> Wide:
        """Python integers ``(group, outputs)``."""
        together, outputs = self._plan.outputs_together(group), self._plan.circuit.outputs
        rows: list[list[int]] = []
        for c in self._key.public.read(answer, self._plan.answers(group), f"the answer of part {part}"):
            count = min(together, outputs - len(rows))
            flat = self._plan.packing.unpack(self._key.decrypt(c), count * group)
            rows += [flat[j * group : (j + 1) * group] for j in range(count)]
        out: Wide = np.array(rows, dtype=object).T
        return out
