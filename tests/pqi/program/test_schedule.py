"""What is independent talks at the same time, and nothing else changes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

import pqi.program as program
from pqi.graph import ops
from pqi.graph.model import IntegerModel
from pqi.program.instructions import INPUT, Instruction
from pqi.program.schedule import Schedule, exchanges, join, part
from pqi.quant import quantize
from protocols import api
from protocols.errors import Misuse, PeerMisbehaved
from protocols.rounds import PartyId, Round, Steps
from protocols.simulate import Transcript, simulate
from tests import networks
from tests.pqi.program.lockstep import run

P0, P1 = PartyId.P0, PartyId.P1


class Downsampled(nn.Module):
    """A residual block whose shortcut is a convolution with an activation of its own; input (N, 3, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.long, self.more = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3, 2), nn.Conv2d(6, 6, 1)
        self.short, self.head = nn.Conv2d(4, 6, 3, 2), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        y = torch.relu(self.more(torch.relu(self.long(x)))) + torch.relu(self.short(x))
        return self.head(y.mean((2, 3)))


@pytest.fixture(scope="module")
def model() -> IntegerModel:
    torch.manual_seed(0)
    x = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return quantize(Downsampled().eval(), calibration=x, activation_bits=4)


def codes(model: IntegerModel, n: int = 3) -> Tensor:
    return model.encode(torch.randn(n, *model.input_shape, generator=torch.Generator().manual_seed(1)), "silent")


def alone(compiled: program.Program) -> int:
    """Exchanges if every step talked by itself."""
    return sum(compiled.backend.cost(step, 1).exchanges for _, step, _ in compiled.steps)


@pytest.mark.parametrize("weights", ["shared", "owned", "public", {"short": "owned"}])
@pytest.mark.parametrize("network", ["lan", "wan"])
def test_a_branch_beside_a_longer_one_costs_no_exchange(
    model: IntegerModel, network: str, weights: str | dict[str, str]
) -> None:
    compiled = program.compile(model, network=network, weights=weights)
    got = run(model, compiled, codes(model))
    assert torch.equal(got.answer, model.integers(codes(model)))
    cost = compiled.cost(3)
    assert cost.exchanges < alone(compiled)
    short = next(i for i in compiled.instructions if i.layer.startswith("relu") and i.inputs[0].startswith("short"))
    assert all(len(names) > 1 for names in compiled.exchanges if short.name in names)
    for p in (P0, P1):
        assert got.log.exchanges[p] == cost.exchanges
        assert got.log.sent_bytes[p] == cost.sent_bytes(p)


def test_branches_take_the_exchanges_of_the_longest() -> None:
    def clamp(name: str, source: str, k: int = 9) -> Instruction:
        return Instruction(name, api.Clamp((2,), k, 0, 4, 0, 9), (source,), name)

    code = [clamp("a", INPUT), clamp("b", INPUT), clamp("a2", "a"), Instruction("sum", ops.Add(), ("a2", "b"))]
    assert exchanges(code, lambda step: 3) == (("a", "b"),) * 3 + (("a2",),) * 3
    assert exchanges([*code, clamp("c", "sum")], lambda step: 2)[-1] == ("c",)


def test_a_chain_is_unchanged_by_the_schedule() -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 20, generator=torch.Generator().manual_seed(0))
    compiled = program.compile(quantize(networks.mlp(), calibration=x))
    assert compiled.cost(1).exchanges == alone(compiled)
    assert all(len(names) == 1 for names in compiled.exchanges)


def test_costs_by_layer_add_up_where_layers_share_an_exchange(model: IntegerModel) -> None:
    compiled = program.compile(model)
    layers = compiled.cost_by_layer(2).values()
    assert any(len({i.layer for i in compiled.instructions if i.name in names}) > 1 for names in compiled.exchanges)
    assert sum(c.exchanges for c in layers) == compiled.cost(2).exchanges
    assert sum(c.online_bits for c in layers) == compiled.cost(2).online_bits


def rounds_of(steps: Steps[bytes], answers: Mapping[PartyId, bytes] | None) -> list[Round]:
    """The rounds of one party that hears what it says."""
    seen, answer = [], None
    try:
        while True:
            seen.append(steps.send(answer))  # type: ignore[arg-type]
            answer = {p: seen[-1].send[p] for p in seen[-1].expect}
    except StopIteration:
        return seen


def test_both_parties_talk_of_the_same_steps_in_the_same_order(model: IntegerModel) -> None:
    compiled = program.compile(model)
    stored = program.split_weights(model, compiled)
    dealer = program.Dealer(compiled, stored[PartyId.DEALER])
    keys, dealt = dealer.new_epoch(), dealer.deal(0, 1)
    messages = program.encode_input(compiled, codes(model, 1))
    labels = {}
    for p in (P0, P1):
        runner = program.PartyRunner(compiled, p, stored[p])
        prepared = runner.prepare(keys[p], 0, 1, dealt if p is P1 else b"")
        rounds = rounds_of(runner.run(prepared, messages[p]), None)
        labels[p] = [[each.label for each in r.parts] or [r.label] for r in rounds]
    assert labels[P0] == labels[P1]
    joined = [names for names in labels[P0] if len(names) > 1]
    assert joined
    order = [i.name for i in compiled.instructions]
    for names in joined:
        places = [next(at for at, name in enumerate(order) if said.startswith(name)) for said in names]
        assert len(places) == len(set(names))


