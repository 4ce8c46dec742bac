from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.circuit import Affine, Circuit, Polynomial, Weights, from_json, prove, to_json
from protocols.clear.circuit import define_circuit
from protocols.errors import BadParameters, Misuse

FULL = np.ones((2, 3), dtype=np.bool_)


def weights(matrix: list[list[int]], bias: list[int]) -> Weights:
    return Weights(np.array(matrix, dtype=np.int64), np.array(bias, dtype=object))


def test_a_proof_reaches_exactly_what_the_worst_input_reaches() -> None:
    own = weights([[2, -3, 1], [0, 0, -4]], [10, -1])
    circuit = prove(-2, 5, [("fc", FULL, own)])
    # row 0: from 2*-2 - 3*5 - 2 + 10 = -11 to 10 + 6 + 5 + 10 = 31; row 1: from -21 to 7
    assert circuit.bits == 6
    corners = np.array(np.meshgrid(*[[-2, 5]] * 3)).reshape(3, -1).T
    answers = define_circuit(circuit, {"fc": own}, corners.astype(np.int64))
    assert (answers.min(), answers.max()) == (-21, 31)


def test_a_square_of_a_range_around_zero_starts_at_zero() -> None:
    own = weights([[1, 0, 0], [0, 1, 0]], [0, 0])
    last = weights([[1, 1]], [0])
    circuit = prove(-8, 7, [("a", FULL, own), ("sq", (0, 0, 1)), ("b", np.ones((1, 2), dtype=np.bool_), last)])
    assert [stage.bits for stage in circuit.stages] == [4, 8, 9]  # -8..7, 0..64, 0..128


@given(
    st.lists(st.integers(-9, 9), min_size=3, max_size=5).filter(lambda c: c[-1] != 0),
    st.integers(-6, 6),
    st.integers(0, 5),
)
def test_no_value_of_a_polynomial_leaves_its_proof(coefficients: list[int], low: int, width: int) -> None:
    one = weights([[1]], [0])
    dense = np.ones((1, 1), dtype=np.bool_)
    circuit = prove(low, low + width, [("a", dense, one), ("p", tuple(coefficients)), ("b", dense, one)])
    x = np.arange(low, low + width + 1, dtype=np.int64)[:, None]
    answers = define_circuit(circuit, {"a": one, "b": one}, x)
    want = [sum(c * int(v) ** i for i, c in enumerate(coefficients)) for v in x[:, 0]]
    assert answers[:, 0].tolist() == want
    assert all(-(1 << (circuit.bits - 1)) <= v < 1 << (circuit.bits - 1) for v in want)


@given(st.lists(st.integers(-(1 << 200), 1 << 200), min_size=1, max_size=5))
def test_a_bias_of_any_size_survives_its_storage(bias: list[int]) -> None:
    own = Weights(np.zeros((len(bias), 1), dtype=np.int64), np.array(bias, dtype=object))
    stored = own.to_arrays()
    assert stored["bias"].dtype == np.int64
    assert Weights.from_arrays(stored["weight"], stored["bias"]).bias.tolist() == bias


def test_answers_beyond_64_bits_are_exact() -> None:
    dense = np.ones((1, 1), dtype=np.bool_)
    one, big = weights([[1]], [0]), weights([[1 << 40]], [1 << 90])
    circuit = prove(0, 255, [("a", dense, big), ("p", (0, 0, 0, 0, 1)), ("b", dense, one)])
    assert define_circuit(circuit, {"a": big, "b": one}, np.array([[255]]))[0, 0] == ((255 << 40) + (1 << 90)) ** 4


def test_a_circuit_survives_json_and_its_support_says_nothing_of_weights() -> None:
    support = np.array([[True, False, True], [False, True, True]])
    own = weights([[0, 0, 5], [0, 7, 0]], [1, 2])
    last = ("fc", np.ones((1, 2), dtype=np.bool_), weights([[1, -1]], [0]))
    circuit = prove(0, 15, [("conv", support, own), ("sq", (1, 0, 3)), last])
    plain = json.loads(json.dumps(to_json(circuit)))
    assert to_json(from_json(plain)) == plain
    assert plain["stages"][0]["columns"] == [[0, 2], [1, 2]]
    assert "7" not in json.dumps(plain["stages"][0]["columns"])


def test_a_weight_outside_its_support_is_refused_by_stage() -> None:
    support = FULL.copy()
    support[0, 0] = False
    with pytest.raises(BadParameters, match="'fc'"):
        prove(0, 1, [("fc", support, weights([[1, 0, 0], [0, 0, 0]], [0, 0]))])


@pytest.mark.parametrize(
    "stages",
    [
        (),
        (Polynomial("p", (0, 0, 1), 4),),
        (Affine("a", FULL, 4), Affine("b", np.ones((1, 2), dtype=np.bool_), 4)),
        (Affine("a", FULL, 4), Polynomial("p", (0, 0, 1), 8)),
        (Affine("a", FULL, 4), Polynomial("p", (0, 0, 1), 8), Affine("b", FULL, 9)),
        (Affine("a", FULL, 4), Polynomial("p", (0, 0, 1), 8), Affine("a", np.ones((1, 2), dtype=np.bool_), 9)),
    ],
)
def test_stages_that_are_no_circuit_are_refused(stages: Any) -> None:
    with pytest.raises(BadParameters):
        Circuit(0, 1, stages)


@pytest.mark.parametrize("coefficients", [(0, 1), (1, 2, 0), (1, 1, 1, 1, 1, 1)])
def test_a_polynomial_of_degree_1_or_5_or_without_its_head_is_refused(coefficients: tuple[int, ...]) -> None:
    with pytest.raises(BadParameters, match="degree"):
        Polynomial("p", coefficients, 8)


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.pop("low"),
        lambda d: d.update(low="0"),
        lambda d: d.update(stages={}),
        lambda d: d["stages"][0].update(outputs=1 << 40),
        lambda d: d["stages"][0].update(columns=[[0], [99]]),
        lambda d: d["stages"][0].update(columns=[[0]]),
        lambda d: d["stages"][0].update(bits=True),
        lambda d: d["stages"].append(d["stages"][0]),
    ],
)
def test_damaged_json_is_refused(damage: Any) -> None:
    plain = json.loads(json.dumps(to_json(prove(0, 1, [("fc", FULL, weights([[1, 2, 3], [4, 5, 6]], [0, 0]))]))))
    damage(plain)
    with pytest.raises(BadParameters):
        from_json(plain)


def test_weights_do_not_show_themselves() -> None:
    assert "12345" not in repr(weights([[12345]], [6]))


def test_inputs_of_another_width_are_refused() -> None:
    own = weights([[1, 2, 3], [4, 5, 6]], [0, 0])
    circuit = prove(0, 1, [("fc", FULL, own)])
    with pytest.raises(Misuse, match="3"):
        define_circuit(circuit, {"fc": own}, np.zeros((1, 4), dtype=np.int64))
