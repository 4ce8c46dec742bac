"""``pqi audit``: what quantization did to a network's security, attacked, measured and judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from pqi.cli.guard import FAILED, CliError
from pqi.cli.options import DebugOption, JsonOption, ModelArgument
from pqi.cli.report import can_be_drawn
from pqi.cli.screen import err, out, plain, table, write_json

if TYPE_CHECKING:
    from pqi.audit.case import Case, Data
    from pqi.audit.plan import Wish
    from pqi.audit.run import Audit

ATTENTION = 3
"""The exit status that says: the audit was made, and something needs attention."""
_STYLES = {"clean": "good", "attention": "bad", "not judged": "warn"}


def _known_attacks(names: str | None) -> str | None:
    if names is not None:
        from pqi.audit.plan import KINDS

        for name in names.split(","):
            if name.strip() not in KINDS:
                raise typer.BadParameter(f"there is no attack {name.strip()!r}; choose from {', '.join(KINDS)}")
    return names


FloatOption = Annotated[
    str,
    typer.Option(
        "--float",
        metavar="NET",
        help="The network that M.pqi was made of: net.pt2 or package.module:function.",
        show_default=False,
    ),
]
DataOption = Annotated[
    Path,
    typer.Option(
        metavar="D.npz",
        help="Arrays x (N, ...) and labels y (N,) that the network was not trained on; groups (N,), if given, are "
        "compared; x_train and y_train, if given, are what it was trained on.",
        show_default=False,
    ),
]
RangeOption = Annotated[
    tuple[float, float],
    typer.Option("--range", metavar="LOW HIGH", help="What an input's values can be; altered inputs stay inside."),
]
BudgetOption = Annotated[
    float | None,
    typer.Option(metavar="MINUTES", help="In all; shared out among the attacks.", show_default="10; quick: 1.25"),
]
AttacksOption = Annotated[
    str | None,
    typer.Option(
        metavar="A,B", callback=_known_attacks, help="Only these attacks, by name.", show_default="all that serve"
    ),
]
SamplesOption = Annotated[
    int | None,
    typer.Option(min=1, help="Examples an attack is measured on.", show_default="what the minutes allow, at most 500"),
]
QueriesOption = Annotated[
    int | None,
    typer.Option(min=1, help="Questions an example.", show_default="what the minutes allow, at most 1000"),
]
EpsilonOption = Annotated[
    list[float] | None,
    typer.Option(
        "--epsilon",
        metavar="E",
        min=0.0,
        max=1.0,
        help="A strength of altered inputs, as a share of the range; give it once for each.",
        show_default="1/255 to 16/255",
    ),
]
ReportOption = Annotated[
    Path | None,
    typer.Option(
        "--report",
        metavar="FILE.html",
        dir_okay=False,
        callback=can_be_drawn,
        help="Write a page with verdicts, pictures and how to make each figure again.",
    ),
]
FolderOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="DIR", file_okay=False, help="Write audit.json and audit.html there."),
]


def audit(
    model: ModelArgument,
    floating: FloatOption,
    data: DataOption,
    value_range: RangeOption = (0.0, 1.0),
    budget: BudgetOption = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer attacks, examples and questions.")] = False,
    attacks: AttacksOption = None,
    samples: SamplesOption = None,
    queries: QueriesOption = None,
    epsilon: EpsilonOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Of every draw.")] = 0,
    json_file: JsonOption = None,
    report: ReportOption = None,
    output: FolderOption = None,
    debug: DebugOption = False,
) -> None:
    """Attack a quantized model and its float network, and judge what quantization changed.

    Families: fidelity, adversarial, backdoor, bit flips, privacy, fairness. Each gets a verdict by a stated rule:
    clean, attention, or not judged. Exit status 0: nothing needs attention; 3: something does; 1: nothing could be
    judged, or an attack failed. NET is code, as for pqi quantize.
    """
    from pqi.audit.plan import Wish
    from pqi.audit.run import audit as audited

    if output is not None:
        output.mkdir(exist_ok=True)
        report, json_file = report or can_be_drawn(output / "audit.html"), json_file or output / "audit.json"
    names = None if attacks is None else tuple(name.strip() for name in attacks.split(","))
    wish = Wish(budget, quick, names, seed, samples, queries, tuple(sorted(set(epsilon))) if epsilon else None)
    case = _case(model, floating, data, value_range)
    with _bar() as say:
        found = audited(case, wish, say)
    _write(
        found, _command(model, floating, data, value_range, wish), _sources(model, floating, data), json_file, report
    )
    show(found)
    if report is not None:
        out().print(f"Wrote {plain(str(report))}.", soft_wrap=True)
    if found.status == "attention":
        raise typer.Exit(ATTENTION)
    if found.status != "clean" or found.failed:
        raise typer.Exit(FAILED)


def _case(model: Path, floating: str, data: Path, value_range: tuple[float, float]) -> Case:
    from pqi.audit.case import Case
    from pqi.audit.exported import as_module
    from pqi.cli.loading import load_network
    from pqi.graph.model import IntegerModel
    from pqi.graph.store import load

    integers = load(model)
    if not isinstance(integers, IntegerModel):
        raise CliError(f"{model} is a polynomial model; an audit is of the integer models that pqi quantize writes.")
    test, train = load_data(data, value_range)
    low, high = value_range
    return Case(as_module(load_network(floating)), integers, test, train, model.name, low, high)


def load_data(path: Path, value_range: tuple[float, float]) -> tuple[Data, Data | None]:
    """Test and, if the file has them, training examples. Raises CliError that says which array is wrong."""
    from pqi.cli.loading import load_arrays

    arrays = load_arrays(path)
    for name in ("x", "y"):
        if name not in arrays:
            held = ", ".join(sorted(filter(None, arrays))) or "one array without a name"
            raise CliError(
                f"{path} holds {held}; an audit needs x (inputs) and y (labels), and takes groups, x_train and "
                "y_train. numpy.savez(path, x=inputs, y=labels) writes them."
            )
    if ("x_train" in arrays) != ("y_train" in arrays):
        raise CliError(f"{path} holds one of x_train and y_train: membership is tested with both.")
    test = _labelled(path, arrays, "x", "y", value_range)
    train = _labelled(path, arrays, "x_train", "y_train", value_range) if "x_train" in arrays else None
    return test, train


def _labelled(path: Path, arrays: dict[str, Any], x_name: str, y_name: str, value_range: tuple[float, float]) -> Data:
    import numpy as np

    from pqi.audit.case import Data

    x, y = arrays[x_name], arrays[y_name]
    groups = arrays.get("groups") if x_name == "x" else None
    for name, column in ((y_name, y), ("groups", groups)):
        if column is not None and (column.ndim != 1 or len(column) != len(x) or column.dtype.kind not in "iu"):
            raise CliError(
                f"{path}: {name} has shape {column.shape} and dtype {column.dtype}; it must hold {len(x)} integers, "
                f"one for each input in {x_name}."
            )
    if x.dtype.kind not in "fiu":
        raise CliError(f"{path}: {x_name} has dtype {x.dtype}; inputs are numbers.")
    low, high = value_range
    if len(x) and (x.min() < low - 1e-6 or x.max() > high + 1e-6):
        raise CliError(
            f"{path}: {x_name} runs from {x.min():.4g} to {x.max():.4g}, outside --range {low:g} {high:g}. Altered "
            "inputs must stay where real ones can be, so the range is declared and not guessed: give the least and the "
            "greatest value that an input of yours can have, such as --range -1 1."
        )
    whole = None if groups is None else groups.astype(np.int64)
    return Data(x.astype(np.float64), y.astype(np.int64), whole)


def _command(model: Path, floating: str, data: Path, value_range: tuple[float, float], wish: Wish) -> list[str]:
    """The command line that asks for the same, settings spelled out."""
    line = ["pqi", "audit", str(model), "--float", floating, "--data", str(data), "--range", *map(str, value_range)]
    line += ["--quick"] if wish.quick else []
    given = {"--budget": wish.minutes, "--samples": wish.samples, "--queries": wish.queries, "--seed": wish.seed}
    for name, value in given.items():
        line += [] if value is None else [name, str(value)]
    for strength in wish.strengths or ():
        line += ["--epsilon", str(strength)]
    return line + (["--attacks", ",".join(wish.attacks)] if wish.attacks else [])


def _sources(model: Path, floating: str, data: Path) -> dict[str, Any]:
    import hashlib

    files = {"model": model, "data": data, **({"network": Path(floating)} if floating.endswith(".pt2") else {})}
    known = {what: f"{path}, SHA-256 {hashlib.sha256(path.read_bytes()).hexdigest()}" for what, path in files.items()}
    return {"network": floating, **known}


def _write(
    found: Audit, command: list[str], sources: dict[str, Any], json_file: Path | None, report: Path | None
) -> None:
    if json_file is not None:
        from pqi.audit.report.record import record

        write_json(json_file, record(found, command, sources))
    if report is not None:
        from pqi.audit.report.page import write_html

        write_html(report, found, command, sources)


@contextmanager
def _bar() -> Iterator[Callable[[str, float], None]]:
    """A bar on standard error, on a terminal; yields what moves it."""
    console = err()
    columns = (TextColumn("Auditing"), BarColumn(40), TaskProgressColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda name, share: bar.update(task, completed=share, description=name)


def show(found: Audit) -> None:
    """Verdicts, what was run, and why the rest was not."""
    from pqi.audit.plan import ASKS

    console = out()
    rows = table(f"Audit of {plain(found.name)}", ["family", "verdict", "what was seen"])
    for verdict in found.verdicts:
        rows.add_row(verdict.family, f"[{_STYLES[verdict.status]}]{verdict.status}[/]", plain(verdict.says))
    console.print(rows)
    made = [run for run in found.runs if run.findings]
    if made:
        figures = table("\nWhat was run", ["attack"], ["examples", "questions", "seconds"])
        for run in made:
            budget = run.budget
            asked = f"{budget.queries:,}" if budget is not None and run.attack in ASKS else ""
            figures.add_row(run.attack, "" if budget is None else f"{budget.samples:,}", asked, f"{run.seconds:.1f}")
        console.print(figures)
    reasons: dict[tuple[str, bool], list[str]] = {}
    for run in found.runs:
        if run.reason:
            reasons.setdefault((run.reason, run.failed), []).append(run.attack)
    for (reason, failed), names in reasons.items():
        console.print(f"[{'bad' if failed else 'soft'}]Not made: {', '.join(names)}: {plain(reason)}[/]")
    ending = {
        "clean": "[good]Nothing that was looked at needs attention.[/] The intervals say what could still hide.",
        "attention": "[bad]Something needs attention.[/]",
        "not judged": "[warn]Nothing could be judged.[/]",
    }
    console.print(f"\n{ending[found.status]} Seed {found.wish.seed}, {found.seconds:.0f} s.")
