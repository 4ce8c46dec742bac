"""The ring as a constraint: the penalty's bound is the proof's bound, and the repair leaves nothing over."""

from __future__ import annotations

import pytest
import torch

from pqi.graph.errors import RangeError
from pqi.graph.ranges import prove, proven_accumulators
from pqi.quant.calibrate import calibrate
from pqi.quant.lower import lower
from pqi.quant.scheme import Recipe, Scheme
from pqi.quant.stages import Lowered
from pqi.quant.train import accumulators as bounds
from pqi.quant.train.module import TrainableGraph
from tests.pqi.quant.train import trainkit


def lowered() -> tuple[Lowered, TrainableGraph]:
    seen = calibrate(trainkit.taught(), trainkit.bars(128)[0])
    made = lower(seen, Recipe(Scheme(4, activation_bits=4)))
    return made, TrainableGraph(seen, made)


def test_the_penalty_bounds_what_the_proof_finds() -> None:
    made, module = lowered()
    ranges = prove(made.graph)
    found = bounds.accumulators(made.graph, ranges)
    assert {a.consumer for a in found} == set(made.graph.readers())
    for accumulator in found:
        lo, hi = (end.detach() for end in bounds.reach(accumulator, module.integers()))
        value = made.graph.readers()[accumulator.consumer]
        # The proof goes element by element: it can be narrower where a code cannot reach its own end.
        assert int(hi.max()) >= ranges.hi[value] and int(lo.min()) <= ranges.lo[value]
        if accumulator.terms[0].name == "conv2d":  # reads the input, which reaches every code everywhere
            assert (int(lo.min()), int(hi.max())) == (ranges.lo[value], ranges.hi[value])


def test_the_penalty_is_zero_inside_and_positive_outside() -> None:
    made, module = lowered()
    found = bounds.accumulators(made.graph, prove(made.graph))
    widest = max(proven_accumulators(made.graph, prove(made.graph)).values())
    # The bound of an accumulator is at most one bit above its proof.
    assert bounds.penalty(found, module.integers(), widest + 1).item() == 0.0
    assert bounds.penalty(found, module.integers(), widest - 1).item() > 0.0


@pytest.mark.parametrize("fewer", [1, 2])
def test_a_repaired_graph_is_proven_inside_its_ring(fewer: int) -> None:
    made, module = lowered()
    widest = max(proven_accumulators(made.graph, prove(made.graph)).values())
    again, moved = bounds.repaired(made, widest - fewer, module.wanted())
    assert moved > 0
    assert max(proven_accumulators(again.graph, prove(again.graph)).values()) <= widest - fewer
    for name, grid in again.grids.items():
        before, after = (g.by_name[name].op.tensors()["weight"] for g in (made.graph, again.graph))
        assert bool((after.abs() <= before.abs()).all()) and bool((after * before >= 0).all())
        assert torch.equal(grid.nearest(after.double()), after)


def test_a_graph_that_fits_is_left_alone() -> None:
    made, module = lowered()
    again, moved = bounds.repaired(made, 32, module.wanted())
    assert moved == 0 and again.graph is made.graph


def test_a_ring_that_biases_alone_overflow_is_refused_by_layer() -> None:
    made, module = lowered()
    with pytest.raises(RangeError, match="ring of 4 bits"):
        bounds.repaired(made, 4, module.wanted())
