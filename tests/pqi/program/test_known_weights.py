"""Whole networks whose weights are shared, owned by server A, or public: exact, and as long on the wire as declared."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pqi.program as program
from pqi.graph.model import IntegerModel
from pqi.program.errors import ProgramError
from pqi.program.visibility import visibilities
from pqi.quant import quantize
from protocols import api
from protocols.rounds import PartyId
from tests import networks
from tests.pqi.program.lockstep import Run, run

NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (networks.mlp, (20,)),
    "small_cnn": (networks.small_cnn, (1, 12, 12)),
    "mobile_block": (networks.mobile_block, (3, 10, 10)),
    "concat_net": (networks.concat_net, (2, 8, 8)),
    "resnet": (lambda: networks.settle(networks.ResNetCIFAR(1, (4, 8, 16)), (3, 32, 32)), (3, 32, 32)),
}
Weights = str | Mapping[str, str]
MIXED: Weights = {"conv1": "public", "fc1": "owned", "*": "shared"}


def data(name: str, n: int) -> Tensor:
    return torch.randn(n, *NETS[name][1], generator=torch.Generator().manual_seed(1))


@cache
def model_of(name: str, dynamic: bool = False) -> IntegerModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return quantize(NETS[name][0](), calibration=data(name, 48), **({"dynamic": 4} if dynamic else {}))


def check(model: IntegerModel, x: Tensor, weights: Weights, protocol: str = "additive2") -> tuple[program.Program, Run]:
    codes, compiled = model.encode(x, "silent"), program.compile(model, protocol, weights=weights)
    assert compiled.exact
    got, cost = run(model, compiled, codes), compiled.cost(len(codes))
    assert torch.equal(got.answer, model.integers(codes))
    assert got.dealt == cost.dealt_bytes
    for party in compiled.parties:
        assert got.log.sent_bytes[party] == cost.sent_bytes(party)
        assert got.log.exchanges[party] == cost.exchanges
    return compiled, got


@pytest.mark.parametrize("weights", ["owned", "public"])
@pytest.mark.parametrize("name", sorted(NETS))
def test_private_answers_equal_the_integer_model_whoever_knows_the_weights(name: str, weights: str) -> None:
    compiled, _ = check(model_of(name), data(name, 3), weights)
    assert compiled.visibilities == (weights,)


@pytest.mark.parametrize("weights", [*api.VISIBILITIES, MIXED], ids=str)
def test_the_specification_computes_the_same_whatever_the_setting(weights: Weights) -> None:
    check(model_of("small_cnn"), data("small_cnn", 2), weights, "clear")


@pytest.mark.parametrize("weights", ["owned", "public"])
def test_a_model_with_an_input_scale_for_every_request_is_served_as_well(weights: str) -> None:
    check(model_of("small_cnn", dynamic=True), data("small_cnn", 3), weights)


def test_owned_weights_halve_the_openings_and_public_ones_need_none() -> None:
    model = model_of("small_cnn")
    a, b = PartyId.P0, PartyId.P1
    shared, owned, public = (program.compile(model, weights=w).cost(5) for w in api.VISIBILITIES)
    opened = sum(
        shared_step.count * shared_step.ring
        for _, shared_step, _ in program.compile(model).steps
        if isinstance(shared_step, api.Open)
    )
    assert shared.sent_bytes(a) == shared.sent_bytes(b) == owned.sent_bytes(b)
    assert public.sent_bytes(a) == public.sent_bytes(b) == owned.sent_bytes(a) < owned.sent_bytes(b)
    assert abs(8 * (owned.sent_bytes(b) - owned.sent_bytes(a)) - 5 * opened) < 8 * 10  # up to the bits that fill bytes
    assert owned.dealt_bits == shared.dealt_bits > public.dealt_bits
    assert public.exchanges < owned.exchanges == shared.exchanges


def test_every_layer_can_have_a_setting_of_its_own() -> None:
    model = model_of("small_cnn")
    compiled, _ = check(model, data("small_cnn", 2), MIXED)
    found = {name: s.visibility for name, s, _ in compiled.steps if isinstance(s, api.Linear)}
    assert found == {"conv1": "public", "conv2": "shared", "fc1": "owned", "fc2": "shared"}
    assert compiled.visibilities == ("shared", "owned", "public")
    stored = program.split_weights(model, compiled)
    assert {k for k in stored[PartyId.P0] if k.startswith("fc1")} == {"fc1.weight", "fc1.bias"}
    assert {k for k in stored[PartyId.P1] if k.startswith("fc1")} == {"fc1.masked"}
    assert not any(k.startswith("conv1") for k in stored[PartyId.DEALER])


def test_one_value_that_maps_of_two_settings_read_is_opened_once_for_each() -> None:
    name = "resnet"
    model = model_of(name)
    compiled, _ = check(model, data(name, 2), {"layer2.0.add": "owned", "layer2": "public"})
    found = {n: s.visibility for n, s, _ in compiled.steps if isinstance(s, api.Linear)}
    assert found["layer2.0.add.scale"] == "owned"
    assert (found["layer2.0.conv1"], found["layer2.0.conv2"]) == ("public", "public")
    assert (found["conv1"], found["layer3.0.conv1"]) == ("shared", "shared")
    branches = program.compile(model_of("concat_net"), weights=_every_other(model_of("concat_net")))
    names = [n for n, s, _ in branches.steps if isinstance(s, api.Open)]
    assert len(names) == len(set(names))
    check(model_of("concat_net"), data("concat_net", 2), _every_other(model_of("concat_net")))


def _every_other(model: IntegerModel) -> dict[str, str]:
    layers = list(visibilities(model, "shared"))
    return {name: api.VISIBILITIES[i % 2] for i, name in enumerate(layers)}


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ("secret", "weights = 'secret'; the settings are shared, owned, public"),
        ({"conv1": "mine"}, "weights of 'conv1' = 'mine'"),
        ({"conv9": "owned"}, "names 'conv9', but no layer.*conv1, conv2, fc1, fc2"),
        ({"conv": "owned"}, "names 'conv'"),
    ],
)
def test_an_unknown_setting_or_layer_is_refused_and_the_known_ones_are_named(weights: Any, says: str) -> None:
    with pytest.raises(ProgramError, match=says):
        program.compile(model_of("small_cnn"), weights=weights)


def test_the_nearest_name_decides_and_the_others_are_shared() -> None:
    found = visibilities(model_of("resnet"), {"layer1": "owned", "layer1.0.conv2": "public"})
    assert (found["layer1.0.conv1"], found["layer1.0.conv2"], found["layer2.0.conv1"]) == ("owned", "public", "shared")


def test_the_setting_is_part_of_the_program_and_of_what_the_client_checks() -> None:
    model = model_of("mlp")
    made = [program.compile(model, weights=w) for w in api.VISIBILITIES]
    assert len({p.digest for p in made}) == 3
    for p in made:
        plain = json.loads(json.dumps(p.to_json()))
        assert program.Program.from_json(plain) == p
        interface = program.Interface.from_json(json.loads(json.dumps(p.interface.to_json())))
        assert (interface.digest, interface.visibilities) == (p.digest, p.visibilities)
        assert interface.security == p.security == p.backend.statement(p.visibilities)


@pytest.mark.parametrize("value", [None, "owned", ["mine"], ["public", "shared"], ["owned", "owned"], [1]])
def test_a_hostile_list_of_visibilities_is_refused(value: object) -> None:
    plain = program.compile(model_of("mlp")).interface.to_json()
    with pytest.raises(ProgramError):
        program.Interface.from_json({**plain, "visibilities": value})


def test_a_program_whose_maps_and_openings_do_not_fit_is_refused_by_its_roles() -> None:
    model = model_of("mlp")
    compiled = program.compile(model, weights="owned")
    plain = copy.deepcopy(compiled.to_json())
    opening = next(i for i in plain["instructions"] if i.get("step") == "Open")
    opening["with"]["to"] = "both"
    changed = program.Program.from_json(plain)
    stored = program.split_weights(model, compiled)
    with pytest.raises(Exception, match="must come from an Open step to P0"):
        program.PartyRunner(changed, PartyId.P0, stored[PartyId.P0])
    opening["with"]["to"] = "everybody"
    with pytest.raises(ProgramError, match="opened to 'both' or to 'P0'"):
        program.Program.from_json(plain)
