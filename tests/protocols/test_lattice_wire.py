from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import tenseal.sealapi as seal
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import BadParameters, Misuse, PeerMisbehaved
from protocols.lattice import wire
from protocols.lattice.context import (
    BFV,
    CKKS,
    ID_BYTES,
    Context,
    EvaluationKeys,
    KeySet,
    Parameters,
    chain,
)
from protocols.lattice.residues import added, flood, is_prime, primes, reduced, shifted, uniform
from protocols.lattice.secret import SecretKeys

N = 4096
CHAIN = chain(N, 60) or ()
PLAINS = primes(N, 17, 2)


@pytest.fixture(scope="module")
def contexts() -> list[Context]:
    return [Context(Parameters(BFV, N, CHAIN, t)) for t in PLAINS]


@pytest.fixture(scope="module")
def secret(contexts: list[Context]) -> SecretKeys:
    return SecretKeys(contexts)


def encrypted(contexts: list[Context], secret: SecretKeys, values: list[int], index: int = 0) -> bytes:
    plain = seal.Plaintext()
    contexts[index].encoder.encode(values, plain)
    return wire.dump_fresh(secret.encryptor(index).encrypt_symmetric(plain), contexts[index].top)


def decrypted(contexts: list[Context], secret: SecretKeys, ciphertext: Any, index: int = 0) -> list[int]:
    plain = seal.Plaintext()
    secret.decryptor(index).decrypt(ciphertext, plain)
    return list(contexts[index].encoder.decode_uint64(plain))


def test_a_fresh_ciphertext_has_its_declared_length_and_comes_back(contexts: list[Context], secret: SecretKeys) -> None:
    values = list(range(N))
    data = encrypted(contexts, secret, values)
    assert len(data) == contexts[0].top.fresh_bytes == N * sum(contexts[0].top.widths) + 64
    back = wire.load_fresh(contexts[0].seal, contexts[0].top, data, "a question")
    assert decrypted(contexts, secret, back) == values


def test_a_full_ciphertext_has_its_declared_length_and_comes_back_to_the_byte(
    contexts: list[Context], secret: SecretKeys
) -> None:
    context = contexts[0]
    ciphertext = wire.load_fresh(context.seal, context.top, encrypted(contexts, secret, [7] * N), "a question")
    data = wire.dump(ciphertext, context.top)
    assert len(data) == context.top.ciphertext_bytes
    back = wire.load(context.seal, context.top, data, "an answer")
    assert wire.dump(back, context.top) == data
    assert np.array_equal(wire.residues(back, context.top), wire.residues(ciphertext, context.top))


def test_every_level_of_the_chain_travels(contexts: list[Context], secret: SecretKeys) -> None:
    context = contexts[0]
    ciphertext = wire.load_fresh(context.seal, context.top, encrypted(contexts, secret, [3] * N), "a question")
    for count in sorted(context.levels, reverse=True):
        level = context.levels[count]
        assert level.moduli == CHAIN[:count]
        context.evaluator.mod_switch_to_inplace(ciphertext, list(level.parms_id))
        back = wire.load(context.seal, level, wire.dump(ciphertext, level), "an answer")
        assert decrypted(contexts, secret, back) == [3] * N


@pytest.mark.parametrize("change", [-1, 1, -64, 1000], ids=str)
def test_a_truncated_or_oversized_ciphertext_is_refused_by_length(
    contexts: list[Context], secret: SecretKeys, change: int
) -> None:
    data = encrypted(contexts, secret, [1] * N)
    wrong = data[:change] if change < 0 else data + bytes(change)
    with pytest.raises(PeerMisbehaved, match=rf"the question has {len(wrong)} bytes; {len(data)} were agreed"):
        wire.load_fresh(contexts[0].seal, contexts[0].top, wrong, "the question")


def test_a_residue_beyond_its_prime_is_refused(contexts: list[Context], secret: SecretKeys) -> None:
    context = contexts[0]
    data = bytearray(encrypted(contexts, secret, [1] * N))
    data[: context.top.widths[0]] = b"\xff" * context.top.widths[0]
    with pytest.raises(PeerMisbehaved, match="the question is refused"):
        wire.load_fresh(context.seal, context.top, bytes(data), "the question")


