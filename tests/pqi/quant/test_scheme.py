"""Schemes and recipes: what can be asked for, and how what cannot is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from pqi.cli import options
from pqi.graph.errors import QuantizationError
from pqi.quant import quantize, scheme
from pqi.quant.observers import OBSERVERS
from pqi.quant.scheme import ACTIVATIONS, ENDS, WEIGHTS, Recipe, Scheme


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"weight_bits": 1}, "weight_bits is 1: it must be an integer from 2 to 12 .*binary"),
        ({"weight_bits": 13}, "from 2 to 12"),
        ({"weight_bits": 8.0}, "weight_bits is 8.0"),
        ({"weight_bits": True}, "weight_bits is True"),
        ({"weight_bits": 3, "weights": "ternary"}, "weight_bits is 3: it must be 2 .*leave weight_bits out"),
        ({"weight_bits": 2, "weights": "binary"}, "it must be 1 .*leave weight_bits out"),
        ({"weight_bits": 1, "weights": "affine"}, "from 2 to 12"),
        ({"weight_bits": 5, "weights": "power_of_two"}, "from 2 to 4 .*additive_powers_of_two"),
        ({"weight_bits": 8, "weights": "additive_powers_of_two"}, "from 2 to 6 .*symmetric"),
        ({"weight_bits": 9, "weights": "codebook"}, "from 2 to 8"),
        ({"weights": "octal"}, "weights is 'octal': it must be one of symmetric, affine"),
        ({"weights": None}, "weights is None"),
        ({"activation_bits": 0}, "activation_bits is 0: it must be an integer from 1 to 12"),
        ({"activation_bits": 1, "activations": "codebook"}, "from 2 to 8 with activations='codebook'"),
        ({"activation_bits": 9, "activations": "power_of_two"}, "from 2 to 8"),
        ({"activations": "log"}, "activations is 'log'"),
        ({"index_bits": 6}, "index_bits is 6: it must be an integer from 7 to 16 .*signed"),
        ({"index_bits": 8, "activations": "codebook"}, "from 9 to 16"),
        ({"index_bits": 17}, "from 7 to 16"),
        ({"observer": "median"}, "observer is 'median': it must be one of minmax"),
        ({"percentile": None}, "percentile is None: .*observer='minmax'"),
        ({"percentile": 10.0}, "percentile is 10.0"),
        ({"multiplier": 0}, "multiplier is 0"),
        ({"multiplier": float("nan")}, "multiplier is nan"),
        ({"multiplier": "2"}, "multiplier is '2'"),
        ({"per_channel": 1}, "per_channel is 1: it must be True or False"),
        ({"headroom": 0.0}, "headroom is 0.0"),
    ],
)
def test_a_scheme_that_contradicts_itself_is_refused_with_the_reason(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(QuantizationError, match=says):
        Scheme(**fields)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_ternary_and_binary_leave_the_default_bits_alone(weights: str) -> None:
    bits = {"ternary": 2, "binary": 1, "power_of_two": 4, "additive_powers_of_two": 4}.get(weights, 8)
    assert Scheme(bits, weights).weights == weights
    if weights in ("ternary", "binary"):
        assert Scheme(weights=weights).weight_bits == 8


def test_the_grid_of_codes_that_are_looked_up_is_finer() -> None:
    assert Scheme(activation_bits=5).grid_bits == 5
    assert Scheme(activation_bits=5, activations="codebook").grid_bits == 5 + scheme.TABLE_BITS


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        ({"a": {"bits": 3}}, r"layer 'a': \['bits'\] is no field of a scheme; these are: weight_bits, weights"),
        ({"a": {"weight_bits": 0}}, "layer 'a': weight_bits is 0"),
        ({"a": {"activations": "codebook", "activation_bits": 12}}, "layer 'a': activation_bits is 12"),
    ],
)
def test_a_recipe_refuses_unknown_fields_and_bad_values_by_layer(layers: dict[str, Any], says: str) -> None:
    with pytest.raises(QuantizationError, match=says):
        Recipe(Scheme(), layers)


def test_ends_must_be_a_known_policy() -> None:
    with pytest.raises(QuantizationError, match="ends is 'float': it must be one of same, eight_bits"):
        Recipe(ends="float")


def test_a_layer_s_own_fields_count_more_than_the_ends_and_these_more_than_the_rule() -> None:
    recipe = Recipe(
        Scheme(3, multiplier=9.0), {"first": {"weight_bits": 6}, "mid": {"per_channel": False}}, "eight_bits"
    )
    assert recipe.of("first", is_end=True) == Scheme(6)
    assert recipe.of("last", is_end=True) == Scheme(8)
    assert recipe.of("mid") == Scheme(3, per_channel=False, multiplier=9.0)
    assert recipe.of("other") == Scheme(3, multiplier=9.0)
    assert recipe.changed("mid", weight_bits=5).of("mid") == Scheme(5, per_channel=False, multiplier=9.0)


def test_a_layer_that_becomes_ternary_does_not_keep_the_rule_s_bits_and_none_keeps_ternary_s() -> None:
    assert Recipe(Scheme(4), {"a": {"weights": "ternary"}}).of("a").weights == "ternary"
    assert Recipe(Scheme(2, "ternary"), {"a": {"weights": "symmetric"}}).of("a") == Scheme(8)
    assert Recipe(Scheme(4), {"a": {"weights": "affine"}}).of("a") == Scheme(4, "affine")
    with pytest.raises(QuantizationError, match="layer 'a': weight_bits is set, but its weights are ternary"):
        Recipe(Scheme(weights="ternary"), {"a": {"weight_bits": 8}})
    ends = Recipe(Scheme(weights="ternary"), {"a": {"weight_bits": 6}}, "eight_bits")
    assert ends.of("a", is_end=True) == Scheme(6)
    with pytest.raises(QuantizationError, match="layer 'a'"):
        ends.of("a")


def net() -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    return made.eval()


X = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        (
            {"conv9": {"weight_bits": 4}},
            r"layers names \['conv9'\], which the network does not have. It has \['0', '1'",
        ),
        ({"0": {"activation_bits": 4}}, r"layer '0' reads only weights: \['activation_bits'\] .*Layers that read them"),
        ({"1": {"weight_bits": 4}}, r"layer '1' reads only codes: \['weight_bits'\] would change nothing"),
    ],
)
def test_layers_and_fields_that_the_network_does_not_have_are_refused(layers: dict[str, Any], says: str) -> None:
    with pytest.raises(QuantizationError, match=says):
        quantize(net(), X, layers=layers)


def test_single_layers_get_what_was_asked_for_them() -> None:
    model = quantize(net(), X, 4, 6, layers={"2": {"weights": "ternary"}, "1": {"activation_bits": 3}})
    ops = {n.name: n.op for n in model.graph.nodes}
    assert ops["1"].bits == 3 and ops["4"].bits == 6  # type: ignore[attr-defined]
    for name, most in (("0", 15), ("2", 3), ("5", 15)):
        rows = ops[name].weight  # type: ignore[attr-defined]
        assert all(len(row.unique()) <= most for row in rows)


def test_the_ends_keep_eight_bits_when_the_middle_has_few() -> None:
    model = quantize(net(), X, weights="binary", ends="eight_bits")
    weights = {n.name: n.op.weight for n in model.graph.nodes if n.op.kind == "dense"}  # type: ignore[attr-defined]
    assert {name: all(len(row.unique()) <= 2 for row in weight) for name, weight in weights.items()} == {
        "0": False,
        "2": True,
        "5": False,
    }


def test_the_command_offers_every_choice_there_is() -> None:
    assert tuple(each.value for each in options.Weights) == WEIGHTS
    assert tuple(each.value for each in options.Activations) == ACTIVATIONS
    assert tuple(each.value for each in options.Observer) == OBSERVERS
    assert tuple(each.value for each in options.Ends) == ENDS


def test_every_field_of_a_scheme_has_a_kind_that_the_command_can_read() -> None:
    assert set(scheme.FIELD_TYPES.values()) <= {"int", "float", "str", "bool"}
    for name, kind in scheme.FIELD_TYPES.items():
        value = getattr(Scheme(), name)
        assert value is None or type(value).__name__ == kind
        assert replace(Scheme(), **{name: value}) == Scheme()
