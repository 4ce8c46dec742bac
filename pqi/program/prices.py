"""What each protocol of the catalogue would charge for a model, before anything runs."""

from __future__ import annotations

import protocols
from pqi.graph.model import IntegerModel
from pqi.graph.report import Price
from pqi.program.compiler import compile  # noqa: A004 (the field's word)


def prices(model: IntegerModel) -> dict[str, Price]:
    """For one input, planned for a LAN; protocols without communication are left out."""
    out = {}
    for name in protocols.CATALOGUE:
        program = compile(model, name)
        total = program.cost(1)
        if total.exchanges or total.online_bits or total.dealt_bits:
            layers = {
                layer: (cost.exchanges, cost.online_bytes, cost.dealt_bytes)
                for layer, cost in program.cost_by_layer(1).items()
            }
            out[name] = Price(total.exchanges, total.online_bytes, total.dealt_bytes, layers)
    return out
