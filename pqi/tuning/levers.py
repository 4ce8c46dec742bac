"""Candidates, and the levers that a search may pull.

A candidate is everything that decides a program: a recipe, the client's bits, the range policy, the rounding and the
improvements that look at the data again. A move changes one thing of one layer, or of all layers at once.

Costs are staircases in ring, shift and bits, and not even monotone ones: a clamp whose index has one bit more than its
codes needs no upper comparison, so *more* activation bits over a wider range can be cheaper. Hence moves that widen.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pqi.graph.errors import QuantizationError
from pqi.graph.floating import Clamp, FloatConv2d, FloatDense, FloatGraph
from pqi.quant.scheme import Recipe, Scheme
from pqi.quant.weights import typical_multiplier

IMPROVEMENTS = ("bias_correction", "learned_rounding")
LADDER = ((8, 8), (8, 6), (6, 6), (6, 5), (6, 4), (4, 4), (4, 5), (4, 3), (3, 3))  # weight bits, activation bits
LADDER_INPUTS = (8, 4, 2, 1)
_STRIDE = 13  # has no divisor in common with the number of rungs
_LEAST_MULTIPLIER, _MOST_MULTIPLIER = 2.0**-10, 2.0**6


@dataclass(frozen=True)
class Candidate:
    """What decides a program, but for the network's weights.

    recipe: schemes of the layers. input_bits: of the client's codes. rings, margin_bits: the range policy. rounding:
    "exact" or "stochastic". improved: which of IMPROVEMENTS are applied.
    """

    recipe: Recipe
    input_bits: int = 8
    rings: str = "proven"
    margin_bits: int = 1
    rounding: str = "exact"
    improved: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The same text for the same candidate."""
        return json.dumps(self.to_dict(), sort_keys=True)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "default": _plain(self.recipe.default),
            "layers": {name: dict(own) for name, own in sorted(self.recipe.layers.items())},
            "ends": self.recipe.ends,
            "input_bits": self.input_bits,
            "rings": self.rings,
            "margin_bits": self.margin_bits,
            "rounding": self.rounding,
            "improved": list(self.improved),
        }

    def scheme(self, layer: str) -> Scheme:
        """The scheme of one layer, ends apart."""
        return self.recipe.of(layer)

    def with_layers(self, layers: Sequence[str], **own: Any) -> Candidate:
        """The candidate with fields of some layers set; what equals the default is not repeated."""
        made = {name: dict(kept) for name, kept in self.recipe.layers.items()}
        base = _plain(self.recipe.default)
        for layer in layers:
            mine = {**made.get(layer, {}), **own}
            made[layer] = {name: value for name, value in mine.items() if base[name] != value}
        kept_layers = {name: kept for name, kept in made.items() if kept}
        return replace(self, recipe=replace(self.recipe, layers=kept_layers))


def _plain(scheme: Scheme) -> dict[str, Any]:
    return {name: getattr(scheme, name) for name in Scheme.__dataclass_fields__}


@dataclass(frozen=True)
class Allowed:
    """What a search may choose from. rings, roundings, weights: names. improvements: of IMPROVEMENTS."""

    rings: tuple[str, ...] = ("proven",)
    roundings: tuple[str, ...] = ("exact",)
    weights: tuple[str, ...] = ("symmetric",)
    improvements: tuple[str, ...] = ("bias_correction",)


@dataclass(frozen=True)
class Move:
    """One step from a candidate. layers: whose scheme changes (none: the candidate's own fields).

    add: whole numbers added to fields. times: factors. put: new values.
    """

    name: str
    layers: tuple[str, ...] = ()
    add: tuple[tuple[str, int], ...] = ()
    times: tuple[tuple[str, float], ...] = ()
    put: tuple[tuple[str, Any], ...] = ()

    def apply(self, to: Candidate) -> Candidate | None:
        """The next candidate; None where the step leads nowhere or outside what is possible."""
        try:
            made = self._on_layers(to) if self.layers else self._on_itself(to)
        except QuantizationError:
            return None
        return made if made is not None and made.key != to.key else None

    def _on_itself(self, to: Candidate) -> Candidate | None:
        own: dict[str, Any] = {name: getattr(to, name) + step for name, step in self.add}
        for name, value in self.put:
            both = {*to.improved, value}
            own[name] = tuple(i for i in IMPROVEMENTS if i in both) if name == "improved" else value
        made = replace(to, **own)
        return made if 1 <= made.input_bits <= 12 and made.margin_bits >= 0 else None

    def _on_layers(self, to: Candidate) -> Candidate | None:
        for layer in self.layers:
            scheme = to.scheme(layer)
            own: dict[str, Any] = dict(self.put)
            for name, step in self.add:
                if name == "index_bits":
                    if to.rings != "calibrated":
                        return None
                    before = scheme.index_bits if scheme.index_bits is not None else scheme.activation_bits + 3
                    own[name] = before + step
                else:
                    own[name] = getattr(scheme, name) + step
            for name, factor in self.times:
                before_it = typical_multiplier(scheme) if name == "multiplier" else getattr(scheme, name)
                own[name] = before_it * factor
            if not _LEAST_MULTIPLIER <= own.get("multiplier", 1.0) <= _MOST_MULTIPLIER:
                return None
            if scheme.weights in ("ternary", "binary") and "weight_bits" in own and "weights" not in own:
                return None  # their levels have no bits to give
            replace(scheme, **own)  # refuses what no scheme can be
            to = to.with_layers((layer,), **own)
        return to


