"""Estimates of noise, held against what SEAL measures with the secret key."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from bfvkit import BFV, ask, codes, network

from protocols.bfv.client import BfvKeys
from protocols.bfv.engine import Engine
from protocols.bfv.noise import Model, total
from protocols.bfv.plan import BfvPlan
from protocols.bfv.schedule import schedule
from protocols.bfv.server import activated, biased, single_stage
from protocols.bfv.weights import Prepared
from protocols.circuit import Circuit, Owned, Weights
from protocols.errors import BadParameters, NoiseExhausted
from protocols.lattice import batch, wire
from protocols.lattice.context import ID_BYTES, EvaluationKeys

LOOSE = 35.0
SHAPES: list[dict[str, Any]] = [
    {"sizes": (64, 32, 10), "weight_bits": 6, "low": 0, "high": 16},
    {"sizes": (5, 40, 3), "weight_bits": 8},
    {"sizes": (33, 2), "weight_bits": 10},
    {"sizes": (6, 5, 3), "weight_bits": 3, "polynomial": (1, -2, 3, -1)},
    {"sizes": (6, 5, 3), "weight_bits": 3, "polynomial": (0, 1, 0, 0, 2)},
    {"sizes": (8, 16, 4, 2), "weight_bits": 4},
]


class Bench:
    """One client and one server in one hand, so that noise can be seen between stages."""

    def __init__(self, shape: dict[str, Any], packing: str, seed: int) -> None:
        self.circuit, self.owned = network(**shape, seed=seed)
        self.plan = BFV.plan(self.circuit, {"packing": packing})
        self.holder = BfvKeys(self.plan)
        self.prepared = Prepared(self.plan, self.owned)
        self.context = self.prepared.contexts[0]
        keys = EvaluationKeys(self.plan.keys, self.holder.evaluation_keys())
        self.engine = Engine(self.context, keys.under(self.context))
        self.fresh = self._fresh(codes(self.circuit, 2, seed))

    def _fresh(self, x: Any) -> list[Any]:
        sizes = self.plan.question_sizes(self.plan.packing)
        _, *bodies = wire.cut(self.holder.encrypt(x)[0], sizes, "a question")
        return [wire.load_fresh(self.context.seal, self.context.top, body, "a question") for body in bodies]

    def budget(self, ciphertexts: list[Any]) -> int:
        return min(int(self.holder._decryptors[0].invariant_noise_budget(x)) for x in ciphertexts)

    def single(self) -> list[int]:
        """Measured budget of the fresh ciphertexts and after every stage."""
        held, seen = self.fresh, [self.budget(self.fresh)]
        for number in range(len(self.circuit.stages)):
            held = [single_stage(self.engine, self.plan, self.prepared.products(0), number, held)]
            seen.append(self.budget(held))
        return seen

    def batch(self) -> list[int]:
        """The same with one sample per slot; polynomials are seen at the level of the stage that follows."""
        seen, run = [self.budget(self.fresh)], self.plan.run("batch")
        words = np.stack([wire.residues(x, self.context.top) for x in self.fresh])
        own = self.prepared.scalars(0)
        for number, stage in enumerate(self.circuit.affine):
            primes = run.primes[2 * number]
            moduli = self.context.parameters.coefficient[:primes]
            words = batch.product(own[number].weight, stage.support, words, moduli)
            pairs = zip(words, own[number].bias, strict=True)
            seen.append(self.budget([biased(self.engine, row, bias, primes) for row, bias in pairs]))
            if number < len(self.circuit.affine) - 1:
                words = activated(self.engine, self.plan, words, own[number], number)
                level = self.context.levels[run.primes[2 * number + 2]]
                seen.append(self.budget([wire.from_residues(self.context.seal, level, row) for row in words]))
        return seen


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape["sizes"])))
@pytest.mark.parametrize("seed", [1, 2])
def test_slots_leave_no_less_than_estimated_and_not_much_more(shape: dict[str, Any], seed: int) -> None:
    bench = Bench(shape, "single", seed)
    measured = bench.single()
    for row, found in zip(bench.plan.run("single").rows, measured, strict=False):
        assert row.bits <= found <= row.bits + LOOSE, (row, found)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape["sizes"])))
def test_scalars_leave_no_less_than_estimated(shape: dict[str, Any]) -> None:
    bench = Bench(shape, "batch", 3)
    measured = bench.batch()
    for row, found in zip(bench.plan.run("batch").rows, measured, strict=False):
        assert row.bits <= found, (row, found)


@pytest.mark.parametrize("packing", ["single", "batch"])
def test_the_answer_keeps_what_the_plan_says_to_a_few_bits(packing: str) -> None:
    circuit, owned = network(**SHAPES[0])
    plan = BFV.plan(circuit, {"packing": packing})
    opened, _ = ask(plan, owned, codes(circuit, 2))
    assert opened.left is not None
    assert plan.noise[-1].bits <= opened.left <= plan.noise[-1].bits + 8


def budgets(circuit: Circuit, plan: BfvPlan, owned: Owned) -> float:
    opened, _ = ask(plan, owned, codes(circuit, 1))
    assert opened.left is not None
    return opened.left


def test_the_noise_of_an_answer_tells_nothing_of_the_weights() -> None:
    circuit, owned = network((16, 8, 4), weight_bits=5)
    plan = BFV.plan(circuit, {"packing": "single"})
    nothing = {name: Weights(np.zeros_like(own.weight), 0 * own.bias) for name, own in owned.items()}
    assert budgets(circuit, plan, owned) == budgets(circuit, plan, nothing)


def test_the_flood_outgrows_the_answers_own_noise_by_forty_bits() -> None:
    bench = Bench(SHAPES[0], "single", 4)
    run = bench.plan.run("single")
    held = bench.fresh
    for number in range(len(bench.circuit.stages)):
        held = [single_stage(bench.engine, bench.plan, bench.prepared.products(0), number, held)]
    ciphertext = bench.engine.dropped(held[0], run.flood_primes)
    level = bench.context.levels[run.flood_primes]
    # budget = log2(q / (2 t |E|)) up to one bit: |E| <= 2^(bits of q - bits of t - budget)
    own = level.bits - bench.context.parameters.plain.bit_length() - bench.budget([ciphertext])
    assert run.flood_bits >= own + 40


def test_an_exhausted_answer_is_an_error_and_no_answer() -> None:
    circuit, _ = network((4, 2))
    plan = BFV.plan(circuit, {"packing": "single"})
    holder = BFV.key_holder(plan)
    name = holder.evaluation_keys()[:ID_BYTES]
    level = plan.parameters[0].level(plan.run("single").final)
    rng = np.random.default_rng(0)
    words = [np.stack([rng.integers(0, q, plan.degree, np.uint64) for q in level.moduli]) for _ in range(2)]
    answer = name + b"".join(wire.pack(half, level) for half in words)
    assert len(answer) == plan.cost(1).answers[0]
    with pytest.raises(NoiseExhausted, match=r"the answer to samples 0\.\.0, plain prime 0: no noise budget is left"):
        holder.decrypt(1, [answer] * len(plan.parameters))


def test_noise_that_outgrows_its_estimate_is_an_error_and_no_answer() -> None:
    bench = Bench(SHAPES[5], "single", 5)
    held = bench.fresh[0]
    for _ in range(12):
        held = bench.engine.product(held, held)
    run = bench.plan.run("single")
    used = np.ones(bench.plan.degree, np.bool_)
    body = bench.engine.finished(held, used, run)
    name = bench.holder.evaluation_keys()[:ID_BYTES]
    with pytest.raises(NoiseExhausted):
        bench.holder.decrypt(1, [name + body] * len(bench.plan.parameters))


def test_a_circuit_too_deep_is_refused_with_stage_bits_and_what_helps() -> None:
    circuit, _ = network((4,) * 11, weight_bits=3, low=-1, high=1)
    with pytest.raises(BadParameters) as caught:
        BFV.plan(circuit)
    said = str(caught.value)
    assert "the noise budget runs out at stage 'fc" in said or "at stage 'act" in said
    assert "N = 32768" in said
    assert "more" in said
    assert "additive2" in said


def test_the_refusal_names_the_first_stage_that_has_too_little() -> None:
    circuit, _ = network((4, 4, 4), weight_bits=3)
    model = Model(8192, 65537, (40.0, 40.0), 40.0)
    rows = schedule(model, circuit, None, drop=False)
    assert rows.short.bits < 1.0
    before = rows.rows[: rows.rows.index(rows.short)]
    assert all(row.bits >= 1.0 for row in before)


def test_independent_noise_adds_in_squares_and_dependent_noise_in_full() -> None:
    assert total(10.0, 10.0) == 10.5
    assert total(10.0, 10.0, independent=False) == 11.0
    assert total(500.0, 3.0) == 500.0


def test_levels_only_go_down_and_the_answer_has_the_fewest() -> None:
    circuit, _ = network((8, 16, 4, 2), weight_bits=4)
    run = BFV.plan(circuit, {"packing": "single"}).run("single")
    assert list(run.primes) == sorted(run.primes, reverse=True)
    assert run.primes[-1] >= run.flood_primes >= run.final == 1
