"""Parameters, precision and error bounds of ckks plans; the forms of polynomials."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from ckkskit import network, proven, session
from hypothesis import given
from hypothesis import strategies as st

from protocols.circuit import Affine, Circuit, Polynomial, Weights
from protocols.ckks.bound import operator_norm, rounded
from protocols.ckks.centred import centred
from protocols.ckks.protocol import Ckks
from protocols.ckks.schedule import AffineStep
from protocols.errors import BadParameters, Misuse

SMALL = st.integers(-50, 50)


@given(
    rest=st.lists(SMALL, min_size=2, max_size=4),
    lead=SMALL.filter(bool),
    x=st.integers(-100, 100),
)
def test_the_centred_form_is_the_polynomial(rest: list[int], lead: int, x: int) -> None:
    form = centred(Polynomial("p", (*rest, lead), 60))
    exact = sum(c * Fraction(x) ** i for i, c in enumerate((*rest, lead)))
    at = x + form.shift
    square = at * at + form.u
    m = {2: square, 3: at * square, 4: square * square + form.v * at}[form.degree]
    size = abs(form.lead) * (abs(at) + abs(form.u) + 1) ** 2 * (abs(at) + 1) ** 2 + abs(form.tail)
    assert abs(form.lead * m + form.tail - float(exact)) <= 1e-12 * size + 1e-9
    assert abs(m) <= form.reach(abs(at)) * (1 + 1e-12) + 1e-9


@given(rest=st.lists(SMALL, min_size=2, max_size=4), lead=SMALL.filter(bool), x=st.floats(-90, 90))
def test_no_slope_on_a_range_exceeds_the_stated_one(rest: list[int], lead: int, x: float) -> None:
    form = centred(Polynomial("p", (*rest, lead), 60))
    slope = {2: 2 * x, 3: 3 * x * x + form.u, 4: 4 * x * (x * x + form.u) + form.v}[form.degree]
    assert abs(slope) <= form.slope(90) * (1 + 1e-12)


@pytest.mark.parametrize("coefficients", [(3, 5, 1), (0, 0, -2), (4, 1, 7, 2), (4, 0, 7, -2, 3)])
def test_no_value_of_the_proven_range_leaves_its_modulus(coefficients: tuple[int, ...]) -> None:
    circuit, weights = network([9, 8, 7, 4], coefficients)
    plan = Ckks().plan(circuit, Ckks().declare(circuit, weights))
    data = plan.parameters.coefficient[:-1]
    for packing in ("single", "batch"):
        run = plan.run(packing)
        for number, step in enumerate(run.steps):
            modulus = float(np.prod([float(q) for q in data[: step.primes]]))
            if isinstance(step, AffineStep):
                before = abs(step.gain_out) * step.reach_out * step.prime
                last = number == len(run.steps) - 1
                assert before < modulus / (7.9 if last else 2)
            else:
                assert step.gain * step.reach < modulus / 2
                assert abs(step.gain_out) * step.form.reach(step.reach) * step.divisors[-1] < modulus / 2
        assert run.steps[-1].primes == 2


def test_the_data_primes_are_those_the_depth_needs() -> None:
    plan = Ckks().plan(network([4, 3, 2])[0])
    assert len(plan.parameters.coefficient) == 3 + 1 + 1
    assert plan.parameters.modulus_bits <= plan.parameters.most_bits


def test_a_plan_survives_plain_data() -> None:
    circuit, weights = network([6, 4, 2], density=0.6)
    plan = Ckks().plan(circuit, Ckks().declare(circuit, weights))
    again = Ckks().read(plan.to_json())
    assert again.to_json() == plan.to_json()
    assert again.cost(3) == plan.cost(3)
    assert again.bounds == plan.bounds
    assert dict(again.facts()) == dict(plan.facts())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("protocol", "bfv"),
        ("version", 2),
        ("degree", 2048),
        ("degree", "8192"),
        ("coefficient", [97, 193]),
        ("coefficient", "many"),
        ("coefficient", [0]),
        ("packing", "triple"),
        ("packing", 3),
        ("norms", {"linear0": 1.0}),
        ("norms", {"linear0": 1.0, "other": 2.0}),
        ("norms", {"linear0": 1.0, "linear1": float("nan")}),
        ("norms", {"linear0": 1.0, "linear1": "2"}),
        ("norms", {"linear0": 1e200, "linear1": 1e200}),
        ("norms", {"linear0": 1e300, "linear1": 1e300}),
        ("norms", 5),
        ("circuit", {}),
        ("circuit", 1),
    ],
)
def test_a_plan_that_was_changed_is_refused(field: str, value: Any) -> None:
    data = Ckks().plan(network([6, 4, 2])[0]).to_json()
    data[field] = value
    with pytest.raises(BadParameters):
        Ckks().read(data)


def test_a_plan_with_fields_missing_or_added_is_refused() -> None:
    data = Ckks().plan(network([6, 2])[0]).to_json()
    with pytest.raises(BadParameters, match="not a ckks plan"):
        Ckks().read({**data, "more": 1})
    del data["norms"]
    with pytest.raises(BadParameters, match="not a ckks plan"):
        Ckks().read(data)


def test_a_modulus_above_the_security_bound_is_refused() -> None:
    data = Ckks().plan(network([6, 4, 2])[0], {"precision": 0.01}).to_json()
    assert data["degree"] == 16384
    with pytest.raises(BadParameters, match="128-bit security"):
        Ckks().read({**data, "degree": 8192})


def test_more_precision_takes_a_larger_ring_and_keeps_its_promise() -> None:
    circuit, weights = network([6, 4, 2])
    norms = Ckks().declare(circuit, weights)
    usual, fine = Ckks().plan(circuit, norms), Ckks().plan(circuit, {"precision": 0.01, **norms})
    assert fine.degree > usual.degree
    assert fine.error_bound <= 0.01 < usual.error_bound


def test_a_precision_out_of_reach_is_refused_with_the_stage_and_the_help() -> None:
    circuit, _ = network([6, 4, 2])
    with pytest.raises(BadParameters, match=r"at most 1e-12 cannot be promised.*stage '(linear|act)\d'.*bfv is exact"):
        Ckks().plan(circuit, {"precision": 1e-12})


def test_a_circuit_too_deep_for_any_ring_is_refused() -> None:
    stages: list[Affine | Polynomial] = []
    for number in range(20):
        stages += [Affine(f"linear{number}", np.ones((2, 2), np.bool_), 20), Polynomial(f"act{number}", (0, 0, 1), 20)]
    with pytest.raises(BadParameters, match=r"stage 'linear19': 39 divisions.*32768"):
        Ckks().plan(Circuit(0, 15, tuple(stages[:-1])))


def test_a_stage_wider_than_any_row_is_refused_by_name_and_served_in_batches() -> None:
    support = np.zeros((40_000, 1), np.bool_)
    support[:, 0] = True
    circuit, _ = proven([support], [np.ones((40_000, 1), np.int64)])
    with pytest.raises(BadParameters, match=r"'linear0'.*batches"):
        Ckks().plan(circuit, {"packing": "single"})
    assert Ckks().plan(circuit, {"packing": "batch"}).packing == "batch"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"speed": 9}, "no option speed"),
        ({"packing": "tight"}, "'tight'"),
        ({"security": 256}, "128"),
        ({"precision": 0}, "positive"),
        ({"precision": "high"}, "positive"),
        ({"norms": {"linear9": 2.0}}, "linear0"),
        ({"norms": {"linear0": 0.0}}, "'linear0'"),
    ],
)
def test_options_that_are_none_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(BadParameters, match=said):
        Ckks().plan(network([6, 2])[0], options)


@pytest.mark.parametrize("coefficients", [(1, 1 << 3000, 1), (1, 0, 1 << 3000), (1 << 900, 1 << 900, 1 << 900, 1)])
def test_polynomials_beyond_doubles_are_refused(coefficients: tuple[int, ...]) -> None:
    stages = (
        Affine("a", np.ones((2, 2), np.bool_), 20),
        Polynomial("p", coefficients, 200),
        Affine("b", np.ones((2, 2), np.bool_), 220),
    )
    with pytest.raises(BadParameters):
        Ckks().plan(Circuit(0, 15, stages))


def test_inputs_wider_than_served_are_refused() -> None:
    with pytest.raises(BadParameters, match="codes of 53 bits"):
        Ckks().plan(Circuit(0, 1 << 60, (Affine("a", np.ones((2, 2), np.bool_), 80),)))


def test_values_wider_than_served_are_refused_by_stage() -> None:
    with pytest.raises(BadParameters, match="'a': values of 500 bits"):
        Ckks().plan(Circuit(0, 15, (Affine("a", np.ones((2, 2), np.bool_), 500),)))


def test_keys_are_only_those_in_use() -> None:
    affine, _ = network([6, 2])
    deep, _ = network([6, 4, 2])
    protocol = Ckks()
    assert not protocol.plan(affine).keys.relinearize
    assert protocol.plan(deep).keys.relinearize
    assert protocol.plan(deep, {"packing": "batch"}).keys.rotations == ()
    single = protocol.plan(deep, {"packing": "single"})
    assert single.layout is not None
    assert single.keys.rotations == single.layout.rotations


def test_declared_norms_tighten_the_bound_and_tell_three_bits() -> None:
    circuit, weights = network([30, 20, 5])
    norms = Ckks().declare(circuit, weights)["norms"]
    assert Ckks().plan(circuit, {"norms": norms}).error_bound < Ckks().plan(circuit).error_bound
    for name, norm in norms.items():
        exact = float(np.linalg.norm(weights[name].weight.astype(float), 2))
        assert exact <= norm <= 1.26 * exact
        assert rounded(norm) == norm


def test_the_norm_of_a_large_matrix_is_bounded_from_above() -> None:
    weight = np.random.default_rng(0).integers(-9, 10, (1600, 1700))
    assert np.linalg.norm(weight.astype(float), 2) <= operator_norm(weight)


def test_weights_beyond_the_declared_norms_are_refused() -> None:
    circuit, weights = network([6, 4, 2])
    plan = Ckks().plan(circuit, {"norms": {"linear1": 1.0}})
    client = Ckks().key_holder(plan)
    with pytest.raises(BadParameters, match=r"'linear1': the operator norm.*declare"):
        Ckks().evaluator(plan, weights, client.evaluation_keys())


def test_weights_beyond_the_proven_bits_are_refused() -> None:
    circuit, weights = network([6, 2])
    ends = session(circuit, weights, packing="batch")
    larger = {"linear0": Weights(weights["linear0"].weight * 64, weights["linear0"].bias)}
    with pytest.raises(BadParameters, match="declares"):
        Ckks().evaluator(ends.plan, larger, ends.client.evaluation_keys())
    with pytest.raises(BadParameters, match="no weights"):
        Ckks().evaluator(ends.plan, {}, ends.client.evaluation_keys())


def test_queries_outside_the_plan_are_misuse() -> None:
    plan = Ckks().plan(network([6, 2])[0])
    for n in (0, plan.max_batch + 1):
        with pytest.raises(Misuse, match="serves 1 to"):
            plan.cost(n)
    with pytest.raises(Misuse, match="no packing"):
        Ckks().plan(network([6, 2])[0], {"packing": "batch"}).run("single")


def test_the_facts_state_the_bound_its_probability_and_the_reason_of_the_security() -> None:
    facts = Ckks().plan(network([6, 4, 2])[0]).facts()
    assert "never equality" in facts["error bound"]
    assert "2^-40" in facts["error bound"]
    assert facts["security"].startswith("128 bits")
    assert "linear1" in facts["errors by stage"]
