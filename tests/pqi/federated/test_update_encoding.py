from __future__ import annotations

import dataclasses
import json
import math
from fractions import Fraction

import numpy as np
import pytest
from federatedkit import Scripted, coins, signed, summed
from hypothesis import given, settings
from hypothesis import strategies as st

from pqi.federated import Codec, Encoding, EncodingError, SumRefused, WrapError
from pqi.federated.bounds import Digits, largest_sum, room, widest_reach
from pqi.federated.rounding import lifted, norm, rounded
from protocols import native
from protocols.errors import Misuse

SEED = bytes(range(16))


def update(number: int, length: int, size: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(number).normal(size=length) * size).astype(np.float32)


@settings(max_examples=60)
@given(
    bits=st.integers(8, 24),
    clients=st.integers(1, 12),
    taking_part=st.integers(1, 12),
    length=st.integers(1, 40),
    max_weight=st.integers(1, 9),
    rotated=st.booleans(),
    number=st.integers(0, 2**20),
)
def test_the_decoded_sum_is_the_integer_sum_of_encodings(
    bits: int, clients: int, taking_part: int, length: int, max_weight: int, rotated: bool, number: int
) -> None:
    taking_part = min(taking_part, clients)
    encoding = Encoding(clip=1.0, value_clip=None if rotated else 0.2, modulus_bits=bits, max_weight=max_weight)
    codec = encoding.codec(length, clients, min(2, clients), SEED)
    weights = np.random.default_rng(number).integers(0, max_weight + 1, taking_part)
    weights[0] = max_weight
    encoded = [codec.encode(update(number + i, length), int(w)) for i, w in enumerate(weights)]
    decoded = codec.decode(summed(codec, [e.values for e in encoded]), taking_part)
    exact = np.sum([signed(e.values[:length], bits) for e in encoded], axis=0)
    assert np.array_equal(decoded.codes, exact)
    assert decoded.total_weight == int(weights.sum())
    assert decoded.clipped_share == sum(e.clipped for e, w in zip(encoded, weights, strict=True) if w) / (
        taking_part * length
    )
    assert decoded.shortened_share == sum(e.shortened for e in encoded) / taking_part


@settings(max_examples=200)
@given(
    bits=st.integers(4, 20),
    weights=st.lists(st.integers(0, 50), min_size=1, max_size=30),
    slack=st.integers(0, 100),
)
def test_no_choice_of_values_and_rounding_leaves_the_ring(bits: int, weights: list[int], slack: int) -> None:
    largest, total = max(*weights, 1), sum(weights) + slack
    total = max(total, largest)
    try:
        reach = widest_reach(bits, len(weights), largest, total)
    except WrapError:
        assert room(bits) < len(weights) + total / largest
        return
    worst = sum(math.ceil(reach * w) for w in weights)
    assert worst <= largest_sum(reach, len(weights), largest, total) <= room(bits)


