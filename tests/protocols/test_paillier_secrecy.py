"""What leaves the server is a fresh encryption of the answer; secrets refuse to be shown; each blinding serves once."""

from __future__ import annotations

import copy
import os
import pickle
import threading
from typing import Any, ClassVar

import numpy as np
import pytest
from paillierkit import Ends, circuit, ends, protocol, weights
from scipy import stats

from protocols.errors import Misuse
from protocols.paillier import numbers
from protocols.paillier.pool import Pool
from protocols.paillier.private import PrivateKey
from protocols.paillier.product import Matrix
from protocols.paillier.public import ID_BYTES

OWN = weights([[1, 0], [0, 0]], [0, 9])
X = np.array([[3, 4]], dtype=np.int64)


@pytest.fixture(scope="module")
def both() -> Ends:
    return ends(OWN, circuit(OWN))


def root(both: Ends, c: int) -> int:
    """The r of ``c = (1 + n)^m r^n``: what an encryption looks like to the holder of the key."""
    key = both.client._key
    n, phi = int(key.public.n), (int(key._p) - 1) * (int(key._q) - 1)
    return pow(c % n, pow(n, -1, phi), n)


def test_the_randomness_of_answers_is_uniform_whatever_was_computed(both: Ends) -> None:
    """One and the same question, again and again: r of the answers, which only the key holder can see, is uniform."""
    (question,) = both.client.encrypt(X)
    n = int(both.client._key.public.n)
    seen = []
    for _ in range(60):
        answer = both.server.evaluate(1, 0, question)
        seen.append(root(both, int.from_bytes(answer[ID_BYTES:], "big")))
    assert len(set(seen)) == len(seen)
    assert stats.kstest([r / n for r in seen], "uniform").pvalue > 1e-6
    low = np.array([r & 0xFFFF for r in seen]) / 0x10000
    assert stats.kstest(low, "uniform").pvalue > 1e-6


def test_answers_carry_nothing_but_the_answers(both: Ends) -> None:
    """The plaintext of an answer *is* the packed answers: no other slot, no multiple of the modulus."""
    (question,) = both.client.encrypt(X)
    answer = both.server.evaluate(1, 0, question)
    m = both.client._key.decrypt(int.from_bytes(answer[ID_BYTES:], "big"))
    assert m == both.plan.packing.pack([3, 9])


def test_two_encryptions_of_one_input_share_no_ciphertext(both: Ends) -> None:
    (a,), (b,) = both.client.encrypt(np.tile(X, (2, 1))[:1]), both.client.encrypt(X)
    width = both.plan.key_bits // 4
    cut = [m[at : at + width] for m in (a, b) for at in range(ID_BYTES, len(m), width)]
    assert len(set(cut)) == len(cut)


def test_the_numbers_of_products_and_their_sizes_do_not_depend_on_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zero, one or many bits set: the same sequence of products, every factor a number of full length."""

    class Counted(int):
        log: ClassVar[list[int]] = []

        def __mul__(self, other: Any) -> Counted:
            Counted.log.append(min(int(self).bit_length(), int(other).bit_length()) // 64)
            return Counted(int(self) * int(other))

        __rmul__ = __mul__

        def __mod__(self, other: Any) -> Counted:
            return Counted(int(self) % int(other))

    key = PrivateKey(2048)
    monkeypatch.setattr(numbers, "big", Counted)
    monkeypatch.setattr(numbers, "power", lambda b, e, m: Counted(pow(int(b), int(e), int(m))))
    monkeypatch.setattr(numbers, "inverse", lambda v, m: Counted(pow(int(v), -1, int(m))))
    support = np.ones((2, 3), dtype=bool)
    logs = []
    for weight in ([[0, 0, 0], [0, 0, 0]], [[1, -1, 127], [-128, 85, 0]]):
        Counted.log = []
        matrix = Matrix(support, np.array(weight, dtype=np.int64))
        x = [Counted(int(key.public.encrypt(5, key.zero()))) for _ in range(3)]
        matrix.times(key.public, x, Counted(int(key.zero())))
        logs.append(list(Counted.log))
    assert len(logs[0]) == len(logs[1]) > 20
    # The 1 that every row starts from is short; every other factor is as long as the modulus, by a word or two.
    assert {size for log in logs for size in log if size < 60} == {0}
    assert [size > 0 for size in logs[0]] == [size > 0 for size in logs[1]]


def test_secrets_refuse_every_way_out(both: Ends) -> None:
    for secret in (both.client, both.client._key, both.client.pool, both.server.pool):
        assert repr(secret).endswith("hidden>")
        for leak in (bool, pickle.dumps, copy.copy, copy.deepcopy, np.asarray, list):
            with pytest.raises(Misuse, match="secret"):
                leak(secret)
    assert "3" not in repr(both.server).replace("2048", "")


def test_the_server_has_no_field_for_a_secret_key(both: Ends) -> None:
    key = both.client._key
    held, found = [vars(both.server)], []
    while held:
        for value in held.pop().values():
            found.append(value)
            if type(value).__module__.startswith("protocols.paillier") and hasattr(value, "__dict__"):
                held.append(vars(value))
    numbers_held = [int(value) for value in found if type(value) is type(key._p)]
    assert int(key.public.n) in numbers_held
    assert not {int(key._p), int(key._q)} & set(numbers_held)


def test_a_value_leaves_the_pool_once_whoever_takes_it() -> None:
    made = iter(range(1, 10**6))
    lock = threading.Lock()

    def make() -> int:
        with lock:
            return next(made)

    pool, taken = Pool(make, 50), []
    pool.refill()
    threads = [threading.Thread(target=lambda: taken.extend(pool.take(200))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == len(set(taken)) == 800


def test_a_pool_fills_up_to_its_bound_and_shows_its_level() -> None:
    made = iter(range(1, 1000))
    pool = Pool(lambda: next(made), 5)
    assert pool.level == 0
    pool.fill(3)
    assert pool.level == 3
    pool.fill(99)
    assert pool.level == 5
    assert pool.take(7) == [1, 2, 3, 4, 5, 6, 7]
    assert pool.level == 0


def test_a_thread_fills_the_pool_and_ends() -> None:
    made = iter(range(1, 1000))
    pool = Pool(lambda: next(made), 5)
    pool.refill()
    assert pool._thread is not None
    pool._thread.join(30)
    assert not pool._thread.is_alive()
    assert pool.level == 5


def test_a_closed_pool_keeps_nothing_and_still_gives() -> None:
    made = iter(range(1, 1000))
    pool = Pool(lambda: next(made), 5)
    pool.fill(5)
    pool.close()
    pool.refill()
    pool.fill(5)
    assert pool.level == 0
    assert pool.take(1) == [6]


def test_after_a_fork_the_child_starts_with_an_empty_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    made = iter(range(1, 1000))
    pool = Pool(lambda: next(made), 5)
    pool.fill(5)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert pool.level == 0
    assert pool.take(1) == [6]
    pool.fill(2)
    assert pool.take(2) == [7, 8]


def test_a_client_uses_what_its_pool_holds() -> None:
    client = protocol().key_holder(protocol().plan(circuit(OWN), {"key_bits": 2048}))
    thread = client.pool._thread
    if thread is not None:
        thread.join(30)
    assert client.pool.level == 2
    client.pool._closed = True  # so that it is not filled again
    client.encrypt(X)
    assert client.pool.level == 0
