"""Units of accumulators that make a ring easy to keep, before any training."""

from __future__ import annotations

from pqi.graph.ranges import prove
from pqi.quant.calibrate import calibrate
from pqi.quant.lower import lower
from pqi.quant.scheme import Recipe, Scheme
from pqi.quant.train.fit import fitted
from tests.pqi.quant.train import trainkit


def widest(lowered: object) -> int:
    graph = lowered.graph  # type: ignore[attr-defined]
    ranges = prove(graph)
    return max(ranges.bits[value] for value in graph.readers().values())


def test_a_wide_ring_changes_nothing() -> None:
    seen = calibrate(trainkit.taught(1), trainkit.bars(64)[0])
    recipe = Recipe(Scheme(3, activation_bits=3))
    again, lowered = fitted(seen, recipe, 32)
    assert again is recipe and widest(lowered) == widest(lower(seen, recipe))


def test_a_narrow_ring_makes_units_coarser_but_never_coarser_than_a_weights_step() -> None:
    seen = calibrate(trainkit.taught(1), trainkit.bars(64)[0])
    recipe = Recipe(Scheme(3, activation_bits=3))
    free = widest(lower(seen, recipe))
    again, lowered = fitted(seen, recipe, free - 1)
    assert widest(lowered) < free
    chosen = [own["multiplier"] for own in again.layers.values()]
    assert chosen and min(chosen) >= 1.0
    narrowest, _ = fitted(seen, recipe, 4)
    assert {own["multiplier"] for own in narrowest.layers.values()} == {1.0}


def test_multipliers_that_were_given_stay() -> None:
    seen = calibrate(trainkit.taught(1), trainkit.bars(64)[0])
    recipe = Recipe(Scheme(3, activation_bits=3, multiplier=4.0))
    again, lowered = fitted(seen, recipe, 8)
    assert again is recipe and widest(lowered) > 8
