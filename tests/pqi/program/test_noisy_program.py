"""Programs whose answers have noise: never called exact, within the declared bound, at the declared cost."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

import pqi.program as program
from pqi.audit.defences.outputs import harden
from pqi.audit.views import ROLES, Theatre, by_bit, by_message, by_pair
from pqi.graph.errors import GraphError
from pqi.graph.graph import IntegerGraph, Node
from pqi.graph.model import IntegerModel
from pqi.graph.ops import Dense, Input, Noise, Reshape
from pqi.graph.ranges import prove, proven_accumulators
from pqi.program.errors import ProgramError
from pqi.program.keyed import compile_keyed
from pqi.program.roles import PartyRunner
from pqi.quant.quantizer import Quantizer
from protocols import ring
from protocols.additive2.kernel import Dealing
from protocols.rounds import PartyId
from tests.pqi.program.lockstep import run

QUANTIZER = Quantizer(scale=1.0, offset=0.5, modulus=16)


def scores(classes: int = 5, width: int = 4) -> IntegerModel:
    weight = torch.arange(classes * width).reshape(classes, width) % 20 - 9
    layer = Dense(weight, torch.zeros(classes, dtype=torch.int64))
    graph = IntegerGraph((Node("x", Input((width,), -8, 7)), Node("scores", layer, ("x",))), "scores")
    return IntegerModel(graph, proven_accumulators(graph, prove(graph)), QUANTIZER, 1.0)


def codes(n: int, width: int = 4) -> torch.Tensor:
    return torch.randint(-8, 8, (n, width), generator=torch.Generator().manual_seed(n))


@pytest.mark.parametrize("weights", ["shared", "owned", "public"])
@pytest.mark.parametrize("protocol", ["clear", "additive2"])
def test_a_private_answer_is_the_reference_and_noise_that_the_program_declares(protocol: str, weights: str) -> None:
    model = harden(scores(), ("noisy", 30))
    compiled, x = program.compile(model, protocol, weights=weights), codes(600)
    assert not compiled.exact and compiled.noise == compiled.interface.noise == 270
    got, cost = run(model, compiled, x), compiled.cost(600)
    e = (got.answer - model.integers(x)).double()
    assert float(e.abs().max()) <= 270
    assert abs(float(e.mean())) < 4 and 27 < float(e.std()) < 33  # five standard errors
    assert got.dealt == cost.dealt_bytes
    assert all(got.log.sent_bytes[p] == cost.sent_bytes(p) for p in compiled.parties)
    assert all(got.log.exchanges[p] == cost.exchanges for p in compiled.parties)


def test_noise_costs_its_ring_in_dealt_bits_and_nothing_online() -> None:
    model = harden(scores(16), ("noisy", 30))
    plain, noisy = (program.compile(m) for m in (scores(16), model))
    assert noisy.cost(1).exchanges == plain.cost(1).exchanges
    (last,) = [i for i in noisy.instructions if i.name == noisy.output]
    assert noisy.backend.cost(last.action, 1).dealt_bits == 16 * noisy.output_ring  # type: ignore[arg-type]
    assert noisy.backend.cost(last.action, 1).online_bits == 0  # type: ignore[arg-type]


def test_the_answer_s_ring_holds_every_score_with_the_most_noise() -> None:
    base = scores()
    low, high = base.ranges.lo["scores"], base.ranges.hi["scores"]
    for deviation in (1, 30, 5000):
        model = harden(base, ("noisy", deviation))
        half = 1 << (model.rings[model.graph.output] - 1)
        assert -half <= low - 9 * deviation and high + 9 * deviation < half
        assert model.verify().can_wrap == ()
    with pytest.raises(Exception, match="bits needed"):
        IntegerModel(model.graph, model.accumulators | {"output": 16}, QUANTIZER, 1.0)


def test_of_both_servers_shares_each_alone_is_uniform_whatever_the_answer() -> None:
    model = harden(scores(64), ("noisy", 5))
    compiled = program.compile(model)
    got = run(model, compiled, torch.full((300, 4), 7))
    for share in got.log.results.values():
        low = ring.unsigned(ring.unpack(share, compiled.output_ring, 300 * 64), compiled.output_ring) & 15
        seen = torch.bincount(low.long(), minlength=16).double()
        assert float(((seen - 1200) ** 2 / 1200).sum()) < 70  # chi-square, 15 degrees: once in 10^8


def test_the_statement_says_who_knows_the_noise_and_a_client_s_file_does_too() -> None:
    compiled = program.compile(harden(scores(), ("noisy", 30)))
    for said in (compiled.security.learns, compiled.interface.security.learns):
        assert "draws the noise of every answer" in said["dealer"]
        assert "noise of at most 270" in said["client"] and "together" in said["client"]
    plain = program.compile(scores())
    assert "noise" not in " ".join(plain.security.learns.values())
    assert "noise" not in plain.interface.to_json()


def test_a_program_and_an_interface_with_noise_are_written_and_read_again() -> None:
    compiled = program.compile(harden(scores(), ("noisy", 30)))
    assert program.Program.from_json(compiled.to_json()) == compiled
    again = program.Interface.from_json(compiled.interface.to_json())
    assert again == compiled.interface and again.digest == compiled.digest
    quieter = program.compile(harden(scores(), ("noisy", 29)))
    assert quieter.digest != compiled.digest


def tampered(change: Any) -> dict[str, Any]:
    data: dict[str, Any] = copy.deepcopy(program.compile(harden(scores(), ("noisy", 30))).to_json())
    change(data)
    return data


def _behind(data: dict[str, Any]) -> None:
    data["instructions"].append(
        {"name": "y", "layer": "", "inputs": ["answers/noisy"], "local": "reshape", "with": {"shape": [5]}}
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data.update(exact=True), "calls itself exact"),
        (lambda data: (_behind(data), data.update(answer="y")), "noise, but not the answer"),
        (_behind, "reads an answer with noise"),
        (
            lambda data: data["instructions"][-1].update({"local": "noise", "with": {"deviation": 1}}) or
            data["instructions"][-1].pop("step"),
            "nobody would draw it",
        ),
        (lambda data: data["instructions"][-1]["with"].update(bound=1 << 30), "holds no other noise"),
    ],
)  # fmt: skip
def test_a_program_that_hides_or_moves_its_noise_is_refused(change: Any, says: str) -> None:
    with pytest.raises(ProgramError, match=says):
        program.Program.from_json(tampered(change))


@pytest.mark.parametrize("noise", [-1, 1 << 20, True, "3"])
def test_an_interface_whose_noise_makes_no_sense_is_refused(noise: Any) -> None:
    data = program.compile(harden(scores(), ("noisy", 30))).interface.to_json() | {"noise": noise}
    with pytest.raises(ProgramError, match="noise"):
        program.Interface.from_json(data)
    exact = program.compile(scores()).interface.to_json() | {"noise": 3}
    with pytest.raises(ProgramError, match="exact program"):
        program.Interface.from_json(exact)


def test_noise_on_anything_but_the_answer_is_no_model() -> None:
    nodes = (Node("x", Input((4,), -8, 7)), Node("e", Noise(2), ("x",)), Node("y", Reshape((2, 2)), ("e",)))
    for output in ("y", "e"):
        graph = IntegerGraph(nodes, output)
        with pytest.raises(GraphError, match="noise, but not the answer"):
            IntegerModel(graph, proven_accumulators(graph, prove(graph)), QUANTIZER, 1.0)


@pytest.mark.parametrize("protocol", ["paillier", "bfv", "ckks"])
def test_a_protocol_under_a_key_says_why_it_has_no_noise(protocol: str) -> None:
    with pytest.raises(ProgramError, match=r"drawn by a dealer.*'additive2'"):
        compile_keyed(harden(scores(), ("noisy", 30)), protocol)


def test_a_dealer_whose_law_is_of_other_noise_is_refused() -> None:
    model = harden(scores(), ("noisy", 30))
    compiled = program.compile(model)
    stored = program.split_weights(model, compiled)[PartyId.DEALER]
    other = program.split_weights(harden(scores(), ("noisy", 31)), program.compile(harden(scores(), ("noisy", 31))))
    wrong = stored | {"answers/noisy.law": other[PartyId.DEALER]["answers/noisy.law"]}
    with pytest.raises(Exception, match="one count for each number from -270 to 270"):
        program.Dealer(compiled, wrong).new_epoch()


def test_servers_hold_nothing_of_the_noise_before_it_is_dealt() -> None:
    model = harden(scores(), ("noisy", 30))
    compiled = program.compile(model)
    stored = program.split_weights(model, compiled)
    assert [p for p in stored if "answers/noisy.law" in stored[p]] == [PartyId.DEALER]
    for party in compiled.parties:
        PartyRunner(compiled, party, stored[party]).rehearse()


def test_stochastic_rounding_and_noise_are_both_inexact() -> None:
    compiled = program.compile(harden(scores(), ("noisy", 30)), rounding="stochastic")
    assert not compiled.exact
    with pytest.raises(ProgramError, match="calls itself exact"):
        replace(compiled, exact=True)


def strangest(party: PartyId) -> float:
    """The least p-value of what a server sees in 60 runs in which its keys and all else that it holds are the same."""
    model = harden(scores(16, 8), ("noisy", 20))  # sizes by the eight: messages without padding
    theatre, x = Theatre(model, program.compile(model)), codes(1, 8)
    known = theatre.knowledge(party, x)
    views = [theatre.run(x, known).views[ROLES[party]] for _ in range(60)]
    return min(by_message(views), by_bit(views), by_pair(views))


def test_a_server_that_knows_its_own_keys_sees_nothing_of_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert min(strangest(PartyId.P0), strangest(PartyId.P1)) > 1e-6

    def bare(self: Dealing, step: str, name: str, value: torch.Tensor) -> None:
        self._write(step, name, ring.to_word(value, self._layout.fields[step, name].bits))

    monkeypatch.setattr(Dealing, "give", bare)  # noise in the record as it is, without server A's share: caught
    assert strangest(PartyId.P1) < 1e-6
