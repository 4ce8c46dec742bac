"""The server's end: evaluation keys of one client, weights prepared once, and no secret key.

What leaves is hidden as far as an approximate scheme allows. A fresh encryption of zero is added, so that nothing of
the ciphertext but its phase depends on weights. In the slots beside the answers, and in the imaginary parts, uniform
noise of the answers' own size covers what is there. In the answers themselves the error stays: it depends on weights
and input, and the client, who has the key, sees it if it knows the exact value. Uniform noise of a quarter of the error
bound is laid over it, many times the error's usual size; that is a help, not a proof (bfv floods by 40 bits, which is).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocols.ckks.bound import FLOOD_SHARE
from protocols.ckks.engine import Engine
from protocols.ckks.plan import BATCH, SINGLE, CkksPlan, Part
from protocols.ckks.schedule import ANSWER_ROOM, AffineStep
from protocols.ckks.weights import Prepared, Products, Scalars
from protocols.errors import Misuse, PeerMisbehaved
from protocols.keyed import Evaluator
from protocols.lattice import batch, wire
from protocols.lattice.context import EvaluationKeys
from protocols.lattice.diagonals import Diagonal
from protocols.lattice.layout import AffineLayout
from protocols.lattice.residues import Words, uniform


class CkksEvaluator(Evaluator):
    """Keys of one client, and the weights."""

    def __init__(self, prepared: Prepared, keys: bytes) -> None:
        self._prepared = prepared
        held = EvaluationKeys(prepared.plan.keys, keys)
        self._name = held.name
        self._engine = Engine(prepared.context, held.under(prepared.context))

    def __repr__(self) -> str:
        return "<CkksEvaluator>"

    def warm(self, part: int) -> None:
        """Make the single packing's plaintexts now, not at the first question."""
        if self._prepared.plan.layout is not None:
            self._prepared.products  # noqa: B018 (made when first read)

    def evaluate(self, n: int, part: int, question: bytes) -> bytes:
        """The answer to one part: name of the keys, then its ciphertexts."""
        plan = self._prepared.plan
        if not 1 <= n <= plan.max_batch:
            raise PeerMisbehaved(f"a query of {n} inputs; this plan serves 1 to {plan.max_batch}")
        parts = plan.parts(n)
        if not 0 <= part < len(parts):
            raise PeerMisbehaved(f"part {part} of a query of {len(parts)} parts")
        asked = parts[part]
        what = f"part {part} of a question of {n} inputs"
        name, *bodies = wire.cut(question, plan.question_sizes(asked.packing), what)
        if bytes(name) != self._name:
            raise PeerMisbehaved(f"{what} names other keys than this session's: ask with the keys that were sent")
        run = self._single if asked.packing == SINGLE else self._batch
        with wire.refused(what):  # keys that are in range and yet nonsense can lead SEAL to give up on the way
            return b"".join([self._name, *run(asked, bodies, what)])

    def _single(self, part: Part, bodies: list[memoryview], what: str) -> list[bytes]:
        plan, engine = self._prepared.plan, self._engine
        if plan.layout is None:
            raise Misuse("this plan has no single packing")
        context, stages = engine.context, zip(plan.layout.stages, self._prepared.products, strict=True)
        held: list[Any] = [wire.load_fresh(context.seal, context.top, body, what) for body in bodies]
        steps = plan.run(SINGLE).steps
        for step in steps[:-1]:
            if isinstance(step, AffineStep):
                held = [engine.divided(affine(engine, *next(stages), held))]
            else:
                held = [engine.polynomial(held[0], step)]
        used = np.arange(plan.slots) < plan.circuit.outputs
        return [self._finished(affine(engine, *next(stages), held), used, SINGLE)]

    def _batch(self, part: Part, bodies: list[memoryview], what: str) -> list[bytes]:
        plan, engine = self._prepared.plan, self._engine
        context, scalars = engine.context, self._prepared.scalars
        words = np.empty((len(bodies), 2, plan.keys.primes, plan.degree), np.uint64)
        for row, body in zip(words, bodies, strict=True):
            row[:] = wire.residues(wire.load_fresh(context.seal, context.top, body, what), context.top)
        used = np.arange(plan.slots) < part.last - part.first
        steps = plan.run(BATCH).steps
        for number, own in enumerate(scalars[:-1]):
            rows = combined(engine, plan, own, number, words)
            before, then = steps[2 * number : 2 * number + 2]
            level = context.levels[steps[2 * number + 2].primes]
            words = np.empty((len(own.bias), 2, len(level.moduli), plan.degree), np.uint64)
            for out, row, bias in zip(words, rows, own.bias, strict=True):
                x = engine.divided(scaled(engine, row, own.scalar, bias, before.primes))
                if isinstance(then, AffineStep):
                    raise Misuse("a polynomial follows every affine stage but the last")
                out[:] = wire.residues(engine.polynomial(x, then), level)
        own, primes = scalars[-1], steps[-1].primes
        rows = combined(engine, plan, own, len(scalars) - 1, words)
        return [
            self._finished(scaled(engine, row, own.scalar, bias, primes), used, BATCH)
            for row, bias in zip(rows, own.bias, strict=True)
        ]

    def _finished(self, x: Any, used: NDArray[np.bool_], packing: str) -> bytes:
        """The last stage's sum, hidden, divided by its prime, as bytes."""
        engine, plan, step = self._engine, self._prepared.plan, self._prepared.plan.run(packing).steps[-1]
        engine.seal.add_inplace(x, engine.zero(step.primes))
        share = FLOOD_SHARE / (1 + FLOOD_SHARE) * plan.bounds[packing]
        most = 1 << (plan.ring.prime - ANSWER_ROOM)
        least = max(1, min(most, int(share * abs(step.gain_out))))
        real = np.where(used, centred(least, plan.slots), centred(most, plan.slots))
        cover = (real + 1j * centred(most, plan.slots)) * float(plan.parameters.coefficient[step.primes - 1])
        engine.seal.add_plain_inplace(x, engine.encoded(cover.tolist(), step.primes))
        return wire.dump(engine.divided(x), engine.context.levels[1])


