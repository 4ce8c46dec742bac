"""Before training for a ring: accumulator units coarse enough that the constraint asks for little."""

from __future__ import annotations

from pqi.graph.graph import IntegerGraph
from pqi.graph.ops import Add
from pqi.graph.ranges import prove
from pqi.quant.lower import lower
from pqi.quant.scheme import Recipe
from pqi.quant.stages import Calibration, Lowered
from pqi.quant.weights import typical_multiplier

_COARSEST = 1.0  # below one unit per weight step, steps fall between units and weights lose their bits


def fitted(calibration: Calibration, recipe: Recipe, ring: int) -> tuple[Recipe, Lowered]:
    """The recipe with smaller multipliers where a proof leaves the ring, and the graph lowered with it.

    A multiplier is halved as long as some accumulator of its layer is proven wider than ``ring``; what is still wider
    at a multiplier of 1 is left to the training. Multipliers that the recipe names itself stay as they are.
    """
    lowered = lower(calibration, recipe)
    while True:
        wide = _too_wide(lowered.graph, ring)
        changed = recipe
        for layer in sorted(wide & set(lowered.grids)):
            scheme = lowered.schemes[layer]
            now = typical_multiplier(scheme)
            given = recipe.default.multiplier is not None and "multiplier" not in recipe.layers.get(layer, {})
            if not given and now > _COARSEST:
                changed = changed.changed(layer, multiplier=max(now / 2, _COARSEST))
        if changed is recipe:
            return recipe, lowered
        recipe, lowered = changed, lower(calibration, changed)


def _too_wide(graph: IntegerGraph, ring: int) -> set[str]:
    """Linear nodes behind every accumulator whose proof leaves the ring."""
    ranges, found = prove(graph), set()
    for value in graph.readers().values():
        if ranges.bits[value] > ring:
            node = graph.by_name[value]
            found |= set(node.inputs) if isinstance(node.op, Add) else {value}
    return found
