"""Sums under a key holder's key: room for every sum, masks that hide it, noise that is left, and what is refused."""

from __future__ import annotations

from math import log2, prod
from typing import Any

import numpy as np
import pytest
import tenseal.sealapi as seal

from protocols.aggregation import Party, SumPlan
from protocols.aggregation_local import sum_here
from protocols.bfv.sum import BfvSum
from protocols.bfv.sum_keys import BfvSumKeyHolder
from protocols.bfv.sum_ring import HIDING_BITS, SumContext, SumRing
from protocols.errors import BadParameters, NoiseExhausted, PeerMisbehaved
from protocols.identity import new_identity
from protocols.labels import ASK, LABEL_BYTES, labelled
from protocols.lattice import wire
from protocols.lattice.context import MAX_MODULUS_BITS
from protocols.paillier.sum import PaillierSum
from protocols.paillier.sum_keys import PaillierSumKeyHolder
from protocols.paillier.sum_layout import SumLayout

BFV, PAILLIER = BfvSum(), PaillierSum()
SMALL = {"key_bits": 2048}


@pytest.mark.parametrize("clients", [2, 3, 50, 64, 65, 10_000])
@pytest.mark.parametrize("bits", [1, 16, 64])
def test_a_paillier_slot_holds_the_largest_sum_under_the_largest_mask(clients: int, bits: int) -> None:
    layout = SumLayout(PAILLIER.plan(clients, 100, bits, 2, SMALL))
    largest, bound = clients * ((1 << bits) - 1), 1 << layout.sum_bits
    mask = (bound << 40) - bound - 1
    assert largest < bound
    assert largest + mask < 1 << (layout.packing.bits - 1)
    packed = sum(layout.packing.pack([value] * layout.packing.slots) for value in (largest, mask))
    assert packed < 1 << 2046  # half of the smallest modulus: a positive number stays one
    count = min(100, layout.packing.slots)
    expected = [(largest + mask) & ((1 << bits) - 1)] * count
    plain = [layout.packing.pack([largest + mask] * min(count, 100 - at)) for at in range(0, 100, count)]
    assert layout.residues(plain).tolist()[:count] == expected


def test_paillier_masks_are_drawn_over_their_whole_range_and_never_twice() -> None:
    layout = SumLayout(PAILLIER.plan(5, 4000, 16, 2, SMALL))
    masks = layout.masks()
    bound = (1 << (layout.sum_bits + 40)) - (1 << layout.sum_bits)
    assert len(masks) == len(set(masks)) == 4000
    assert 0 <= min(masks) < bound >> 7
    assert bound - (bound >> 7) < max(masks) < bound


@pytest.mark.parametrize("key_bits", [1024, 3000, "2048", True])
def test_key_sizes_that_are_not_served_are_refused(key_bits: Any) -> None:
    with pytest.raises(BadParameters, match="key_bits"):
        PAILLIER.plan(3, 5, 16, 2, {"key_bits": key_bits})


def test_the_usual_paillier_key_has_3072_bits_and_the_statement_says_128() -> None:
    plan = PAILLIER.plan(3, 5, 16, 2)
    assert SumLayout(plan).key_bits == 3072
    assert "128-bit" in PAILLIER.statement(plan).adversary
    assert "112-bit" in PAILLIER.statement(PAILLIER.plan(3, 5, 16, 2, SMALL)).adversary


@pytest.mark.parametrize("clients", [2, 50, 1000, 10_000])
@pytest.mark.parametrize("bits", [1, 8, 16, 24, 37, 59])
def test_a_bfv_ring_keeps_the_standard_s_bound_hides_rounding_and_has_room_for_it(clients: int, bits: int) -> None:
    ring = SumRing(BFV.plan(clients, 10, bits, 2))
    assert prod(ring.moduli).bit_length() <= MAX_MODULUS_BITS[ring.degree]
    assert ring.degree == 4096 or bits > 32
    rounding = (clients + 1) / 2
    assert rounding / 2.0 ** (ring.flood_bits + 1) <= 2.0**-HIDING_BITS
    assert log2(prod(ring.moduli[:-1])) >= bits + 2 + ring.flood_bits
    assert all(q % (2 * ring.degree) == 1 for q in ring.moduli)
    assert len(set(ring.moduli)) == len(ring.moduli)


