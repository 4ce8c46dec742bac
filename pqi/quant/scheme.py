"""What each layer gets: bits, levels, observer. One scheme is the rule; single layers may differ by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from numbers import Real
from typing import Any

from pqi.graph.errors import QuantizationError
from pqi.quant.observers import OBSERVERS

WEIGHTS = ("symmetric", "affine", "ternary", "binary", "power_of_two", "additive_powers_of_two", "codebook")
ACTIVATIONS = ("uniform", "power_of_two", "additive_powers_of_two", "codebook")
ENDS = ("same", "eight_bits")
TABLE_BITS = 2  # of a table's index above activation_bits: how much finer the grid is on which levels are chosen

# Bits that each kind of levels can have, and what is wrong with others.
_WEIGHT_BITS = {
    "symmetric": (2, 12, "one bit has no level beside zero: weights='binary' are the weights of one bit"),
    "affine": (2, 12, "weights='binary' are the weights of one bit"),
    "ternary": (2, 2, "three levels are what ternary means: leave weight_bits out"),
    "binary": (1, 1, "two levels are what binary means: leave weight_bits out"),
    "power_of_two": (2, 4, "more bits add only levels below a 64th of the largest: use additive_powers_of_two"),
    "additive_powers_of_two": (2, 6, "more bits have levels above 400, and rings to match: use symmetric"),
    "codebook": (2, 8, "more levels than units: use symmetric"),
}
_ACTIVATION_BITS = {"uniform": (1, 12)}  # any other: 2 to 8
_OWN_BITS = ("ternary", "binary")  # levels that know their bits: weight_bits stays at its default
_WEIGHT_FIELDS = ("weight_bits", "weights", "per_channel", "multiplier")


def check_bits(name: str, value: object, low: int, high: int, why: str = "") -> None:
    """Refuse what is not an integer in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        wanted = f"an integer from {low} to {high}" if low < high else str(low)
        raise QuantizationError(f"{name} is {value!r}: it must be {wanted}{' ' if why else ''}{why}")


def check_number(name: str, value: object, low: float, high: float, hint: str) -> None:
    """Refuse what is not a real number in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, Real) or not low <= float(value) <= high:
        raise QuantizationError(f"{name} is {value!r}: it must be a number from {low:g} to {high:g} ({hint})")


@dataclass(frozen=True)
class Scheme:
    """What one layer gets. Weight fields are read by linear layers, the others by requantizations.

    weight_bits: bits of a weight's code. weights: which levels those codes stand for (``pqi.quant.weights``):
    "symmetric" and "affine" (2 to 12 bits), "power_of_two" (2 to 4), "additive_powers_of_two" (2 to 6), "codebook"
    (2 to 8), "ternary" and "binary", which know their bits: weight_bits is left out, or says 2 and 1. per_channel:
    levels and a step for each output channel. multiplier: accumulator units per weight step in a typical channel
    (None: by a rule, ``pqi.quant.weights.typical_multiplier``).

    activation_bits: bits of the codes that leave. activations: which levels they stand for (``pqi.quant.codes``):
    "uniform" (1 to 12 bits), "power_of_two", "additive_powers_of_two" or "codebook" (2 to 8). index_bits: of the
    accumulator after the shift; None leaves it to the range policy, a number makes the ring shift + index_bits by
    definition. observer, percentile: how the range is chosen from what calibration saw (the default percentile is the
    largest value where fewer than 10,000 were seen). headroom: the chosen range times this; more than 1 leaves room
    above the codes, so that few index bits hold what lies below them, too.
    """

    weight_bits: int = 8
    weights: str = "symmetric"
    per_channel: bool = True
    multiplier: float | None = None
    activation_bits: int = 6
    activations: str = "uniform"
    index_bits: int | None = None
    observer: str = "percentile"
    percentile: float = 99.99
    headroom: float = 1.0

    def __post_init__(self) -> None:
        for name, known in (("weights", WEIGHTS), ("activations", ACTIVATIONS), ("observer", OBSERVERS)):
            if getattr(self, name) not in known:
                raise QuantizationError(f"{name} is {getattr(self, name)!r}: it must be one of {', '.join(known)}")
        self._check_bits()
        if not isinstance(self.per_channel, bool):
            raise QuantizationError(f"per_channel is {self.per_channel!r}: it must be True or False")
        if self.multiplier is not None:
            check_number("multiplier", self.multiplier, 2**-16, 1 << 16, "None: by the rule")
        check_number("headroom", self.headroom, 1 / 64, 64, "1: the range as chosen")
        check_number("percentile", self.percentile, 50, 100, "the largest values seen are observer='minmax'")

    def _check_bits(self) -> None:
        low, high, why = _WEIGHT_BITS[self.weights]
        if self.weights not in _OWN_BITS or self.weight_bits != Scheme.weight_bits:
            check_bits("weight_bits", self.weight_bits, low, high, f"with weights={self.weights!r} ({why})")
        low, high = _ACTIVATION_BITS.get(self.activations, (2, 8))
        check_bits("activation_bits", self.activation_bits, low, high, f"with activations={self.activations!r}")
        if self.index_bits is not None:
            least = self.grid_bits + 1
            why = f"for codes found on a grid of {self.grid_bits} bits (the index is a signed number)"
            check_bits("index_bits", self.index_bits, least, max(16, least), why)

    @property
    def grid_bits(self) -> int:
        """Bits of the index from which codes are made: ``TABLE_BITS`` more than theirs where they are looked up."""
        return self.activation_bits + (TABLE_BITS if self.activations != "uniform" else 0)

    @property
    def weight_key(self) -> tuple[int, str, bool]:
        """What the fit of a layer's weights depends on, but for its unit."""
        return self.weight_bits, self.weights, self.per_channel


