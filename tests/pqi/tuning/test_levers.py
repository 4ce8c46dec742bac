from __future__ import annotations

import pytest

from pqi.quant.scheme import Recipe, Scheme
from pqi.tuning.levers import Allowed, Candidate, Levers, Move

CLAMPS, LINEARS = ("relu1", "relu2"), ("fc1", "fc2", "fc3")
START = Candidate(Recipe(Scheme(6, activation_bits=4)))


def levers(**allowed: tuple[str, ...]) -> Levers:
    return Levers(CLAMPS, LINEARS, Allowed(**allowed))


def test_every_move_leads_to_another_candidate_or_nowhere() -> None:
    for move in levers(rings=("proven", "calibrated"), weights=("symmetric", "ternary")).moves():
        made = move.apply(START)
        assert made is None or made.key != START.key


def test_the_names_of_moves_are_all_different() -> None:
    names = [move.name for move in levers(rings=("proven", "calibrated"), weights=("symmetric", "affine")).moves()]
    assert len(names) == len(set(names))


def test_proven_candidates_never_get_index_bits() -> None:
    both = levers(rings=("proven", "calibrated"))
    assert all(made.scheme(layer).index_bits is None for made in reached(both, START) for layer in CLAMPS)
    calibrated = Candidate(START.recipe, rings="calibrated")
    assert any(made.scheme("relu1").index_bits is not None for made in reached(both, calibrated))


def reached(from_: Levers, start: Candidate) -> list[Candidate]:
    return [made for move in from_.moves() if (made := move.apply(start)) is not None]


def test_what_is_not_allowed_is_never_reached() -> None:
    plain = levers()
    for candidate in [*plain.ladder(), *reached(plain, START)]:
        assert candidate.rings == "proven" and candidate.rounding == "exact"
        assert all(candidate.scheme(layer).weights == "symmetric" for layer in LINEARS)
        assert candidate.scheme("relu1").index_bits is None


@pytest.mark.parametrize(
    ("rings", "roundings"), [(("proven", "calibrated"), ("exact",)), (("proven",), ("exact", "stochastic"))]
)
def test_what_is_allowed_stands_on_the_ladder(rings: tuple[str, ...], roundings: tuple[str, ...]) -> None:
    ladder = list(levers(rings=rings, roundings=roundings).ladder())
    assert {c.rings for c in ladder} == set(rings) and {c.rounding for c in ladder} == set(roundings)
    assert len({c.key for c in ladder}) == len(ladder)
    assert ladder[0].recipe.default.weight_bits == ladder[0].recipe.default.activation_bits == ladder[0].input_bits == 8


def test_a_move_of_all_layers_changes_each_from_where_it_stands() -> None:
    start = START.with_layers(("relu2",), activation_bits=6)
    made = Move("m", CLAMPS, add=(("activation_bits", -1),)).apply(start)
    assert made is not None
    assert [made.scheme(layer).activation_bits for layer in CLAMPS] == [3, 5]


def test_moves_stop_at_the_ends_of_what_a_scheme_can_be() -> None:
    fewer = Move("m", ("relu1",), add=(("activation_bits", -1),))
    at, steps = START, 0
    while (after := fewer.apply(at)) is not None:
        at, steps = after, steps + 1
    assert steps == 3 and at.scheme("relu1").activation_bits == 1
    input_bits = Move("m", add=(("input_bits", -1),))
    assert input_bits.apply(Candidate(START.recipe, input_bits=1)) is None


def test_going_back_leaves_no_trace_in_the_recipe() -> None:
    there = Move("m", ("fc1",), add=(("weight_bits", -1),)).apply(START)
    assert there is not None and there.recipe.layers == {"fc1": {"weight_bits": 5}}
    back = Move("m", ("fc1",), add=(("weight_bits", 1),)).apply(there)
    assert back == START and back.key == START.key


def test_improvements_are_added_once_and_in_one_order() -> None:
    learn, correct = (Move("m", put=(("improved", name),)) for name in ("learned_rounding", "bias_correction"))
    one = learn.apply(START)
    assert one is not None and learn.apply(one) is None
    both = correct.apply(one)
    assert both is not None and both.improved == ("bias_correction", "learned_rounding")


def test_weight_bits_are_no_lever_of_ternary_weights() -> None:
    ternary = Candidate(Recipe(Scheme(2, "ternary")))
    assert Move("m", ("fc1",), add=(("weight_bits", 1),)).apply(ternary) is None