# What a requantization can be asked for: name, steps of (activation bits, index bits), factor of the range.
_CLAMP_STEPS = (
    ("fewer codes", -1, 0, 1.0),
    ("fewer codes and index bits", -1, -1, 1.0),
    ("lower top", -1, 0, 0.5),
    ("lower top and fewer index bits", -1, -1, 0.5),
    ("fewer index bits", 0, -1, 1.0),
    ("higher top", 1, 0, 2.0),
    ("higher top and more index bits", 1, 1, 2.0),
    ("more codes", 1, 0, 1.0),
    ("more codes and index bits", 1, 1, 1.0),
    ("more index bits", 0, 1, 1.0),
    ("wider", 0, 0, 1.25),
    ("narrower", 0, 0, 0.8),
    ("a little wider", 0, 0, 1.1),
    ("a little narrower", 0, 0, 1 / 1.1),
)


@dataclass(frozen=True)
class Levers:
    """The levers of one network. clamps: names of its requantizations. linears: of its weighted layers."""

    clamps: tuple[str, ...]
    linears: tuple[str, ...]
    allowed: Allowed = field(default_factory=Allowed)

    @staticmethod
    def of(graph: FloatGraph, allowed: Allowed) -> Levers:
        """The levers of a placed float graph."""
        clamps = tuple(n.name for n in graph.nodes if isinstance(n.op, Clamp))
        linears = tuple(n.name for n in graph.nodes if isinstance(n.op, (FloatConv2d, FloatDense)))
        return Levers(clamps, linears, allowed)

    def summary(self, candidate: Candidate) -> str:
        """A candidate in a few words; where layers differ, the least and the most of them."""
        linears = [candidate.scheme(name) for name in self.linears]
        clamps = [candidate.scheme(name) for name in self.clamps]
        words = [
            f"weights {_span([s.weight_bits for s in linears])}",
            f"codes {_span([s.activation_bits for s in clamps])}",
        ]
        index = [s.index_bits for s in clamps if s.index_bits is not None]
        words += [f"index {_span(index)}"] if index else []
        words += [f"input {candidate.input_bits}", candidate.rings]
        words += sorted({s.weights for s in linears} - {"symmetric"})
        words += ["stochastic"] if candidate.rounding == "stochastic" else []
        words += [name.replace("_", " ") for name in candidate.improved]
        return ", ".join(words)

    def ladder(self, ends: str = "same") -> Iterator[Candidate]:
        """Uniform candidates, the plainest first and then in strides, so that every corner is seen early."""
        rungs = [(bits, *both) for bits in LADDER_INPUTS for both in LADDER]
        for at in range(len(rungs)):
            inputs, weight_bits, activation_bits = rungs[_STRIDE * at % len(rungs)]
            for rings, index in self._policies():
                for rounding in self.allowed.roundings:
                    for weights in self.allowed.weights:
                        scheme = Scheme(
                            weight_bits=weight_bits,
                            weights=weights,
                            activation_bits=activation_bits,
                            index_bits=None if index is None else activation_bits + index,
                        )
                        yield Candidate(Recipe(scheme, ends=ends), inputs, rings, rounding=rounding)

    def _policies(self) -> Iterator[tuple[str, int | None]]:
        """Range policies, with the index bits above the codes' where they are set."""
        if "proven" in self.allowed.rings:
            yield "proven", None
        if "calibrated" in self.allowed.rings:
            yield from (("calibrated", None), ("calibrated", 2), ("calibrated", 1))

    def moves(self) -> tuple[Move, ...]:
        """All moves, of all layers at once first, in a fixed order."""
        return (*self._whole(), *self._of_clamps(), *self._of_linears())

    def _whole(self) -> Iterator[Move]:
        yield Move("fewer input bits", add=(("input_bits", -1),))
        yield Move("more input bits", add=(("input_bits", 1),))
        if "calibrated" in self.allowed.rings:
            yield Move("smaller margin", add=(("margin_bits", -1),))
        for improvement in self.allowed.improvements:
            yield Move(improvement.replace("_", " "), put=(("improved", improvement),))

    def _of_clamps(self) -> Iterator[Move]:
        for scope in _scopes(self.clamps):
            for name, bits, index, factor in _CLAMP_STEPS:
                if index and "calibrated" not in self.allowed.rings:
                    continue
                add = tuple((what, n) for what, n in (("activation_bits", bits), ("index_bits", index)) if n)
                times = (("headroom", factor),) if not math.isclose(factor, 1.0) else ()
                yield Move(f"{_whose(scope)}: {name}", scope, add, times)

    def _of_linears(self) -> Iterator[Move]:
        for scope in _scopes(self.linears):
            yield Move(f"{_whose(scope)}: coarser accumulators", scope, times=(("multiplier", 0.5),))
            yield Move(f"{_whose(scope)}: finer accumulators", scope, times=(("multiplier", 2.0),))
            yield Move(f"{_whose(scope)}: fewer weight bits", scope, (("weight_bits", -1),), (("multiplier", 1.0),))
            yield Move(f"{_whose(scope)}: more weight bits", scope, (("weight_bits", 1),), (("multiplier", 0.5),))
            for weights in self.allowed.weights if len(self.allowed.weights) > 1 else ():
                yield Move(f"{_whose(scope)}: {weights} weights", scope, put=(("weights", weights),))


def _scopes(layers: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """All layers together, then each alone."""
    if layers:
        yield layers
    if len(layers) > 1:
        yield from ((layer,) for layer in layers)


def _span(bits: Sequence[int]) -> str:
    """4, or 3-6; a dash where there is nothing."""
    if not bits:
        return "-"
    return str(min(bits)) if min(bits) == max(bits) else f"{min(bits)}-{max(bits)}"


def _whose(scope: tuple[str, ...]) -> str:
    return scope[0] if len(scope) == 1 else "all layers"