def test_residues_that_fit_no_level_are_a_misuse(contexts: list[Context]) -> None:
    with pytest.raises(Misuse, match="no ciphertext"):
        level = contexts[0].top
        wire.from_residues(contexts[0].seal, level, np.full((2, len(level.moduli), N), 1 << 62, np.uint64))


def test_one_key_message_serves_every_plain_prime(contexts: list[Context], secret: SecretKeys) -> None:
    keys = KeySet(contexts[0].parameters, True, (1, 8))
    message = secret.evaluation(keys)
    assert len(message) == keys.bytes
    for index, context in enumerate(contexts):
        loaded = EvaluationKeys(keys, message).under(context)
        fresh = encrypted(contexts, secret, list(range(N)), index)
        ciphertext = wire.load_fresh(context.seal, context.top, fresh, "a question")
        context.evaluator.rotate_rows_inplace(ciphertext, 8, loaded.galois)
        rows = np.arange(N).reshape(2, -1)
        assert decrypted(contexts, secret, ciphertext, index) == np.roll(rows, -8, axis=1).ravel().tolist()
        zero = seal.Ciphertext()
        loaded.public.encrypt_zero(zero)
        assert decrypted(contexts, secret, zero, index) == [0] * N


def test_relinearization_works_after_the_journey(contexts: list[Context], secret: SecretKeys) -> None:
    keys = KeySet(contexts[0].parameters, True, ())
    loaded = EvaluationKeys(keys, secret.evaluation(keys)).under(contexts[0])
    context = contexts[0]
    ciphertext = wire.load_fresh(context.seal, context.top, encrypted(contexts, secret, [5] * N), "a question")
    context.evaluator.square_inplace(ciphertext)
    context.evaluator.relinearize_inplace(ciphertext, loaded.relinearize)
    assert ciphertext.size() == 2
    assert wire.residues(ciphertext, context.top).shape == (2, len(context.top.moduli), N)


def test_keys_for_late_stages_are_smaller_and_serve_there() -> None:
    degree = 8192
    context = Context(Parameters(BFV, degree, chain(degree, 150) or (), primes(degree, 17, 1)[0]))
    secret = SecretKeys([context])
    whole = KeySet(context.parameters, False, (1, 8))
    small = KeySet(context.parameters, True, (1, 8), 1, (2, 3))
    message = secret.evaluation(small)
    assert len(message) == small.bytes
    count, width = len(context.parameters.coefficient) - 1, context.key.widths[0]
    assert count == 3
    assert small.sizes[2:] == tuple(p * (degree * width * (p + 1) + 64) for p in (1, 2, 3))
    assert small.bytes < whole.bytes
    loaded = EvaluationKeys(small, message).under(context)
    plain, ciphertext = seal.Plaintext(), seal.Ciphertext()
    context.encoder.encode(list(range(degree)), plain)
    secret.encryptor(0).encrypt_symmetric(plain, ciphertext)
    rows = np.arange(degree).reshape(2, -1)
    for step, primes_left in ((8, 3), (1, 2)):
        context.evaluator.mod_switch_to_inplace(ciphertext, list(context.levels[primes_left].parms_id))
        context.evaluator.rotate_rows_inplace(ciphertext, step, loaded.galois)
        rows = np.roll(rows, -step, axis=1)
        secret.decryptor(0).decrypt(ciphertext, plain)
        assert context.encoder.decode_uint64(plain) == rows.ravel().tolist()
    assert secret.decryptor(0).invariant_noise_budget(ciphertext) > 60


def test_keys_for_more_primes_than_there_are_or_for_other_rotations_are_refused() -> None:
    parameters = Parameters(BFV, N, CHAIN, PLAINS[0])
    count = len(CHAIN) - 1
    for relinearize, used in ((0, (count + 1,)), (count + 1, ()), (0, (1, 1)), (0, (0,))):
        with pytest.raises(BadParameters, match=f"each is used with 1..{count}"):
            KeySet(parameters, True, (1,), relinearize, used)


