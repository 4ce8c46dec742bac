"""Entry points of the long-running roles: ``python -m pqi.session.main serve BUNDLE`` and ``... deal BUNDLE``.

The command line of the package calls the same two functions.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType as StackFrame
from typing import Any

import torch

from pqi.net.errors import NetError
from pqi.net.link import NONE, Link
from pqi.net.tls import parse_address
from pqi.session.bundle import KeyedServerBundle, load_dealer, load_server
from pqi.session.crew import crew_of
from pqi.session.dealer import DealerService
from pqi.session.errors import SessionError, WorkerFailed
from pqi.session.keyed.server import KeyedOptions, KeyedServer
from pqi.session.memory import keep_freed_memory
from pqi.session.place import place_of
from pqi.session.server import ComputeServer, ServerOptions
from pqi.session.serving import Patience

log = logging.getLogger("pqi.session")
Ready = Callable[[dict[str, Any]], None]
_LAST_CHANCE_SECONDS = 3.0


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def serve(
    bundle: Path,
    stop: threading.Event,
    *,
    listen: str | None = None,
    journal: Path | None = None,
    options: ServerOptions | None = None,
    keyed: KeyedOptions | None = None,
    threads: int | None = None,
    ready: Ready | None = None,
) -> None:
    """Run a compute server until ``stop`` is set. ready: hears its role and address once it listens.

    options: bounds of a server that computes on shares. keyed: those of one that computes under clients' keys; the
    bundle says which of the two it is. threads: for tensor work on shares (default: cores shared out among the compute
    parties, at least 1). Raises SessionError (device), BundleError, JournalError, WorkerFailed, WrongPeer,
    CannotListen, ValueError (address).
    """
    loaded = load_server(bundle)
    place_of((options or ServerOptions()).device, loaded.program.protocol)
    address = parse_address(listen) if listen else None
    made: ComputeServer | KeyedServer
    if isinstance(loaded, KeyedServerBundle):
        torch.set_num_threads(1)
        try:
            made = KeyedServer(loaded, listen=address, options=keyed, stop=stop)
        except WorkerFailed:
            if stop.is_set():
                return
            raise
    else:
        torch.set_num_threads(threads or max(1, cores() // len(loaded.program.parties)))
        keep_freed_memory()
        made = ComputeServer(loaded, listen=address, journal=journal, options=options)
    with made as server:
        if isinstance(server, ComputeServer):
            server.runner.rehearse()
            server.watch.begin()
        if ready is not None:
            ready({"role": server.role, "host": server.address[0], "port": server.address[1]})
        stop.wait()


def deal(
    bundle: Path,
    stop: threading.Event,
    *,
    patience: Patience | None = None,
    threads: int | None = None,
    ready: Ready | None = None,
    workers: int = 1,
    ray: str | None = None,
    device: str = "cpu",
    link: Link = NONE,
) -> None:
    """Run the dealer until ``stop`` is set. ready: hears of every epoch that both servers know.

    workers: processes that make items side by side (1: a thread of this one). ray: address of the dealer's own ray
    cluster whose ``workers`` actors do that instead (``local``: one made here); needs the extra ``scale``.
    device: where items are made, cpu, cuda or cuda:N. link: what to emulate of a network.
    Raises BundleError, WrongPeer, SessionError (workers, ray, device).
    """
    torch.set_num_threads(threads or 1)
    keep_freed_memory()
    loaded = load_dealer(bundle)
    crew = crew_of(loaded.program, loaded.tensors, workers, ray, place_of(device, loaded.program.protocol))
    crew.rehearse()
    service = DealerService(loaded, patience, crew, link)

    def tell(epoch: str) -> None:
        if ready is not None:
            ready({"role": "dealer", "epoch": epoch})

    service.run(stop, tell)


def stop_on_signals() -> threading.Event:
    """An event that SIGINT and SIGTERM set. Main thread only."""
    stop = threading.Event()

    def handle(_number: int, _frame: StackFrame | None) -> None:
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)
    return stop


def stop_with_parent(stop: threading.Event) -> None:
    """Set ``stop`` when standard input ends: the parent is gone, however it went. No child outlives it."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        stop.set()
        threading.Event().wait(_LAST_CHANCE_SECONDS)
        os._exit(0)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one role. Exit status 0 after a stop, 2 if the role cannot start; the cause goes to the log."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(
        level=options.log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    stop = stop_on_signals()
    if options.watch_stdin:
        stop_with_parent(stop)
    patience = Patience(step=options.timeout)
    ready = _reporter(options.ready_fd)
    try:
        if options.command == "deal":
            deal(
                options.bundle,
                stop,
                patience=patience,
                threads=options.threads,
                ready=ready,
                workers=options.workers,
                ray=options.ray,
                device=options.device,
                link=Link.parse(options.link),
            )
        else:
            bounds = ServerOptions(
                max_batch=options.max_batch or ServerOptions.max_batch,
                batch_bytes=options.batch_mib << 20,
                pool_items=options.pool_items,
                pool_bytes=options.pool_mib << 20,
                spill_bytes=options.spill_mib << 20,
                check_memory=options.check_memory,
                patience=patience,
                device=options.device,
                link=Link.parse(options.link),
            )
            serve(
                options.bundle,
                stop,
                listen=options.listen,
                journal=options.journal,
                options=bounds,
                keyed=_keyed_options(options, patience),
                threads=options.threads,
                ready=ready,
            )
    except (SessionError, NetError, ValueError) as error:
        log.error("%s cannot run: %s", options.command, error)
        return 2
    return 0


