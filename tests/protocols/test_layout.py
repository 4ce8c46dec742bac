"""The layout run with numpy rows instead of ciphertexts must be the circuit."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from protocols.circuit import Affine, Circuit, Integers, Polynomial, Weights
from protocols.clear.circuit import define_circuit
from protocols.errors import BadParameters, Misuse
from protocols.lattice.diagonals import Diagonal
from protocols.lattice.layout import Gather, Layout, plan_layout


class Row:
    """A row of slots with exact integers that counts its rotations, as a ciphertext would be used."""

    def __init__(self, made: list[int]) -> None:
        self.made = made

    def rotate(self, row: NDArray[Any], step: int) -> NDArray[Any]:
        self.made.append(step)
        return np.roll(row, -step, axis=-1)

    def fold(self, row: NDArray[Any], folds: tuple[int, ...]) -> NDArray[Any]:
        for step in folds:
            row = row + self.rotate(row, step)
        return row

    def gather(self, stage: Gather, rows: NDArray[Any], weight: NDArray[Any]) -> NDArray[Any]:
        total = sum(row * plaintext[None] for row, plaintext in zip(rows, stage.plaintexts(weight), strict=True))
        return self.fold(np.asarray(total), stage.folds)

    def diagonal(self, stage: Diagonal, row: NDArray[Any], weight: NDArray[Any]) -> NDArray[Any]:
        babies = [row]
        while len(babies) < stage.babies:
            babies.append(self.rotate(babies[-1], 1))
        inner = [np.zeros_like(row) for _ in range(stage.giants)]
        for giant, baby, plaintext in stage.plaintexts(weight):
            inner[giant] = inner[giant] + babies[baby] * plaintext
        total = inner[-1]
        for part in reversed(inner[:-1]):
            total = self.rotate(total, stage.baby) + part
        return self.fold(total, stage.folds)


def run(layout: Layout, circuit: Circuit, weights: dict[str, Weights], x: Integers) -> tuple[NDArray[Any], list[int]]:
    """The rows of the answer, and the rotations made."""
    made: list[int] = []
    row, rows = Row(made), layout.place(x.astype(object))
    value = rows[0]
    for number, stage in enumerate(layout.stages):
        own = weights[stage.name]
        if isinstance(stage, Gather):
            value = row.gather(stage, rows, own.weight.astype(object))
        else:
            value = row.diagonal(stage, value, own.weight.astype(object))
        value = value + stage.bias(own.bias)
        if number < len(circuit.polynomials):
            coefficients = circuit.polynomials[number].coefficients
            value = sum(c * value**power for power, c in enumerate(coefficients))
    return value, made


def circuit_of(supports: list[NDArray[np.bool_]], coefficients: tuple[int, ...] = (3, -1, 2)) -> Circuit:
    stages: list[Affine | Polynomial] = []
    for i, support in enumerate(supports):
        stages.append(Affine(f"linear{i}", support, 64))
        if i + 1 < len(supports):
            stages.append(Polynomial(f"square{i}", coefficients, 64))
    return Circuit(-8, 7, tuple(stages))


def random_weights(circuit: Circuit, seed: int) -> dict[str, Weights]:
    g = np.random.default_rng(seed)
    return {
        stage.name: Weights(
            np.where(stage.support, g.integers(-9, 10, stage.support.shape), 0),
            g.integers(-99, 100, stage.outputs).astype(object),
        )
        for stage in circuit.affine
    }


def check(circuit: Circuit, slots: int, seed: int) -> Layout:
    layout, weights = plan_layout(circuit, slots), random_weights(circuit, seed)
    x = np.random.default_rng(seed + 1).integers(-8, 8, (2, circuit.inputs))
    rows, made = run(layout, circuit, weights, x)
    assert rows.shape == (2, slots)
    assert (layout.answer(rows) == define_circuit(circuit, weights, x)).all()
    assert sorted(set(made)) == list(layout.rotations)
    assert {step: made.count(step) for step in made} == layout.rotation_counts
    assert made == [step for stage in layout.stages for step in stage.steps]
    last = layout.stages[-1]
    others = rows[:, : last.out_period][:, circuit.outputs :]
    assert not others.any(), "a slot between the answers says something"
    assert (rows == np.tile(rows[:, : last.out_period], slots // last.out_period)).all()
    return layout


@settings(deadline=None, max_examples=60)
@given(
    widths=st.lists(st.integers(1, 40), min_size=2, max_size=4),
    density=st.sampled_from([0.05, 0.3, 1.0]),
    slots=st.sampled_from([64, 128, 256]),
    seed=st.integers(0, 1000),
)
def test_rows_that_follow_the_layout_compute_the_circuit(
    widths: list[int], density: float, slots: int, seed: int
) -> None:
    g = np.random.default_rng(seed)
    supports = [g.random((out, into)) < density for into, out in pairwise(widths)]
    check(circuit_of(supports), slots, seed)


@settings(deadline=None, max_examples=30)
@given(widths=st.lists(st.integers(1, 16), min_size=2, max_size=4), seed=st.integers(0, 1000))
def test_rows_as_narrow_as_the_widest_stage_suffice(widths: list[int], seed: int) -> None:
    supports = [np.ones((out, into), np.bool_) for into, out in pairwise(widths)]
    check(circuit_of(supports), 16, seed)


def test_a_convolution_is_gathered_from_several_ciphertexts_where_one_row_is_too_short() -> None:
    support = np.zeros((30, 60), np.bool_)
    for out in range(30):
        support[out, 2 * out : 2 * out + 9] = True
    layout = check(circuit_of([support, np.ones((5, 30), np.bool_)]), 128, 1)
    assert isinstance(layout.stages[0], Gather)
    assert (layout.ciphertexts, layout.stages[0].folds) == (3, (32, 64))


def test_a_gather_that_leaves_room_is_repeated_so_that_its_folds_are_cyclic() -> None:
    layout = check(circuit_of([np.ones((3, 5), np.bool_)]), 256, 2)
    assert isinstance(layout.stages[0], Gather)
    assert layout.stages[0].folds == (4, 8, 16)
    assert (layout.stages[0].index[0] == np.tile(layout.stages[0].index[0, :32], 8)).all()


def test_a_wide_dense_first_stage_goes_by_diagonals_of_one_ciphertext() -> None:
    layout = check(circuit_of([np.ones((32, 200), np.bool_)]), 256, 3)
    assert isinstance(layout.stages[0], Diagonal)
    assert layout.ciphertexts == 1


def test_more_inputs_than_a_row_has_slots_are_gathered() -> None:
    layout = check(circuit_of([np.ones((2, 40), np.bool_)]), 16, 4)
    assert isinstance(layout.stages[0], Gather)
    assert layout.ciphertexts == 5


@pytest.mark.parametrize(("inputs", "outputs"), [(33, 9), (9, 33), (16, 16), (1, 5), (5, 1), (64, 3), (3, 64)])
def test_diagonals_serve_wide_and_tall_stages(inputs: int, outputs: int) -> None:
    first = np.eye(inputs, dtype=np.bool_)
    layout = check(circuit_of([first, np.ones((outputs, inputs), np.bool_)]), 128, 5)
    stage = layout.stages[1]
    assert isinstance(stage, Diagonal)
    assert int(stage.used.sum()) == min(stage.period, stage.span)
    assert stage.babies * stage.giants >= min(stage.period, stage.span)


def test_diagonals_that_the_support_leaves_empty_take_no_product_and_no_rotation_beyond_the_last() -> None:
    layout = check(circuit_of([np.eye(16, dtype=np.bool_), np.eye(16, dtype=np.bool_)]), 32, 6)
    assert isinstance(layout.stages[1], Diagonal)
    assert layout.stages[1].used.sum() == 1
    assert layout.rotations == ()


def test_an_empty_support_gives_the_bias() -> None:
    check(circuit_of([np.zeros((4, 6), np.bool_), np.zeros((3, 4), np.bool_)]), 16, 7)


def test_the_first_stage_that_needs_a_key_is_known() -> None:
    scattered = np.eye(16, dtype=np.bool_) | (np.arange(16)[:, None] * 5 % 16 == np.arange(16))
    layout = check(circuit_of([scattered, np.ones((2, 16), np.bool_)]), 64, 8)
    assert layout.first_use[16] == 0
    assert set(layout.first_use) == set(layout.rotations)
    assert layout.first_use[1] == 1


def test_a_stage_wider_than_the_row_is_refused_by_name() -> None:
    wide = circuit_of([np.ones((4, 4), np.bool_), np.ones((40, 4), np.bool_)])
    with pytest.raises(BadParameters, match=r"stage 'linear1': 4 -> 40 values need a row of 64 slots.*have 32"):
        plan_layout(wide, 32)
    with pytest.raises(BadParameters, match=r"stage 'linear0'"):
        plan_layout(circuit_of([np.ones((40, 4), np.bool_)]), 32)


def test_inputs_of_another_width_and_rows_of_no_power_of_two_are_misuse() -> None:
    circuit = circuit_of([np.ones((4, 4), np.bool_)])
    with pytest.raises(Misuse, match="reads 4"):
        plan_layout(circuit, 32).place(np.zeros((1, 5), np.int64))
    with pytest.raises(Misuse, match="power of two"):
        plan_layout(circuit, 24)


def test_every_input_that_the_support_allows_is_placed_whatever_the_weights() -> None:
    support = np.random.default_rng(9).random((13, 20)) < 0.3
    layout = plan_layout(circuit_of([support]), 256)
    stage = layout.stages[0]
    assert isinstance(stage, Gather)
    placed = np.zeros_like(support)
    slots = np.broadcast_to(np.arange(256) % stage.period, stage.index.shape)
    placed[slots[stage.index >= 0], stage.index[stage.index >= 0]] = True
    assert (placed == support).all()
