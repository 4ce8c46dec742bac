"""What wakes a thread that waits for its connections."""

from __future__ import annotations

import os
import threading

from pqi.net.channel import receive_any
from pqi.net.waiting import Bell

LONG = 30.0  # seconds; nothing here waits for so long unless a bell is not heard


def test_a_bell_that_was_rung_before_anybody_waits_is_heard_once() -> None:
    bell = Bell()
    bell.ring()
    bell.ring()
    assert receive_any([], LONG, "news", bell) is None
    assert not bell.heard()
    bell.close()


def test_a_bell_wakes_who_waits_already() -> None:
    bell, woken = Bell(), threading.Event()

    def listen() -> None:
        receive_any([], LONG, "news", bell)
        woken.set()

    listener = threading.Thread(target=listen)
    listener.start()
    assert not woken.is_set()
    bell.ring()
    assert woken.wait(LONG)
    listener.join()
    bell.close()


def test_without_a_ring_the_wait_ends_at_its_deadline_and_nothing_was_heard() -> None:
    bell = Bell()
    assert receive_any([], 0.0, "news", bell) is None
    assert not bell.heard()
    bell.close()


def test_a_closed_bell_writes_into_nobody_elses_file() -> None:
    bell = Bell()
    bell.close()
    read, write = os.pipe()  # takes the numbers that the bell gave back
    os.set_blocking(read, False)
    bell.ring()
    bell.close()
    os.write(write, b"own")
    assert os.read(read, 10) == b"own"
    os.close(read)
    os.close(write)
