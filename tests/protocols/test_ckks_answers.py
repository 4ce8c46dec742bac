"""What ckks answers is the circuit's value, within the bound that the plan states; and the bound is worth something."""

from __future__ import annotations

import numpy as np
import pytest
import tenseal.sealapi as seal
from ckkskit import Session, error, network, proven, session
from numpy.typing import NDArray

from protocols.ckks import server
from protocols.ckks.bound import TAIL
from protocols.ckks.client import CkksKeys
from protocols.lattice import wire

USELESS = 2.0**12


def check(ends: Session, n: int) -> None:
    opened, exact = ends.answer(ends.inputs(n))
    assert opened.exact is None
    assert opened.approximate.shape == exact.shape
    worst = error(opened, exact)
    assert worst <= opened.error_bound <= ends.plan.error_bound
    assert opened.error_bound <= USELESS * worst


@pytest.mark.parametrize(
    ("widths", "coefficients", "options", "n"),
    [
        ([12, 3], (0, 0, 1), {"packing": "single"}, 3),
        ([12, 3], (0, 0, 1), {"packing": "batch"}, 3),
        ([20, 9, 5], (7, -11, -2), {"packing": "single"}, 3),
        ([6, 9, 2], (7, -11, -2), {"packing": "batch"}, 5),
        ([16, 6, 4], (1, 2, -3, -1), {"packing": "single"}, 2),
        ([4, 3, 4], (1, 2, -3, -1), {"packing": "batch"}, 9),
        ([10, 6, 4], (1, 9, 4, -5, 2), {"packing": "single"}, 2),
        ([3, 3, 2], (1, 9, 4, -5, 2), {"packing": "batch"}, 9),
        ([12, 7, 5, 3], (0, 0, 1), {"packing": "single"}, 1),
    ],
)
def test_every_answer_is_within_the_bound(
    widths: list[int], coefficients: tuple[int, ...], options: dict[str, str], n: int
) -> None:
    check(session(*network(widths, coefficients, density=0.7), **options), n)


@pytest.mark.parametrize("seed", range(6))
def test_random_affine_circuits_stay_within_the_bound(seed: int) -> None:
    g = np.random.default_rng(seed)
    widths = [int(g.integers(1, 200)), int(g.integers(1, 60))]
    check(session(*network(widths, seed=seed, density=float(g.choice([0.05, 0.5, 1.0]))), packing="single"), 4)


@pytest.mark.parametrize("kind", ["equal", "zero", "alternating", "one row", "wide range"])
def test_weights_with_a_pattern_stay_within_the_bound_too(kind: str) -> None:
    """Roundings of weights are not random where weights are not."""
    weights = []
    for outputs, inputs in ((16, 32), (4, 16)):
        weight = np.full((outputs, inputs), 9)
        if kind == "zero":
            weight[:] = 0
        elif kind == "alternating":
            weight[:, ::2] = -9
        elif kind == "one row":
            weight[1:] = 0
        elif kind == "wide range":
            weight[:] = 1
            weight[0, 0] = 10_000
        weights.append(weight)
    supports = [np.ones(weight.shape, np.bool_) for weight in weights]
    ends = session(*proven(supports, weights), packing="single")
    x = np.full((1, 32), 15)
    for inputs in (x, ends.inputs(1)):
        opened, exact = ends.answer(inputs)
        assert error(opened, exact) <= opened.error_bound