def test_only_the_keys_asked_for_are_made(contexts: list[Context], secret: SecretKeys) -> None:
    keys = KeySet(contexts[0].parameters, False, ())
    message = secret.evaluation(keys)
    assert len(message) == ID_BYTES + contexts[0].key.ciphertext_bytes
    loaded = EvaluationKeys(keys, message).under(contexts[0])
    assert loaded.galois is None
    assert loaded.relinearize is None


def test_a_key_message_of_the_wrong_length_is_refused(contexts: list[Context], secret: SecretKeys) -> None:
    keys = KeySet(contexts[0].parameters, True, (1,))
    message = secret.evaluation(keys)
    for wrong in (message[:-1], message + b"x", b""):
        with pytest.raises(PeerMisbehaved, match=f"has {len(wrong)} bytes; {len(message)} were agreed"):
            EvaluationKeys(keys, wrong)


@pytest.mark.parametrize(("at", "what"), [(1, "public key"), (2, "relinearization key"), (3, "Galois keys")])
def test_a_key_out_of_range_is_refused_by_name(contexts: list[Context], secret: SecretKeys, at: int, what: str) -> None:
    keys = KeySet(contexts[0].parameters, True, (1,))
    message = bytearray(secret.evaluation(keys))
    start = sum(keys.sizes[:at])
    message[start : start + 64] = b"\xff" * 64
    with pytest.raises(PeerMisbehaved, match=f"the {what} (is|are) refused"):
        EvaluationKeys(keys, bytes(message)).under(contexts[0])


