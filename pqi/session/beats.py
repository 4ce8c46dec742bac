"""Signs of life to whom waits for an answer, from a thread beside the one that works on it.

Work that changed threads for each answer would pay for it with a fifth of a millisecond; a small answer takes one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from pqi.net.channel import Channel
from pqi.net.errors import NetError

T = TypeVar("T")


class Beats:
    """Tells ``channel`` about every ``seconds`` that this side lives, as long as :meth:`during` works. Close it.

    The channel belongs to the thread that works, which leaves it alone meanwhile: then this one speaks on it, and only
    then. timeout: for one message. abandon: called when nobody hears any more, so that the work ends where it waits.
    """

    def __init__(self, channel: Channel, seconds: float, timeout: float, abandon: Callable[[], None]) -> None:
        self._channel, self._seconds, self._timeout, self._abandon = channel, seconds, timeout, abandon
        self._step: Callable[[], str] | None = None  # says at what the work is; None while there is none
        self._since = 0.0
        self._error: NetError | None = None
        self._speaking = threading.Lock()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def during(self, step: Callable[[], str], work: Callable[[], T]) -> T:
        """Do ``work`` here; ``step`` says, to whom it is told, at what. Raises what it raises, or the NetError of a
        channel that nobody hears on."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="beat", daemon=True)
            self._thread.start()
        with self._speaking:
            self._step, self._since = step, time.monotonic()
        try:
            result = work()
        except Exception:
            self._rest()
            raise
        self._rest()
        return result

    def close(self) -> None:
        """End the thread. Closing twice is harmless."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def _rest(self) -> None:
        with self._speaking:  # a message that was begun is finished before the channel is the worker's again
            self._step = None
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while not self._closed.wait(self._seconds / 2):
            with self._speaking:
                if self._step is None or time.monotonic() - self._since < self._seconds:
                    continue
                self._since = time.monotonic()
                beat = {"kind": "working", "step": self._step()[:200]}
                try:
                    self._channel.send_control(beat, self._timeout, "a sign of life")
                except NetError as error:
                    self._error = error
                    self._abandon()
                    return
