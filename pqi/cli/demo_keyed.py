"""How the demonstration under a client's key looks: the verdict, then figures, declared beside measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from pqi.cli.screen import counted, duration, percent, plain, security_statement, size, table

if TYPE_CHECKING:
    from pqi.demo.keyed_outcome import KeyedOutcome


def show(console: Console, outcome: KeyedOutcome) -> None:
    """The verdict and the tables."""
    console.print()
    _verdict(console, outcome)
    learns = security_statement(outcome.security.adversary, outcome.security.learns)
    for part in (_times(outcome), _bytes(outcome), _parameters(outcome), learns):
        console.print()
        console.print(part)
    console.print("All roles ran on this one machine: the processes were apart, their owners were not.", style="soft")


def _verdict(console: Console, outcome: KeyedOutcome) -> None:
    found, samples = outcome.compared, outcome.samples
    if found.equal is None and found.largest_error > found.error_bound:
        console.print(
            f"[bad]An error of {found.largest_error:.3g} exceeds the bound {found.error_bound:.3g}.[/bad] This must "
            "never happen: please report it."
        )
    elif found.equal is None:
        style = "good" if found.same_decisions == samples else "bad"
        console.print(
            f"[{style}]Approximate, within its bound: largest error {found.largest_error:.3g}, bound "
            f"{found.error_bound:.3g}.[/{style}] {found.same_decisions} of {samples} decisions equal the integer "
            "model's."
        )
    elif found.equal == samples:
        console.print(
            f"[good]Private = integer: {percent(1.0, 3)}.[/good] All {samples} private answers equal the integer "
            "model's in every bit."
        )
    else:
        console.print(
            f"[bad]Private = integer: {percent(found.equal / samples, 3)}.[/bad] {samples - found.equal} of {samples} "
            "private answers differ from the integer model's. This must never happen: please report it."
        )
    if not outcome.as_declared:
        console.print("[bad]Bytes differ from what the plan declared.[/bad] Please report it.")


def _times(outcome: KeyedOutcome) -> Table:
    ledger, before, own = outcome.ledger, outcome.plain, outcome.own
    queries = counted(ledger.queries, "query", "queries")
    made = table(
        f"Accuracy and time, {outcome.samples} samples in {queries}",
        [""],
        ["accuracy", "time", "per sample", "x float32", "x integer"],
    )
    rows = [
        ("float32 network", before.float_accuracy, before.float32_seconds),
        ("integer model, in the open", before.integer_accuracy, before.integer_seconds),
        ("private, on the server", outcome.private_accuracy, ledger.online_seconds),
        ("the client: making keys, once", None, own.key_seconds),
        ("the client: encrypting", None, own.encrypt_seconds),
        ("the client: decrypting", None, own.decrypt_seconds),
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


def _bytes(outcome: KeyedOutcome) -> Table:
    equal = "Measured = declared, to the byte." if outcome.as_declared else "MEASURED DIFFERS FROM DECLARED."
    made = table("Bytes", [""], ["evaluation keys, once", "questions", "answers"], caption=equal)
    for name, figures in (("measured", outcome.measured_bytes), ("declared beforehand", outcome.declared_bytes)):
        made.add_row(name, *(f"{figures[kind]:,}" for kind in ("keys", "questions", "answers")))
    return made


def _parameters(outcome: KeyedOutcome) -> Table:
    """The plan's own account, and what the client found left of the noise budget."""
    rows = Table.grid(padding=(0, 2))
    rows.add_column(no_wrap=True)
    rows.add_column(overflow="fold")
    facts = dict(outcome.facts)
    memory = ", ".join(f"{role} {size(mb * 1e6)}" for role, mb in outcome.peak_rss_mb.items())
    facts["peak memory"] = f"{memory} (the server with its workers; the client also trained)"
    if outcome.own.noise_left is not None:
        facts["noise left, measured"] = f"{outcome.own.noise_left:.0f} bits in the worst answer"
    for name, value in facts.items():
        rows.add_row(plain(name), plain(value))
    return rows
