from __future__ import annotations

import json
from typing import Any

import pytest
from bfvkit import BFV, network

from protocols.bfv.choose import plain_primes
from protocols.bfv.plan import BfvPlan
from protocols.errors import BadParameters, Misuse
from protocols.keyed import Plan
from protocols.lattice.residues import primes

CIRCUIT, _ = network((16, 8, 4), weight_bits=4)
PLAN = BFV.plan(CIRCUIT)


def test_a_plan_comes_back_from_json_with_the_same_bytes_and_noise() -> None:
    data = json.loads(json.dumps(PLAN.to_json()))
    back = BFV.read(data)
    assert back.to_json() == PLAN.to_json()
    assert back.parameters == PLAN.parameters
    assert back.noise == PLAN.noise
    assert back.break_even == PLAN.break_even
    for n in (1, 3, PLAN.break_even, PLAN.degree + 1):
        assert back.cost(n) == PLAN.cost(n)


def changed(**change: Any) -> dict[str, Any]:
    return {**PLAN.to_json(), **change}


N = PLAN.degree
COEFFICIENT = list(PLAN.parameters[0].coefficient)
PLAINS = [p.plain for p in PLAN.parameters]
WRONG = [
    (changed(protocol="ckks"), "not a bfv plan"),
    (changed(version=2), "not a bfv plan"),
    ({key: value for key, value in PLAN.to_json().items() if key != "plain"}, "not a bfv plan"),
    (changed(extra=1), "not a bfv plan"),
    ([], "not a bfv plan"),
    (changed(degree="8192"), "is no integer"),
    (changed(degree=8191), "degree 8191"),
    (changed(degree=2 * N), "is no prime|rotations"),
    (changed(coefficient=COEFFICIENT[:1]), "at least 2"),
    (changed(coefficient=[*COEFFICIENT, *primes(N, 59, 3)]), "at most 218"),
    (changed(coefficient=[COEFFICIENT[0] - 2 * N, *COEFFICIENT[1:]]), "is no prime"),
    (changed(coefficient=[float(q) for q in COEFFICIENT]), "no list"),
    (changed(coefficient=list(primes(N, 36, 3))), "runs out"),
    (changed(plain=[]), "plain primes"),
    (changed(plain=[PLAINS[0] + 2, *PLAINS[1:]]), "is no prime"),
    (changed(plain=PLAINS * 2), "must differ"),
    (changed(plain=list(primes(N, 16, 1)) or [40961]), "too small for answers|is no prime"),
    (changed(plain=[True]), "no list"),
    (changed(plain=[1 << 80]), "outside"),
    (changed(plain=[-3]), "outside"),
    (changed(packing="triple"), "'triple'"),
    (changed(packing=["both"]), "names a packing"),
    (changed(circuit=[]), "names a packing, a circuit"),
    (changed(circuit={"low": 0}), "not a circuit"),
    (changed(rotations=[*PLAN.keys.rotations, 4000]), "are not those of the circuit"),
    (changed(packing="batch"), "are not those of the circuit"),
]


@pytest.mark.parametrize(("data", "message"), WRONG, ids=[str(number) for number in range(len(WRONG))])
def test_a_plan_that_was_altered_is_refused(data: Any, message: str) -> None:
    with pytest.raises(BadParameters, match=message):
        BFV.read(data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"packing": "fast"}, "packing 'fast'"),
        ({"security": 192}, "security 192"),
        ({"security": "high"}, "security 'high'"),
        ({"threads": 2}, "no option threads"),
    ],
)
def test_options_that_are_none_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadParameters, match=message):
        BFV.plan(CIRCUIT, options)


def test_security_is_always_128_bits_and_the_reason_is_printed() -> None:
    facts = BFV.plan(CIRCUIT, {"security": 100}).facts()
    assert facts["security"].startswith("128 bits: modulus of ")
    assert "homomorphic encryption standard" in facts["security"]
    assert "plain primes" in facts["reason"]
    assert all(isinstance(value, str) for value in facts.values())


def test_keys_are_made_only_where_they_are_used() -> None:
    affine, _ = network((16, 4))
    alone = BFV.plan(affine, {"packing": "batch"})
    assert not alone.keys.relinearize
    assert not alone.keys.rotations
    assert BFV.plan(CIRCUIT, {"packing": "batch"}).keys.relinearize
    assert PLAN.layout is not None
    assert PLAN.keys.rotations == PLAN.layout.rotations


def test_parts_follow_each_other_group_by_group_and_prime_by_prime() -> None:
    plan = BFV.plan(CIRCUIT, {"packing": "single"})
    parts = plan.parts(3)
    count = len(plan.parameters)
    assert [(part.first, part.last, part.prime) for part in parts] == [
        *((0, 2, prime) for prime in range(count)),
        *((2, 3, prime) for prime in range(count)),
    ]
    assert len(plan.cost(3).questions) == len(plan.cost(3).answers) == 2 * count


def test_large_batches_fall_into_chunks_of_one_sample_per_slot() -> None:
    parts = PLAN.parts(PLAN.degree + 5)
    assert {(part.first, part.last) for part in parts} == {(0, PLAN.degree), (PLAN.degree, PLAN.degree + 5)}
    for n in (0, PLAN.max_batch + 1):
        with pytest.raises(Misuse, match=f"a query of {n} inputs"):
            PLAN.cost(n)


def test_a_stage_wider_than_the_largest_row_is_refused_for_single_and_served_in_batches() -> None:
    wide, _ = network((1, 40000), weight_bits=2, low=0, high=1)
    with pytest.raises(BadParameters, match="stage 'fc0'"):
        BFV.plan(wide, {"packing": "single"})
    assert BFV.plan(wide, {"packing": "batch"}).packing == "batch"


def test_plain_primes_are_the_fewest_and_smallest_that_cover_the_answer() -> None:
    found = plain_primes(8192, 20, 36)
    assert found is not None
    assert len(found) == 2
    assert found[0] * found[1] > 1 << 36
    assert all(t % 16384 == 1 and t.bit_length() <= 20 for t in found)
    assert plain_primes(8192, 14, 36) is None


def test_no_plain_prime_is_spent_on_a_larger_ring_than_needed() -> None:
    circuit, _ = network((64, 32, 10), weight_bits=6, low=0, high=16)
    plan = BFV.plan(circuit)
    assert plan.degree == 8192
    assert [p.plain.bit_length() for p in plan.parameters] == [20, 18]


def test_every_row_of_the_estimate_leaves_a_bit() -> None:
    assert [row.stage for row in PLAN.noise] == ["fresh", "fc0", "act0", "fc1", "flooding of the answer", "answer"]
    assert all(row.bits >= 1.0 for row in PLAN.noise)


class Foreign(Plan):
    """Another protocol's plan."""

    max_batch = 1

    def cost(self, n: int) -> Any:
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        return {}

    def facts(self) -> dict[str, str]:
        return {}


def test_another_protocols_plan_is_a_misuse() -> None:
    assert isinstance(PLAN, BfvPlan)
    with pytest.raises(Misuse, match="Foreign"):
        BFV.key_holder(Foreign())
