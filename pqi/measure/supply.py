"""The dealer of a local deployment, held still while an answer is timed: in the field it has a machine of its own.

The pool holds one batch. ``refill`` lets the dealer deal it and holds him again.
"""

from __future__ import annotations

import os
import signal
import time
from types import TracebackType

from pqi.measure.errors import MeasureError
from pqi.session.local import LocalService
from pqi.session.roles import DEALER

_PATIENCE = 900.0
_FINE, _COARSE = 0.001, 0.02  # seconds between two looks at the pool: at first, and where dealing takes long
_LONG = 0.2


class Reins:
    """A hand on the dealer. batch: items of one question. Without a dealer nothing is ever waited for."""

    def __init__(self, service: LocalService, batch: int) -> None:
        self._service, self._batch = service, batch
        self._held = False

    def __enter__(self) -> Reins:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()  # a process that stands still hears no request to end

    @property
    def there(self) -> bool:
        """Whether there is a dealer."""
        return DEALER in self._service.processes

    def refill(self) -> float | None:
        """Have a batch dealt and hold the dealer; seconds that it took, None where he was at work already.

        What is timed is dealing the batch and its way to server B, which has ordered it before; to a millisecond or
        so, for that is how often the pool is looked at.
        """
        if not self.there:
            return None
        fresh, started = self._held, time.perf_counter()
        self._release()
        while not self._full():
            waited = time.perf_counter() - started
            if waited > _PATIENCE:
                raise MeasureError(f"the dealer has not dealt {self._batch} items within {_PATIENCE:g} s")
            time.sleep(_FINE if waited < _LONG else _COARSE)
        seconds = time.perf_counter() - started
        self._hold()
        return seconds if fresh else None

    def _full(self) -> bool:
        state = list(self._service.status().values())[-1]
        return int(state["level"]) >= min(self._batch, int(state["capacity"]))

    def _hold(self) -> None:
        os.kill(self._service.processes[DEALER].pid, signal.SIGSTOP)
        self._held = True

    def _release(self) -> None:
        if self._held:
            os.kill(self._service.processes[DEALER].pid, signal.SIGCONT)
            self._held = False