def test_rings_wider_than_seal_s_plain_modulus_are_refused_with_what_serves_them() -> None:
    with pytest.raises(BadParameters, match=r"up to 59.*'shares'"):
        BFV.plan(3, 5, 60, 2)


@pytest.mark.parametrize(("clients", "bits"), [(100, 16), (50, 8)])
def test_the_noise_of_many_clients_leaves_the_budget_that_was_planned(clients: int, bits: int) -> None:
    """These are tight: a bit or two to spare in the modulus."""
    plan = BFV.plan(clients, 3, bits, 2)
    ring = SumRing(plan)
    assert sum(map(log2, ring.moduli[:-1])) - ring._needed(ring.degree, ring.moduli[-1]) < 2.1
    values = [np.full(3, (1 << bits) - 1 - i, np.uint32) for i in range(clients)]
    found = sum_here(BFV, plan, values)
    assert found.values.tolist() == [sum(int(v[0]) for v in values) % (1 << bits)] * 3


def test_the_key_holder_gets_noise_of_the_size_that_hides_rounding() -> None:
    made: list[BfvSumKeyHolder] = []

    class Watched(BfvSum):
        def helper(self, plan: SumPlan, name: str, secret: bytes | None = None) -> BfvSumKeyHolder:
            made.append(super().helper(plan, name, secret))
            return made[0]

    plan, opened = BFV.plan(3, 5, 16, 2), list[bytes]()

    def tamper(stage: str, party: Party, way: str, payload: bytes) -> bytes:
        if (stage, way) == ("open", "ask"):
            opened.append(payload[16:-LABEL_BYTES])
        return payload

    sum_here(Watched(), plan, [np.zeros(5, np.uint16)] * 3, tamper=tamper)
    context, ring = made[0]._context, made[0]._context.ring
    ciphertext = wire.load(context.seal, context.top, opened[0], "the masked sum")
    left = seal.Decryptor(context.seal, made[0]._own).invariant_noise_budget(ciphertext)
    noise = log2(prod(ring.moduli[:-1])) - 1 - left - plan.bits  # log2, to a bit
    assert ring.flood_bits - 2 < noise < ring.flood_bits + 2


def test_a_vector_longer_than_a_ciphertext_goes_into_several() -> None:
    plan = BFV.plan(2, 4097, 12, 2)
    values = [np.arange(4097, dtype=np.uint16) % 4096, np.full(4097, 4095, np.uint16)]
    assert BFV.cost(plan).client_sends > 2 * BFV.cost(BFV.plan(2, 4096, 12, 2)).client_sends - 100
    assert (sum_here(BFV, plan, values).values == (values[0].astype(np.uint64) + 4095) % 4096).all()


def test_plaintexts_that_end_in_zeros_are_read_whole() -> None:
    context = SumContext(SumRing(BFV.plan(2, 5, 16, 2)))
    for values in ([0, 0, 0], [1], [0, 7, 0, 0], []):
        read = context.coefficients(context.plaintext(np.array(values, np.uint64)))
        assert read[: len(values)].tolist() == values
        assert not read[len(values) :].any()


@pytest.mark.parametrize(("protocol", "junk"), [(BFV, b"\xff"), (PAILLIER, b"\xff"), (PAILLIER, b"\0")])
def test_ciphertexts_that_are_none_leave_the_client_out(protocol: Any, junk: bytes) -> None:
    plan = protocol.plan(3, 5, 16, 2, SMALL if protocol is PAILLIER else None)

    def tamper(stage: str, party: Party, way: str, payload: bytes) -> bytes:
        if (stage, party, way) == ("vectors", 1, "answer"):
            return payload[:16] + junk * (len(payload) - 16 - LABEL_BYTES) + payload[-LABEL_BYTES:]
        return payload

    values = [np.full(5, 65535 - i, np.uint16) for i in range(3)]
    found = sum_here(protocol, plan, values, tamper=tamper)
    assert found.included == {0, 2}
    assert found.values.tolist() == [65532] * 5


