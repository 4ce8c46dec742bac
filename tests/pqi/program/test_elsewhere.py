"""Whole programs on a second device (see ``tests/conformance/elsewhere.py``): every role on it, or one of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pqi.program as program
from pqi.quant import quantize
from protocols import aes, devices, prg
from protocols.additive2 import protocol as additive2
from protocols.rounds import PartyId
from tests import networks
from tests.conformance.elsewhere import ELSEWHERE, Elsewhere, Misplaced
from tests.pqi.program.lockstep import run

NETS = {"mobile_block": (networks.mobile_block, (3, 10, 10)), "concat_net": (networks.concat_net, (2, 8, 8))}


@pytest.fixture(autouse=True)
def quick_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cryptography's streams, put in place: tensor code takes a second for what takes it a moment."""
    monkeypatch.setattr(aes, "keystream", lambda key, at, size, to: devices.from_host(prg.keystream(key, at, size), to))


@pytest.mark.parametrize(
    ("name", "roles"),
    [
        ("mobile_block", tuple(PartyId)),
        ("concat_net", tuple(PartyId)),
        ("concat_net", (PartyId.P0,)),
        ("concat_net", (PartyId.P1,)),
    ],
    ids=["mobile_block-all", "concat_net-all", "concat_net-A", "concat_net-B"],
)
def test_the_answer_is_the_integer_models_wherever_the_roles_compute(name: str, roles: tuple[PartyId, ...]) -> None:
    build, shape = NETS[name]
    x = torch.randn(8, *shape, generator=torch.Generator().manual_seed(1))
    model = quantize(build(), calibration=x)
    codes = model.encode(x[:2], "silent")
    compiled = program.compile(model, "additive2")
    with Elsewhere() as mode:
        got = run(model, compiled, codes, dict.fromkeys(roles, ELSEWHERE))
    assert mode.operations > 1000
    assert torch.equal(got.answer, model.integers(codes))
    assert got.dealt == compiled.cost(2).dealt_bytes
    for party in compiled.parties:
        assert got.log.sent_bytes[party] == compiled.cost(2).online_bytes


def test_a_role_rehearses_on_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    model = quantize(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), calibration=torch.randn(8, 4))
    compiled = program.compile(model, "additive2")
    stored = program.split_weights(model, compiled)
    with Elsewhere() as mode:
        runner = program.PartyRunner(compiled, PartyId.P1, stored[PartyId.P1], ELSEWHERE)
        before = mode.operations
        runner.rehearse()
        program.Dealer(compiled, stored[PartyId.DEALER], ELSEWHERE).rehearse()
        assert mode.operations > before
        monkeypatch.setattr(additive2, "_placed", lambda stored, _: stored)  # weights stay where they were loaded
        with pytest.raises((Misplaced, RuntimeError)):
            program.PartyRunner(compiled, PartyId.P1, stored[PartyId.P1], ELSEWHERE).rehearse()
