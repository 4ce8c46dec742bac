from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pqi.session.errors import MaterialMissing, SessionError
from pqi.session.pool import Pool, SpillRoom


def filled(items: int, record: int = 4, capacity: int = 100) -> Pool:
    pool = Pool(record, capacity, 1 << 20)
    pool.begin("e1")
    pool.add("e1", 0, items, b"".join(i.to_bytes(record, "big") for i in range(items)))
    return pool


def test_items_leave_the_pool_in_order_and_once() -> None:
    pool = filled(10)
    first, second = pool.take(3, 0.1), pool.take(7, 0.1)
    assert (first.first, first.n, second.first) == (0, 3, 3)
    assert bytes(first.corrections) + bytes(second.corrections) == b"".join(i.to_bytes(4, "big") for i in range(10))
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
    assert bytes(pool.take(2, 10).corrections).endswith(b"late")


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


def test_corrections_stay_out_of_representations() -> None:
    assert "corrections" not in repr(filled(3).take(1, 0.1))


def test_a_query_that_takes_what_one_message_brought_copies_nothing() -> None:
    pool, message = Pool(4, 100, 1 << 20), bytearray(b"aaaabbbbcccc")
    pool.begin("e1")
    pool.add("e1", 0, 3, memoryview(message))
    whole = pool.take(2, 0.1).corrections
    rest = pool.take(1, 0.1).corrections
    message[0:4], message[8:12] = b"AAAA", b"CCCC"
    assert (bytes(whole), bytes(rest)) == (b"AAAAbbbb", b"CCCC")


def test_what_came_in_several_messages_is_put_together_once_and_can_become_a_tensor_as_it_is() -> None:
    pool = Pool(4, 100, 1 << 20)
    pool.begin("e1")
    pool.add("e1", 0, 1, b"aaaa")
    pool.add("e1", 1, 1, b"bbbb")
    taken = memoryview(pool.take(2, 0.1).corrections)
    assert bytes(taken) == b"aaaabbbb"
    assert not taken.readonly


# ---------------------------------------------------------------------- on disk


def record(item: int) -> bytes:
    return item.to_bytes(4, "big") * 25


def records(first: int, n: int) -> bytes:
    return b"".join(record(i) for i in range(first, first + n))


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Pool]:
    """Four items of 100 bytes in memory, ten more on disk."""
    pool = Pool(100, 4, 1 << 20, SpillRoom(tmp_path / "spill", 10 * 116 + 50))
    pool.begin("e1")
    yield pool
    pool.close()


def fill(pool: Pool, first: int, last: int, step: int = 2) -> None:
    for at in range(first, last, step):
        pool.add("e1", at, min(step, last - at), records(at, min(step, last - at)))


def test_items_beyond_memory_wait_on_disk_and_come_back_in_order(deep: Pool) -> None:
    fill(deep, 0, 14)
    assert (deep.capacity, deep.memory_items, deep.level, deep.spilled, deep.held_bytes) == (14, 4, 14, 10, 400)
    got = [deep.take(n, 0.1) for n in (3, 3, 1, 7)]
    assert [taken.first for taken in got] == [0, 3, 6, 7]
    assert b"".join(bytes(taken.corrections) for taken in got) == records(0, 14)
    assert (deep.level, deep.spilled) == (0, 0)


def test_memory_holds_no_more_than_its_bound_however_many_items_pass(deep: Pool) -> None:
    fill(deep, 0, 14)
    for turn in range(200):
        assert bytes(deep.take(2, 0.1).corrections) == records(2 * turn, 2)
        while deep.prefetch("e1"):
            pass
        fill(deep, 14 + 2 * turn, 16 + 2 * turn)
        assert deep.held_bytes <= 400
        assert deep.level == 14


def test_a_message_larger_than_memory_is_cut_and_the_rest_of_it_goes_to_disk(deep: Pool) -> None:
    fill(deep, 0, 14, step=14)
    assert (deep.level, deep.held_bytes, deep.spilled) == (14, 400, 10)
    assert b"".join(bytes(deep.take(n, 0.1).corrections) for n in (1, 6, 7)) == records(0, 14)
    fill(deep, 14, 20, step=6)
    assert (deep.held_bytes, deep.spilled) == (400, 2)


def test_items_on_disk_are_read_back_before_their_turn(deep: Pool) -> None:
    fill(deep, 0, 8)
    assert not deep.prefetch("e1")  # memory is full
    deep.take(3, 0.1)
    assert deep.prefetch("e1")
    assert (deep.spilled, deep.held_bytes) == (2, 300)
    assert deep.prefetch("e1")  # one more fits, of two that came together
    assert (deep.spilled, deep.held_bytes) == (1, 400)
    assert bytes(deep.take(5, 0.1).corrections) == records(3, 5)