@pytest.mark.parametrize("sign", [1, -1])
def test_all_clients_at_the_bound_reach_it_exactly_and_do_not_wrap(sign: int) -> None:
    codec = Encoding(clip=None, value_clip=0.25, modulus_bits=16).codec(3, 7)
    vectors = [codec.encode(np.full(3, sign * 9.0), coins=Scripted([0xFFFF])).values for _ in range(7)]
    decoded = codec.decode(summed(codec, vectors), 7)
    assert decoded.codes.tolist() == [sign * 7 * (32767 // 7)] * 3
    assert codec.magnitude == 7 * (32767 // 7)
    assert np.allclose(decoded.mean, sign * 0.25, rtol=1e-12)
    assert decoded.clipped_share == 1.0


def test_the_step_that_rounding_adds_is_inside_the_proof() -> None:
    codec = Encoding(clip=None, value_clip=1.0, modulus_bits=10, max_weight=300).codec(1, 2)
    assert codec.reach == Fraction(511 - 2, 600)
    up = [signed(codec.encode(np.ones(1), 300, Scripted([0xFFFF])).values[:1], 10)[0] for _ in range(2)]
    assert up == [math.ceil(codec.reach * 300)] * 2 == [255, 255]
    assert sum(up) <= codec.magnitude <= 511


def test_one_client_more_than_the_steps_allow_is_refused() -> None:
    encoding = Encoding(clip=None, value_clip=1.0, modulus_bits=16, steps=327)
    assert encoding.codec(10, 100).magnitude == 32700
    with pytest.raises(WrapError, match=r"101 clients' codes can reach 33027.*holds 32767: use at most 100 clients"):
        encoding.codec(10, 101)


def test_a_sum_of_more_clients_than_planned_is_refused() -> None:
    codec = Encoding(value_clip=1.0).codec(4, 3)
    total = summed(codec, [codec.encode(update(i, 4)).values for i in range(4)])
    with pytest.raises(SumRefused, match="4 clients are included, this codec is for 1 to 3"):
        codec.decode(total, range(4))


def test_too_many_clients_for_the_ring_are_refused_with_the_bits_they_need() -> None:
    with pytest.raises(WrapError, match=r"300 clients of total weight 300.*modulus_bits = 8.*Use modulus_bits = 11"):
        Encoding(modulus_bits=8).codec(10, 300)
    Encoding(modulus_bits=11).codec(10, 300)


def test_rounding_is_unbiased_and_of_the_two_nearest_codes() -> None:
    x = np.array([0.3, -0.3, 0.999, -2.5, 0.0, 1.0])
    every = np.arange(1 << 16, dtype=np.uint16)
    for value in x:
        out = np.empty(every.size, np.int64)
        rounded(np.full(every.size, value), 1.0, 10.0, every, -1, out)
        assert set(out.tolist()) <= {math.floor(value), math.ceil(value)}
        assert abs(float(out.mean()) - value) <= 2.0**-17


def test_the_weighted_mean_is_that_of_the_updates_up_to_rounding() -> None:
    codec = Encoding(clip=50.0, max_weight=600, modulus_bits=24).codec(1000, 5, seed=SEED)
    weights = [600, 1, 37, 0, 250]
    updates = [update(i, 1000) for i in range(5)]
    total = summed(
        codec, [codec.encode(u, w, coins(i)).values for i, (u, w) in enumerate(zip(updates, weights, strict=True))]
    )
    decoded = codec.decode(total, {0, 1, 2, 3, 4})
    mean = np.average(updates, axis=0, weights=weights)
    assert decoded.total_weight == 888
    assert float(np.abs(decoded.mean - mean).max()) < 5 * math.sqrt(5) * decoded.resolution


def test_an_update_longer_than_clip_is_scaled_down_to_it() -> None:
    codec = Encoding(clip=1.0, modulus_bits=24).codec(500, 2, seed=SEED)
    x = update(1, 500)
    decoded = codec.decode(summed(codec, [codec.encode(x).values] * 2), 2)
    assert abs(float(np.linalg.norm(decoded.mean)) - 1.0) < 1e-3
    assert np.allclose(decoded.mean, x / np.linalg.norm(x), atol=1e-4)
    assert decoded.shortened_share == 1.0


def test_sixteen_bits_and_a_hundred_clients_keep_the_mean_to_two_percent() -> None:
    codec = Encoding(clip=1.0).codec(2000, 100, seed=SEED)
    updates = [update(i, 2000, 0.02) for i in range(100)]
    decoded = codec.decode(summed(codec, [codec.encode(u, coins=coins(i)).values for i, u in enumerate(updates)]), 100)
    exact = np.mean(updates, axis=0)
    assert float(np.linalg.norm(decoded.mean - exact)) < 0.02 * float(np.linalg.norm(exact))
    assert decoded.clipped_share == 0.0


@pytest.mark.parametrize("rotated", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_compiled_and_numpy_forms_give_the_same_ring_elements(rotated: bool, dtype: type) -> None:
    for length in (1, 2, 7, 8, 100, 4096, 33_000):
        codec = Encoding(value_clip=None if rotated else 0.01, max_weight=3).codec(length, 4, seed=SEED)
        x = update(length, length, 3 / math.sqrt(length)).astype(dtype)
        fast = codec.encode(x, 2, coins(1))
        with native.switched_off():
            plain = codec.encode(x, 2, coins(1))
        # The norm is summed in another order: its last digit may move a value's 2^-16 fraction, and so its code by one.
        difference = signed((fast.values - plain.values)[:length], 16)
        assert int(np.abs(difference).max()) <= 1
        assert int(np.count_nonzero(difference)) <= 1 + length // 1000
        total = summed(codec, [fast.values] * 2)
        decoded = codec.decode(total, 2)
        with native.switched_off():
            again = codec.decode(total, 2)
        assert np.array_equal(decoded.codes, again.codes)
        assert np.array_equal(decoded.mean, again.mean)


def test_rounding_and_lifting_equal_their_numpy_forms_bit_for_bit() -> None:
    x, dither = update(5, 3001, 40.0), coins(4).words(3001, np.uint16)

    def both() -> list[object]:
        out = np.empty(3001, np.uint16)
        return [*rounded(x, 1.25, 60.0, dither, 0xFFFF, out), *lifted(out, 16, 0.125)]

    fast = both()
    with native.switched_off():
        plain = both()
    assert all(np.array_equal(a, b) for a, b in zip(fast, plain, strict=True))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("clip", [1.0, None])
def test_an_update_that_is_not_finite_is_refused(bad: float, compiled: bool, clip: float | None) -> None:
    codec, x = Encoding(clip=clip, value_clip=0.5).codec(9, 2), update(0, 9)
    x[4] = bad
    with pytest.raises(EncodingError, match="NaN or infinity"):
        if compiled:
            codec.encode(x)
        else:
            with native.switched_off():
                codec.encode(x)


def test_norms_are_the_same_in_both_forms() -> None:
    x = update(3, 10_001)
    fast = norm(x)
    with native.switched_off():
        assert math.isclose(fast, norm(x), rel_tol=1e-12)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda c: c.encode(np.zeros(5)), r"\(5,\): floats of shape \(4,\)"),
        (lambda c: c.encode(np.zeros(4, np.int64)), "floats of shape"),
        (lambda c: c.encode(np.zeros(4), 4), "weight is 4: it must be from 0 to max_weight = 3"),
        (lambda c: c.encode(np.zeros(4), True), "weight is True"),
        (lambda c: c.encode(np.zeros(4), -1), "weight is -1"),
    ],
)
def test_what_cannot_be_encoded_is_refused_by_name(call, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(EncodingError, match=words):
        call(Encoding(max_weight=3).codec(4, 2))


def test_a_sum_that_no_encodings_can_have_is_refused() -> None:
    codec = Encoding(value_clip=1.0, max_weight=5, total_weight=8).codec(4, 3)
    total = summed(codec, [codec.encode(update(i, 4), 4).values for i in range(2)])
    assert codec.decode(total, 2).total_weight == 8
    for change, words in (
        (lambda v: v[:-1], "integers of shape"),
        (lambda v: v.astype(np.float64), "integers of shape"),
        (lambda v: v + np.uint64(1 << 16) * (np.arange(v.size) == 0).astype(np.uint64), "not within 0 .. 2\\^16 - 1"),
        (lambda v: np.where(np.arange(v.size) == v.size - 1, 1 << 16, v), "a count in the sum"),
        (lambda v: np.where(np.arange(v.size) == v.size - 1, 3, v), "a party added something else"),
        (lambda v: np.where(np.arange(v.size) == 0, 32767, v), "a code of the sum is 32767"),
        (lambda v: np.where(np.arange(v.size) == 4, 9, v), "sum to 9, at most 8 was declared"),
        (lambda v: np.where(np.arange(v.size) == 4, 0, v), "are zero: there is nothing to average"),
    ):
        with pytest.raises(SumRefused, match=words):
            codec.decode(change(total), 2)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"clip": None}, "clip and value_clip are both None"),
        ({"clip": 0.0}, "clip is 0.0"),
        ({"clip": math.nan}, "clip is nan"),
        ({"value_clip": -1.0}, "value_clip is -1.0"),
        ({"modulus_bits": 33}, "modulus_bits is 33: it must be an integer from 2 to 32"),
        ({"max_weight": 0}, "max_weight is 0"),
        ({"max_weight": 5, "total_weight": 4}, "total_weight is 4: it must be an integer from 5"),
        ({"sigmas": None}, "sigmas is None"),
        ({"mechanism": "gaussian"}, "mechanism is 'gaussian'"),
    ],
)
def test_fields_that_cannot_work_are_named(fields: dict[str, object], words: str) -> None:
    with pytest.raises(EncodingError, match=words):
        Encoding(**fields)  # type: ignore[arg-type]