def centred(bound: int, count: int) -> NDArray[np.float64]:
    """Secret integers uniform in [-bound, bound), as doubles."""
    return (uniform(2 * bound, count) - bound).astype(np.float64)


def affine(engine: Engine, stage: AffineLayout, own: Products, held: list[Any]) -> Any:
    """One affine stage by slots (:mod:`protocols.lattice.layout`), before its division."""
    if isinstance(stage, Diagonal):
        total = _diagonals(engine, stage, own, held[0])
    else:
        total = engine.sum_of_products([(x, own.plain[number]) for number, x in enumerate(held)])
    engine.folded(total, stage.folds)
    engine.seal.add_plain_inplace(total, own.bias)
    return total


def _diagonals(engine: Engine, stage: Diagonal, own: Products, x: Any) -> Any:
    """Baby steps one slot at a time, giant steps by Horner from the last inner sum to the first."""
    copies = [x]
    while len(copies) < stage.babies:
        copies.append(engine.rotated(copies[-1], 1))
    total = None
    for giant in reversed(range(stage.giants)):
        if total is not None:
            total = engine.rotated(total, stage.baby)
        terms = [(copies[baby], own.plain[giant, baby]) for baby in np.flatnonzero(stage.used[giant]).tolist()]
        if terms and total is None:
            total = engine.sum_of_products(terms)
        elif terms:
            engine.seal.add_inplace(total, engine.sum_of_products(terms))
    return total


def combined(engine: Engine, plan: CkksPlan, own: Scalars, number: int, words: Words) -> Words:
    """Residues of ``W x`` for affine stage ``number``."""
    moduli = engine.context.parameters.coefficient[: words.shape[2]]
    return batch.product(own.weight, plan.circuit.affine[number].support, words, moduli)


def scaled(engine: Engine, words: Words, scalar: Any, bias: Any, primes: int) -> Any:
    """A row of residues times the stage's scalar, plus its bias; a row of zeros is a fresh zero, never a bare one."""
    level = engine.context.levels[primes]
    made = wire.from_residues(engine.context.seal, level, words) if words[1].any() else engine.zero(primes)
    engine.seal.multiply_plain_inplace(made, scalar)
    engine.seal.add_plain_inplace(made, bias)
    return made