def test_what_is_behind_items_on_disk_goes_to_disk_even_when_memory_is_free(deep: Pool) -> None:
    fill(deep, 0, 6)
    deep.take(4, 0.1)
    fill(deep, 6, 8)
    assert (deep.spilled, deep.held_bytes) == (4, 0)
    assert bytes(deep.take(4, 0.1).corrections) == records(4, 4)


def test_no_order_goes_beyond_memory_and_disk(deep: Pool) -> None:
    assert deep.room("e1") == 14
    fill(deep, 0, 14)
    assert deep.room("e1") == 0
    with pytest.raises(SessionError, match="more than the 14 items ordered"):
        fill(deep, 14, 16)


def test_what_is_ordered_has_a_place_when_it_comes_even_if_nothing_was_read_back_yet(deep: Pool) -> None:
    fill(deep, 0, 14)
    for turn in range(50):
        first = deep.take(2, 0.1).first
        assert first == 2 * turn
        assert deep.room("e1") == 0  # memory has room for two; what comes next belongs behind ten on disk
        assert deep.prefetch("e1")
        assert deep.room("e1") == 2
        fill(deep, 14 + first, 16 + first)
        assert (deep.held_bytes, deep.spilled) == (400, 10)


def test_a_new_epoch_burns_what_is_on_disk_as_well(deep: Pool) -> None:
    fill(deep, 0, 10)
    deep.begin("e2")
    assert (deep.level, deep.spilled, deep.capacity) == (0, 0, 14)
    deep.add("e2", 0, 1, record(7))
    assert bytes(deep.take(1, 0.1).corrections) == record(7)


def test_a_folder_that_cannot_be_used_costs_the_room_on_disk_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    pool = Pool(100, 4, 1 << 20, SpillRoom(tmp_path / "file", 10_000))
    pool.begin("e1")
    assert "no items will wait on disk: folder" in caplog.text
    assert pool.capacity == 4
    fill(pool, 0, 4)
    assert bytes(pool.take(4, 0.1).corrections) == records(0, 4)


