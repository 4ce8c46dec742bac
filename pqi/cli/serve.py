"""``pqi serve`` and ``pqi deal``: the long-running roles. They stop at Ctrl-C or SIGTERM, with exit status 0."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from pqi.cli.options import DebugOption, DeviceOption, JsonOption, ThreadsOption
from pqi.cli.screen import err, out, write_json

BundleArgument = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="This role's folder, with its keys.", show_default=False)
]


class LogLevel(str, Enum):
    """How much goes to the log on standard error."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


LogOption = Annotated[LogLevel, typer.Option("--log-level", help="How much to log, on standard error.")]
TimeoutOption = Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds for one message of another role.")]
ListenOption = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="Where to listen.", show_default="as the bundle says")
]
PoolItemsOption = Annotated[
    int, typer.Option(min=0, help="On shares: inputs that material is kept ahead for; 0 has it dealt when one asks.")
]


SpillOption = Annotated[
    int, typer.Option(min=0, help="On shares: disk for more of it, MiB, sealed under a key in memory only.")
]
CheckOption = Annotated[
    int, typer.Option(min=0, help="On shares: look for turned bits before every so many queries; 0: never.")
]


def serve(
    bundle: BundleArgument,
    listen: ListenOption = None,
    journal: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Record of used items.", show_default="in the bundle")
    ] = None,
    max_batch: Annotated[
        int | None,
        typer.Option(min=1, help="Inputs in one query.", show_default="64; under a client's key what a query can hold"),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Under a client's key: processes that compute.", show_default="one per core"),
    ] = None,
    clients: Annotated[
        int, typer.Option(min=1, help="Under a client's key: clients whose evaluation keys are kept at one time.")
    ] = 8,
    pool_items: PoolItemsOption = 256,
    pool_mib: Annotated[int, typer.Option(min=1, help="On shares: memory for material kept ahead, MiB.")] = 1024,
    spill_mib: SpillOption = 0,
    check_memory: CheckOption = 0,
    device: DeviceOption = "cpu",
    timeout: TimeoutOption = 8.0,
    threads: ThreadsOption = None,
    log_level: LogOption = LogLevel.INFO,
    json_file: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    """Run a compute server until it is stopped. --json FILE appears once it listens.

    The bundle says whether it computes on shares, with another server, or alone under clients' keys.
    """
    from pqi.session import main as roles
    from pqi.session.keyed.server import KeyedOptions
    from pqi.session.server import ServerOptions
    from pqi.session.serving import Patience

    _log(log_level)
    patience = Patience(step=timeout)
    options = ServerOptions(
        max_batch=max_batch or ServerOptions.max_batch,
        pool_items=pool_items,
        pool_bytes=pool_mib << 20,
        spill_bytes=spill_mib << 20,
        check_memory=check_memory,
        patience=patience,
        device=device,
    )
    keyed = KeyedOptions(workers=workers, max_batch=max_batch, clients=clients, patience=patience)

    def ready(state: dict[str, Any]) -> None:
        write_json(json_file, state)
        out().print(f"[name]{state['role']}[/name] listens at {state['host']}:{state['port']}. Ctrl-C stops it.")

    with _stopped_by_signals() as stop:
        roles.serve(
            bundle, stop, listen=listen, journal=journal, options=options, keyed=keyed, threads=threads, ready=ready
        )
    err().print("Stopped. What material was left in memory is gone and will never be used.", style="soft")


def deal(
    bundle: BundleArgument,
    workers: Annotated[int, typer.Option(min=1, help="Processes that make material side by side.")] = 1,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="The dealer's own ray cluster for the workers; 'local' makes one here."),
    ] = None,
    device: DeviceOption = "cpu",
    timeout: TimeoutOption = 8.0,
    threads: ThreadsOption = None,
    log_level: LogOption = LogLevel.INFO,
    json_file: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    """Run the dealer until it is stopped: it dials both servers and hands out material. Opens no port.

    Only protocols on shares have one. --json FILE appears once both servers know its keys.
    """
    from pqi.session import main as roles
    from pqi.session.serving import Patience

    _log(log_level)

    def ready(state: dict[str, Any]) -> None:
        write_json(json_file, state)
        out().print(f"[name]dealer[/name] deals epoch {state['epoch'][:8]} to both servers. Ctrl-C stops it.")

    with _stopped_by_signals() as stop:
        roles.deal(
            bundle,
            stop,
            patience=Patience(step=timeout),
            threads=threads,
            ready=ready,
            workers=workers,
            ray=ray,
            device=device,
        )
    err().print("Stopped.", style="soft")


@contextmanager
def _stopped_by_signals() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set; afterwards signals mean what they meant before."""
    from pqi.session.main import stop_on_signals

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop_on_signals()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _log(level: LogLevel) -> None:
    logging.basicConfig(
        level=level.value.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
