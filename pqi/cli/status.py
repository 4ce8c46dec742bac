"""``pqi status``: what the servers of a deployment say of themselves, above all how much material is ready."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from pqi.cli.options import DebugOption, JsonOption
from pqi.cli.screen import duration, err, out, plain, size, table, write_json

if TYPE_CHECKING:
    from pqi.session.client import Client

_TICK = 0.2
State = Mapping[str, Any]


def status(
    config: Annotated[
        Path, typer.Option("--config", metavar="client.toml", help="The client's configuration.", show_default=False)
    ],
    items: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Wait until material for N inputs is ready.", show_default="no waiting"),
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to wait for --items.")] = 600.0,
    json_file: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    """Ask every server how it is: material ready and on disk, whether the dealer is linked, memory, time up.

    With --items the command returns once so much is ready, or as much as fits; exit status 1 after --timeout.
    """
    from pqi.session.client import Client

    with Client(config) as client:
        states = client.status() if items is None else _await(client, items, timeout)
    _show(states)
    write_json(json_file, {"servers": states})


def _await(client: Client, items: int, timeout: float) -> dict[str, dict[str, Any]]:
    from pqi.cli.guard import CliError

    deadline, console = time.monotonic() + timeout, err()
    columns = (TextColumn("Material"), BarColumn(40), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=items)
        while True:
            states = client.status()
            stock = _stock(states)
            if not stock:
                return states  # under a client's key nothing is dealt
            level, capacity = int(stock["level"]), int(stock["capacity"])
            goal = min(items, capacity - capacity // 8)
            bar.update(task, completed=min(level, goal), total=goal)
            if level >= goal:
                return states
            if time.monotonic() > deadline:
                raise CliError(f"material for {level} of {items} inputs was ready after {timeout:g} s; see the dealer.")
            time.sleep(_TICK)


def _stock(states: Mapping[str, State]) -> State:
    """The server that corrections are dealt to: of two, the second; empty if there is none."""
    return next((state for state in reversed(list(states.values())) if state.get("capacity")), {})


def _show(states: Mapping[str, State]) -> None:
    made = table("Servers", ["fact", *states])
    stock = _stock(states)
    if stock:
        disk = f", {stock['spilled']} of them on disk" if stock.get("spilled") else ""
        ready = f"{stock['level']} of {stock['capacity']}{disk}"
        made.add_row("inputs prepared", *(ready if state is stock else "" for state in states.values()))
    for fact, tell in _FACTS.items():
        row = [tell(state) for state in states.values()]
        if any(row):
            made.add_row(fact, *map(plain, row))
    out().print(made)


_FACTS: dict[str, Callable[[State], str]] = {
    "epoch": lambda state: str(state.get("epoch", ""))[:8],
    "material in memory": lambda state: size(state["pool_bytes"]) if state.get("pool_bytes") else "",
    "dealer linked": lambda state: ("yes" if state["dealer"] else "no") if "dealer" in state else "",
    "workers": lambda state: str(state.get("workers", "")),
    "sessions": lambda state: str(state.get("sessions", "")),
    "largest query": lambda state: str(state.get("max_batch", "")),
    "answers a client": lambda state: str(state.get("answers_per_client") or ""),
    "time up": lambda state: duration(state["uptime_seconds"]) if "uptime_seconds" in state else "",
    "peak memory": lambda state: size(state["peak_rss_bytes"]) if "peak_rss_bytes" in state else "",
}
