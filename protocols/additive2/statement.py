"""Who learns what, by the visibility of the weights and by the noise in answers."""

from __future__ import annotations

from collections.abc import Collection

from protocols.api import VISIBILITIES, SecurityStatement

_SHAPES = "layer shapes, rings and shifts"


def security_statement(visibilities: Collection[str], noise: int = 0) -> SecurityStatement:
    """The statement of a program whose linear steps have weights of these visibilities (none: shared).

    noise: the bound of the noise in answers; 0, if there is none.
    """
    found = [v for v in VISIBILITIES if v in visibilities] or ["shared"]
    known_to_a = [v for v in found if v != "shared"]
    known_to_b = [v for v in found if v == "public"]
    learns = {
        "server A": _server(known_to_a, found),
        "server B": _server(known_to_b, found),
        "dealer": "layer shapes, rings, shifts and activation tables; no weight, no input, no traffic",
        "client": "its answer, and the shapes of input and answer",
    }
    if noise:
        learns["dealer"] += ". It draws the noise of every answer, and alone knows it"
        learns["client"] = (
            f"its answer with fresh noise of at most {noise} on every integer, and the shapes of input and answer. "
            "It and the dealer together learn the answer without noise"
        )
    if "owned" in found:
        learns["server A"] += ". It is the model owner's"
        learns["server B"] += ". It may be the client's own: both together learn the answer and no more"
    return SecurityStatement("semi-honest, static, corrupts one of {server A, server B, dealer}", learns)


def _server(known: list[str], found: list[str]) -> str:
    """What a compute server learns that knows weights of these visibilities, of all that are found."""
    if not known:
        return f"{_SHAPES}; nothing about weights, inputs or answers"
    whole = known == found
    weights = f"the {' and '.join(known)} weights" if not whole else f"the weights ({' and '.join(known)})"
    return f"{_SHAPES}; {weights}; nothing about {'' if whole else 'other weights, '}inputs or answers"
