"""Private answers equal the definition of the circuit, integer by integer."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paillierkit import circuit, ends, protocol, weights

from protocols.circuit import Weights, prove
from protocols.clear.circuit import define_circuit
from protocols.errors import BadParameters


def example(
    seed: int, outputs: int, inputs: int, reach: int, bias: int, dense: bool = True
) -> tuple[Weights, np.ndarray]:
    rng = np.random.default_rng(seed)
    support = np.ones((outputs, inputs), dtype=bool) if dense else rng.integers(0, 2, (outputs, inputs)).astype(bool)
    weight = rng.integers(-reach, reach, (outputs, inputs), endpoint=True) * support
    return Weights(
        weight, np.array([int(b) for b in rng.integers(-bias, bias, outputs, endpoint=True)], object)
    ), support


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    outputs=st.integers(1, 5),
    inputs=st.integers(1, 7),
    reach=st.sampled_from([0, 1, 127, 128, 255, 30000]),
    dense=st.booleans(),
    ends_of_range=st.sampled_from([(0, 255), (-128, 127), (-5, -2), (7, 7)]),
    n=st.integers(1, 5),
)
def test_any_affine_circuit_is_computed_exactly(
    seed: int, outputs: int, inputs: int, reach: int, dense: bool, ends_of_range: tuple[int, int], n: int
) -> None:
    own, support = example(seed, outputs, inputs, reach, 10**6, dense)
    made = circuit(own, *ends_of_range, support=support)
    x = np.random.default_rng(seed + 1).integers(*ends_of_range, (n, inputs), endpoint=True)
    assert np.array_equal(ends(own, made).ask(x), define_circuit(made, {"fc": own}, x))


@pytest.mark.parametrize("of_group", ["one", "half", "all but one", "all", "one more", "two groups and one"])
def test_every_size_of_batch_is_exact(of_group: str) -> None:
    own, _ = example(3, 3, 4, 127, 1000)
    made = circuit(own)
    both = ends(own, made)
    k = both.plan.packing.slots
    n = {"one": 1, "half": k // 2, "all but one": k - 1, "all": k, "one more": k + 1, "two groups and one": 2 * k + 1}
    x = np.random.default_rng(0).integers(0, 256, (n[of_group], 4))
    assert np.array_equal(both.ask(x), define_circuit(made, {"fc": own}, x))


@pytest.mark.parametrize("ends_of_range", [(0, 255), (-128, 127)])
def test_neighbours_at_both_ends_of_the_proof_do_not_touch_each_other(ends_of_range: tuple[int, int]) -> None:
    low, high = ends_of_range
    own = weights([[127, 127], [-127, -127], [127, -127], [0, 0]], [0, 0, 5, -1])
    made = circuit(own, low, high)
    both = ends(own, made)
    x = np.array([[high, high], [low, low], [high, low], [low, high]] * (both.plan.packing.slots // 4), dtype=np.int64)
    assert np.array_equal(both.ask(x), define_circuit(made, {"fc": own}, x))


def test_answers_beyond_63_bits_come_as_python_integers() -> None:
    own = weights([[2**62, -(2**62)]], [-(2**90)])
    made = circuit(own)
    both = ends(own, made)
    x = np.array([[255, 0], [0, 255]], dtype=np.int64)
    assert made.bits > 63
    assert np.array_equal(both.ask(x), define_circuit(made, {"fc": own}, x))


def test_more_outputs_than_slots_come_in_several_ciphertexts() -> None:
    own, _ = example(5, 150, 2, 127, 9)
    both = ends(own, circuit(own))
    x = np.array([[1, 2], [200, 255]], dtype=np.int64)
    assert both.plan.answers(2) > 1
    assert both.plan.outputs_together(2) > 1
    assert np.array_equal(both.ask(x), define_circuit(both.plan.circuit, {"fc": own}, x))


def test_an_output_that_reads_no_input_is_its_bias() -> None:
    own = weights([[0, 0], [1, 1]], [-77, 0])
    support = np.array([[False, False], [True, True]])
    both = ends(own, circuit(own, support=support))
    assert both.ask(np.array([[1, 2]], dtype=np.int64)).tolist() == [[-77, 3]]


def test_without_gmpy2_the_answers_are_the_same() -> None:
    """In a process of its own, in which neither this package nor phe finds gmpy2; a tiny modulus keeps it quick."""
    code = """
import sys
sys.modules["gmpy2"] = None
import numpy as np
from protocols.circuit import Weights, prove
from protocols.paillier import numbers, plan
from protocols.paillier.protocol import Paillier
assert not numbers.HAVE_GMP
plan.KEY_BITS[512] = 0
own = Weights(np.array([[3, -4], [-128, 127]]), np.array([5, -6], dtype=object))
made = Paillier().plan(prove(0, 255, [("fc", np.ones((2, 2), bool), own)]), {"key_bits": 512})
client = Paillier().key_holder(made)
server = Paillier().evaluator(made, {"fc": own}, client.evaluation_keys())
(question,) = client.encrypt(np.array([[1, 2], [255, 254]]))
opened = client.decrypt(2, [server.evaluate(2, 0, question)])
assert opened.exact.tolist() == [[0, 120], [-246, -388]], opened.exact
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_server_imports_neither_phe_nor_what_makes_keys() -> None:
    code = """
import sys
import protocols.paillier.protocol
made = [m for m in sys.modules if m.split(".")[0] == "phe" or m in (
    "protocols.paillier.private", "protocols.paillier.client")]
assert not made, made
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_polynomial_is_refused_by_the_name_of_its_stage() -> None:
    own = weights([[1]], [0])
    support = np.ones((1, 1), dtype=bool)
    made = prove(0, 3, [("fc", support, own), ("square", (0, 0, 1)), ("out", support, own)])
    with pytest.raises(BadParameters, match=r"'square' is a polynomial of degree 2.*'bfv' and 'ckks'"):
        protocol().plan(made)
