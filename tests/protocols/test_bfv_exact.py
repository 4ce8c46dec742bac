from __future__ import annotations

import numpy as np
import pytest
from bfvkit import BFV, ask, codes, network
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocols.bfv.plan import BfvPlan
from protocols.circuit import Circuit, Owned, Weights, prove
from protocols.clear.circuit import define_circuit
from protocols.errors import BadParameters, Misuse
from protocols.lattice import batch
from protocols.lattice.residues import primes


def equal(circuit: Circuit, owned: Owned, n: int, packing: str, seed: int = 0) -> BfvPlan:
    """Every integer of a query is that of the definition, every byte as declared."""
    plan = BFV.plan(circuit, {"packing": packing})
    x = codes(circuit, n, seed)
    opened, sent = ask(plan, owned, x)
    assert opened.exact is not None
    assert np.array_equal(opened.exact, define_circuit(circuit, owned, x))
    assert opened.error_bound == 0.0
    assert sent == plan.cost(n)
    return plan


@pytest.mark.parametrize("packing", ["single", "batch"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_an_affine_circuit_is_exact(packing: str, n: int) -> None:
    circuit, owned = network((30, 2), weight_bits=8)
    equal(circuit, owned, n, packing)


@pytest.mark.parametrize("packing", ["single", "batch"])
@pytest.mark.parametrize("polynomial", [(3, -2, 5), (0, 0, 0, 1), (1, -2, 3, -1), (0, 1, 0, 0, 2), (7, 0, 0, 0, -1)])
def test_polynomials_of_every_degree_are_exact(packing: str, polynomial: tuple[int, ...]) -> None:
    circuit, owned = network((6, 5, 3), weight_bits=3, low=-3, high=3, polynomial=polynomial)
    equal(circuit, owned, 2, packing)


def test_a_digits_network_is_exact_in_both_packings_of_one_plan() -> None:
    circuit, owned = network((64, 32, 10), weight_bits=6, low=0, high=16)
    plan = BFV.plan(circuit)
    assert plan.degree == 8192
    holder = BFV.key_holder(plan)
    evaluator = BFV.evaluator(plan, owned, holder.evaluation_keys())
    for n in (1, plan.break_even):
        x = codes(circuit, n, seed=n)
        questions = holder.encrypt(x)
        answers = [evaluator.evaluate(n, part, question) for part, question in enumerate(questions)]
        opened = holder.decrypt(n, answers)
        assert np.array_equal(opened.exact, define_circuit(circuit, owned, x))  # type: ignore[arg-type]
    assert plan.packing_of(plan.break_even - 1) == "single"
    assert plan.packing_of(plan.break_even) == "batch"
    assert plan.keys.bytes < 10_000_000


def test_three_affine_stages_are_exact_while_primes_are_dropped() -> None:
    circuit, owned = network((8, 16, 4, 2), weight_bits=4)
    plan = equal(circuit, owned, 2, "single")
    assert plan.run("single").primes[-1] < plan.keys.primes
    assert min(plan.keys.rotation_primes) < plan.keys.primes


def test_answers_beyond_sixty_three_bits_are_python_integers() -> None:
    circuit, owned = network((3, 3, 2), weight_bits=16, low=-(1 << 15), high=(1 << 15) - 1)
    assert circuit.bits > 63
    plan = equal(circuit, owned, 2, "single")
    assert len(plan.parameters) > 1


def test_answers_at_the_ends_of_their_range_do_not_wrap() -> None:
    own = Weights(np.array([[1], [-1]]), np.array([0, 0], dtype=object))
    circuit = prove(-128, 128, [("fc", np.ones((2, 1), np.bool_), own)])
    opened, _ = ask(BFV.plan(circuit), {"fc": own}, np.array([[-128], [128], [0]]))
    assert np.array_equal(opened.exact, [[-128, 128], [128, -128], [0, 0]])  # type: ignore[arg-type]


def test_a_sparse_first_stage_of_several_ciphertexts_is_exact() -> None:
    rng = np.random.default_rng(3)
    support = np.zeros((700, 300), np.bool_)
    for row in support:
        row[rng.choice(300, 10, replace=False)] = True
    circuit, owned = network((300, 700, 4), weight_bits=3, low=0, high=3, support=support)
    plan = equal(circuit, owned, 1, "single")
    assert plan.layout is not None
    assert plan.layout.ciphertexts > 1


@pytest.mark.parametrize("packing", ["single", "batch"])
def test_weights_of_zero_are_as_good_as_any(packing: str) -> None:
    circuit, owned = network((6, 4, 3), weight_bits=3)
    weight = owned["fc0"].weight.copy()
    weight[0] = 0
    nothing = {
        "fc0": Weights(weight, owned["fc0"].bias),
        "fc1": Weights(np.zeros_like(owned["fc1"].weight), np.array([5, -5, 0], dtype=object)),
    }
    equal(circuit, nothing, 2, packing)


def test_a_polynomial_that_vanishes_modulo_a_plain_prime_is_exact() -> None:
    own = Weights(np.array([[1]]), np.array([0], dtype=object))
    support = np.ones((1, 1), np.bool_)
    plain = BFV.plan(prove(0, 1, [("a", support, own)])).parameters[0].plain
    circuit = prove(0, 1, [("a", support, own), ("p", (0, 0, plain)), ("b", support, own)])
    equal(circuit, {"a": own, "b": own}, 2, "single")


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_small_circuits_are_exact(data: st.DataObject) -> None:
    depth = data.draw(st.integers(1, 2))
    sizes = tuple(data.draw(st.integers(1, 9)) for _ in range(depth + 1))
    low = data.draw(st.integers(-5, 5))
    circuit, owned = network(
        sizes,
        weight_bits=data.draw(st.integers(2, 6)),
        low=low,
        high=low + data.draw(st.integers(0, 20)),
        polynomial=(data.draw(st.integers(-3, 3)), data.draw(st.integers(-3, 3)), data.draw(st.sampled_from([1, -2]))),
        seed=data.draw(st.integers(0, 1000)),
    )
    equal(circuit, owned, data.draw(st.integers(1, 3)), data.draw(st.sampled_from(["single", "batch"])))


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 50), st.integers(0, 100), st.sampled_from([36, 48, 54, 60]))
def test_products_on_residues_are_those_of_integers(
    outputs: int, inputs: int, weight_bits: int, seed: int, prime_bits: int
) -> None:
    rng = np.random.default_rng(seed)
    moduli = primes(4096, prime_bits, 2)
    x = np.stack([rng.integers(0, q, (inputs, 2, 3), np.uint64) for q in moduli], axis=2)
    support = rng.integers(0, 2, (outputs, inputs)).astype(np.bool_)
    weight = np.where(support, rng.integers(-(1 << weight_bits), 1 << weight_bits, support.shape), 0)
    found = batch.product(weight, support, x, moduli)
    expected = np.tensordot(weight.astype(object), x.astype(object), 1)
    for j, q in enumerate(moduli):
        assert np.array_equal(found[:, :, j], expected[:, :, j] % q)