def test_a_disk_that_fails_in_the_midst_of_a_delivery_loses_no_item(
    deep: Pool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fill(deep, 0, 8)
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", _full_disk)
    fill(deep, 8, 14)
    monkeypatch.setattr(os, "pwrite", real)
    assert "no more items will wait on disk in this epoch: items from 8 on were not written: no space left" in (
        caplog.text.lower()
    )
    assert (deep.level, deep.spilled, deep.capacity, deep.room("e1")) == (14, 4, 4, 0)
    assert bytes(deep.take(14, 0.1).corrections) == records(0, 14)
    assert deep.room("e1") == 4


def _full_disk(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_items_that_cannot_be_read_back_are_burnt_and_the_next_query_gets_the_next_ones(
    deep: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(deep, 0, 8)
    deep.take(4, 0.1)
    real = os.pread
    monkeypatch.setattr(os, "pread", _full_disk)
    with pytest.raises(MaterialMissing, match=r"burnt: items from 4 on were not read: no space left.*; ask again"):
        deep.take(2, 0.1)
    monkeypatch.setattr(os, "pread", real)
    taken = deep.take(2, 0.1)
    assert (taken.first, bytes(taken.corrections)) == (6, records(6, 2))


def test_a_place_on_disk_is_not_written_again_while_a_query_reads_it(
    deep: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(deep, 0, 14)
    deep.take(4, 0.1)
    real, began, go_on = os.pread, threading.Event(), threading.Event()

    def slow(*args: int) -> bytes:
        began.set()
        assert go_on.wait(10)
        return real(*args)

    monkeypatch.setattr(os, "pread", slow)
    got: list[bytes] = []
    query = threading.Thread(target=lambda: got.append(bytes(deep.take(10, 1).corrections)))
    query.start()
    assert began.wait(10)
    fill(deep, 14, 18)  # ordered when there was room; all ten places on disk are being read
    assert deep.spilled == 0
    go_on.set()
    query.join(10)
    assert got == [records(4, 10)]
    assert bytes(deep.take(4, 0.1).corrections) == records(14, 4)


# ---------------------------------------------------------------------- who fills it hears at once; nothing ahead


def test_who_fills_the_pool_hears_when_items_are_taken_or_waited_for_and_when_an_epoch_begins_or_ends() -> None:
    pool, rings = filled(3), list[str]()
    at = ["taken"]

    def ring() -> None:
        rings.append(at[0])

    pool.attend(ring)
    pool.take(1, 1)
    at[0] = "waited for"
    with pytest.raises(MaterialMissing):
        pool.take(5, 0.01)
    for at[0], change in (
        ("burnt", lambda: pool.burn("e1")),
        ("begun", lambda: pool.begin("e2")),
        ("closed", pool.close),
    ):
        change()
    assert rings == ["taken", "waited for", "burnt", "begun", "closed"]
    pool.attend(ring, False)
    pool.begin("e3")
    assert len(rings) == 5


def test_a_pool_on_demand_orders_what_the_query_in_turn_lacks_and_keeps_nothing_ahead() -> None:
    pool = Pool(4, 0, 1 << 20)
    pool.begin("e1")
    assert (pool.on_demand, pool.capacity, pool.room("e1")) == (True, 0, 0)
    ordered: list[int] = []

    def deliver() -> None:
        if room := pool.room("e1"):
            ordered.append(room)
            threading.Thread(target=pool.add, args=("e1", sum(ordered[:-1]), room, bytes(4 * room))).start()

    pool.attend(deliver)
    assert [(taken.first, taken.n) for taken in (pool.take(3, 10), pool.take(2, 10))] == [(0, 3), (3, 2)]
    assert (ordered, pool.level, pool.room("e1")) == ([3, 2], 0, 0)


def test_what_comes_too_late_for_a_query_on_demand_serves_the_next_one() -> None:
    pool = Pool(4, 0, 1 << 20)
    pool.begin("e1")
    with pytest.raises(MaterialMissing, match="level 0 of 2 items"):
        pool.take(2, 0.01)
    pool.add("e1", 0, 2, b"12345678")
    assert (pool.level, pool.room("e1")) == (2, 0)
    assert bytes(pool.take(2, 0.01).corrections) == b"12345678"


def test_a_pool_on_demand_puts_nothing_on_disk(tmp_path: Path) -> None:
    pool = Pool(4, 0, 1 << 20, SpillRoom(tmp_path / "spill", 1 << 20))
    pool.begin("e1")
    assert not (tmp_path / "spill").exists()


# ---------------------------------------------------------------------- claimed before they came


def hungry(deliver: bool = True) -> tuple[Pool, list[int]]:
    """An empty pool on demand that has seen its dealer deliver at once, and goes on like that if ``deliver``."""
    pool, ordered = Pool(4, 0, 1 << 20), list[int]()
    pool.begin("e1")
    on, bell = [True], threading.Event()

    def dealer() -> None:
        with suppress(SessionError):  # a newer epoch has begun
            while bell.wait(100):
                bell.clear()
                while on[0] and (room := pool.room("e1")) > 0:
                    ordered.append(room)
                    pool.add("e1", sum(ordered[:-1]), room, bytes(4 * room))

    threading.Thread(target=dealer, daemon=True).start()
    pool.attend(bell.set)
    pool.take(1, 100)
    on[0] = deliver
    return pool, ordered


def test_items_that_are_expected_soon_are_claimed_before_they_are_here() -> None:
    pool, _ = hungry(deliver=False)
    levels: list[tuple[str, int, int]] = []

    def claim(epoch: str, first: int) -> None:
        levels.append((epoch, first, pool.level))
        pool.add("e1", 1, 2, b"12345678")

    taken = pool.take(2, 100, claim)
    assert levels == [("e1", 1, 0)]
    assert (taken.first, taken.claimed, bytes(taken.corrections)) == (1, True, b"12345678")


def test_nothing_is_claimed_early_of_a_dealer_whose_pace_is_not_known_or_of_what_is_here() -> None:
    pool = filled(2)
    refuse = lambda *_: pytest.fail("claimed")  # noqa: E731
    assert not pool.take(2, 100, refuse).claimed
    threading.Timer(0.05, lambda: pool.add("e1", 2, 1, b"late")).start()
    assert not pool.take(1, 100, refuse).claimed
    pool.begin("e2")
    threading.Timer(0.05, lambda: pool.add("e2", 0, 1, b"late")).start()
    assert not pool.take(1, 100, refuse).claimed


def test_claimed_items_that_do_not_come_are_nobodys_even_when_they_come_later() -> None:
    pool, _ = hungry(deliver=False)
    with pytest.raises(MaterialMissing, match="level 0 of 2 items"):
        pool.take(2, 0.05, lambda *_: None)
    assert (pool.level, pool.room("e1")) == (0, 0)
    pool.add("e1", 1, 3, b"aaaabbbbcccc")
    assert pool.level == 1
    taken = pool.take(1, 100)
    assert (taken.first, bytes(taken.corrections)) == (3, b"cccc")


def test_claimed_items_are_burnt_when_the_claim_fails_and_when_a_new_epoch_begins() -> None:
    pool, _ = hungry()

    def fail(*_: object) -> None:
        raise SessionError("the journal is full")

    with pytest.raises(SessionError, match="journal"):
        pool.take(1, 100, fail)
    assert pool.take(1, 100).first == 2
    with pytest.raises(MaterialMissing, match="new epoch before the items of this query came"):
        pool.take(64, 1e6, lambda *_: pool.begin("e2"))
    pool.add("e2", 0, 1, b"next")
    assert pool.take(1, 100).first == 0
