"""What the server and the helpers of a sum see: uniform, whatever the vectors are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

import protocols
from protocols.aggregation import Party, SumPlan
from protocols.aggregation_local import sum_here
from protocols.bitpack import packed_bytes, unpack_words
from protocols.shares.parties import SharesAggregator
from protocols.shares.protocol import SharesSum
from protocols.shares.sealing import PUBLIC_BYTES
from protocols.uploads import SteppingHelper

ONE_IN_A_HUNDRED_MILLION = 1e-8
Messages = dict[tuple[str, Party, str], bytes]


def messages(name: str, plan: SumPlan, value: int) -> Messages:
    """Every message of a run in which all values of all clients are ``value``."""
    log: Messages = {}

    def keep(stage: str, party: Party, way: str, payload: bytes) -> bytes:
        log[stage, party, way] = payload
        return payload

    vector = np.full(plan.length, value, np.uint64)
    sum_here(protocols.get_sum(name), plan, [vector] * plan.clients, tamper=keep)
    return log


def uniform(data: bytes | np.ndarray) -> bool:
    raw = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data.view(np.uint8)
    assert len(raw) >= 2000
    return bool(stats.chisquare(np.bincount(raw, minlength=256)).pvalue > ONE_IN_A_HUNDRED_MILLION)


@pytest.mark.parametrize("bits", [8, 13, 16, 20])
@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize("aggregators", [2, 3])
def test_what_the_server_gets_of_a_vector_is_uniform_alone_and_in_every_pair(
    bits: int, value: int, aggregators: int
) -> None:
    plan = SharesSum().plan(3, 8000, bits, 2, {"aggregators": aggregators})
    log = messages("shares", plan, value * ((1 << bits) - 1))
    size = packed_bytes(plan.length, bits)
    parts = [unpack_words(log["vectors", i, "answer"][:size], plan.length, bits) for i in range(3)]
    for part in (*parts, parts[0] - parts[1], parts[1] + parts[2]):
        counts = np.bincount(part & 255, minlength=256), np.bincount((part >> (bits - 8)) & 255, minlength=256)
        for count in counts:
            assert stats.chisquare(count).pvalue > ONE_IN_A_HUNDRED_MILLION
    for name in SharesSum().helpers(plan):
        masks = unpack_words(log["sums", name, "answer"][:size], plan.length, bits)
        assert stats.chisquare(np.bincount(masks & 255, minlength=256)).pvalue > ONE_IN_A_HUNDRED_MILLION


@pytest.mark.parametrize("value", [0, 255])
def test_what_an_aggregator_gets_and_can_open_is_uniform_and_of_one_length(
    value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[bytes] = []
    original: Any = SteppingHelper.answer

    def answer(self: SharesAggregator, stage: str, message: bytes) -> bytes:
        if stage == "sums":
            held.append(self.kept()[PUBLIC_BYTES:])
        out: bytes = original(self, stage, message)
        return out

    monkeypatch.setattr(SteppingHelper, "answer", answer)
    plan = SharesSum().plan(250, 2, 8, 2)
    log = messages("shares", plan, value)
    records = np.frombuffer(log["seeds", "aggregator-1", "ask"][:-8], np.uint8).reshape(250, 68)
    assert uniform(records[:, 36:].tobytes())  # sealed; in front of it the client's number and public key
    assert uniform(np.frombuffer(held[0], np.uint8).reshape(250, 20)[:, 4:].tobytes())  # opened: the seeds
    assert len(log["sums", "aggregator-1", "ask"]) == 32 + 8


@pytest.mark.parametrize(("name", "options"), [("bfv", {}), ("paillier", {"key_bits": 2048}), ("shares", {})])
@pytest.mark.parametrize("value", [0, (1 << 32) - 1])
def test_what_a_helper_computes_of_a_sum_is_uniform(name: str, options: dict[str, Any], value: int) -> None:
    made = protocols.get_sum(name)
    plan = made.plan(2, 520, 32, 2, options)
    log = messages(name, plan, value)
    (helper,) = made.helpers(plan)
    last = [payload for (_, party, way), payload in log.items() if (party, way) == (helper, "answer")][-1]
    assert uniform(last[:-8])
