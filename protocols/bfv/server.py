"""The server's end: evaluation keys of one client, weights prepared once, and no secret key."""

from __future__ import annotations

from typing import Any

import numpy as np

from protocols.bfv.choose import BATCH, LANES, SINGLE
from protocols.bfv.engine import Engine
from protocols.bfv.plan import BfvPlan, Part
from protocols.bfv.weights import Prepared, Products, Scalars
from protocols.circuit import Polynomial
from protocols.errors import Misuse, PeerMisbehaved
from protocols.keyed import Evaluator
from protocols.lattice import batch, wire
from protocols.lattice.context import EvaluationKeys
from protocols.lattice.diagonals import Diagonal
from protocols.lattice.layout import AffineLayout
from protocols.lattice.residues import Words


class BfvEvaluator(Evaluator):
    """Keys of one client; read under the first plain prime at once, under the others when a part needs them."""

    def __init__(self, prepared: Prepared, keys: bytes) -> None:
        self._prepared = prepared
        self._keys = EvaluationKeys(prepared.plan.keys, keys)
        self._engines: dict[int, Engine] = {}
        self._engine(0)

    def __repr__(self) -> str:
        return "<BfvEvaluator>"

    def _engine(self, prime: int) -> Engine:
        if prime not in self._engines:
            context = self._prepared.contexts[prime]
            self._engines[prime] = Engine(context, self._keys.under(context))
        return self._engines[prime]

    def warm(self, part: int) -> None:
        """Read the keys and make the single packing's plaintexts of the part's prime now, not at the first question."""
        prime = part % len(self._prepared.plan.parameters)
        self._engine(prime)
        if self._prepared.plan.layout is not None:
            self._prepared.products(prime)

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
        if bytes(name) != self._keys.name:
            raise PeerMisbehaved(f"{what} names other keys than this session's: ask with the keys that were sent")
        engine = self._engine(asked.prime)
        run = self._single if asked.packing == SINGLE else self._batch
        with wire.refused(what):  # keys that are in range and yet nonsense can lead SEAL to give up on the way
            return b"".join([self._keys.name, *run(engine, asked, bodies, what)])

    def _single(self, engine: Engine, part: Part, bodies: list[memoryview], what: str) -> list[bytes]:
        plan, run = self._prepared.plan, self._prepared.plan.run(SINGLE)
        context, products = engine.context, self._prepared.products(part.prime)
        held: list[Any] = [wire.load_fresh(context.seal, context.top, body, what) for body in bodies]
        for number in range(len(plan.circuit.stages)):
            held = [single_stage(engine, plan, products, number, held)]
        used = np.zeros((LANES, plan.degree // LANES), np.bool_)
        used[: part.last - part.first, : plan.circuit.outputs] = True
        return [engine.finished(held[0], used.reshape(-1), run)]

    def _batch(self, engine: Engine, part: Part, bodies: list[memoryview], what: str) -> list[bytes]:
        plan, run, context = self._prepared.plan, self._prepared.plan.run(BATCH), engine.context
        scalars = self._prepared.scalars(part.prime)
        words = np.empty((len(bodies), 2, plan.keys.primes, plan.degree), np.uint64)
        for row, body in zip(words, bodies, strict=True):
            row[:] = wire.residues(wire.load_fresh(context.seal, context.top, body, what), context.top)
        used = np.arange(plan.degree) < part.last - part.first
        last, out = len(plan.circuit.affine) - 1, []
        for number, stage in enumerate(plan.circuit.affine):
            primes = run.primes[2 * number]
            words = batch.product(scalars[number].weight, stage.support, words, context.parameters.coefficient[:primes])
            if number == last:
                for row, bias in zip(words, scalars[number].bias, strict=True):
                    out.append(engine.finished(biased(engine, row, bias, primes), used, run))
            else:
                words = activated(engine, plan, words, scalars[number], number)
        return out


def single_stage(engine: Engine, plan: BfvPlan, products: list[Products], number: int, held: list[Any]) -> Any:
    """Stage ``number`` of the circuit in the single packing.

    held: the ciphertexts it reads; several only where a question has several.
    """
    stage, primes = plan.circuit.stages[number], plan.run(SINGLE).primes[number]
    held = [engine.dropped(x, primes) for x in held]
    if isinstance(stage, Polynomial):
        return engine.polynomial(held[0], stage.coefficients, primes)
    if plan.layout is None:
        raise Misuse("this plan has no single packing")
    return _affine(engine, plan.layout.stages[number // 2], products[number // 2], held, primes)


def _affine(engine: Engine, stage: AffineLayout, own: Products, held: list[Any], primes: int) -> Any:
    """One affine stage by slots (:mod:`protocols.lattice.layout`)."""
    if isinstance(stage, Diagonal):
        total = _diagonals(engine, stage, own, held[0], primes)
    else:
        terms = [(engine.transformed(x), own.plain[i]) for i, x in enumerate(held)]
        total = engine.sum_of_products(terms, own.dummy, primes)
    engine.folded(total, stage.folds)
    engine.seal.add_plain_inplace(total, own.bias)
    return total


def _diagonals(engine: Engine, stage: Diagonal, own: Products, x: Any, primes: int) -> Any:
    """Baby steps one slot at a time, giant steps by Horner from the last inner sum to the first."""
    copies = [engine.transformed(x)]
    for _ in range(1, stage.babies):
        x = engine.rotated(x, 1)
        copies.append(engine.transformed(x))
    total = None
    for giant in reversed(range(stage.giants)):
        if total is not None:
            total = engine.rotated(total, stage.baby)
        terms = [(copies[baby], own.plain[giant, baby]) for baby in np.flatnonzero(stage.used[giant]).tolist()]
        if terms:
            inner = engine.sum_of_products(terms, own.dummy, primes)
            if total is None:
                total = inner
            else:
                engine.seal.add_inplace(total, inner)
    return total


def biased(engine: Engine, words: Words, bias: Any, primes: int) -> Any:
    """The ciphertext of a row of residues, plus its bias; zero weights give a fresh zero instead of a bare one."""
    level = engine.context.levels[primes]
    made = wire.from_residues(engine.context.seal, level, words) if words[1].any() else engine.zero(primes)
    engine.seal.add_plain_inplace(made, bias)
    return made


def activated(engine: Engine, plan: BfvPlan, words: Words, own: Scalars, number: int) -> Words:
    """Bias and polynomial of every value after affine stage ``number``, at the level of the next one."""
    run, stage = plan.run(BATCH), plan.circuit.polynomials[number]
    before, during, after = run.primes[2 * number : 2 * number + 3]
    level = engine.context.levels[after]
    out = np.empty((len(words), 2, after, plan.degree), np.uint64)
    for row, taken, bias in zip(out, words, own.bias, strict=True):
        x = engine.dropped(biased(engine, taken, bias, before), during)
        x = engine.dropped(engine.polynomial(x, stage.coefficients, during), after)
        row[:] = wire.residues(x, level)
    return out