def talker(n: int, size: int, to: PartyId) -> Steps[Tensor]:
    """n exchanges of ``size`` bytes each way; returns how many bytes came."""
    heard = 0
    for _ in range(n):
        received = yield Round({to: bytes(size)}, (to,), f"talk{size}")
        heard += len(received[to])
    return torch.tensor(heard)


def two_branches(start: Callable[[PartyId], Callable[..., Steps[Tensor]]]) -> Transcript[Tensor]:
    """Branches "a" (three exchanges) and "b" (one) and their sum, at both parties."""
    step = api.Sign((1,), 4, 4)
    code = (
        Instruction("a", step, (INPUT,)),
        Instruction("b", step, (INPUT,)),
        Instruction("sum", ops.Add(), ("a", "b")),
    )
    return simulate({p: Schedule(code, "sum").run(torch.tensor(0), start(p)) for p in (P0, P1)})


def test_messages_of_different_lengths_travel_together_and_are_cut_apart_again() -> None:
    def start(p: PartyId) -> Callable[..., Steps[Tensor]]:
        def begin(code: Instruction, inputs: list[Tensor]) -> Steps[Tensor]:
            if code.name == "sum":
                return inputs[0] + 1000 * inputs[1]
            return (yield from talker(*((3, 5) if code.name == "a" else (1, 7)), P1 if p is P0 else P0))

        return begin

    log = two_branches(start)
    assert log.results == {P0: torch.tensor(7015), P1: torch.tensor(7015)}
    assert log.exchanges == {P0: 3, P1: 3}
    assert log.sent_bytes == {P0: 22, P1: 22}


def test_one_way_messages_join_when_their_length_is_told() -> None:
    def start(p: PartyId) -> Callable[..., Steps[Tensor]]:
        def begin(code: Instruction, inputs: list[Tensor]) -> Steps[Tensor]:
            if code.name == "sum":
                return inputs[0] + 1000 * inputs[1]
            size = 3 if code.name == "a" else 4
            if p is P1:
                yield Round({P0: bytes(size)}, (), code.name)
                return torch.tensor(0)
            received = yield Round({}, (P1,), code.name, {P1: size})
            return torch.tensor(len(received[P1]))

        return begin

    log = two_branches(start)
    assert log.results[P0] == torch.tensor(4003)
    assert log.exchanges == {P0: 1, P1: 1}


def test_a_joined_round_names_its_parts_and_a_single_one_stays_itself() -> None:
    rounds = [Round({P1: bytes(k)}, (P1,), f"step{k}") for k in range(1, 6)]
    joined = join(rounds)
    assert joined.label == "step1 + step2 + step3 and 2 more"
    assert joined.parts == tuple(rounds)
    assert len(joined.send[P1]) == 15
    assert join(rounds[:1]) is rounds[0]
    assert [len(answer[P1]) for answer in part(joined, {P1: bytes(15)})] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("size", [0, 2, 4, 100])
def test_a_joined_message_of_the_wrong_length_is_refused(size: int) -> None:
    joined = join([Round({P1: b"a"}, (P1,), "one"), Round({P1: b"bc"}, (P1,), "two")])
    with pytest.raises(PeerMisbehaved, match=f"sent {size} bytes in step 'one [+] two', which takes 3"):
        part(joined, {P1: bytes(size)})


def test_a_one_way_message_of_unknown_length_cannot_be_joined() -> None:
    joined = join([Round({}, (P1,), "deaf"), Round({P1: b"bc"}, (P1,), "two")])
    with pytest.raises(Misuse, match="'deaf' does not say how many bytes"):
        part(joined, {P1: bytes(3)})


def test_a_run_that_fails_closes_the_steps_that_wait() -> None:
    closed = []

    def begin(code: Instruction, inputs: list[Tensor]) -> Steps[Tensor]:
        try:
            yield Round({P1: b"x"}, (P1,), code.name)
        finally:
            closed.append(code.name)
        return torch.tensor(0)

    step = api.Sign((1,), 4, 4)
    code = (Instruction("a", step, (INPUT,)), Instruction("b", step, (INPUT,)))
    steps = Schedule(code, "b").run(torch.tensor(0), begin)
    next(steps)
    with pytest.raises(PeerMisbehaved):
        steps.send({P1: b"wrong"})
    assert sorted(closed) == ["a", "b"]


def test_a_value_is_dropped_when_its_last_reader_has_started() -> None:
    made: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def begin(code: Instruction, inputs: list[Tensor]) -> Steps[Tensor]:
        yield from ()
        alive.append(sum(ref() is not None for ref in made))
        result = inputs[0] + 1
        made.append(weakref.ref(result))
        return result

    code = tuple(Instruction(f"v{i}", ops.Add(), (INPUT if i == 0 else f"v{i - 1}",)) for i in range(6))
    with pytest.raises(StopIteration) as end:
        next(Schedule(code, "v5").run(torch.tensor(0), begin))
    assert end.value.value == torch.tensor(6)
    assert max(alive) == 1
