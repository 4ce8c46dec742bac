"""``pqi audit-protocol``: transcripts tested for leakage, and a deployment asked whether anything shows the input."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from pqi.cli.options import DebugOption, JsonOption
from pqi.cli.screen import err, out, plain, table, write_json
from protocols.errors import BadParameters

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pqi.audit.deployment import Comparison
    from pqi.audit.transcripts import Check, Verdict


def audit_protocol(
    protocol: Annotated[
        list[str] | None,
        typer.Option(
            "--protocol",
            metavar="NAME",
            help="Test this one's transcripts, in this process: additive2, clear, paillier, bfv, ckks, or a sum such "
            "as sum:pairwise. Repeatable.",
            show_default="all that are installed but sum:paillier, which takes minutes; with --config, none",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="client.toml",
            help="Also ask this deployment, with two kinds of inputs in turns.",
            show_default=False,
        ),
    ] = None,
    runs: Annotated[int, typer.Option(min=48, help="Transcripts of each experiment.")] = 100,
    questions: Annotated[int, typer.Option(min=8, help="Questions of each kind to the deployment.")] = 40,
    json_file: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    """Test whether what a role sees depends on what it must not learn.

    Transcripts: every message uniform, also to a server whose keys and shares are fixed and known; lengths and order
    the same for all inputs and weights; on a tiny program, every view of one input found again with another. Of
    ciphertexts and of sums: two inputs look alike, and no message comes twice. clear, which hides nothing, must be
    caught. A deployment: bytes and exchanges the same for all questions, times alike.
    Exit status 1 if anything is not as claimed. Passing is no proof; failing is one.
    """
    from pqi.audit import sealed
    from pqi.audit.deployment import compare

    wanted = protocol or ([] if config is not None else [name for name in sealed.names() if name not in sealed.SLOW])
    compared, console = None, err()
    columns = (TextColumn("{task.description}"), BarColumn(40), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        verdicts = _verdicts(wanted, bool(protocol), runs, bar)
        if config is not None:
            compared = compare(config, questions, progress=partial(_tell, bar, bar.add_task("asking", total=None)))
    for verdict in verdicts:
        _show_verdict(verdict)
    if compared is not None:
        _show_comparison(compared)
    facts = {"protocols": [v.as_json() for v in verdicts], "deployment": compared and compared.as_json()}
    write_json(json_file, facts)
    if not all(v.passed for v in verdicts) or (compared is not None and not compared.passed):
        raise typer.Exit(1)


def _verdicts(wanted: Sequence[str], named: bool, runs: int, bar: Progress) -> list[Verdict]:
    """Of each; what is not installed is left out with a word, unless it was named."""
    from pqi.audit import sealed

    verdicts = []
    for name in dict.fromkeys(wanted):
        try:
            verdicts.append(sealed.audited(name, runs, partial(_tell, bar, bar.add_task(name, total=None))))
        except BadParameters as error:
            if named:
                raise
            err().print(f"Left out: {plain(name)}: {plain(str(error))}", style="soft")
    return verdicts


def _tell(bar: Progress, task: TaskID, done: int, of: int) -> None:
    bar.update(task, completed=done, total=of)


def _show_verdict(verdict: Verdict) -> None:
    console = out()
    claim = f"against: {verdict.adversary}" if verdict.claims else "claims no secrecy, and has to be caught"
    console.print(f"[title]{verdict.protocol}[/title]  {plain(claim)}; {verdict.runs} runs of each experiment")
    console.print(_checks(verdict.checks))
    words = {
        (True, True): "Nothing found that depends on input or weights.",
        (True, False): "[bad]What a role sees is not what was claimed.[/bad]",
        (False, True): "Caught, as it should be: the checks can fail.",
        (False, False): "[bad]Plaintext passed for uniform: the checks cannot be trusted.[/bad]",
    }
    console.print(words[verdict.claims, verdict.passed])
    console.print()


def _show_comparison(compared: Comparison) -> None:
    console = out()
    console.print(
        f"[title]deployment[/title]  protocol {compared.protocol}, {compared.questions} questions of each kind"
    )
    console.print(_checks(compared.checks))
    fine = "Nothing found that depends on the input."
    console.print(fine if compared.passed else "[bad]What can be counted or timed depends on the input.[/bad]")


def _checks(checks: Sequence[Check]) -> object:
    made = table("", ["check", "role", "held", "seen"], ["p"])
    for check in checks:
        p = "exact" if check.p is None else f"{check.p:.2g}"
        made.add_row(check.name, check.role, "yes" if check.passed else "no", plain(check.seen), p)
    return made
