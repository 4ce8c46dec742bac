"""``pqi quantize``: a trained network and typical inputs -> an exact integer model in a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from pqi.cli.guard import CliError
from pqi.cli.options import DebugOption, JsonOption, Rings
from pqi.cli.screen import err, out, percent, plain, size, write_json

if TYPE_CHECKING:
    from pqi.graph.report import Report

NetworkArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="An exported program (net.pt2), or package.module:function that returns a torch module.",
        show_default=False,
    ),
]
CalibrationOption = Annotated[
    Path,
    typer.Option(
        metavar="X.npz",
        help="Typical inputs: array x (N, ...); integer labels y, if given, measure accuracy.",
        show_default=False,
    ),
]
OutputOption = Annotated[
    Path, typer.Option("--output", "-o", metavar="M.pqi", help="Where the model goes.", show_default=False)
]
PercentileOption = Annotated[
    float, typer.Option(min=50.0, max=100.0, help="Of activations, where codes saturate; 100: the largest seen.")
]
RingsOption = Annotated[
    Rings, typer.Option(help="proven: no input can wrap. calibrated: narrower, mod 2^k by definition.")
]


def quantize(
    model: NetworkArgument,
    calibration: CalibrationOption,
    output: OutputOption,
    weight_bits: Annotated[int, typer.Option(min=2, max=12, help="Bits of a weight.")] = 8,
    activation_bits: Annotated[int, typer.Option(min=1, max=12, help="Bits of the codes between layers.")] = 6,
    input_bits: Annotated[int, typer.Option(min=1, max=12, help="Bits of the client's codes.")] = 8,
    percentile: PercentileOption = 99.99,
    rings: RingsOption = Rings.PROVEN,
    margin_bits: Annotated[int, typer.Option(min=0, max=16, help="Bits above what calibration saw.")] = 1,
    max_ring: Annotated[int, typer.Option(min=1, max=32, help="Refuse rings wider than this.")] = 32,
    json_file: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    """Turn a trained network into an exact integer model.

    MODEL is code: it is loaded with your rights, so open only what you trust. The result, M.pqi, holds numbers only.
    """
    from pqi.cli.loading import load_calibration, load_network
    from pqi.quant import quantize as quantized

    if not output.absolute().parent.is_dir():
        raise CliError(f"{output}: there is no folder {output.absolute().parent} to write it to.")
    x, labels = load_calibration(calibration)
    network = load_network(model)
    with _bar() as progress:
        made = quantized(
            network,
            x,
            weight_bits,
            activation_bits,
            input_bits=input_bits,
            percentile=None if percentile == 100 else percentile,
            rings=rings.value,
            margin_bits=margin_bits,
            max_ring=max_ring,
            progress=progress,
        )
    facts: dict[str, Any] = {"model": model, "output": str(output)}
    if labels is not None:
        from pqi.cli.accuracy import accuracies

        facts["samples"] = len(x)
        facts["float_accuracy"], facts["integer_accuracy"] = accuracies(network, made, x, labels)
    made.save(output)
    facts["bytes"] = output.stat().st_size
    report = made.report(x if rings is Rings.CALIBRATED else None)
    _show(facts, report)
    write_json(json_file, {**facts, "report": report.to_dict()})


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, on a terminal; yields what moves it."""
    console = err()
    columns = (TextColumn("Calibrating"), BarColumn(40), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _show(facts: dict[str, Any], report: Report) -> None:
    console = out()
    console.print(report)
    if "float_accuracy" in facts:
        console.print(
            f"On these {facts['samples']:,} inputs: float accuracy {percent(facts['float_accuracy'])}, "
            f"integer accuracy {percent(facts['integer_accuracy'])}."
        )
    name = plain(facts["output"])
    console.print(f"Wrote {name} ({size(facts['bytes'])}). Next: pqi inspect {name}", soft_wrap=True)
