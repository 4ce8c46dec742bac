"""Who does the dealing: a thread of the dealer, processes beside it, or workers on a ray cluster. Same bytes each way.

What is dealt is a function of the epoch's secret, the first item and their number alone. So whoever is given the
secret can make any range, and one coordinator, the crew's owner, sees to it that every item is ordered once.

=========  ==========================================================  ============================================
crew       where the work is done                                      who else holds the epoch's secret meanwhile
=========  ==========================================================  ============================================
thread     a thread of the dealer's process                            nobody
processes  processes of this machine, spawned, each with its pipe      they do
ray        actors of a ray cluster (extra ``scale``)                   the nodes, their object stores, and whoever may
                                                                       join the cluster: it must be the dealer's own
=========  ==========================================================  ============================================
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing.connection import wait
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from pqi.program import Dealer
from pqi.program.instructions import Program
from pqi.session.errors import SessionError, WorkerFailed
from pqi.session.pool import Corrections
from protocols.devices import CPU
from protocols.errors import Misuse
from protocols.prg import Secret

RAY_HERE = "local"
# A cluster started here admits who has its token alone (ray 2.52 and later), and tells nobody that it exists.
_RAY_HABITS = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
}
_MISSING = "dealing over ray needs the extra 'scale': pip install 'private-quantized-inference[scale]'"


class Crew(ABC):
    """Makes the items of one dealer. ``begin`` an epoch, ``submit`` ranges in rising order, ``close`` at the end.

    width: ranges that should be under way at one time to keep everybody busy; the most that wait in memory as well.
    """

    width = 1

    def __init__(self, program: Program, tensors: Mapping[str, Tensor], device: torch.device = CPU) -> None:
        self._dealer = Dealer(program, tensors, device)
        self._next: int | None = None
        self._orders: list[Future[Corrections]] = []

    def rehearse(self) -> None:
        """See :meth:`pqi.program.Dealer.rehearse`; workers find on the disk what was compiled here."""
        self._dealer.rehearse()

    def begin(self) -> tuple[bytes, bytes]:
        """A new epoch: fresh keys for P0 and P1; items count from 0 again. What is under way is dropped."""
        self._next = None
        for order in self._orders:
            order.cancel()
        self._orders = []
        keys = self._new_epoch()
        self._next = 0
        return keys

    def submit(self, first: int, n: int) -> Future[Corrections]:
        """Order items ``first .. first+n-1``. Raises Misuse if one of them was ordered before, or no epoch begun."""
        if self._next is None:
            raise Misuse("items were ordered before an epoch was begun")
        if n < 1 or first < self._next:
            raise Misuse(f"items [{first}, {first + n}) were ordered; every item is dealt once, next is {self._next}")
        self._next = first + n
        self._orders = [order for order in self._orders if not order.done()]
        self._orders.append(order := self._order(first, n))
        return order

    def collect(self, order: Future[Corrections], timeout: float | None = None) -> Corrections:
        """What an order brought, after ``timeout`` seconds at most.

        Raises concurrent.futures.TimeoutError; WorkerFailed if who worked on it is gone; ProtocolError from the work.
        """
        return order.result(timeout)

    @abstractmethod
    def _new_epoch(self) -> tuple[bytes, bytes]: ...

    @abstractmethod
    def _order(self, first: int, n: int) -> Future[Corrections]: ...

    @abstractmethod
    def close(self) -> None:
        """End whoever works. Closing twice is harmless."""


class ThreadCrew(Crew):
    """One thread: it makes the next items while their owner sends the last ones. device: where they are made."""

    def __init__(self, program: Program, tensors: Mapping[str, Tensor], device: torch.device = CPU) -> None:
        super().__init__(program, tensors, device)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="deal")

    def _new_epoch(self) -> tuple[bytes, bytes]:
        # In the thread itself: what is left of the old epoch ends before its keys are replaced.
        return self._thread.submit(self._dealer.new_epoch).result()

    def _order(self, first: int, n: int) -> Future[Corrections]:
        return self._thread.submit(self._dealer.deal, first, n)

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)


class _EpochSecret(Secret):
    """What workers of one epoch are given with every order."""

    __slots__ = ("_raw",)

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def expose_to_worker(self) -> bytes:
        """The bytes, for the pipe or store that leads to a worker of this dealer."""
        return self._raw


class ProcessCrew(Crew):
    """Processes of this machine; each has one processor core to itself."""

    def __init__(self, program: Program, tensors: Mapping[str, Tensor], workers: int) -> None:
        super().__init__(program, tensors)
        self.width = workers + 1
        self._workers, self._part = workers, _as_bytes(program, tensors)
        self._pool: ProcessPoolExecutor | None = None
        self._secret = _EpochSecret(b"")

    def _new_epoch(self) -> tuple[bytes, bytes]:
        if self._pool is None:
            spawned = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._workers, spawned, _enter, self._part)
        keys = self._dealer.new_epoch()
        self._secret = _EpochSecret(self._dealer.expose_epoch())
        return keys

    def _order(self, first: int, n: int) -> Future[Corrections]:
        if self._pool is None:
            raise WorkerFailed("the dealing workers were ended")
        try:
            return self._pool.submit(_work, self._secret.expose_to_worker(), first, n)
        except BrokenExecutor:
            raise self._broken() from None

    def collect(self, order: Future[Corrections], timeout: float | None = None) -> Corrections:
        """See :meth:`Crew.collect`."""
        try:
            return order.result(timeout)
        except BrokenExecutor:
            raise self._broken() from None

    def _broken(self) -> WorkerFailed:
        self.close()  # the next epoch has new processes
        return WorkerFailed("a dealing worker died; a new epoch is needed")

    def close(self) -> None:
        """End the processes, after what each of them is at."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None


