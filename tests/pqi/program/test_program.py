from __future__ import annotations

import copy
import json
from itertools import pairwise
from typing import Any

import pytest
import torch

import pqi.program as program
from pqi.program.errors import ProgramError
from pqi.program.plan import Demand, requantization
from pqi.quant import quantize
from protocols import api
from protocols.errors import BadParameters, Misuse, PeerMisbehaved
from protocols.rounds import PartyId
from tests import networks


@pytest.fixture(scope="module")
def compiled() -> program.Program:
    x = torch.randn(32, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    return program.compile(quantize(networks.small_cnn(), calibration=x))


@pytest.fixture(scope="module")
def plain(compiled: program.Program) -> dict[str, Any]:
    return json.loads(json.dumps(compiled.to_json()))


def test_a_program_survives_json_and_keeps_its_digest(compiled: program.Program, plain: dict[str, Any]) -> None:
    again = program.Program.from_json(plain)
    assert again == compiled
    assert again.digest == compiled.digest
    assert again.record_bytes == compiled.record_bytes


def test_a_client_can_check_the_digest_without_seeing_a_layer(compiled: program.Program) -> None:
    plain = json.loads(json.dumps(compiled.interface.to_json()))
    assert program.Interface.from_json(plain).digest == compiled.digest
    assert "instructions" not in plain
    assert len(json.dumps(plain)) < 400
    plain["output"]["ring"] += 1
    assert program.Interface.from_json(plain).digest != compiled.digest


@pytest.mark.parametrize(
    ("field", "value"), [("input", None), ("exact", 1), ("protocol", "magic"), ("output", {"shape": [3], "ring": 99})]
)
def test_a_hostile_interface_is_refused(compiled: program.Program, field: str, value: Any) -> None:
    with pytest.raises(ProgramError):
        program.Interface.from_json({**compiled.interface.to_json(), field: value})


def test_a_program_holds_no_weight_and_no_table(plain: dict[str, Any]) -> None:
    text = json.dumps(plain)
    assert "weight" not in text
    assert len(text) < 20_000


def test_any_change_changes_the_digest(plain: dict[str, Any]) -> None:
    original = program.Program.from_json(plain).digest
    changed = copy.deepcopy(plain)
    clamp = next(i for i in changed["instructions"] if i.get("step") == "Clamp")
    clamp["with"]["shift"] += 1
    assert program.Program.from_json(changed).digest != original


def test_costs_add_up_over_layers_and_grow_with_the_batch(compiled: program.Program) -> None:
    total = compiled.cost(3)
    layers = compiled.cost_by_layer(3).values()
    assert sum(c.online_bits for c in layers) == total.online_bits
    assert sum(c.dealt_bits for c in layers) == total.dealt_bits == 8 * 3 * compiled.record_bytes
    assert compiled.cost(7).exchanges == total.exchanges
    assert compiled.online_cost(3).dealt_bits == 0
    assert compiled.offline_cost(3).dealt_bits == total.dealt_bits


def edit(plain: dict[str, Any], path: list[Any], value: Any) -> dict[str, Any]:
    out = copy.deepcopy(plain)
    at = out
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return out


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (["format"], 99, "format 99"),
        (["protocol"], "magic", "no protocol 'magic'"),
        (["protocol"], 3, "protocol must be str"),
        (["instructions"], "all", "list"),
        (["instructions", 0, "inputs"], ["nowhere"], "nowhere"),
        (["instructions", 0, "inputs"], [], "repeats a name"),
        (["instructions", 1, "name"], "input", "repeats a name"),
        (["instructions", 0, "step"], "Reveal", "unknown step 'Reveal'"),
        (["instructions", 0, "with", "ring"], 64, "ring = 64"),
        (["instructions", 0, "with", "ring"], "18", "must be int"),
        (["instructions", 0, "with", "ring"], True, "must be int"),
        (["instructions", 0, "with", "shape"], [1, "x"], "must be int"),
        (["instructions", 0, "with", "shape"], [1 << 40], "beyond"),
        (["instructions", 0, "with", "extra"], 1, "has fields"),
        (["answer"], "nothing", "computed nowhere"),
        (["output", "ring"], 0, "1 to 32 bits"),
        (["input"], None, "malformed"),
        (["exact"], "yes", "exact must be bool"),
    ],
)
def test_a_hostile_program_is_refused_with_the_reason(
    plain: dict[str, Any], path: list[Any], value: Any, says: str
) -> None:
    with pytest.raises(ProgramError, match=says):
        program.Program.from_json(edit(plain, path, value))


def test_a_program_that_is_no_mapping_is_refused() -> None:
    with pytest.raises(ProgramError, match="format 'list'"):
        program.Program.from_json([])  # type: ignore[arg-type]


