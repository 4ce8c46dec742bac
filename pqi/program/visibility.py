"""Who may know the weights of which layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pqi.graph.model import IntegerModel
from pqi.graph.ops import WEIGHTED
from pqi.program.errors import ProgramError
from protocols.api import VISIBILITIES

OTHERS = "*"
_NAMES = 8  # listed in a message


def visibilities(model: IntegerModel, weights: str | Mapping[str, str]) -> dict[str, str]:
    """The visibility of every layer that has weights: ``shared``, ``owned`` by server A, or ``public``.

    weights: one visibility for all, or {layer or module that holds layers: visibility}; the nearest name counts, "*" is
    for all others, which are shared where it is not given. Raises :class:`ProgramError` that names what is unknown.
    """
    chosen = {OTHERS: weights} if isinstance(weights, str) else dict(weights)
    for name, visibility in chosen.items():
        if visibility not in VISIBILITIES:
            of = "" if name == OTHERS else f" of {name!r}"
            raise ProgramError(f"weights{of} = {visibility!r}; the settings are {', '.join(VISIBILITIES)}")
    layers = [node.name for node in model.graph.nodes if isinstance(node.op, WEIGHTED)]
    known = {OTHERS, *(name for layer in layers for name in _around(layer))}
    if stray := sorted(set(chosen) - known):
        more = ", ..." if len(layers) > _NAMES else ""
        raise ProgramError(
            f"weights names {', '.join(map(repr, stray[:_NAMES]))}, but no layer with weights is called so or lies "
            f"within; there are {', '.join(layers[:_NAMES])}{more}"
        )
    return {layer: next((chosen[n] for n in _around(layer) if n in chosen), VISIBILITIES[0]) for layer in layers}


def _around(layer: str) -> Iterator[str]:
    """The names that speak for a layer, nearest first: its own, those of the modules that hold it, and "*"."""
    name = layer
    while name:
        yield name
        name = name.rpartition(".")[0]
    yield OTHERS
