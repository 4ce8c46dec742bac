"""How the demonstration looks: one line per stage while it runs, then figures, declared beside measured."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from pqi.cli.screen import counted, duration, err, out, percent, plain, security_statement, size, table

if TYPE_CHECKING:
    from pqi.demo.outcome import Outcome


class ScreenTeller:
    """A line on standard output for every stage that is over; a bar on standard error, on a terminal, until then."""

    def __init__(self) -> None:
        self._name, self._started = "", 0.0
        self._bar: Progress | None = None

    def __enter__(self) -> ScreenTeller:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def stage(self, name: str) -> None:
        """A stage begins; naming the one that runs changes nothing."""
        if name == self._name:
            return
        self._stop()
        self._name, self._started = name, time.perf_counter()
        console = err()
        columns = (
            TextColumn(f"[name]{name:<9}[/name] "),
            BarColumn(50, complete_style="name", pulse_style="name"),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
        )
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._bar.add_task("", total=None, count="")
        self._bar.start()

    def progress(self, done: int, total: int) -> None:
        """The bar moves."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, total=total, count=f"{done}/{total}")

    def done(self, what: str, figure: str) -> None:
        """The line of the stage."""
        self._stop()
        line = Table.grid(padding=(0, 2), expand=True)
        line.add_column(width=9, style="name")
        line.add_column(ratio=1)
        line.add_column(justify="right", no_wrap=True, style="title")
        line.add_column(width=8, justify="right", style="soft")
        line.add_row(self._name, plain(what), plain(figure), duration(time.perf_counter() - self._started))
        console = out()
        console.print(line, width=min(console.width, 100))

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def show(console: Console, outcome: Outcome) -> None:
    """The verdict and the tables."""
    console.print()
    _verdict(console, outcome)
    learns = security_statement(outcome.security.adversary, outcome.security.learns)
    for part in (_times(outcome), _bytes(outcome), learns):
        console.print()
        console.print(part)
    console.print("All roles ran on this one machine: the processes were apart, their owners were not.", style="soft")


def _verdict(console: Console, outcome: Outcome) -> None:
    share = percent(outcome.private_equals_integer, 3)
    if outcome.equal == outcome.samples:
        console.print(
            f"[good]Private = integer: {share}.[/good] All {outcome.samples} private answers equal the integer model's "
            "in every bit."
        )
    else:
        console.print(
            f"[bad]Private = integer: {share}.[/bad] {outcome.samples - outcome.equal} of {outcome.samples} private "
            "answers differ from the integer model's. This must never happen: please report it."
        )
    if not outcome.as_declared:
        console.print("[bad]Bytes or exchanges differ from what the program declared.[/bad] Please report it.")


def _times(outcome: Outcome) -> Table:
    ledger, before = outcome.ledger, outcome.plain
    wait = max((party.offline_wait_seconds for party in ledger.parties.values()), default=0.0)
    made = table(
        f"Accuracy and time, {outcome.samples} images in batches of {outcome.batch}",
        [""],
        ["accuracy", "time", "per image", "x float32", "x integer"],
    )
    rows = [
        ("float32 network", outcome.plain.float_accuracy, before.float32_seconds),
        ("integer model, in the open", before.integer_accuracy, before.integer_seconds),
        ("private, online", outcome.private_accuracy, ledger.online_seconds),
        ("private, offline: work on dealt material", None, ledger.offline_seconds),
        ("private, offline: waiting for the dealer", None, wait),
        ("private, all that the client waits", None, ledger.seconds),
    ]
    for name, accuracy, seconds in rows:
        made.add_row(
            name,
            "" if accuracy is None else percent(accuracy),
            duration(seconds),
            duration(seconds / outcome.samples),
            f"{seconds / before.float32_seconds:.3g}",
            f"{seconds / before.integer_seconds:.3g}",
        )
    return made


def _bytes(outcome: Outcome) -> Table:
    ledger = outcome.ledger
    made = table(
        "Bytes and memory",
        ["process"],
        ["dealt to it", "to other server", "from client", "to client", "peak memory"],
        caption=_exchanges(outcome),
    )
    for role in outcome.roles:
        party, memory = ledger.parties.get(role), outcome.peak_rss_mb.get(role)
        figures = [""] * 4
        if party is not None:
            counts = (party.offline_received, party.online_sent, party.client_received, party.client_sent)
            figures = [f"{count:,}" for count in counts]
        name = f"{role} (also trained)" if role == "client" else role
        made.add_row(name, *figures, "" if memory is None else size(memory * 1e6))
    made.add_section()
    dealt, online = outcome.declared.dealt_bytes, outcome.declared.online_bytes
    made.add_row("declared beforehand", f"{dealt:,}", f"{online:,}", "", "", "", style="soft")
    return made


def _exchanges(outcome: Outcome) -> str:
    per = outcome.declared.exchanges // max(outcome.ledger.queries, 1)
    equal = "Measured = declared, to the byte" if outcome.as_declared else "MEASURED DIFFERS FROM DECLARED"
    return f"{counted(outcome.ledger.exchanges, 'exchange')}, {per} in each query. {equal}."


def tell_what_was_kept(console: Console, folder: Path, protocol: str) -> None:
    """What can be tried next."""
    where = plain(str(folder))
    files = [path.name for path in sorted(folder.iterdir()) if path.is_file()]
    model = next(name for name in files if name.endswith(".pqi"))
    asked = "images.npy" if "images.npy" in files else "inputs.npy"
    console.print(f"\nKept in {where}: {', '.join(files)}, bundles/. Try:")
    lines = [f"pqi inspect {where}/{model} --protocol {protocol}"]
    # Each of these runs until it is stopped: a terminal of its own.
    lines += [f"pqi serve {where}/bundles/{role.name} &" for role in sorted((folder / "bundles").glob("server_*"))]
    lines += [f"pqi deal {where}/bundles/dealer &"] if (folder / "bundles" / "dealer").is_dir() else []
    lines += [f"pqi predict --config {where}/bundles/client/client.toml --input {where}/{asked}"]
    if "audit.npz" in files:
        audited = f"{where}/{model} --float {where}/digits.pt2 --data {where}/audit.npz --range 0 16"
        lines.append(f"pqi audit {audited} --quick --report audit.html")
    for line in lines:
        console.print(f"  [name]{line}[/name]", soft_wrap=True)
