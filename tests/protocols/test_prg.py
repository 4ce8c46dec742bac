from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from protocols import prg
from protocols.additive2.material import PartyKeys
from protocols.errors import Misuse
from protocols.rounds import PartyId
from protocols.streams import Stream


def test_the_key_stream_is_aes_ctr_as_nist_prints_it() -> None:
    # SP 800-38A, F.5.1 CTR-AES128: ciphertext xor plaintext of blocks 1 and 2.
    key = prg.Key(bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c"))
    start = int("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff", 16)
    plain = bytes.fromhex("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51")
    cipher = bytes.fromhex("874d6191b620e3261bef6864990db6ce9806f66b7970fdff8617187bb9fffdff")
    stream = prg.keystream(key, start, 32).tobytes()
    assert bytes(a ^ b for a, b in zip(plain, stream, strict=True)) == cipher


def test_blocks_read_at_scattered_places_are_those_of_the_stream() -> None:
    key = prg.Key.fresh()
    whole = prg.keystream(key, 0, 16 * 64).reshape(64, 16)
    at = np.array([5, 0, 63, 5, 17])
    assert np.array_equal(prg.blocks_at(key, at), whole[at])


def test_a_long_stream_is_seamless_over_its_internal_pieces() -> None:
    key = prg.Key.fresh()
    size = (1 << 20) + 4096 + 5
    whole = prg.keystream(key, 7, size)
    assert np.array_equal(whole[-4101:], prg.keystream(key, 7 + (1 << 16), 4101))


def test_a_stream_never_goes_back() -> None:
    stream = Stream(prg.Key.fresh(), 2)
    first = stream.take(0, 3)
    assert first.shape == (3, 32)
    stream.take(5, 1)
    for record in (0, 2, 4, 5):
        with pytest.raises(Misuse, match="spent"):
            stream.take(record, 1)
    stream.take(6, 1)


def test_what_is_claimed_is_claimed_once_and_a_refused_claim_marks_nothing() -> None:
    spent = prg.Spent()
    spent.claim(b"epoch", 5, 5)
    with pytest.raises(Misuse, match=r"items 0 \.\. 5 was used before"):
        spent.claim(b"epoch", 0, 6)
    spent.claim(b"epoch", 0, 5)
    spent.claim(b"another", 5, 5)
    spent.claim(b"epoch", 10, 0)


def test_two_draws_of_random_words_differ() -> None:
    r = prg.Random()
    assert not (r.words((64,), 32) == r.words((64,), 32)).all()


@pytest.mark.parametrize("secret", [prg.Key(bytes(range(16))), PartyKeys.receive(PartyId.P0, bytes(range(32)))])
def test_a_key_refuses_every_way_out(secret: prg.Secret) -> None:
    assert "hidden" in repr(secret)
    assert "0102" not in repr(secret)
    assert "x01" not in f"{secret}"
    for leak in (bool, pickle.dumps, copy.copy, copy.deepcopy, np.asarray, list):
        with pytest.raises(Misuse, match="secret"):
            leak(secret)


def test_a_key_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(Misuse, match="16 bytes, not 15"):
        prg.Key(bytes(15))
