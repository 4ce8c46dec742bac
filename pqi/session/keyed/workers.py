"""Processes that compute for the server: the library below holds the interpreter's lock, so threads would not do.

Each worker process has a thread here that owns it: hands it the program once, a client's keys once, and then one part
of a query after the other. Clients with work to be done take turns. A worker that dies is named, its query fails, and
another takes its place.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field

from pqi.session.errors import QueryRefused, WorkerFailed
from pqi.session.keyed.process import Done, Process
from pqi.session.keyed.worker import DROP, KEYS, LOAD, PART, WARM
from protocols.errors import PeerMisbehaved

log = logging.getLogger("pqi.server")
_START_SECONDS = 120.0
_STOP_SECONDS = 2.0
_LOOK_SECONDS = 0.1
_PAUSE_SECONDS = 1.0  # before a worker that dies again and again is replaced


@dataclass(frozen=True, eq=False)
class _Task:
    n: int
    part: int
    question: bytes = field(repr=False)
    future: Future[Done]


@dataclass(eq=False)
class Slot:
    """A client's place: its evaluation keys and its work in order. admitted: whether the keys were accepted."""

    number: int
    keys: bytes = field(repr=False)
    admitted: Future[None] = field(default_factory=Future)
    tasks: deque[_Task] = field(default_factory=deque)
    running: int = 0
    gone: bool = False

    @property
    def busy(self) -> bool:
        """Whether someone waits for this client's keys or parts."""
        return bool(self.running or self.tasks or not self.admitted.done())

    @property
    def wanted(self) -> bool:
        """Whether a worker that lacks the keys should take them now: one worker tries them, then all may have them."""
        if self.admitted.done():
            return self.admitted.exception() is None
        return self.running == 0