# What each field holds beside None: "int", "float", "str" or "bool".
FIELD_TYPES = {f.name: str(f.type).split(" |")[0] for f in fields(Scheme)}
_FIELDS = tuple(FIELD_TYPES)


@dataclass(frozen=True)
class Recipe:
    """A scheme for every layer, and what single layers have of their own.

    layers: fields of Scheme by layer name (the names of the report). ends: "same", or "eight_bits" for the weights of
    the first and the last linear layer, where few bits hurt most and cost least; what ``layers`` says of them counts
    more. A layer that is given ternary or binary weights, or other weights where those are the rule, begins with their
    own weight_bits.
    """

    default: Scheme = Scheme()
    layers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    ends: str = "same"

    def __post_init__(self) -> None:
        if self.ends not in ENDS:
            raise QuantizationError(f"ends is {self.ends!r}: it must be one of {', '.join(ENDS)}")
        for layer, own in self.layers.items():
            unknown = sorted(set(own) - set(_FIELDS))
            if unknown:
                known = ", ".join(_FIELDS)
                raise QuantizationError(f"layer {layer!r}: {unknown} is no field of a scheme; these are: {known}")
            if self.ends == "same":  # otherwise it takes the network to tell
                self.of(layer)

    def of(self, layer: str, is_end: bool = False) -> Scheme:
        """The scheme of one layer; ``is_end``: it is the first or the last linear layer."""
        own, rule = self.layers.get(layer, {}), self.default
        if is_end and self.ends == "eight_bits":
            rule = replace(rule, weight_bits=8, weights="symmetric", multiplier=None)
        if not own:
            return rule
        changes = own.get("weights", rule.weights) != rule.weights
        if changes and (own["weights"] in _OWN_BITS or rule.weights in _OWN_BITS):
            own = {"weight_bits": Scheme.weight_bits, **own}
        try:
            if "weight_bits" in own and not changes and rule.weights in _OWN_BITS:
                raise QuantizationError(f"weight_bits is set, but its weights are {rule.weights}: set weights, too")
            return replace(rule, **own)
        except QuantizationError as error:
            raise QuantizationError(f"layer {layer!r}: {error}") from None

    def check_layers(self, kinds: Mapping[str, str]) -> None:
        """Refuse layers that the network does not have, and fields that a layer does not read.

        kinds: what each of the network's layers reads: "weights", "codes" (of a requantization) or "nothing".
        """
        strange = sorted(set(self.layers) - set(kinds))
        if strange:
            known = [name for name, kind in kinds.items() if kind != "nothing"]
            raise QuantizationError(f"layers names {strange}, which the network does not have. It has {known}")
        for layer, own in self.layers.items():
            mine = _WEIGHT_FIELDS if kinds[layer] == "weights" else tuple(f for f in _FIELDS if f not in _WEIGHT_FIELDS)
            idle = sorted(set(own) - set(mine if kinds[layer] != "nothing" else ()))
            if idle:
                others = [name for name, kind in kinds.items() if kind not in (kinds[layer], "nothing")]
                reads = {"weights": "only weights", "codes": "only codes"}.get(kinds[layer], "no scheme")
                where = f" Layers that read them: {others}" if kinds[layer] != "nothing" else ""
                raise QuantizationError(f"layer {layer!r} reads {reads}: {idle} would change nothing.{where}")

    def changed(self, layer: str, **own: Any) -> Recipe:
        """The recipe with fields of one layer set."""
        return replace(self, layers={**self.layers, layer: {**self.layers.get(layer, {}), **own}})
