"""A compute server's memory, watched: what it computes with is summed at the start and looked at between queries.

Turned bits are put right where that is possible, and told in the log and the status; where it is not, every query is
refused by name, since an answer would be noise. The sums lie in the memory of the same process: this is against faults
and against bits that are turned blindly or at the shares alone, not against somebody who can write where he likes.
"""

from __future__ import annotations

import logging
import threading

from pqi.audit.defences.guarded import Watched, held_by
from pqi.audit.errors import AuditError
from pqi.program import PartyRunner
from pqi.session.errors import MemoryAltered

log = logging.getLogger("pqi.server")


class MemoryWatch:
    """Looks before every ``every``-th query; 0: never, and nothing is kept. Any number of threads."""

    def __init__(self, role: str, runner: PartyRunner, every: int) -> None:
        self._role, self._runner, self._every, self._queries = role, runner, every, 0
        self._lock = threading.Lock()
        self._watched: Watched | None = None
        self._lost = ""
        self.repaired = 0
        self.begin()

    def begin(self) -> None:
        """Take what is there now for right."""
        if not self._every:
            return
        try:
            self._watched = Watched(held_by(self._runner))
        except AuditError:  # no weights of its own: nothing to watch
            self._watched = None

    def before_query(self) -> None:
        """Look, if it is time. Raises MemoryAltered where something cannot be put right, from then on each time."""
        if self._watched is None:
            return
        with self._lock:
            due = self._queries % self._every == 0
            self._queries += 1
            if due and not self._lost:
                self._look(self._watched)
            if self._lost:
                raise MemoryAltered(f"{self._role} has weights that were altered in its memory: {self._lost}")

    def _look(self, watched: Watched) -> None:
        try:
            found = watched.check()
        except AuditError as error:
            self._lost = str(error)
            log.error("%s: memory: %s", self._role, error)
            return
        if found:
            self.repaired += found
            log.warning("%s: memory: %d words had turned bits and were put right", self._role, found)
