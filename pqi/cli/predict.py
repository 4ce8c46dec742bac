"""``pqi predict``: ask a deployment privately."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from pqi.cli.options import DebugOption, JsonOption
from pqi.cli.screen import counted, duration, err, out, plain, shape, size, table, write_json

if TYPE_CHECKING:
    from pqi.session.client import Answer
    from pqi.session.ledger import OwnLedger

_ROWS, _VALUES = 10, 6


def predict(
    config: Annotated[
        Path, typer.Option("--config", metavar="client.toml", help="The client's configuration.", show_default=False)
    ],
    input_file: Annotated[Path, typer.Option("--input", metavar="X.npy", help="Inputs (N, ...).", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="answer.npy", help="Write the answers here.")
    ] = None,
    own_server: Annotated[
        Path | None,
        typer.Option(
            metavar="BUNDLE",
            help="Run server B here, from its folder: for weights that server A owns.",
            show_default=False,
        ),
    ] = None,
    json_file: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    """Ask privately: the input leaves this machine only as shares, none of which says anything about it, or encrypted.

    With --own-server this command is server B as well, while it runs: client and model owner compute with each other,
    and the dealer has dealt beforehand. It listens where the split says, or waits for a dealer that has yet to come.
    Under paillier, bfv and ckks the keys are made anew for this command and never leave it.
    """
    import numpy as np

    from pqi.cli.guard import CliError
    from pqi.cli.loading import load_input
    from pqi.session.client import Client

    x = load_input(input_file)
    if output is not None and not output.absolute().parent.is_dir():
        raise CliError(f"{output}: there is no folder {output.absolute().parent} to write it to.")
    columns = (TextColumn("Asking"), BarColumn(40), MofNCompleteColumn())
    console = err()
    with (
        Client(config, own_server=own_server) as client,
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar,
    ):
        task = bar.add_task("", total=len(x))
        answer = client.predict(x, progress=lambda done, total: bar.update(task, completed=done, total=total))
        exact, noise = client.program.exact, getattr(client.program, "noise", 0)
    if output is not None:
        with output.open("wb") as file:
            np.save(file, answer.values, allow_pickle=False)
    _show(answer, output, exact, noise)
    integers = None if answer.integers is None else answer.integers.tolist()
    facts = {"values": answer.values.tolist(), "integers": integers, "exact": exact, "error_bound": answer.error_bound}
    facts["noise"] = noise
    write_json(json_file, {**facts, "output": str(output) if output else None, "ledger": answer.ledger.to_json()})


def _show(answer: Answer, output: Path | None, exact: bool, noise: int) -> None:
    console, ledger = out(), answer.ledger
    console.print(_answers(answer))
    costs = Table.grid(padding=(0, 2))
    costs.add_row("asked", f"{counted(ledger.samples, 'input')} in {counted(ledger.queries, 'query', 'queries')}")
    costs.add_row("time", f"{duration(ledger.seconds)} in all, {duration(ledger.online_seconds)} of it online")
    sent = sum(party.client_received for party in ledger.parties.values())
    received = sum(party.client_sent for party in ledger.parties.values())
    costs.add_row("this client", f"sent {size(sent)}, received {size(received)}")
    if ledger.own is None:
        between = sum(ledger.online_bytes.values())
        costs.add_row("the servers", f"{size(between)} between them in {counted(ledger.exchanges, 'exchange')}")
        costs.add_row("beforehand", f"{size(sum(ledger.offline_bytes.values()))} dealt")
    else:
        _under_a_key(costs, ledger.own)
    costs.add_row("answers", _exactness(answer, exact, noise))
    console.print(costs)
    if output is not None:
        console.print(f"Wrote {plain(str(output))}: float64 ({shape(answer.values.shape)}).")


def _under_a_key(costs: Table, own: OwnLedger) -> None:
    """What the client did with its keys, and what was left of the noise budget."""
    costs.add_row("keys", f"{size(own.key_bytes)} of evaluation keys sent, made in {duration(own.key_seconds)}")
    costs.add_row(
        "ciphertexts", f"{duration(own.encrypt_seconds)} to encrypt, {duration(own.decrypt_seconds)} to decrypt"
    )
    if own.noise_left is not None:
        costs.add_row("noise", f"{own.noise_left:.0f} bits of its budget left in the worst answer")


def _exactness(answer: Answer, exact: bool, noise: int) -> str:
    if exact:
        return "exact: equal to the integer model"
    if noise:
        return f"with noise: no value is further than {answer.error_bound:.3g} from the integer model's"
    if answer.ledger.own is None:
        return "stochastic rounding: close, not exact"
    return f"approximate: no value is further than {answer.error_bound:.3g} from the integer model's"


def _answers(answer: Answer) -> Table:
    """The first answers: the top class where an answer is a vector, else its first values."""
    values = answer.values
    more = f"{len(values) - _ROWS} more" if len(values) > _ROWS else ""
    if values.ndim == 2 and values.shape[1] > 1:
        made = table("Answers", [], ["input", "top class", "value", "next class", "value"], caption=more)
        for i, row in enumerate(values[:_ROWS]):
            order = row.argsort()[::-1]
            first, second = int(order[0]), int(order[1])
            made.add_row(str(i), str(first), f"{row[first]:.4g}", str(second), f"{row[second]:.4g}")
        return made
    made = table("Answers", [], ["input"], caption=more)
    made.add_column(f"values ({shape(values.shape[1:])})")
    for i, row in enumerate(values[:_ROWS]):
        flat: list[Any] = [f"{v:.4g}" for v in row.reshape(-1)[:_VALUES]]
        made.add_row(str(i), " ".join(flat) + (" ..." if row.size > _VALUES else ""))
    return made
