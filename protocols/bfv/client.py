"""The client's end: keys, fresh ciphertexts, decryption that refuses rather than guesses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tenseal.sealapi as seal
from numpy.typing import NDArray

from protocols.bfv.choose import SINGLE
from protocols.bfv.plan import BfvPlan, Part
from protocols.circuit import Integers, Wide
from protocols.errors import NoiseExhausted, PeerMisbehaved
from protocols.keyed import KeyHolder, Opened
from protocols.lattice import wire
from protocols.lattice.context import Context
from protocols.lattice.secret import SecretKeys
from protocols.prg import Secret

MIN_BUDGET = 1
_INT64_BITS = 63


class BfvKeys(Secret, KeyHolder):
    """One secret key for all plain primes of a plan; what leaves are ciphertexts and evaluation keys."""

    __slots__ = ("_contexts", "_decryptors", "_encryptors", "_message", "_plan", "_secret")

    def __init__(self, plan: BfvPlan) -> None:
        self._plan = plan
        self._contexts = [Context(parameters) for parameters in plan.parameters]
        self._secret = SecretKeys(self._contexts)
        self._encryptors = [self._secret.encryptor(i) for i in range(len(self._contexts))]
        self._decryptors = [self._secret.decryptor(i) for i in range(len(self._contexts))]
        self._message: bytes | None = None

    def evaluation_keys(self) -> bytes:
        """Name of the keys, public key, relinearization key, Galois keys; made once."""
        if self._message is None:
            self._message = self._secret.evaluation(self._plan.keys)
        return self._message

    def encrypt(self, codes: Integers) -> list[bytes]:
        """Seeded symmetric ciphertexts, one message per part."""
        self._plan.circuit.check_inputs(codes)
        return [self._question(part, codes[part.first : part.last]) for part in self._plan.parts(len(codes))]

    def _question(self, part: Part, codes: Integers) -> bytes:
        context, encryptor = self._contexts[part.prime], self._encryptors[part.prime]
        rows = self._place(part, np.mod(codes.astype(np.int64), context.parameters.plain))
        out, plain = [self._secret.name], seal.Plaintext()
        for row in rows:
            context.encoder.encode(row.tolist(), plain)
            out.append(wire.dump_fresh(encryptor.encrypt_symmetric(plain), context.top))
        return b"".join(out)

    def _place(self, part: Part, codes: Integers) -> NDArray[np.int64]:
        """Slots ``(ciphertexts, N)``: by the layout, one sample per row; or a feature's samples side by side."""
        plan, layout = self._plan, self._plan.layout
        if part.packing == SINGLE and layout is not None:
            lanes = np.zeros((2, plan.circuit.inputs), np.int64)
            lanes[: len(codes)] = codes
            return layout.place(lanes).reshape(layout.ciphertexts, plan.degree)
        slots = np.zeros((plan.circuit.inputs, plan.degree), np.int64)
        slots[:, : len(codes)] = codes.T
        return slots

    def decrypt(self, n: int, answers: list[bytes]) -> Opened:
        """Integers of all samples by the Chinese remainder theorem, centred.

        Raises NoiseExhausted before anything is decrypted from an exhausted ciphertext, and PeerMisbehaved on a wrong
        number, length or name, and on values that the circuit cannot have.
        """
        plan = self._plan
        parts = plan.parts(n)
        if len(answers) != len(parts):
            raise PeerMisbehaved(f"{len(answers)} answers to a question of {len(parts)} parts")
        count = len(plan.parameters)
        groups, left = [], []
        for at in range(0, len(parts), count):
            opened = [self._answer(part, answers[at + part.prime]) for part in parts[at : at + count]]
            groups.append(self._combine([values for values, _ in opened]))
            left += [budget for _, budget in opened]
        exact: Any = np.concatenate(groups)
        return Opened(exact, exact.astype(np.float64), left=float(min(left)))

    def _answer(self, part: Part, answer: bytes) -> tuple[NDArray[np.int64], int]:
        """Residues ``(samples, outputs)`` mod the part's plain prime, and the budget that was left."""
        plan, context, decryptor = self._plan, self._contexts[part.prime], self._decryptors[part.prime]
        what = f"the answer to samples {part.first}..{part.last - 1}, plain prime {part.prime}"
        name, *bodies = wire.cut(answer, plan.answer_sizes(part.packing), what)
        if bytes(name) != self._secret.name:
            raise PeerMisbehaved(f"{what} names other keys than these: it belongs to another session")
        level = context.levels[plan.run(part.packing).final]
        left, rows, plain = [], [], seal.Plaintext()
        for body in bodies:
            ciphertext = wire.load(context.seal, level, body, what)
            left.append(_budget(decryptor, ciphertext, what))
            decryptor.decrypt(ciphertext, plain)
            rows.append(np.array(context.encoder.decode_uint64(plain), np.uint64).astype(np.int64))
        taken, slots = part.last - part.first, np.stack(rows)
        if part.packing == SINGLE and plan.layout is not None:
            return plan.layout.answer(slots.reshape(2, -1)[:taken]), min(left)
        return slots[:, :taken].T, min(left)

    def _combine(self, residues: Sequence[NDArray[np.int64]]) -> Integers | Wide:
        """Centred integers from residues mod every plain prime."""
        bits, total, modulus = self._plan.circuit.bits, residues[0].astype(object), self._plan.parameters[0].plain
        for parameters, values in zip(self._plan.parameters[1:], residues[1:], strict=True):
            t = parameters.plain
            total = total + modulus * ((values - total) * pow(modulus, -1, t) % t)
            modulus *= t
        total = np.where(total > modulus // 2, total - modulus, total)
        bound = 1 << (bits - 1)
        if not -bound <= total.min() <= total.max() < bound:
            raise PeerMisbehaved(f"an answer has more than the {bits} bits that the circuit's values can have")
        return total.astype(np.int64) if bits <= _INT64_BITS else total


def _budget(decryptor: Any, ciphertext: Any, what: str) -> int:
    left = int(decryptor.invariant_noise_budget(ciphertext))
    if left < MIN_BUDGET:
        raise NoiseExhausted(f"{what}: no noise budget is left; its content means nothing. Ask again, or plan anew")
    return left
