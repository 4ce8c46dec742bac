"""Sums by additive shares: more than one aggregator, pinned keys, whose seeds are opened, and which sets are summed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from protocols import identity, masks
from protocols.aggregation import Party, SumPlan
from protocols.aggregation_local import sum_here
from protocols.errors import BadParameters, BelowThreshold, PeerMisbehaved
from protocols.labels import ASK, labelled
from protocols.prg import Key
from protocols.shares.parties import SEED_BYTES, SEEDS, SUMS, SharesAggregator, bitmap_of
from protocols.shares.protocol import SharesSum
from protocols.shares.sealing import PUBLIC_BYTES, seal
from protocols.uploads import KEYS

SHARES = SharesSum()
NAME = "aggregator-1"


def vectors(plan: SumPlan) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, 1 << plan.bits, plan.length, np.uint64) for _ in range(plan.clients)]


def total(plan: SumPlan, values: list[np.ndarray], included: Any) -> list[int]:
    return [sum(column) % (1 << plan.bits) for column in zip(*(values[i].tolist() for i in included), strict=True)]


@pytest.mark.parametrize("aggregators", [2, 3, 5])
def test_any_number_of_aggregators_gives_the_same_sum_at_a_seed_more_each(aggregators: int) -> None:
    plan = SHARES.plan(4, 33, 11, 2, {"aggregators": aggregators})
    assert len(SHARES.helpers(plan)) == aggregators - 1
    values = vectors(plan)
    assert sum_here(SHARES, plan, values).values.tolist() == total(plan, values, range(4))
    fewest = SHARES.cost(SHARES.plan(4, 33, 11, 2))
    assert SHARES.cost(plan).client_sends == fewest.client_sends + 32 * (aggregators - 2)


@pytest.mark.parametrize("number", [1, 9, "2", True])
def test_a_number_of_aggregators_that_is_none_is_refused(number: Any) -> None:
    with pytest.raises(BadParameters, match="aggregators"):
        SHARES.plan(4, 33, 11, 2, {"aggregators": number})


class Sealing:
    """An aggregator that has advertised its key, and seeds of clients for it."""

    def __init__(self, clients: int = 5, threshold: int = 3) -> None:
        self.plan = SHARES.plan(clients, 6, 16, threshold)
        self.helper = SHARES.helper(self.plan, NAME)
        self.public = self.ask(KEYS, b"")[:PUBLIC_BYTES]
        self.seeds = [Key.fresh() for _ in range(clients)]

    def ask(self, stage: str, data: bytes) -> bytes:
        return self.helper.answer(stage, labelled(self.plan, stage, NAME, ASK, data))

    def sealed(self, number: int, *, claims: int | None = None, plan: SumPlan | None = None) -> bytes:
        made = seal(plan or self.plan, number, {NAME: self.seeds[number]}, {NAME: self.public})
        return (number if claims is None else claims).to_bytes(4, "little") + made

    def give(self, *records: bytes) -> bytes:
        return self.ask(SEEDS, b"".join(records))[:1]

    def sum(self, *numbers: int) -> bytes:
        return self.ask(SUMS, bitmap_of(numbers, self.plan))


def test_masks_are_summed_for_one_set_of_clients_and_then_never_again() -> None:
    s = Sealing()
    assert s.give(*(s.sealed(i) for i in range(5))) == bitmap_of(range(5), s.plan)
    want = np.zeros(6, "<u2")
    masks.apply(want, [s.seeds[i].expose_for_sending() for i in (0, 2, 3)], ())
    s.helper = SHARES.restore_helper(s.plan, NAME, s.helper.expose_state())
    assert s.sum(0, 2, 3)[:12] == want.tobytes()
    for other in ((0, 2, 3), (0, 2), (0, 2, 3, 4)):
        with pytest.raises(PeerMisbehaved, match="once"):
            s.sum(*other)
    s.helper = SHARES.restore_helper(s.plan, NAME, s.helper.expose_state())
    with pytest.raises(PeerMisbehaved, match="once"):
        s.sum(0, 2, 3, 4)


@pytest.mark.parametrize("numbers", [(), (1,), (1, 4)])
def test_an_aggregator_does_not_sum_masks_of_fewer_clients_than_the_threshold(numbers: tuple[int, ...]) -> None:
    s = Sealing()
    s.give(*(s.sealed(i) for i in range(5)))
    with pytest.raises(PeerMisbehaved, match="fewer than 3"):
        s.sum(*numbers)
    assert len(s.sum(0, 1, 2)) == 12 + 8


def test_an_aggregator_does_not_sum_masks_it_never_got() -> None:
    s = Sealing()
    s.give(*(s.sealed(i) for i in (0, 1, 3)))
    with pytest.raises(PeerMisbehaved, match=r"\[2, 4\]"):
        s.sum(0, 1, 2, 3, 4)


def test_seeds_of_a_client_twice_or_out_of_order_are_refused() -> None:
    for order in ([0, 0], [1, 0], [0, 1, 1]):
        s = Sealing()
        with pytest.raises(PeerMisbehaved, match="in order"):
            s.give(*(s.sealed(i) for i in order))
        assert s.give(s.sealed(0)) == bitmap_of([0], s.plan)


def test_a_seed_that_was_sealed_for_another_client_run_or_aggregator_is_not_opened() -> None:
    s, other = Sealing(), Sealing()
    stolen = s.sealed(0, claims=1)  # client 1 sends what it saw of client 0
    foreign = s.sealed(2, plan=other.plan)
    damaged = s.sealed(3)[:-1] + bytes([s.sealed(3)[-1] ^ 1])
    null = (4).to_bytes(4, "little") + bytes(SEED_BYTES - 4)  # a public key of small order
    assert s.give(s.sealed(0), stolen, foreign, damaged, null) == bitmap_of([0], s.plan)


def test_a_client_whose_seed_cannot_be_opened_is_left_out_before_any_mask_is_told() -> None:
    plan = SHARES.plan(4, 9, 13, 3, {"aggregators": 3})
    values = vectors(plan)

    def tamper(stage: str, party: Party, way: str, payload: bytes) -> bytes:
        if (stage, party, way) == ("vectors", 2, "answer"):
            return payload[:-9] + bytes([payload[-9] ^ 1]) + payload[-8:]  # the last byte before the label
        return payload

    found = sum_here(SHARES, plan, values, tamper=tamper)
    assert found.included == {0, 1, 3}
    assert found.values.tolist() == total(plan, values, (0, 1, 3))
    with pytest.raises(BelowThreshold):
        sum_here(SHARES, plan, values, {"vectors": [0]}, tamper=tamper)


def test_spare_bits_that_are_set_leave_the_client_out() -> None:
    plan = SHARES.plan(4, 3, 13, 3)  # 39 bits: one to spare in five bytes

    def tamper(stage: str, party: Party, way: str, payload: bytes) -> bytes:
        if (stage, party, way) == ("vectors", 2, "answer"):
            return payload[:4] + bytes([payload[4] | 0x80]) + payload[5:]
        return payload

    assert sum_here(SHARES, plan, vectors(plan), tamper=tamper).included == {0, 1, 3}


@pytest.mark.parametrize("damage", [lambda b: b + b"\0", lambda b: b[:-1], lambda b: bytes([b[0] | 0x20])])
def test_sets_of_clients_that_do_not_exist_are_refused(damage: Any) -> None:
    s = Sealing()
    s.give(*(s.sealed(i) for i in range(5)))
    with pytest.raises(PeerMisbehaved, match="set of clients"):
        s.ask(SUMS, damage(bitmap_of(range(5), s.plan)))


class Pinned(SharesSum):
    """Aggregators that have their secrets."""

    def __init__(self, secrets: dict[str, bytes]) -> None:
        self.secrets = secrets

    def helper(self, plan: SumPlan, name: str, secret: bytes | None = None) -> SharesAggregator:
        return super().helper(plan, name, self.secrets[name])


def pinned(aggregators: int = 3) -> tuple[SumPlan, Pinned]:
    names = [f"aggregator-{i}" for i in range(1, aggregators)]
    made = {name: identity.new_identity() for name in names}
    pins = {name: public for name, (_, public) in made.items()}
    plan = SHARES.plan(3, 8, 16, 2, {"aggregators": aggregators, "helper_keys": pins})
    return plan, Pinned({name: secret for name, (secret, _) in made.items()})


@pytest.mark.parametrize("restoring", [False, True])
def test_pinned_aggregators_sign_their_keys_and_the_cost_says_so(restoring: bool) -> None:
    plan, made = pinned()
    values = vectors(plan)
    assert sum_here(made, plan, values, restoring=restoring).values.tolist() == total(plan, values, range(3))
    free = SHARES.plan(3, 8, 16, 2, {"aggregators": 3})
    assert made.cost(plan).client_receives == SHARES.cost(free).client_receives + 2 * 64
    assert made.cost(plan).helper_sends == SHARES.cost(free).helper_sends + 64
    assert "refused" in made.statement(plan).adversary
    assert "pin them" in SHARES.statement(free).adversary


def test_a_client_refuses_keys_that_a_server_put_in_place_of_a_pinned_aggregator_s() -> None:
    plan, _ = pinned(2)
    stranger = SHARES.helper(SHARES.plan(3, 8, 16, 2), NAME)
    key = stranger.advertised(bytes(range(32))) + bytes(64)
    ask = labelled(plan, "vectors", 0, ASK, key)
    with pytest.raises(PeerMisbehaved, match="swapped"):
        SHARES.client(plan, 0).upload("vectors", ask, vectors(plan)[0])


def test_a_signature_of_another_run_or_aggregator_does_not_serve() -> None:
    plan, made = pinned(3)
    later = SumPlan(plan.clients, plan.length, plan.bits, plan.threshold, bytes(16), plan.options)
    message = identity.signed(plan, NAME, made.secrets[NAME], bytes(32))
    assert identity.verified(plan, NAME, message, 32) == bytes(32)
    for of, name in ((later, NAME), (plan, "aggregator-2")):
        with pytest.raises(PeerMisbehaved, match="not signed"):
            identity.verified(of, name, message, 32)


def test_pins_and_secrets_that_do_not_fit_are_refused_when_they_are_given() -> None:
    plan, made = pinned(2)
    for secret in (None, bytes(31), bytes(32)):
        with pytest.raises(BadParameters, match="secret"):
            SHARES.helper(plan, NAME, secret)
    with pytest.raises(BadParameters, match="does not pin"):
        SHARES.helper(SHARES.plan(3, 8, 16, 2), NAME, made.secrets[NAME])
    for pins in ({}, {"aggregator-2": "00" * 32}, {NAME: "00" * 31}, {NAME: "xy"}, {NAME: 5}, "00" * 32):
        with pytest.raises(BadParameters, match="helper_keys"):
            SHARES.plan(3, 8, 16, 2, {"helper_keys": pins})


def test_one_key_for_two_aggregators_is_refused_by_the_client() -> None:
    plan = SHARES.plan(3, 8, 16, 2, {"aggregators": 3})
    key = SHARES.helper(plan, NAME).answer(KEYS, labelled(plan, KEYS, NAME, ASK))[:PUBLIC_BYTES]
    with pytest.raises(PeerMisbehaved, match="same key"):
        SHARES.client(plan, 0).upload("vectors", labelled(plan, "vectors", 0, ASK, key, key), vectors(plan)[0])
