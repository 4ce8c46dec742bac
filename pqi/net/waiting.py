"""How a thread waits for its connections: look again for a moment, then sleep."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Mapping

# A sleeping thread is woken in tens of microseconds, as long as a small exchange takes in all. So whoever waits for a
# message looks again and again for this long before it sleeps; with a single core that would only delay the other side.
SPIN_SECONDS = 50e-6 if (os.cpu_count() or 1) > 1 else 0.0

# Whoever looks again lets others of the same core go first: one of them may be the one it waits for.
_give_way: Callable[[], None] = getattr(os, "sched_yield", lambda: None)

_NAP_SECONDS = 0.05  # the longest sleep that ends by itself alone
_WAKING_NS = 80_000  # a sleep ends late by about this much


class Watch:
    """A descriptor with a poll object of its own: the usual wait, for one connection, registers nothing anew."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._mask = select.POLLIN
        self._poller = select.poll()
        self._poller.register(descriptor, self._mask)

    def poller(self, mask: int) -> select.poll:
        """What polls for these events of this descriptor alone."""
        if mask != self._mask:
            self._poller.modify(self.descriptor, mask)
            self._mask = mask
        return self._poller


class Bell:
    """Wakes a thread that waits for its connections, from any other thread; rung often, it wakes once. Close it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rung = self._closed = False
        self._read, self._write = os.pipe()
        self.watch = Watch(self._read)

    def ring(self) -> None:
        """Wake whoever waits, or whoever waits next. Does nothing on a closed bell."""
        with self._lock:
            if not (self._rung or self._closed):
                self._rung = True
                os.write(self._write, b"!")

    def heard(self) -> bool:
        """Whether it was rung since this was last asked."""
        with self._lock:
            rung, self._rung = self._rung, False
            if rung and not self._closed:
                os.read(self._read, 1)
            return rung

    def close(self) -> None:
        """Give the descriptors back. Closing twice is harmless."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._read)
                os.close(self._write)


def wait(masks: Mapping[Watch, int], seconds: float, spin: float) -> bool:
    """Wait until one of the events is there; False when ``seconds`` have not brought one. ``spin``: seconds to look."""
    if len(masks) == 1:
        ((watch, mask),) = masks.items()
        poller = watch.poller(mask)
    else:
        poller = select.poll()
        for watch, mask in masks.items():
            poller.register(watch.descriptor, mask)
    end = time.perf_counter() + spin
    while time.perf_counter() < end:
        if poller.poll(0):
            return True
        _give_way()
    return bool(poller.poll(max(0.0, seconds * 1000)))


def nap(seconds: float) -> None:
    """Sleep for exactly so long, but at most until it is time to ask whether the wait still makes sense."""
    end = time.monotonic_ns() + round(min(seconds, _NAP_SECONDS) * 1e9)
    if (short := end - time.monotonic_ns() - _WAKING_NS) > 0:
        time.sleep(short / 1e9)
    while time.monotonic_ns() < end:
        pass
