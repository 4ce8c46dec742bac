from __future__ import annotations

import copy
import pickle
import threading

import numpy as np
import pytest

from pqi.session.errors import MaterialMissing, SessionError
from pqi.session.material import EpochKeys, KeyBytes, Pool, new_id
from protocols.errors import Misuse


def filled(items: int, record: int = 4, capacity: int = 100) -> Pool:
    pool = Pool(record, capacity, 1 << 20)
    pool.begin("e1")
    pool.add("e1", 0, items, b"".join(i.to_bytes(record, "big") for i in range(items)))
    return pool


def test_items_leave_the_pool_in_order_and_once() -> None:
    pool = filled(10)
    first, second = pool.take(3, 0.1), pool.take(7, 0.1)
    assert (first.first, first.n, second.first) == (0, 3, 3)
    assert first.corrections + second.corrections == b"".join(i.to_bytes(4, "big") for i in range(10))
    assert pool.level == 0


def test_a_take_may_span_several_deliveries() -> None:
    pool = filled(2)
    pool.add("e1", 2, 2, b"abcdefgh")
    assert pool.take(3, 0.1).corrections == bytes(4) + (1).to_bytes(4, "big") + b"abcd"
    assert pool.take(1, 0.1).corrections == b"efgh"


def test_an_empty_pool_says_how_much_is_there_and_whether_the_dealer_is() -> None:
    pool = filled(2)
    with pytest.raises(MaterialMissing, match=r"level 2 of 5 items \(dealer connected\)"):
        pool.take(5, 0.05)
    pool.unlink("e1")
    with pytest.raises(MaterialMissing, match=r"level 2 of 5 items \(dealer not connected"):
        pool.take(5, 0.05)
    assert pool.level == 2


def test_a_waiting_query_goes_on_when_the_dealer_delivers() -> None:
    pool = filled(1)
    threading.Timer(0.05, lambda: pool.add("e1", 1, 1, b"late")).start()
    assert pool.take(2, 10).corrections.endswith(b"late")


def test_a_new_epoch_burns_what_is_left() -> None:
    pool = filled(5)
    pool.begin("e2")
    assert (pool.level, pool.epoch) == (0, "e2")
    with pytest.raises(SessionError, match="epoch e1 arrived, but the current epoch is e2"):
        pool.add("e1", 5, 1, b"1234")
    pool.add("e2", 0, 1, b"1234")
    pool.burn("e1")
    assert pool.level == 1
    pool.burn("e2")
    assert pool.level == 0
    pool.add("e2", 1, 1, b"next")
    assert pool.take(1, 0.1).first == 1


@pytest.mark.parametrize(("first", "n", "size"), [(4, 1, 4), (6, 1, 4), (5, 1, 3), (5, 2, 4), (5, 96, 384)])
def test_only_the_items_due_are_taken_in(first: int, n: int, size: int) -> None:
    with pytest.raises(SessionError):
        filled(5).add("e1", first, n, bytes(size))


def test_the_pool_is_bounded_in_items_and_in_bytes() -> None:
    assert Pool(10, 50, 100).capacity == 10
    assert Pool(10, 5, 100).capacity == 5
    assert Pool(1000, 50, 100).capacity == 1
    assert Pool(0, 50, 100).capacity == 50


def test_small_gaps_are_ordered_only_when_a_query_waits_for_them() -> None:
    pool = filled(100)
    assert pool.room("e1") == 0
    pool.take(5, 0.1)
    assert pool.room("e1") == 0
    pool.take(10, 0.1)
    assert pool.room("e1") == 15
    assert pool.room("e0") == -1


def test_two_epochs_of_keys_are_kept_and_no_more() -> None:
    keys = EpochKeys()
    for epoch in ("e1", "e2", "e3"):
        keys.add(epoch, KeyBytes(epoch.encode()))
    assert keys.newest == "e3"
    assert keys.get("e2").expose_to_protocol() == b"e2"
    with pytest.raises(MaterialMissing, match="epoch e1 is unknown here"):
        keys.get("e1")


def test_keys_refuse_to_leave_by_accident() -> None:
    key = KeyBytes(b"very secret")
    assert "secret" not in repr(key).replace("KeyBytes", "")
    for leak in (bool, pickle.dumps, copy.copy, copy.deepcopy, list, np.asarray):
        with pytest.raises(Misuse):
            leak(key)


def test_corrections_stay_out_of_representations() -> None:
    assert "corrections" not in repr(filled(3).take(1, 0.1))


def test_ids_are_128_random_bits() -> None:
    assert len({new_id() for _ in range(100)}) == 100
    assert all(len(new_id()) == 32 for _ in range(10))
