"""AES as tensor code: the S-box for every byte, NIST's vectors, and the bytes of ``cryptography`` for any key."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import aes, planes, prg
from protocols.devices import CPU

KEYS = st.binary(min_size=16, max_size=16).map(prg.Key)
# A counter is most at risk where it carries: within a word of lanes, from 32 bits, from 63, from 64, from all of them.
CARRIES = st.sampled_from([64, 1 << 32, 1 << 63, 1 << 64, 1 << 96, 1 << 128])


def power(x: int, n: int) -> int:
    """x^n in the field of 256 elements, as FIPS 197 defines its product."""
    out = 1
    for _ in range(n):
        a, b, product = out, x, 0
        while b:
            product ^= a if b & 1 else 0
            a = (a << 1) ^ (0x11B if a & 0x80 else 0)
            b >>= 1
        out = product
    return out


def test_the_circuit_of_the_s_box_is_right_on_every_byte() -> None:
    every = torch.arange(256, dtype=torch.int16)
    image = planes.insert(aes.substitution().by_torch(planes.extract(every, 0, 8)), 0, torch.zeros_like(every))
    for x, found in enumerate(image.tolist()):
        inverse = power(x, 254)
        turned = [(inverse << k | inverse >> (8 - k)) & 255 for k in range(5)]
        assert found == turned[0] ^ turned[1] ^ turned[2] ^ turned[3] ^ turned[4]  # without the constant 0x63


def test_fips_197_prints_this_block() -> None:
    key = prg.Key(bytes(range(16)))
    plain = int("00112233445566778899aabbccddeeff", 16)
    made = aes.keystream(key, plain, 16, CPU)
    assert bytes(made.tolist()).hex() == "69c4e0d86a7b0430d8cdb78070b4c55a"


def test_sp_800_38a_prints_these_blocks() -> None:
    key = prg.Key(bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c"))
    made = aes.keystream(key, int("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff", 16), 64, CPU)
    assert bytes(made.tolist()).hex() == (
        "ec8cdf7398607cb0f2d21675ea9ea1e4362b7c3c6773516318a077d7fc5073ae"
        "6a2cc3787889374fbeb4c81b17ba6c44e89c399ff0f198c6d40a31db156cabfe"
    )


def test_the_round_keys_of_fips_197_come_out() -> None:
    keys = aes._schedule(prg.Key(bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")))
    assert len(keys) == 11
    assert bytes(keys[1]).hex() == "a0fafe1788542cb123a339392a6c7605"
    assert bytes(keys[10]).hex() == "d014f9a8c9ee2589e13f0cc8b6630ca6"


@settings(max_examples=25)
@given(key=KEYS, top=CARRIES, below=st.integers(0, 130), size=st.integers(0, 3000))
def test_the_stream_is_that_of_the_processor_wherever_its_counter_carries(
    key: prg.Key, top: int, below: int, size: int
) -> None:
    first = max(0, top - below) % (1 << 128)
    assert np.array_equal(aes.keystream(key, first, size, CPU).numpy(), prg.keystream(key, first, size))


def test_a_stream_of_several_chunks_is_seamless(monkeypatch: pytest.MonkeyPatch) -> None:
    key = prg.Key.fresh()
    monkeypatch.setattr(aes, "_CHUNK", 128)
    assert np.array_equal(aes.keystream(key, 77, 9001, CPU).numpy(), prg.keystream(key, 77, 9001))
    positions = torch.arange(300).reshape(3, 100) * 7919
    scattered = prg.blocks_at(key, positions.reshape(-1).numpy())
    assert np.array_equal(aes.blocks_at(key, positions).numpy().reshape(-1, 16), scattered)


def test_keys_that_differ_in_one_bit_give_other_streams() -> None:
    streams = [aes.keystream(prg.Key(bytes([bit, *range(15)])), 0, 64, CPU).numpy() for bit in (0, 1)]
    assert 200 < np.unpackbits(streams[0] ^ streams[1]).sum() < 312
