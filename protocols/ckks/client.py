"""The client's end: keys, fresh ciphertexts, decryption. Nothing that was decrypted ever leaves it."""

from __future__ import annotations

import numpy as np
import tenseal.sealapi as seal
from numpy.typing import NDArray

from protocols.circuit import Integers
from protocols.ckks.plan import SINGLE, CkksPlan, Part
from protocols.errors import PeerMisbehaved
from protocols.keyed import KeyHolder, Opened
from protocols.lattice import wire
from protocols.lattice.context import Context
from protocols.lattice.secret import SecretKeys
from protocols.prg import Secret


class CkksKeys(Secret, KeyHolder):
    """The secret key of a plan; what leaves are fresh ciphertexts and evaluation keys."""

    __slots__ = ("_context", "_decryptor", "_encryptor", "_message", "_plan", "_secret")

    def __init__(self, plan: CkksPlan) -> None:
        self._plan, self._context = plan, Context(plan.parameters)
        self._secret = SecretKeys([self._context])
        self._encryptor, self._decryptor = self._secret.encryptor(0), self._secret.decryptor(0)
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
        context, gain = self._context, self._plan.run(part.packing).gain_in
        out, plain = [self._secret.name], seal.Plaintext()
        for row in self._place(part, codes.astype(np.float64) * gain):
            context.encoder.encode(row.tolist(), 1.0, plain)
            out.append(wire.dump_fresh(self._encryptor.encrypt_symmetric(plain), context.top))
        return b"".join(out)

    def _place(self, part: Part, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Slots ``(ciphertexts, N/2)``: by the layout, or a feature's samples side by side."""
        plan, layout = self._plan, self._plan.layout
        if part.packing == SINGLE and layout is not None:
            return layout.place(values[0])
        slots = np.zeros((plan.circuit.inputs, plan.slots))
        slots[:, : len(values)] = values.T
        return slots

    def decrypt(self, n: int, answers: list[bytes]) -> Opened:
        """Approximate answers of all samples, and the bound of their error.

        Raises PeerMisbehaved on a wrong number, length or name, and on values that the circuit cannot have.
        """
        plan = self._plan
        parts = plan.parts(n)
        if len(answers) != len(parts):
            raise PeerMisbehaved(f"{len(answers)} answers to a question of {len(parts)} parts")
        rows = [self._answer(part, answer) for part, answer in zip(parts, answers, strict=True)]
        return Opened(None, np.concatenate(rows), plan.bounds[parts[0].packing])

    def _answer(self, part: Part, answer: bytes) -> NDArray[np.float64]:
        """Values ``(samples, outputs)`` of a part."""
        plan, context = self._plan, self._context
        what = f"the answer to samples {part.first}..{part.last - 1}"
        name, *bodies = wire.cut(answer, plan.answer_sizes(part.packing), what)
        if bytes(name) != self._secret.name:
            raise PeerMisbehaved(f"{what} names other keys than these: it belongs to another session")
        rows, plain = [], seal.Plaintext()
        for body in bodies:
            ciphertext = wire.load(context.seal, context.levels[1], body, what)
            with wire.refused(what):
                self._decryptor.decrypt(ciphertext, plain)
                rows.append(np.array(context.encoder.decode_double(plain)))
        slots = np.stack(rows) / plan.run(part.packing).gain_out
        taken = part.last - part.first
        values = plan.layout.answer(slots) if part.packing == SINGLE and plan.layout else slots[:, :taken].T
        most = 2.0 ** (plan.circuit.bits - 1) + plan.bounds[part.packing]
        if not (np.abs(values) <= most).all():
            raise PeerMisbehaved(f"{what} has values beyond the {plan.circuit.bits} bits that the circuit can give")
        return np.ascontiguousarray(values)
