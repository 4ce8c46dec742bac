"""Encryptions of zero made ahead of time, while nobody waits. Each is used once."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from protocols.prg import Secret


class Pool(Secret):
    """Up to ``bound`` values of ``make``; what is not there when it is wanted is made at once.

    A thread fills it after :meth:`refill` and ends when it is full, so that a pool that is not used costs nothing.
    A value leaves the pool as it is taken, under a lock; after a fork the child starts with an empty pool: two
    ciphertexts under one value would tell their quotient.
    """

    def __init__(self, make: Callable[[], Any], bound: int) -> None:
        self._make, self.bound = make, bound
        self._renew()

    def _renew(self) -> None:
        self._values: deque[Any] = deque()
        self._thread: threading.Thread | None = None
        self._lock, self._pid, self._closed = threading.Lock(), os.getpid(), False

    @property
    def level(self) -> int:
        """Values ready to be taken."""
        return len(self._values) if self._pid == os.getpid() else 0

    def take(self, count: int) -> list[Any]:
        """``count`` values that nobody else gets."""
        if self._pid != os.getpid():
            self._renew()
        return [self._pop() or self._make() for _ in range(count)]

    def _pop(self) -> Any:
        with self._lock:
            return self._values.popleft() if self._values else None

    def fill(self, count: int) -> None:
        """Make values until ``count`` are ready, or the bound is reached, in this thread."""
        while self.level < min(count, self.bound) and self._add():
            pass

    def refill(self) -> None:
        """Have a thread fill the pool to its bound."""
        if self._pid != os.getpid():
            self._renew()
        with self._lock:
            busy = self._thread is not None and self._thread.is_alive()
            if busy or self._closed or len(self._values) >= self.bound:
                return
            # The thread must not keep a pool alive that nobody else knows.
            self._thread = threading.Thread(target=_work, args=(weakref.ref(self),), daemon=True, name="paillier-pool")
            self._thread.start()

    def close(self) -> None:
        """Forget all values and end the thread after the value it is making; taking still works."""
        with self._lock:
            self._closed = True
            self._values.clear()

    def _add(self) -> bool:
        """Make one value; False where there is no room for it (any more)."""
        if self._closed or self.level >= self.bound:
            return False
        value = self._make()
        with self._lock:
            if self._closed or len(self._values) >= self.bound:
                return False
            self._values.append(value)
        return True


def _work(pool: weakref.ref[Pool]) -> None:
    while (alive := pool()) is not None and alive._add():
        del alive
