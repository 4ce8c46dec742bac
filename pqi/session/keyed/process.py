"""A worker process, as the server sees it: orders out, results back, and a name for how it ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pqi.session.errors import QueryRefused, WorkerFailed
from pqi.session.keyed.worker import FINE, INTERNAL, PEER
from protocols.errors import PeerMisbehaved

COMMAND = (sys.executable, "-m", "pqi.session.keyed.worker")
_MAX_HEAD = 1 << 16
_END_SECONDS = 2.0


@dataclass(frozen=True)
class Done:
    """An order that was obeyed. seconds: of the worker's time."""

    result: bytes = field(repr=False)
    seconds: float


class Process:
    """One worker process. Belongs to one thread; ``kill`` may come from another.

    number: its place among its fellows. loaded: slots whose keys it was given.
    """

    def __init__(self, number: int) -> None:
        self.number, self.name = number, f"worker {number}"
        self.loaded: set[int] = set()
        self.peak_rss_bytes = 0
        self._late = False
        mine, theirs = Pipe()
        self._pipe: Connection = mine
        root = str(Path(__file__).resolve().parents[3])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        try:
            self._process = subprocess.Popen(
                [*COMMAND, str(theirs.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # Ctrl-C at a terminal is for the server, which ends its workers itself
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
            )
        except BaseException:
            mine.close()
            raise
        finally:
            theirs.close()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def order(self, what: str, seconds: float, *payloads: bytes, **numbers: int) -> Done:
        """One order and its result, within ``seconds``.

        Raises PeerMisbehaved (the client's bytes are at fault), QueryRefused; WorkerFailed if the process died or had
        to be ended.
        """
        # One clock for all of it: a process that is frozen while it is being written to is ended, too.
        watch = threading.Timer(seconds, self._too_late)
        watch.daemon = True
        watch.start()
        try:
            self._pipe.send_bytes(json.dumps({"do": what, **numbers}).encode())
            for payload in payloads:
                self._pipe.send_bytes(payload)
            head: dict[str, Any] = json.loads(self._pipe.recv_bytes(_MAX_HEAD))
            result = self._pipe.recv_bytes()
        except (OSError, EOFError):
            end = f"did not end within {seconds:g} s and was killed" if self._late else self._end()
            raise WorkerFailed(f"{self.name} (process {self.pid}) {end} in the midst of {what!r}") from None
        finally:
            watch.cancel()
        self.peak_rss_bytes = head["peak_rss_bytes"]
        if head["kind"] == PEER:
            raise PeerMisbehaved(head["cause"])
        if head["kind"] == INTERNAL:
            raise QueryRefused(f"an internal error of {self.name} at {what!r}; the server's log has the place")
        if head["kind"] != FINE:
            raise QueryRefused(head["cause"])
        return Done(result, head["seconds"])

    def _too_late(self) -> None:
        self._late = True
        self.kill()

    def _end(self) -> str:
        try:
            code = self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            return "hung up"
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"

    def kill(self) -> None:
        """End the process at once, from any thread."""
        with suppress(OSError):
            self._process.kill()

    def close(self) -> None:
        """End the process and collect it."""
        self._pipe.close()
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()
        self.kill()
        self._process.wait()
