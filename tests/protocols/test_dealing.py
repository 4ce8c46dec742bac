from __future__ import annotations

import pytest
import torch

import protocols
from protocols import api
from protocols.additive2.dealing import Dealer, layout, prepare_party, run_step
from protocols.additive2.material import Field, Kind, Layout, PartyKeys
from protocols.errors import BadParameters, MaterialExhausted, Misuse, PeerMisbehaved
from protocols.protocol import NamedStep
from protocols.rounds import PartyId

STEPS: list[NamedStep] = [("relu", api.Clamp((10,), 18, 8, 6, 0, 18), ("x",))]


def keys_of(dealer: Dealer, party: PartyId) -> PartyKeys:
    return PartyKeys.receive(party, dealer.keys[party].expose_for_sending())


def test_p0_receives_nothing_and_p1_exactly_the_declared_bytes() -> None:
    dealer = Dealer(STEPS, {})
    cost = protocols.get("additive2").cost(STEPS[0][1], 5)
    assert len(dealer.deal(0, 5)) * 8 == cost.dealt_bits
    with pytest.raises(MaterialExhausted, match="5 items for P0 take 0 dealt bytes"):
        prepare_party(STEPS, layout(STEPS), PartyId.P0, keys_of(dealer, PartyId.P0), {}, 0, 5, b"x")


def test_an_item_is_dealt_once() -> None:
    dealer = Dealer(STEPS, {})
    dealer.deal(0, 4)
    with pytest.raises(Misuse, match="spent"):
        dealer.deal(3, 1)


def test_items_dealt_together_or_apart_are_laid_out_alike() -> None:
    dealer = Dealer(STEPS, {})
    where = layout(STEPS)
    together = dealer.deal(0, 3)
    assert len(together) == 3 * where.record_bytes
    assert len(dealer.deal(3, 1)) + len(dealer.deal(4, 2)) == len(together)


def test_too_few_corrections_say_how_many_are_there() -> None:
    dealer = Dealer(STEPS, {})
    corrections = dealer.deal(0, 2)
    with pytest.raises(MaterialExhausted, match="3 items for P1 take"):
        prepare_party(STEPS, layout(STEPS), PartyId.P1, keys_of(dealer, PartyId.P1), {}, 0, 3, corrections)


def test_prepared_material_serves_one_run() -> None:
    dealer = Dealer(STEPS, {})
    ready = prepare_party(STEPS, layout(STEPS), PartyId.P0, keys_of(dealer, PartyId.P0), {}, 0, 1, b"")
    x = torch.zeros((1, 10), dtype=torch.int32)
    next(run_step(ready, "relu", STEPS[0][1], x))
    with pytest.raises(Misuse, match="already run"):
        next(run_step(ready, "relu", STEPS[0][1], x))


def test_no_field_is_read_twice() -> None:
    dealer = Dealer(STEPS, {})
    ready = prepare_party(STEPS, layout(STEPS), PartyId.P0, keys_of(dealer, PartyId.P0), {}, 0, 1, b"")
    with pytest.raises(Misuse, match="used once"):
        ready.party.material.take("relu", "rho")


def test_keys_of_the_wrong_length_are_refused() -> None:
    with pytest.raises(PeerMisbehaved, match="32 bytes, but 16 came"):
        PartyKeys.receive(PartyId.P0, bytes(16))


def test_only_p0_can_expand_the_table_stream() -> None:
    assert len(PartyKeys.fresh(PartyId.P0).expose_for_sending()) == 32
    assert len(PartyKeys.fresh(PartyId.P1).expose_for_sending()) == 16


def test_fields_do_not_overlap_in_records_or_streams() -> None:
    first = [Field("m", Kind.MASK, 3, 5), Field("d", Kind.DEALT, 7, 9)]
    where = Layout({"a": first, "b": [Field("t", Kind.TABLE, 2, 4, 8)]})
    assert where.record_at[("a", "d")] == 0
    assert where.record_at[("b", "t")] == where.fields[("a", "d")].record_bytes
    assert where.record_bytes == where.fields[("a", "d")].record_bytes + 8
    # Words are read as they lie in the stream: a field begins at a whole block.
    assert where.stream_at[PartyId.P0][("a", "m")] == 0
    assert where.stream_at[PartyId.P0][("a", "d")] == 16 >= where.fields[("a", "m")].stream_bytes(PartyId.P0)
    assert where.stream_at[PartyId.P1][("b", "t")] == 16


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: api.Clamp((3,), 40, 8, 6, 0, 18), "ring = 40"),
        (lambda: api.Clamp((3,), 18, 18, 6, 0, 18), "shift = 18"),
        (lambda: api.Shift((3,), 18, 0), "shift = 0"),
        (lambda: api.Shift((3,), 18, 4, "nearest"), "nearest"),
        (lambda: api.Table((3,), 13, 18), "2\\^13 entries"),
        (lambda: api.Table((3, 4), 5, 18, 2), "2 tables for 3 channels"),
        (lambda: api.FusedTable((3,), 18, 13, 18), "shift = 13"),
        (lambda: api.Maximum((3,), 2, 8, 8), "the ring has 8"),
        (lambda: api.Relu((3,), 13, 8), "13 bits"),
        (lambda: protocols.get("magic"), "additive2, clear"),
    ],
)
def test_bad_parameters_name_the_field_and_its_bound(make: object, says: str) -> None:
    with pytest.raises(BadParameters, match=says):
        make()  # type: ignore[operator]


def test_a_clamp_with_too_many_bits_above_the_code_says_what_to_do() -> None:
    with pytest.raises(BadParameters, match="clamp to more bits first"):
        layout([("s", api.Clamp((3,), 30, 4, 4, 0, 8), ("x",))])
