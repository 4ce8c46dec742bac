"""What a compute party sees: uniform, whatever the secret is, and producible by somebody who does not know it.

P0 sees its keys and P1's messages; P1 sees its key, the dealt records and P0's messages. Every test compares byte
histograms (and the opened values themselves) with the uniform distribution, for inputs chosen to be as far from each
other as the ring allows. The threshold is a chi-square far beyond what chance gives once in a million runs.
"""

from __future__ import annotations

import secrets

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import protocols
from protocols import api, ring
from protocols.linmap import DenseMap
from protocols.prg import Random
from protocols.rounds import PartyId, Received, Steps
from tests.conformance.battery import named, run

N = 4096
ONE_IN_A_HUNDRED_MILLION = 1e-8

TABLE = {"table": torch.arange(16).reshape(1, 16) * 1000}
CASES: list[tuple[api.Step, int, dict[str, Tensor] | None]] = [
    (api.Clamp((N,), 18, 8, 6, 0, 16), 18, None),
    (api.Clamp((N,), 12, 0, 11, 0, 16), 12, None),
    (api.QuickClamp((N,), 18, 8, 6, 0, 16), 18, None),
    (api.QuickClamp((N,), 20, 12, 7, 0, 16), 20, None),
    (api.Lift((N,), 8, -64, 16), 8, None),
    (api.Shift((N,), 16, 8), 16, None),
    (api.Shift((N,), 24, 12), 24, None),
    (api.Sign((N,), 16, 16), 16, None),
    (api.Relu((N,), 8, 16), 8, None),
    (api.Maximum((N // 4,), 4, 7, 16), 16, None),
    (api.Table((N,), 4, 16), 4, TABLE),
    (api.FusedTable((N,), 8, 4, 16), 8, TABLE),
    (api.Linear((N,), 16, DenseMap(N, 8)), 16, {"weight": torch.full((N, 8), 77), "bias": torch.zeros(N).long()}),
]
IDS = [f"{type(step).__name__}-{ring_in}" for step, ring_in, _ in CASES]


def inputs(step: api.Step, ring_in: int, value: str) -> Tensor:
    shape = (1, *step.map.in_shape) if isinstance(step, api.Linear) else (1, *step.shape)
    shape = (*shape, step.width) if isinstance(step, api.Maximum) else shape
    signed = step.bits if isinstance(step, (api.Maximum, api.Relu)) else ring_in
    return torch.full(shape, {"lowest": -(1 << (signed - 1)), "zero": 0, "highest": (1 << (signed - 1)) - 1}[value])


def uniform_bytes(data: bytes) -> float:
    """p-value of the hypothesis that the bytes are uniform (1 for samples too small to say anything)."""
    if len(data) < 2000:
        return 1.0
    return float(stats.chisquare(np.bincount(np.frombuffer(data, np.uint8), minlength=256)).pvalue)


@pytest.mark.parametrize(("step", "ring_in", "operands"), CASES, ids=IDS)
@pytest.mark.parametrize("value", ["lowest", "zero", "highest"])
def test_every_message_a_party_receives_is_uniform(
    step: api.Step, ring_in: int, operands: dict[str, Tensor] | None, value: str
) -> None:
    out = run("additive2", step, inputs(step, ring_in, value), ring_in, 16, operands)
    for messages in out.log.received.values():
        for _, message in messages:
            assert uniform_bytes(message) > ONE_IN_A_HUNDRED_MILLION


@pytest.mark.parametrize(("step", "ring_in", "operands"), CASES, ids=IDS)
@pytest.mark.parametrize("value", ["lowest", "highest"])
def test_what_is_opened_is_uniform_too(
    step: api.Step, ring_in: int, operands: dict[str, Tensor] | None, value: str
) -> None:
    """Both messages of an exchange together: the opened value itself must tell nothing."""
    out = run("additive2", step, inputs(step, ring_in, value), ring_in, 16, operands)
    first = named(step, ring_in)[0][1]
    bits = ring_in if not isinstance(first, (api.Maximum, api.Relu)) else step.bits + isinstance(first, api.Maximum)
    a, b = (out.log.received[p][0][1] for p in (PartyId.P0, PartyId.P1))
    count = next(c for c in range(1, 4 * N) if ring.packed_bytes(c, bits) == len(a))
    opened = ring.unsigned(ring.unpack(a, bits, count) + ring.unpack(b, bits, count), bits)
    if count < 1000:
        return
    low, high = opened & 15, opened >> max(0, bits - 4)
    for part in (low, high):
        assert stats.chisquare(np.bincount(part.numpy(), minlength=16)).pvalue > ONE_IN_A_HUNDRED_MILLION
    for (_, x), (_, y) in zip(out.log.received[PartyId.P0], out.log.received[PartyId.P1], strict=True):
        mixed = bytes(np.frombuffer(x, np.uint8) ^ np.frombuffer(y, np.uint8))
        assert uniform_bytes(mixed) > ONE_IN_A_HUNDRED_MILLION


@pytest.mark.parametrize(("step", "ring_in", "operands"), CASES, ids=IDS)
def test_what_the_dealer_sends_to_p1_is_uniform(
    step: api.Step, ring_in: int, operands: dict[str, Tensor] | None
) -> None:
    backend, steps = protocols.get("additive2"), named(step, ring_in)
    stored = backend.share_operands("s", step, operands, Random()) if operands else {}
    dealer = backend.dealer(steps, stored.get(PartyId.DEALER, {}))
    assert uniform_bytes(dealer.deal(0, 2)) > ONE_IN_A_HUNDRED_MILLION


@pytest.mark.parametrize("value", ["lowest", "zero", "highest"])
def test_shares_of_inputs_weights_and_answers_are_uniform(value: str) -> None:
    step, ring_in, operands = CASES[-1]
    out = run("additive2", step, inputs(step, ring_in, value), ring_in, 16, operands)
    stored = protocols.get("additive2").share_operands("s", step, operands or {}, Random())
    for party in (PartyId.P0, PartyId.P1):
        assert uniform_bytes(ring.pack(out.log.results[party].reshape(-1), 16).tobytes()) > ONE_IN_A_HUNDRED_MILLION
        for key, tensor in stored[party].items():
            assert uniform_bytes(ring.pack(tensor.reshape(-1), 16).tobytes()) > ONE_IN_A_HUNDRED_MILLION, key
    many = protocols.get("additive2").share_input(torch.zeros((N,), dtype=torch.int64), 16)
    assert all(uniform_bytes(ring.pack(x, 16).tobytes()) > ONE_IN_A_HUNDRED_MILLION for x in many.values())


def view(steps: Steps[Tensor], answer: object) -> tuple[list[bytes], Tensor]:
    """Drive one party alone; ``answer`` makes the peer's message from the round's public length."""
    heard: list[bytes] = []
    try:
        sent = next(steps)
        while True:
            reply: Received = {p: answer(len(sent.send[p])) for p in sent.expect}  # type: ignore[operator]
            heard += reply.values()
            sent = steps.send(reply)
    except StopIteration as end:
        return heard, end.value


@pytest.mark.parametrize("party", [PartyId.P0, PartyId.P1])
@pytest.mark.parametrize(("step", "ring_in", "operands"), CASES, ids=IDS)
def test_a_simulator_without_any_secret_produces_the_same_view(
    step: api.Step, ring_in: int, operands: dict[str, Tensor] | None, party: PartyId
) -> None:
    """The simulator knows the step and the batch: it sends uniform bytes for keys, records, shares and messages.

    The party's own code must run through on them, and lengths, order and distribution of all it sees and computes
    must match a real run on the most extreme input.
    """
    backend, steps = protocols.get("additive2"), named(step, ring_in)
    x = inputs(step, ring_in, "lowest")
    real = run("additive2", step, x, ring_in, 16, operands)
    stored = backend.share_operands("s", step, operands, Random()).get(party, {}) if operands else {}
    fake = {k: Random().words(tuple(v.shape), 16).to(v.dtype) for k, v in stored.items()}
    record = secrets.token_bytes(backend.record_bytes(steps)) if party is PartyId.P1 else b""
    role = backend.party(steps, party, fake)
    ready = role.prepare(secrets.token_bytes(32 if party is PartyId.P0 else 16), 0, 1, record)

    def whole() -> Steps[Tensor]:
        value = Random().words(tuple(x.shape), ring_in)
        for name, part, _ in steps:
            value = yield from role.run_step(ready, name, part, value)
        return value

    heard, result = view(whole(), secrets.token_bytes)
    assert [len(m) for m in heard] == [len(m) for _, m in real.log.received[party]]
    for mine, (_, theirs) in zip(heard, real.log.received[party], strict=True):
        if len(mine) >= 2000:
            counts = [np.bincount(np.frombuffer(m, np.uint8), minlength=256) for m in (mine, theirs)]
            assert stats.chi2_contingency(np.array(counts) + 1).pvalue > ONE_IN_A_HUNDRED_MILLION
    for share in (result, real.log.results[party]):
        assert uniform_bytes(result_bytes(step, share)) > ONE_IN_A_HUNDRED_MILLION


def result_bytes(step: api.Step, share: Tensor) -> bytes:
    """A result's share in whole bytes of its ring. Signs are odd by definition, so their lowest bit is public."""
    if isinstance(step, api.Shift):
        return ring.pack(share.reshape(-1) >> (4 if step.ring == 24 else 0), 8).tobytes()
    return ring.pack(share.reshape(-1) >> int(isinstance(step, api.Sign)), 8).tobytes()


def test_lengths_and_order_of_messages_do_not_depend_on_the_input() -> None:
    for step, ring_in, operands in CASES:
        shapes = {
            tuple(
                (str(p), len(m))
                for party in (PartyId.P0, PartyId.P1)
                for p, m in run("additive2", step, inputs(step, ring_in, v), ring_in, 16, operands).log.received[party]
            )
            for v in ("lowest", "zero", "highest")
        }
        assert len(shapes) == 1