@pytest.mark.parametrize("coefficients", [(1, 2, 1), (1, 2, 3, -1), (1, 9, 4, -5, 2)])
@pytest.mark.parametrize("packing", ["single", "batch"])
def test_errors_spread_no_wider_than_predicted_and_nearly_so_wide(
    coefficients: tuple[int, ...], packing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the noise that covers them. The rest of the gap is that ranges are worst cases."""
    monkeypatch.setattr(server, "FLOOD_SHARE", 0.0)
    ends = session(*network([12, 10, 10], coefficients), packing=packing)
    opened, exact = ends.answer(ends.inputs(4))
    spread = float(np.sqrt(np.square(opened.approximate - exact.astype(np.float64)).mean()))
    predicted = opened.error_bound / TAIL
    assert predicted / 64 < spread < predicted


def test_answers_wider_than_a_word_keep_their_relative_precision() -> None:
    ends = session(*network([8, 6, 5, 3], (0, 3, 1), most=2000), packing="single")
    opened, exact = ends.answer(ends.inputs(2))
    assert ends.circuit.bits > 70
    assert error(opened, exact) <= opened.error_bound <= 2.0 ** (ends.circuit.bits - 17)


def test_zero_weights_in_a_batch_give_the_bias() -> None:
    supports = [np.ones((4, 3), np.bool_), np.ones((2, 4), np.bool_)]
    ends = session(*proven(supports, [np.zeros((4, 3), np.int64), np.zeros((2, 4), np.int64)]), packing="batch")
    opened, exact = ends.answer(ends.inputs(3))
    assert error(opened, exact) <= opened.error_bound


def test_both_packings_of_one_plan_answer_alike() -> None:
    ends = session(*network([6, 2], density=0.6))
    few, many = ends.plan.break_even - 1, ends.plan.break_even
    assert [ends.plan.packing_of(n) for n in (few, many)] == ["single", "batch"]
    for n in (few, many):
        opened, exact = ends.answer(ends.inputs(n))
        assert error(opened, exact) <= opened.error_bound


def test_a_batch_longer_than_a_ciphertext_has_slots_goes_in_parts() -> None:
    ends = session(*network([2, 2]), packing="batch")
    n = ends.plan.slots + 3
    assert len(ends.plan.parts(n)) == 2
    opened, exact = ends.answer(ends.inputs(n))
    assert error(opened, exact) <= opened.error_bound


@pytest.mark.parametrize(("packing", "n"), [("single", 2), ("batch", 3)])
def test_what_crosses_the_wire_has_the_declared_length(packing: str, n: int) -> None:
    ends = session(*network([7, 4, 2]), packing=packing)
    declared = ends.plan.cost(n)
    questions, answers = ends.ask(ends.inputs(n))
    assert tuple(map(len, questions)) == declared.questions
    assert tuple(map(len, answers)) == declared.answers
    assert len(ends.client.evaluation_keys()) == declared.keys


def test_equal_inputs_give_different_messages_both_ways() -> None:
    ends = session(*network([5, 2]), packing="single")
    x = ends.inputs(1)
    (first, one), (second, two) = ends.ask(x), ends.ask(x)
    assert first != second
    assert one != two
    assert ends.server.evaluate(1, 0, first[0]) != ends.server.evaluate(1, 0, first[0])


def test_slots_beside_the_answer_and_imaginary_parts_hold_noise_of_the_answers_size() -> None:
    ends = session(*network([9, 3]), packing="single")
    (asked,) = ends.client.encrypt(ends.inputs(1))
    first, second = (decrypted(ends, ends.server.evaluate(1, 0, asked)) for _ in range(2))
    room = 2.0 ** (ends.plan.ring.prime - 3)
    assert np.abs((first - second).real[:3]).max() <= 2 * ends.plan.error_bound * ends.plan.run("single").gain_out
    for noise in ((first - second).real[3:], (first - second).imag):  # of two uniform numbers: 2/3 on average
        assert 0.6 * room < np.abs(noise).mean() < 0.73 * room
        assert np.abs(noise).max() > 1.8 * room


def decrypted(ends: Session, answer: bytes) -> NDArray[np.complex128]:
    """All slots of an answer, as the client could read them."""
    client, plain = ends.client, seal.Plaintext()
    if not isinstance(client, CkksKeys):
        raise TypeError(type(client))
    context, (_, body) = client._context, wire.cut(answer, ends.plan.answer_sizes("single"), "the answer")
    client._decryptor.decrypt(wire.load(context.seal, context.levels[1], body, "the answer"), plain)
    return np.array(context.encoder.decode_complex(plain))