def _keyed_options(options: argparse.Namespace, patience: Patience) -> KeyedOptions:
    return KeyedOptions(
        workers=options.workers,
        max_batch=options.max_batch,
        query_bytes=options.query_mib << 20,
        clients=options.clients,
        patience=patience,
        link=Link.parse(options.link),
    )


def _reporter(descriptor: int | None) -> Ready | None:
    """Write one JSON line per report to a descriptor that the parent reads; a parent that looked away is no error."""
    if descriptor is None:
        return None

    def report(state: dict[str, Any]) -> None:
        try:
            os.write(descriptor, json.dumps(state).encode() + b"\n")
        except OSError:
            log.debug("nobody reads the readiness reports any more")

    os.set_inheritable(descriptor, False)
    return report


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pqi.session.main", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in (("serve", "run a compute server"), ("deal", "run the dealer")):
        command = commands.add_parser(name, help=what)
        command.add_argument("bundle", type=Path, help="folder of the role's bundle")
        command.add_argument("--threads", type=int, default=None, help="threads for tensor work")
        command.add_argument("--device", default="cpu", help="where to compute on shares: cpu, cuda or cuda:N")
        command.add_argument("--timeout", type=float, default=Patience.step, help="seconds for one message of a peer")
        command.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
        command.add_argument("--ready-fd", type=int, default=None, help="descriptor for readiness reports")
        command.add_argument("--watch-stdin", action="store_true", help="stop when standard input ends")
        command.add_argument("--link", default="none", help="emulate lan, wan, or NAME,SECONDS,BITS_PER_SECOND")
        if name == "serve":
            command.add_argument("--listen", default=None, help="host:port (default: the bundle's address)")
            command.add_argument("--journal", type=Path, default=None, help="record of used items")
            command.add_argument("--max-batch", type=int, default=None)
            command.add_argument("--batch-mib", type=int, default=ServerOptions.batch_bytes >> 20)
            command.add_argument(
                "--pool-items", type=int, default=ServerOptions.pool_items, help="dealt ahead; 0: only on demand"
            )
            command.add_argument("--pool-mib", type=int, default=ServerOptions.pool_bytes >> 20)
            command.add_argument("--spill-mib", type=int, default=ServerOptions.spill_bytes >> 20)
            command.add_argument("--check-memory", type=int, default=0, help="before every so many queries; 0: never")
            command.add_argument("--workers", type=int, default=None, help="under a client's key: processes")
            command.add_argument("--clients", type=int, default=KeyedOptions.clients, help="whose keys are kept")
            command.add_argument("--query-mib", type=int, default=KeyedOptions.query_bytes >> 20)
        else:
            command.add_argument("--workers", type=int, default=1, help="processes, or actors, that make items")
            command.add_argument("--ray", default=None, help="address of a ray cluster, or 'local'")
    return parser


if __name__ == "__main__":
    sys.exit(main())