class Workers:
    """``count`` worker processes for one program. Start it; stop it.

    program: JSON. tensors: safetensors bytes, the weights. clients: whose keys are kept at one time; the one that was
    longest idle makes room. seconds: the most that one part may take.
    """

    def __init__(self, program: bytes, tensors: bytes, count: int, clients: int, seconds: float) -> None:
        self._program, self._tensors = program, tensors
        self._clients, self._seconds = clients, seconds
        self._changed = threading.Condition()
        self._slots: dict[int, Slot] = {}  # longest idle first
        self._turns: deque[Slot] = deque()  # slots with work, in the order of their turns
        self._number = 0
        self._stopping = False
        self.restarts = 0
        self._processes: list[Process | None] = [None] * count
        self._threads = [
            threading.Thread(target=self._own, args=(i,), name=f"worker {i}", daemon=True) for i in range(count)
        ]

    def start(self, stop: threading.Event | None = None) -> None:
        """Start every process and hand it the program. stop: gives up as soon as it is set.

        Raises WorkerFailed, QueryRefused (weights that do not fit).
        """
        over = threading.Event()
        if stop is not None:
            threading.Thread(target=self._give_up, args=(stop, over), daemon=True).start()
        try:
            for i in range(len(self._processes)):
                self._processes[i] = Process(i)
            for process in self._living():
                process.order(LOAD, _START_SECONDS, self._program, self._tensors)
        except BaseException:
            for process in self._living():
                process.close()
            raise
        finally:
            over.set()
        for thread in self._threads:
            thread.start()

    def _give_up(self, stop: threading.Event, over: threading.Event) -> None:
        """End processes that are still being started when ``stop`` is set."""
        while not over.wait(_LOOK_SECONDS):
            if stop.is_set():
                for process in self._living():
                    process.kill()

    def stop(self) -> None:
        """End every process; whoever still waits for a part hears it."""
        with self._changed:
            self._stopping = True
            for slot in list(self._slots.values()):
                self._remove(slot)
            self._changed.notify_all()
        for process in self._living():
            process.kill()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(_STOP_SECONDS)

    def _living(self) -> list[Process]:
        return [process for process in self._processes if process is not None]

    @property
    def pids(self) -> list[int]:
        """Process ids."""
        return [process.pid for process in self._living()]

    @property
    def peak_rss_bytes(self) -> int:
        """Sum of what each process held at most."""
        return sum(process.peak_rss_bytes for process in self._living())

    @property
    def clients(self) -> int:
        """Clients whose keys are here."""
        with self._changed:
            return len(self._slots)

    # ------------------------------------------------------------------ for sessions

    def admit(self, keys: bytes) -> Slot:
        """A place for a client; its future tells whether a worker accepts the keys.

        Raises QueryRefused when every place is taken by a client that is being served at this moment.
        """
        with self._changed:
            while len(self._slots) >= self._clients:
                idle = next((slot for slot in self._slots.values() if not slot.busy), None)
                if idle is None:
                    raise QueryRefused(
                        f"the keys of {self._clients} clients are in use, which is this server's limit; ask again later"
                    )
                self._remove(idle)
            self._number += 1
            slot = self._slots[self._number] = Slot(self._number, keys)
            self._changed.notify_all()
            return slot

    def hold(self, slot: Slot) -> bool:
        """Keep a client's keys here until they are released; False if they are gone already."""
        with self._changed:
            slot.running += not slot.gone
            return not slot.gone

    def release(self, slot: Slot) -> None:
        """The end of a hold."""
        with self._changed:
            slot.running -= 1

    def submit(self, slot: Slot, n: int, part: int, question: bytes) -> Future[Done]:
        """One part of a query, to be computed when its turn comes. Raises QueryRefused if its keys are gone."""
        task = _Task(n, part, question, Future())
        with self._changed:
            if slot.gone:
                raise QueryRefused("the keys of this client were dropped to make room for others; ask again")
            self._slots[slot.number] = self._slots.pop(slot.number)  # now the one that was used last
            if not slot.tasks:
                self._turns.append(slot)
            slot.tasks.append(task)
            self._changed.notify_all()
        return task.future

    def forget(self, slot: Slot) -> None:
        """The client has left: its work is not done any more, its keys are dropped."""
        with self._changed:
            self._remove(slot)
            self._changed.notify_all()

    def _remove(self, slot: Slot) -> None:
        self._slots.pop(slot.number, None)
        slot.gone, slot.keys = True, b""
        if slot in self._turns:
            self._turns.remove(slot)
        for task in slot.tasks:
            task.future.cancel()
        slot.tasks.clear()
        slot.admitted.cancel()

    # ------------------------------------------------------------------ one thread per process

    def _own(self, i: int) -> None:
        """Give one process work until the end; replace it when it dies."""
        failures = 0
        while not self._stopping:
            try:
                self._work(self._processes[i] or self._replace(i))
                failures = 0
            except WorkerFailed as error:
                failures += 1
                if not self._stopping:
                    log.error("%s; another takes its place", error)
                self._close(i)
                with self._changed:
                    self._changed.wait_for(lambda: self._stopping, 0.0 if failures == 1 else _PAUSE_SECONDS)
        self._close(i)

    def _close(self, i: int) -> None:
        process, self._processes[i] = self._processes[i], None
        if process is not None:
            process.close()

    def _replace(self, i: int) -> Process:
        process = self._processes[i] = Process(i)
        self.restarts += 1
        try:
            process.order(LOAD, _START_SECONDS, self._program, self._tensors)
        except QueryRefused as error:
            raise WorkerFailed(f"worker {i} refused the program: {error}") from None
        return process

    def _work(self, process: Process) -> None:
        """One piece of work: forget keys, a part of a query, or, when idle, keys of which it may soon have need."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._has_work(process))
            if self._stopping:
                return
            stale = process.loaded - set(self._slots)
            slot, task = self._next(process) if not stale else (None, None)
        for number in stale:
            process.loaded.discard(number)
            process.order(DROP, self._seconds, slot=number)
        if slot is not None:
            self._serve(process, slot, task)

    def _has_work(self, process: Process) -> bool:
        return bool(self._turns or process.loaded - set(self._slots) or self._missing(process))

    def _missing(self, process: Process) -> Slot | None:
        slots = self._slots.items()
        return next((slot for number, slot in slots if number not in process.loaded and slot.wanted), None)

    def _next(self, process: Process) -> tuple[Slot | None, _Task | None]:
        """The next part of the client whose turn it is, or keys that this process lacks."""
        while self._turns:
            slot = self._turns.popleft()
            task = self._pick(slot, process.number)
            if slot.tasks:
                self._turns.append(slot)
            if task.future.set_running_or_notify_cancel():
                slot.running += 1
                return slot, task
        missing = self._missing(process)
        if missing is not None:
            missing.running += 1
        return missing, None

    def _pick(self, slot: Slot, number: int) -> _Task:
        """A part of a client's work: one that this process has done the like of before, if there is any.

        Parts of one number need the same keys and weights, made ready at their first use: each process has its own.
        """
        count = len(self._processes)
        task = next((task for task in slot.tasks if task.part % count == number), slot.tasks[0])
        slot.tasks.remove(task)
        return task

    def _serve(self, process: Process, slot: Slot, task: _Task | None) -> None:
        failure: Exception | None = None
        try:
            self._bring_keys(process, slot)
            if task is not None:
                numbers = {"slot": slot.number, "n": task.n, "part": task.part}
                task.future.set_result(process.order(PART, self._seconds, task.question, **numbers))
        except (PeerMisbehaved, QueryRefused, WorkerFailed) as error:
            failure = error
        with self._changed:
            slot.running -= 1
            self._changed.notify_all()
        if failure is not None and task is not None:
            task.future.set_exception(failure)
        if isinstance(failure, WorkerFailed):
            raise failure

    def _bring_keys(self, process: Process, slot: Slot) -> None:
        """A client's keys, once; the first worker to accept or refuse them speaks for all."""
        if slot.number in process.loaded:
            return
        with self._changed:
            keys = slot.keys
            if slot.gone:
                raise QueryRefused("the keys of this client were dropped to make room for others; ask again")
        process.loaded.add(slot.number)  # also if they are refused: they are not tried again
        failure: Exception | None = None
        try:
            process.order(KEYS, self._seconds, keys, slot=slot.number)
        except (PeerMisbehaved, QueryRefused, WorkerFailed) as error:
            failure = error
        with self._changed:
            if slot.admitted.done():
                pass
            elif failure is None:
                slot.admitted.set_result(None)
            else:
                slot.admitted.set_exception(failure)
        if failure is not None:
            raise failure
        process.order(WARM, self._seconds, slot=slot.number, part=process.number)
