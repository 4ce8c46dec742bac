"""Averaging through integers and protocols: what the server decodes is the mean, and no protocol may differ."""

from __future__ import annotations

import numpy as np
import pytest

from pqi.federated import DistributedDiscreteGaussian, Encoding
from pqi.federated.study import averaging
from pqi.federated.study.averaging import Disagreement, EncodedAverage, protocol_sum
from pqi.federated.study.training import average_floats
from protocols.aggregation import Sum
from protocols.errors import BadParameters

UPDATES = np.random.default_rng(0).normal(0, 0.05, (6, 300)).astype(np.float32)
WEIGHTS = [3, 10, 1, 7, 5, 4]


def test_the_decoded_mean_is_the_weighted_mean_whatever_protocol_sums() -> None:
    average = EncodedAverage(Encoding(clip=2.0), ("shares", "pairwise", "clear"))
    mean = average(UPDATES, WEIGHTS)
    assert average.decoded is not None and average.rounds == 1
    assert average.decoded.total_weight == sum(WEIGHTS)
    assert np.abs(mean - average_floats(UPDATES, WEIGHTS)).max() < 6 * average.decoded.resolution


def test_without_weights_every_client_counts_once() -> None:
    mean = EncodedAverage(Encoding(clip=2.0), ("clear",), weighted=False)(UPDATES, WEIGHTS)
    assert np.abs(mean - UPDATES.mean(0)).max() < np.abs(mean - average_floats(UPDATES, WEIGHTS)).max() / 10


def test_bounds_follow_the_updates_or_stay() -> None:
    moving, fixed = (EncodedAverage(Encoding(clip=0.01), ("clear",), adaptive=adaptive) for adaptive in (True, False))
    for average in (moving, fixed):
        average(UPDATES, WEIGHTS)
    assert moving.encoding.clip is not None and moving.encoding.clip > 0.01 == fixed.encoding.clip


def test_two_protocols_that_differ_in_one_integer_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    right = averaging.protocol_sum

    def wrong(name: str, *arguments: object) -> Sum:
        found = right(name, *arguments)  # type: ignore[arg-type]
        if name == "shares":
            found.values[7] ^= 1
        return found

    monkeypatch.setattr(averaging, "protocol_sum", wrong)
    with pytest.raises(Disagreement, match="shares and clear disagree in round 0"):
        EncodedAverage(Encoding(clip=2.0), ("clear", "shares"))(UPDATES, WEIGHTS)


def test_noise_has_the_deviation_that_is_told_and_every_round_is_booked() -> None:
    pytest.importorskip("dp_accounting")
    from pqi.federated import Accountant

    accountant = Accountant(delta=1e-3)
    mechanism = DistributedDiscreteGaussian(noise_multiplier=1.0)
    encoding = Encoding(clip=2.0, modulus_bits=14, mechanism=mechanism)
    average = EncodedAverage(encoding, ("clear",), accountant=accountant)
    off = np.concatenate([average(UPDATES, WEIGHTS) - UPDATES.mean(0) for _ in range(2)])
    assert average.decoded is not None and average.encoding == encoding
    assert average.decoded.noise == pytest.approx(2.0 / 6, rel=0.05)  # z clip / clients
    assert 0.85 < off.std() / average.decoded.noise < 1.15
    assert accountant.spent().rounds == 2


def test_whoever_watches_a_round_sees_its_codes_and_their_sum() -> None:
    seen: list[bool] = []

    def watch(codec: object, codes: averaging.Codes, found: Sum) -> None:
        total = sum(code.astype(np.uint64) for code in codes)
        seen.append(bool(np.array_equal(total % np.uint64(1 << 16), found.values)))

    EncodedAverage(Encoding(clip=2.0), ("shares",), each=watch)(UPDATES, WEIGHTS)
    assert seen == [True]


def test_no_protocol_is_refused() -> None:
    with pytest.raises(BadParameters, match="protocols is empty"):
        EncodedAverage(Encoding(clip=2.0), ())
    codec = Encoding(clip=2.0).codec(300, 6)
    with pytest.raises(BadParameters, match="there is no protocol 'sums'"):
        protocol_sum("sums", codec, [codec.encode(update).values for update in UPDATES])