def test_ckks_ciphertexts_travel_with_the_scale_of_the_plan() -> None:
    moduli = primes(N, 36, 3)
    context = Context(Parameters(CKKS, N, moduli))
    secret = SecretKeys([context])
    plain = seal.Plaintext()
    context.encoder.encode([1.5] * (N // 2), 2.0**20, plain)
    data = wire.dump_fresh(secret.encryptor(0).encrypt_symmetric(plain), context.top)
    assert len(data) == context.top.fresh_bytes
    back = wire.load_fresh(context.seal, context.top, data, "a question", 2.0**20)
    secret.decryptor(0).decrypt(back, plain)
    assert np.abs(np.array(context.encoder.decode_double(plain)) - 1.5).max() < 1e-2
    assert np.array_equal(
        wire.residues(wire.load(context.seal, context.top, wire.dump(back, context.top), "x"), context.top),
        wire.residues(back, context.top),
    )


def test_secret_keys_refuse_to_be_shown_copied_or_pickled(secret: SecretKeys) -> None:
    assert repr(secret) == "<SecretKeys: hidden>"
    for show in (pickle.dumps, copy.copy, bool, list):
        with pytest.raises(Misuse):
            show(secret)  # type: ignore[operator]


def test_streams_pass_through_memory_and_no_file_on_disk(contexts: list[Context], secret: SecretKeys) -> None:
    paths: list[str] = []

    class Watched:
        def save(self, path: str) -> None:
            paths.append(path)
            secret.encryptor(0).encrypt_symmetric(seal.Plaintext("1")).save(path)

    wire.dump_fresh(Watched(), contexts[0].top)
    assert all(path.startswith("/proc/self/fd/") for path in paths)
    assert len(paths) == 1


BAD = [
    ({"degree": 4095}, "4095"),
    ({"coefficient": CHAIN[:1]}, "at least 2"),
    ({"coefficient": (CHAIN[0], CHAIN[0])}, "1 of them different"),
    ({"coefficient": (CHAIN[0], CHAIN[0] + 2 * N)}, "is no prime"),
    ({"coefficient": (CHAIN[0], 1000003)}, "that is 1 mod 8192"),
    ({"coefficient": primes(N, 55, 2)}, "at most 109"),
    ({"coefficient": primes(N, 60, 4)}, "a coefficient modulus of 240 bits"),
    ({"plain": PLAINS[0] + 2}, "is no prime"),
    ({"plain": 0}, "is no prime"),
    ({"scheme": CKKS}, "does not fit"),
    ({"scheme": "rsa"}, "'rsa'"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[str(number) for number in range(len(BAD))])
def test_parameters_that_are_no_good_are_refused(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"scheme": BFV, "degree": N, "coefficient": CHAIN, "plain": PLAINS[0]}
    Parameters(**good)
    with pytest.raises(BadParameters, match=message):
        Parameters(**good | change)


def test_the_security_table_is_that_of_seal() -> None:
    from protocols.lattice.context import MAX_MODULUS_BITS

    for degree, most in MAX_MODULUS_BITS.items():
        assert most == seal.CoeffModulus.MaxBitCount(degree, seal.SEC_LEVEL_TYPE.TC128)


@pytest.mark.parametrize("degree", [4096, 8192, 16384])
@pytest.mark.parametrize("bits", [30, 50, 100, 150, 300])
def test_a_chain_holds_what_it_promises_and_is_safe_or_there_is_none(degree: int, bits: int) -> None:
    moduli = chain(degree, bits)
    if moduli is None:
        assert bits > {4096: 109, 8192: 218, 16384: 438}[degree] // 2
        return
    Parameters(CKKS, degree, moduli)
    product = 1
    for q in moduli[:-1]:
        product *= q
    assert product >> bits
    assert moduli[-1] == max(moduli)


def test_rotations_are_ascending_steps_within_a_row() -> None:
    parameters = Parameters(BFV, N, CHAIN, PLAINS[0])
    for wrong in ((2, 1), (1, 1), (0,), (N // 2,)):
        with pytest.raises(BadParameters, match="ascending"):
            KeySet(parameters, True, wrong)


def test_primality_agrees_with_a_sieve() -> None:
    sieve = np.ones(10000, bool)
    sieve[:2] = False
    for i in range(2, 100):
        sieve[i * i :: i] &= not sieve[i]
    assert [n for n in range(10000) if is_prime(n)] == np.flatnonzero(sieve).tolist()


def test_strong_pseudoprimes_are_not_taken_for_primes() -> None:
    for composite in (3215031751, 3474749660383, 341550071728321, 3825123056546413051, ((1 << 31) - 1) ** 2):
        assert not is_prime(composite)
    assert is_prime((1 << 61) - 1)


PRIME = primes(8192, 60, 1)[0]


@given(st.lists(st.integers(0, PRIME - 1), min_size=1, max_size=20), st.integers(1, 32))
def test_shifts_and_sums_of_residues_are_those_of_integers(values: list[int], bits: int) -> None:
    words = np.array([*values, PRIME - 1, 0], np.uint64)
    assert shifted(words, bits, PRIME).tolist() == [(int(v) << bits) % PRIME for v in words.tolist()]
    assert added(words, words[::-1], PRIME).tolist() == [
        (a + b) % PRIME for a, b in zip(words.tolist(), words[::-1].tolist(), strict=True)
    ]


@given(st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=20))
def test_signed_words_are_reduced_like_integers(values: list[int]) -> None:
    assert reduced(np.array(values, np.int64), PRIME).tolist() == [v % PRIME for v in values]
    small = [v >> 4 for v in values]
    assert reduced(np.array(small, np.int64), PRIME, 59).tolist() == [v % PRIME for v in small]


def test_a_shift_beyond_its_exact_range_is_a_misuse() -> None:
    with pytest.raises(Misuse, match="33 bits"):
        shifted(np.zeros(1, np.uint64), 33, PRIME)


@pytest.mark.parametrize("bits", [5, 31, 32, 70, 130])
def test_a_flood_is_the_same_integers_under_every_prime_and_fills_its_range(bits: int) -> None:
    moduli = primes(8192, 54, 3)
    drawn = flood(bits, 2000, moduli)
    product = moduli[0] * moduli[1] * moduli[2]
    values = []
    for column in drawn.T.tolist():
        total = sum(int(r) * (product // q) * pow(product // q, -1, q) for r, q in zip(column, moduli, strict=True))
        total %= product
        values.append(total - product if total > product // 2 else total)
    assert all(-(1 << bits) <= value < 1 << bits for value in values)
    assert max(values) > 0.9 * (1 << bits) > 0.9 * -(1 << bits) > min(values)
    assert abs(sum(values)) < 5 * (1 << bits) * 2000**0.5


def test_uniform_values_reach_every_residue_about_as_often() -> None:
    counts = np.bincount(uniform(7, 70000), minlength=7)
    assert len(counts) == 7
    assert np.abs(counts - 10000).max() < 600