class RayCrew(Crew):
    """Actors on a ray cluster. address: of a running cluster; ``local`` starts one of ``workers`` cores here.

    Raises SessionError if ray is not installed or no cluster answers at the address.
    """

    def __init__(self, program: Program, tensors: Mapping[str, Tensor], workers: int, address: str = RAY_HERE) -> None:
        super().__init__(program, tensors)
        self.width = workers + 1
        self._secret = _EpochSecret(b"")
        if address == RAY_HERE and "ray" in sys.modules and "RAY_AUTH_MODE" not in os.environ:
            raise SessionError(
                "ray was imported before it could be told to admit only who has the cluster's token: set "
                "RAY_AUTH_MODE=token in the environment of this process"
            )
        for name, value in _RAY_HABITS.items():
            os.environ.setdefault(name, value)  # read when ray is imported
        try:
            import ray
        except ImportError:
            raise SessionError(_MISSING) from None
        self._ray = ray
        quiet: dict[str, Any] = {"configure_logging": False, "log_to_driver": False}
        here = {"num_cpus": workers, "include_dashboard": False} if address == RAY_HERE else {}
        try:
            ray.init(address=address, **quiet, **here)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise SessionError(f"no ray cluster at {address!r}: {error}") from None
        self._workers, self._turn, self._hands = workers, 0, list[Any]()
        self._part = ray.put(_as_bytes(program, tensors))
        self._staff()

    def _staff(self) -> None:
        self._dismiss()
        actor = self._ray.remote(num_cpus=1, max_restarts=0)(Hand)
        self._hands = [actor.remote(self._part) for _ in range(self._workers)]

    def _dismiss(self) -> None:
        for hand in self._hands:
            self._ray.kill(hand)
        self._hands = []

    def _new_epoch(self) -> tuple[bytes, bytes]:
        keys = self._dealer.new_epoch()
        self._secret = _EpochSecret(self._dealer.expose_epoch())
        return keys

    def _order(self, first: int, n: int) -> Future[Corrections]:
        hand = self._hands[self._turn]
        self._turn = (self._turn + 1) % len(self._hands)
        order: Future[Corrections] = hand.deal.remote(self._secret.expose_to_worker(), first, n).future()
        return order

    def collect(self, order: Future[Corrections], timeout: float | None = None) -> Corrections:
        """See :meth:`Crew.collect`."""
        try:
            return order.result(timeout)
        except self._ray.exceptions.RayActorError:
            self._staff()  # the next epoch has new actors
            raise WorkerFailed("a dealing worker died; a new epoch is needed") from None

    def close(self) -> None:
        """End the actors and leave the cluster."""
        self._dismiss()
        self._ray.shutdown()


def crew_of(
    program: Program,
    tensors: Mapping[str, Tensor],
    workers: int = 1,
    ray: str | None = None,
    device: torch.device = CPU,
) -> Crew:
    """The crew asked for: one thread, ``workers`` processes, or ``workers`` actors of the ray cluster at ``ray``.

    device: where one thread makes the items; the other crews are for processors.
    """
    if workers < 1:
        raise SessionError(f"workers = {workers}; at least 1 deals")
    if device.type != "cpu":
        if workers > 1 or ray is not None:
            raise SessionError(f"one thread deals on {device}: leave out workers and ray, which are for processors")
        return ThreadCrew(program, tensors, device)
    if ray is not None:
        return RayCrew(program, tensors, workers, ray)
    return ThreadCrew(program, tensors) if workers == 1 else ProcessCrew(program, tensors, workers)


# ---------------------------------------------------------------------- in a worker


class Hand:
    """A worker: program and weight masks once, then ranges of items of whatever epoch it is given the secret of."""

    def __init__(self, part: tuple[str, bytes]) -> None:
        torch.set_num_threads(1)
        program = Program.from_json(json.loads(part[0]))
        self._dealer = Dealer(program, safetensors.torch.load(part[1]))
        self._secret = b""

    def deal(self, secret: bytes, first: int, n: int) -> bytes:
        """Items ``first .. first+n-1`` of the epoch of ``secret``."""
        if secret != self._secret:
            self._dealer.new_epoch(secret)
            self._secret = secret
        return bytes(self._dealer.deal(first, n))


def _as_bytes(program: Program, tensors: Mapping[str, Tensor]) -> tuple[str, bytes]:
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    return json.dumps(program.to_json()), safetensors.torch.save(whole)


_hand: Hand | None = None


def _enter(*part: Any) -> None:
    """A process of a crew begins: it ends when the dealer's does, however that ends."""
    global _hand
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at a terminal is for the dealer, which ends its workers
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    _hand = Hand((part[0], part[1]))


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(0)


def _work(secret: bytes, first: int, n: int) -> bytes:
    if _hand is None:
        raise WorkerFailed("a dealing worker was not made ready")
    return _hand.deal(secret, first, n)