def test_noise_that_is_used_up_is_an_error_and_not_a_wrong_sum() -> None:
    plan = BFV.plan(2, 5, 16, 2)

    def tamper(stage: str, party: Party, way: str, payload: bytes) -> bytes:
        if (stage, party, way) == ("vectors", 1, "answer"):
            body = bytearray(payload)
            body[16] ^= 1  # one residue modulo one prime: in the ring, another number altogether
            return bytes(body)
        return payload

    with pytest.raises(NoiseExhausted, match="fresh encryption"):
        sum_here(BFV, plan, [np.zeros(5, np.uint16)] * 2, tamper=tamper)


@pytest.mark.parametrize("protocol", [BFV, PAILLIER])
def test_a_key_holder_opens_once_and_only_what_is_under_its_key(protocol: Any) -> None:
    plan = protocol.plan(3, 5, 16, 2, SMALL if protocol is PAILLIER else None)
    (name,) = protocol.helpers(plan)
    log: dict[tuple[str, Party, str], bytes] = {}

    def keep(stage: str, party: Party, way: str, payload: bytes) -> bytes:
        return log.setdefault((stage, party, way), payload)

    sum_here(protocol, plan, [np.zeros(5, np.uint16)] * 3, tamper=keep)
    stranger = protocol.helper(plan, name)
    with pytest.raises(PeerMisbehaved, match="expects 'keys'"):
        stranger.answer("open", log["open", name, "ask"])
    stranger.answer("keys", labelled(plan, "keys", name, ASK))
    with pytest.raises(PeerMisbehaved, match="another key"):
        stranger.answer("open", log["open", name, "ask"])


@pytest.mark.parametrize("protocol", [BFV, PAILLIER])
def test_a_public_key_that_is_none_ends_the_run_with_the_key_holder_named(protocol: Any) -> None:
    plan = protocol.plan(2, 5, 16, 2, SMALL if protocol is PAILLIER else None)

    def tamper(stage: str, party: Party, way: str, payload: bytes) -> bytes:
        if (stage, way) == ("keys", "answer"):
            return payload[:16] + b"\xff" * (len(payload) - 16 - LABEL_BYTES) + payload[-LABEL_BYTES:]
        return payload

    with pytest.raises(PeerMisbehaved, match=r"'key-holder'.*public key"):
        sum_here(protocol, plan, [np.zeros(5, np.uint16)] * 2, tamper=tamper)


class Known:
    """A protocol whose pinned key holder has its secret."""

    def __init__(self, inner: Any, secret: bytes) -> None:
        self.inner, self.secret = inner, secret

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def helper(self, plan: SumPlan, name: str) -> BfvSumKeyHolder | PaillierSumKeyHolder:
        made: BfvSumKeyHolder | PaillierSumKeyHolder = self.inner.helper(plan, name, self.secret)
        return made


@pytest.mark.parametrize("protocol", [BFV, PAILLIER])
def test_a_pinned_key_holder_signs_its_key_and_a_swapped_one_is_refused(protocol: Any) -> None:
    secret, public = new_identity()
    options = {"helper_keys": {"key-holder": public}, **(SMALL if protocol is PAILLIER else {})}
    plan = protocol.plan(2, 5, 16, 2, options)
    values = [np.full(5, 40000, np.uint16)] * 2
    made: Any = Known(protocol, secret)
    assert sum_here(made, plan, values, restoring=True).values.tolist() == [80000 - 65536] * 5
    free = protocol.plan(2, 5, 16, 2, SMALL if protocol is PAILLIER else None)
    assert protocol.cost(plan).client_receives == protocol.cost(free).client_receives + 64

    def tamper(stage: str, party: Party, way: str, payload: bytes) -> bytes:
        if (stage, way) == ("vectors", "ask"):
            return payload[:30] + bytes([payload[30] ^ 2]) + payload[31:]
        return payload

    with pytest.raises(PeerMisbehaved, match="swapped"):
        sum_here(made, plan, values, tamper=tamper)