def test_bundles_hold_only_what_the_role_may_know() -> None:
    x = torch.randn(16, 20, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = quantize(networks.mlp(), calibration=x)
    compiled = program.compile(model)
    stored = program.split_weights(model, compiled)
    secret = {n.name: n.op.weight for n in model.graph.nodes if hasattr(n.op, "weight")}
    assert set(stored) == {PartyId.P0, PartyId.P1, PartyId.DEALER}
    for tensors in stored.values():
        for key, value in tensors.items():
            for weight in secret.values():
                assert value.shape != weight.shape or not torch.equal(value.long(), weight), key
    assert all(k.endswith((".masked", ".share", ".bias")) for k in stored[PartyId.P0])
    assert all(k.endswith((".mask", ".table")) for k in stored[PartyId.DEALER])
    for name, weight in secret.items():
        e, b = stored[PartyId.P0][f"{name}.masked"], stored[PartyId.DEALER][f"{name}.mask"]
        bits = next(s.ring for n, s, _ in compiled.steps if n == name and isinstance(s, api.Linear))
        assert ((e.long() + b.long() - weight) % (1 << bits) == 0).all()
        assert torch.equal(e, stored[PartyId.P1][f"{name}.masked"])


def test_two_splits_of_one_model_share_nothing() -> None:
    x = torch.randn(16, 20, generator=torch.Generator().manual_seed(0))
    model = quantize(networks.mlp(), calibration=x)
    compiled = program.compile(model)
    a, b = (program.split_weights(model, compiled) for _ in range(2))
    big = [k for k, v in a[PartyId.P0].items() if v.numel() > 50]
    assert big
    assert all(not torch.equal(a[p][k], b[p][k]) for p in (PartyId.P0, PartyId.P1) for k in big)


def test_a_party_without_its_part_of_the_model_refuses_to_start(compiled: program.Program) -> None:
    with pytest.raises(Misuse, match=r"P0 lacks its part of the model: .*\.masked"):
        program.PartyRunner(compiled, PartyId.P0, {})


def test_a_client_message_of_the_wrong_length_is_refused_before_anything_is_sent(compiled: program.Program) -> None:
    x = torch.randn(32, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = quantize(networks.small_cnn(), calibration=x)
    compiled = program.compile(model)
    stored = program.split_weights(model, compiled)
    keys, _ = program.Dealer(compiled, stored[PartyId.DEALER]).new_epoch()
    runner = program.PartyRunner(compiled, PartyId.P0, stored[PartyId.P0])
    prepared = runner.prepare(keys, 0, 1, b"")
    with pytest.raises(PeerMisbehaved, match="take"):
        next(runner.run(prepared, b"short"))


def test_a_party_prepares_an_item_once() -> None:
    x = torch.randn(16, 20, generator=torch.Generator().manual_seed(0))
    model = quantize(networks.mlp(), calibration=x)
    compiled = program.compile(model)
    stored = program.split_weights(model, compiled)
    dealer = program.Dealer(compiled, stored[PartyId.DEALER])
    runner = program.PartyRunner(compiled, PartyId.P0, stored[PartyId.P0])
    keys, _ = dealer.new_epoch()
    runner.prepare(keys, 4, 2, b"")
    runner.prepare(keys, 0, 4, b"")  # in any order, each once
    for first in (0, 3, 5):
        with pytest.raises(Misuse, match="used before"):
            runner.prepare(keys, first, 3, b"")
    runner.prepare(keys, 6, 1, b"")
    runner.prepare(dealer.new_epoch()[0], 0, 4, b"")  # another epoch has other keys


def test_dealing_before_an_epoch_is_misuse(compiled: program.Program) -> None:
    with pytest.raises(Misuse, match="new_epoch"):
        program.Dealer(compiled, {}).deal(0, 1)


def test_an_epoch_has_fresh_keys() -> None:
    x = torch.randn(16, 20, generator=torch.Generator().manual_seed(0))
    model = quantize(networks.mlp(), calibration=x)
    compiled = program.compile(model)
    dealer = program.Dealer(compiled, program.split_weights(model, compiled)[PartyId.DEALER])
    assert len({k for _ in range(3) for k in dealer.new_epoch()}) == 6


def test_unknown_choices_list_the_known_ones() -> None:
    x = torch.randn(16, 20, generator=torch.Generator().manual_seed(0))
    model = quantize(networks.mlp(), calibration=x)
    with pytest.raises(BadParameters, match="additive2, clear"):
        program.compile(model, protocol="aby")
    with pytest.raises(ProgramError, match="'lan', 'wan'"):
        program.compile(model, network="moon")
    with pytest.raises(ProgramError, match="'exact', 'stochastic'"):
        program.compile(model, rounding="up")


def test_a_clamp_far_below_its_ring_is_done_in_stages() -> None:
    digits = requantization(Demand((3,), 32, 4, 4, -2, 0, 12, headroom=6), "exact")[0]
    clamps = [s for s in digits.steps if isinstance(s, api.Clamp)]
    assert len(clamps) == len(digits.actions) > 1
    assert clamps[0].shift == 4
    assert all(c.shift == 0 and c.ring == p.ring_out for p, c in pairwise(clamps))
    assert clamps[-1] == api.Clamp((3,), clamps[-2].ring_out, 0, 4, -2, 12)
    x = torch.arange(-(1 << 31), 1 << 31, 12345677)[None]
    from protocols.clear import define

    y = x
    for c in clamps:
        y = define(api.Clamp((x.shape[1],), c.ring, c.shift, c.bits, c.low, c.ring_out), y, {})
    assert torch.equal(y.long(), (x >> 4).clamp(0, 15) - 2)