def test_a_second_client_finds_the_weights_prepared() -> None:
    circuit, owned = network((4, 2))
    plan = BFV.plan(circuit)
    first, second = (BFV.key_holder(plan) for _ in range(2))
    one = BFV.evaluator(plan, owned, first.evaluation_keys())
    other = BFV.evaluator(plan, owned, second.evaluation_keys())
    assert one._prepared is other._prepared  # type: ignore[attr-defined]
    x = codes(circuit, 1)
    other.warm(0)  # type: ignore[attr-defined]
    for holder, evaluator in ((second, other), (first, one)):
        opened = holder.decrypt(1, [evaluator.evaluate(1, i, q) for i, q in enumerate(holder.encrypt(x))])
        assert np.array_equal(opened.exact, define_circuit(circuit, owned, x))  # type: ignore[arg-type]


def test_other_weights_under_the_same_plan_are_prepared_anew() -> None:
    circuit, owned = network((4, 2))
    plan = BFV.plan(circuit)
    negated = {"fc0": Weights(-owned["fc0"].weight, -owned["fc0"].bias)}
    x = codes(circuit, 1)
    for weights in (owned, negated):
        opened, _ = ask(plan, weights, x)
        assert np.array_equal(opened.exact, define_circuit(circuit, weights, x))  # type: ignore[arg-type]


def test_weights_that_do_not_fit_the_circuit_are_refused_by_stage() -> None:
    circuit, owned = network((4, 3, 2))
    plan = BFV.plan(circuit)
    keys = BFV.key_holder(plan).evaluation_keys()
    wide = {**owned, "fc1": Weights(owned["fc1"].weight * 1000, owned["fc1"].bias)}
    turned = {**owned, "fc1": Weights(owned["fc1"].weight.T.copy(), owned["fc1"].bias)}
    for wrong, message in (
        ({"fc0": owned["fc0"]}, "no weights for stage 'fc1'"),
        (wide, "stage 'fc1': these weights can give values of"),
        (turned, r"stage 'fc1': weights \(3, 2\)"),
    ):
        with pytest.raises(BadParameters, match=message):
            BFV.evaluator(plan, wrong, keys)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((1, 5), np.int64), "codes int64 \\(1, 5\\)"),
        (np.zeros(4, np.int64), "takes int64 \\(n, 4\\)"),
        (np.zeros((1, 4)), "codes float64"),
        (np.full((1, 4), 8), "a code lies outside -8..7"),
        (np.zeros((0, 4), np.int64), "a query of 0 inputs"),
    ],
)
def test_codes_that_are_none_are_a_misuse(x: np.ndarray, message: str) -> None:  # type: ignore[type-arg]
    circuit, _ = network((4, 2))
    with pytest.raises(Misuse, match=message):
        BFV.key_holder(BFV.plan(circuit, {"packing": "single"})).encrypt(x)