def test_a_codec_is_the_same_after_its_facts_crossed_the_wire() -> None:
    codec = Encoding(clip=2.0, max_weight=7, total_weight=20, modulus_bits=18).codec(33, 5, 3)
    again = Codec.from_facts(json.loads(json.dumps(codec.facts())))
    assert again == codec
    assert json.dumps(again.record()) == json.dumps(codec.record())
    for broken in (
        {},
        {**codec.facts(), "seed": "zz"},
        {**codec.facts(), "length": "3"},
        {**codec.facts(), "encoding": 3},
    ):
        with pytest.raises((EncodingError, ValueError)):
            Codec.from_facts(broken)


def test_an_encoded_update_shows_nothing_of_itself() -> None:
    encoded = Encoding().codec(4, 2).encode(np.ones(4))
    assert repr(encoded) == "<Encoded: hidden>"
    with pytest.raises(Misuse):
        bool(encoded)


def test_bounds_follow_what_the_sum_tells_about_clipping() -> None:
    encoding = Encoding(clip=10.0, value_clip=0.01)
    codec = encoding.codec(1000, 2)
    total = summed(codec, [codec.encode(update(i, 1000)).values for i in range(2)])
    decoded = codec.decode(total, 2)
    assert decoded.clipped_share is not None and decoded.clipped_share > 0.9
    wider = encoding.adapted(decoded)
    assert wider.value_clip == pytest.approx(0.016)
    assert wider.clip == pytest.approx(30.0)
    calm = dataclasses.replace(decoded, clipped_share=0.0, shortened_share=0.0)
    assert encoding.adapted(calm).value_clip == pytest.approx(0.0085)
    assert encoding.adapted(calm).clip == pytest.approx(9.5)
    assert encoding.adapted(dataclasses.replace(decoded, clipped_share=1e-4, shortened_share=0.3)).value_clip == 0.01
    private = dataclasses.replace(decoded, clipped_share=None, shortened_share=None)
    assert encoding.adapted(private) is encoding


@given(largest=st.integers(1, 2**31), clients=st.integers(1, 1000), bits=st.integers(10, 32), data=st.data())
def test_counts_are_told_through_sums_of_digits_that_cannot_wrap(
    largest: int, clients: int, bits: int, data: st.DataObject
) -> None:
    digits = Digits(largest, clients, bits)
    assert clients * ((1 << digits.step) - 1) < 1 << bits <= clients * ((2 << digits.step) - 1) + clients
    numbers = data.draw(st.lists(st.integers(0, largest), min_size=1, max_size=min(clients, 8)))
    sums = np.sum([digits.write(n) for n in numbers], axis=0)
    assert digits.read(sums) == sum(numbers)


def test_more_clients_than_the_ring_can_count_are_refused() -> None:
    with pytest.raises(WrapError, match="16 clients cannot be counted in a ring of modulus_bits = 4"):
        Digits(1, 16, 4)
    assert Digits(1, 15, 4).count == 1
