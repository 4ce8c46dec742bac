"""Every role on this machine, each a process of its own that talks TLS: for trying out, tests and the demo.

All bundles and keys lie in one temporary folder here, so this machine's user could open every share: the separation
of the roles is real, the separation of the people is not.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import pqi
from pqi.net.link import NONE, Link
from pqi.net.ports import free_ports
from pqi.program.circuits import Model
from pqi.program.keyed import KeyedProgram
from pqi.session.client import Answer, Client, Progress
from pqi.session.errors import QueryFailed, ServiceFailed
from pqi.session.owner import CONFIG_FILE, make_keys, split
from pqi.session.place import places_of
from pqi.session.roles import CLIENT, DEALER, SERVER_A, SERVER_B

_START_SECONDS, _STOP_SECONDS = 90.0, 4.0
_LOG_TAIL = 1500
_BACKGROUND = 10  # niceness of the dealer


def local(
    model: Model,
    protocol: str = "additive2",
    *,
    network: str = "lan",
    rounding: str = "exact",
    weights: str | Mapping[str, str] = "shared",
    options: Mapping[str, Any] | None = None,
    answers_per_client: int | None = None,
    directory: str | Path | None = None,
    server_options: Mapping[str, int | float] | None = None,
    threads: int | None = None,
    device: str | Mapping[str, str] = "cpu",
    link: str | Link | None = None,
) -> LocalService:
    """A deployment on this machine, as a context manager: ``with pqi.local(model) as service: service.predict(x)``.

    weights: who may know them, answers_per_client: how many answers one may have; see :func:`pqi.split`. options: a
    keyed protocol's own, such as its packing.
    directory: where bundles, keys, journals and logs go (default: a temporary folder, removed at the end).
    server_options: max_batch, timeout; on shares batch_mib, pool_items (0: nothing is dealt ahead of a query),
    pool_mib, spill_mib, and deal_workers, the processes that deal side by side; under a key workers, clients,
    query_mib. threads: tensor threads per server.
    device: where servers and dealer compute on shares, "cpu", "cuda" or "cuda:N", or {role: one of them}; the answer is
    the same everywhere.
    link: the network to emulate on every connection between two roles, "lan" (1 Gbit/s, 1 ms round trip), "wan" (100
    Mbit/s, 40 ms) or a :class:`pqi.net.link.Link`; by default the roles talk as fast as this machine lets them. It
    changes how long messages take and nothing else; ``network`` is what the program is planned for.
    Raises ValueError for a link that is none; SessionError for a device that is not there, or not for the protocol.
    """
    plan: dict[str, Any] = {"protocol": protocol, "network": network, "rounding": rounding, "weights": weights}
    plan |= {"options": options, "answers_per_client": answers_per_client}
    places = places_of(device, protocol)
    return LocalService(model, plan, directory, dict(server_options or {}), threads, Link.parse(link), places)


def _give_cores(role: str, process: int, two_servers: bool) -> None:
    """Give each of two servers its half of this machine's cores, as if it had a machine of its own.

    Left alone, the system likes to put two processes that wake each other on one core, where each exchange waits for
    both to take turns.
    """
    if not (two_servers and role in (SERVER_A, SERVER_B) and hasattr(os, "sched_setaffinity")):
        return
    cores = sorted(os.sched_getaffinity(0))
    half = len(cores) // 2
    if half:
        with suppress(OSError):  # it ended already, which its report will tell
            os.sched_setaffinity(process, cores[:half] if role == SERVER_A else cores[half:])


class LocalService:
    """Processes of one deployment. processes: role -> Popen. directory: bundles, keys, journals and logs."""

    def __init__(
        self,
        model: Model,
        plan: Mapping[str, Any],
        directory: str | Path | None,
        options: Mapping[str, int | float],
        threads: int | None,
        link: Link = NONE,
        places: Mapping[str, str] | None = None,
    ) -> None:
        self._model, self._plan, self._link, self._places = model, plan, link, places or {}
        self._options, self._threads = options, threads
        self._temporary = directory is None
        self._given = None if directory is None else Path(directory)
        self.directory = Path()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._client: Client | None = None
        self._catches_terminate = False

    def __enter__(self) -> LocalService:
        self.directory = Path(tempfile.mkdtemp(prefix="pqi-")) if self._given is None else self._given
        self._catch_terminate()
        try:
            where = dict(zip((SERVER_A, SERVER_B), (f"127.0.0.1:{port}" for port in free_ports(2)), strict=True))
            split(self._model, self.directory, addresses=where, **self._plan)
            make_keys(self.directory)
            (self.directory / "logs").mkdir()
            self._client = Client(self.directory / CLIENT / CONFIG_FILE, link=self._link)
            self._start_all([role for role in (SERVER_B, SERVER_A, DEALER) if (self.directory / role).is_dir()])
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def client(self) -> Client:
        """The client of this deployment. Raises ServiceFailed outside the with block."""
        if self._client is None:
            raise ServiceFailed("the local deployment is not running; use it in a with block")
        return self._client

    def predict(self, x: Any, *, progress: Progress | None = None, on_saturation: str = "warn") -> Answer:
        """See :meth:`Client.predict`."""
        return self.client.predict(x, progress=progress, on_saturation=on_saturation)

    def status(self) -> dict[str, dict[str, Any]]:
        """See :meth:`Client.status`."""
        return self.client.status()

    def await_items(self, n: int, timeout: float = 60.0) -> int:
        """Wait until the dealer has delivered n items, or as many as the pool holds; returns how many are there.

        For measurements that keep the dealer's work out of the online time; without a dealer there is nothing to wait
        for. Raises ServiceFailed after ``timeout`` s.
        """
        if isinstance(self.client.program, KeyedProgram):
            return n
        deadline = time.monotonic() + timeout
        while True:
            state = list(self.status().values())[-1]
            if state["level"] >= min(n, state["capacity"] - state["capacity"] // 8):
                return int(state["level"])
            if time.monotonic() > deadline:
                raise ServiceFailed(f"the dealer has delivered {state['level']} of {n} items after {timeout:g} s")
            time.sleep(0.05)

    def restart(self, role: str) -> None:
        """End a role's process if it lives, start it anew, and wait until the deployment can answer again."""
        self._end(role)
        self._start_all([role])

    def log(self, role: str) -> str:
        """What a role has logged so far."""
        return (self.directory / "logs" / f"{role}.log").read_text(errors="replace")

    def close(self) -> None:
        """End every process and remove the temporary folder. Leaves nothing behind; calling it twice is harmless."""
        if self._client is not None:
            self._client.close()
            self._client = None
        for process in self.processes.values():
            _hang_up(process)
        for role in list(self.processes):
            self._end(role)
        if self._temporary and self.directory != Path():
            shutil.rmtree(self.directory, ignore_errors=True)
        if self._catches_terminate:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            self._catches_terminate = False

    def _catch_terminate(self) -> None:
        """Let SIGTERM unwind the stack, as Ctrl-C does: the folder with everybody's keys must not stay behind."""
        default = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        if default and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _unwind)
            self._catches_terminate = True

    # ------------------------------------------------------------------ processes

    def _start_all(self, roles: list[str]) -> None:
        reports = {role: self._start(role) for role in roles}
        try:
            for role, report in reports.items():
                self._await_report(role, report)
        finally:
            for report in reports.values():
                os.close(report)
        self._await_deployment()

    def _has_two_servers(self) -> bool:
        """Whether two servers compute side by side."""
        return (self.directory / SERVER_B).is_dir()

    def _start(self, role: str) -> int:
        """Start one role; returns the descriptor on which it reports that it is ready."""
        read, write = os.pipe()
        command = [sys.executable, "-m", "pqi.session.main", "deal" if role == DEALER else "serve"]
        command += [str(self.directory / role), "--watch-stdin", "--ready-fd", str(write), "--link", str(self._link)]
        for name, value in self._options.items():
            if (option := _option_of(role, name)) is not None:
                command += [f"--{option.replace('_', '-')}", str(value)]
        if role in self._places:
            command += ["--device", self._places[role]]
        if self._threads is not None:
            command += ["--threads", str(self._threads)]
        root = str(Path(pqi.__file__).resolve().parent.parent)
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        try:
            with _signals_held_back(), (self.directory / "logs" / f"{role}.log").open("ab") as log:
                self.processes[role] = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    pass_fds=(write,),
                    env=environment,
                    start_new_session=True,
                )
        except BaseException:
            os.close(read)
            raise
        finally:
            os.close(write)
        _give_cores(role, self.processes[role].pid, self._has_two_servers())
        if role == DEALER:
            # Dealing ahead is background work: on a shared machine it must not delay an answer.
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, self.processes[role].pid, _BACKGROUND)
        return read

    def _await_report(self, role: str, descriptor: int) -> None:
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        if not poller.poll(_START_SECONDS * 1000):
            raise ServiceFailed(f"{role} was not ready within {_START_SECONDS:g} s. Its log ends:\n{self._tail(role)}")
        if not os.read(descriptor, 4096):
            code = self.processes[role].wait()
            raise ServiceFailed(
                f"{role} ended with status {code} before it was ready. Its log ends:\n{self._tail(role)}"
            )

    def _await_deployment(self) -> None:
        """Wait until both servers know the same epoch: after a restart the dealer needs a moment for a new one.

        The one server of a keyed protocol has no epoch: it only has to be there.
        """
        if len(missing := [role for role, process in self.processes.items() if process.poll() is not None]):
            return  # another role is down on purpose: whoever ended it starts it again
        deadline = time.monotonic() + _START_SECONDS
        while True:
            with suppress(QueryFailed):
                states = self.client.status().values()
                if isinstance(self.client.program, KeyedProgram):
                    return
                if len({state["epoch"] for state in states} - {""}) == 1 and self._dealer_linked(states):
                    return
            if time.monotonic() > deadline:
                raise ServiceFailed(f"the servers and the dealer found no common epoch{missing or ''}; see the logs")
            time.sleep(0.1)

    def _dealer_linked(self, states: Any) -> bool:
        return DEALER not in self.processes or any(state["dealer"] for state in states)

    def _tail(self, role: str) -> str:
        with suppress(OSError):
            return self.log(role)[-_LOG_TAIL:]
        return "(no log)"

    def _end(self, role: str) -> None:
        process = self.processes.pop(role, None)
        if process is None:
            return
        _hang_up(process)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _option_of(role: str, name: str) -> str | None:
    """What a server option is called on the command line of a role; None if it is not for that role."""
    if name.startswith("deal_"):
        return name.removeprefix("deal_") if role == DEALER else None
    return name if role != DEALER or name == "timeout" else None


def _unwind(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """What interrupts the main thread here does so afterwards: a process is started and known, or neither."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {n: signal.signal(n, lambda number, _: came.append(number)) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if came:
            signal.raise_signal(came[0])


def _hang_up(process: subprocess.Popen[bytes]) -> None:
    """Ask a child to stop: a signal, and the end of its standard input in case the signal is lost."""
    if process.stdin is not None and not process.stdin.closed:
        with suppress(OSError):
            process.stdin.close()
    if process.poll() is None:
        process.terminate()


__all__ = ["LocalService", "local"]
