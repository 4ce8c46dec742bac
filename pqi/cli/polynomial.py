"""``pqi polynomial``: a trained network and its data -> an exact integer model for homomorphic encryption."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from pqi.cli.guard import CliError
from pqi.cli.options import DebugOption, JsonOption
from pqi.cli.quantize import NetworkArgument, OutputOption, layer_fields
from pqi.cli.screen import err, out, percent, plain, size, write_json

if TYPE_CHECKING:
    from pqi.graph.polynomial_report import PolynomialReport


class Activation(str, Enum):
    """What becomes of activations."""

    FITTED = "fitted"
    SQUARE = "square"


DataOption = Annotated[
    Path,
    typer.Option(
        "--calibration",
        metavar="X.npz",
        help="Training inputs: array x (N, ...), and integer labels y; without y the float network is the teacher.",
        show_default=False,
    ),
]
ValidationOption = Annotated[
    Path | None,
    typer.Option(
        metavar="V.npz",
        help="Other inputs x with labels y, to measure accuracy on.",
        show_default="those of --calibration",
    ),
]
ActivationOption = Annotated[
    Activation,
    typer.Option(help="fitted: relu and the like become parabolas. square: the network has none but x * x."),
]
LayerOption = Annotated[
    list[str] | None,
    typer.Option(
        "--layer",
        metavar="NAME:weight_bits=BITS",
        help="One layer's own bits, e.g. fc1:weight_bits=3. Repeatable.",
        show_default=False,
    ),
]
AnswerBitsOption = Annotated[
    int | None,
    typer.Option(
        min=2,
        max=1000,
        help="Train until the answer provably fits so many bits: they are what encryption pays for.",
        show_default="whatever comes",
    ),
]


def polynomial(
    model: NetworkArgument,
    data: DataOption,
    output: OutputOption,
    validation: ValidationOption = None,
    activation: ActivationOption = Activation.FITTED,
    weight_bits: Annotated[int, typer.Option(min=2, max=12, help="Bits of a weight.")] = 5,
    input_bits: Annotated[int, typer.Option(min=1, max=12, help="Bits of the client's codes.")] = 6,
    layer: LayerOption = None,
    answer_bits: AnswerBitsOption = None,
    epochs: Annotated[int, typer.Option(min=2, help="Passes over the training inputs.")] = 40,
    batch: Annotated[int, typer.Option(min=1, help="Inputs of one step.")] = 32,
    learning_rate: Annotated[
        float, typer.Option(min=1e-6, max=1.0, help="Largest change of a weight in a step, relative to its layer's.")
    ] = 0.02,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of the inputs.")] = 0,
    json_file: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    """Turn a trained network into one of squares that bfv and ckks compute, and retrain it.

    MODEL is code: it is loaded with your rights, so open only what you trust. The result, M.pqi, holds numbers only.
    """
    from pqi.cli.accuracy import accuracies
    from pqi.cli.loading import load_calibration, load_network
    from pqi.quant import to_polynomial

    if not output.absolute().parent.is_dir():
        raise CliError(f"{output}: there is no folder {output.absolute().parent} to write it to.")
    layers = layer_fields(layer or [])
    x, labels = load_calibration(data)
    test_x, test_y = (x, labels) if validation is None else load_calibration(validation)
    if validation is not None and test_y is None:
        raise CliError(f"{validation} holds no labels y: accuracy needs them.")
    network = load_network(model)
    chosen: dict[str, Any] = {"activation": activation.value, "weight_bits": weight_bits, "input_bits": input_bits}
    chosen |= {"layers": layers, "answer_bits": answer_bits, "epochs": epochs, "batch": batch}
    with _bar() as progress:
        made = to_polynomial(network, x, labels, **chosen, learning_rate=learning_rate, seed=seed, progress=progress)
    facts: dict[str, Any] = {"model": model, "output": str(output)}
    if test_y is not None:
        facts["samples"], facts["trained_on_them"] = len(test_x), validation is None
        facts["float_accuracy"], facts["integer_accuracy"] = accuracies(network, made, test_x, test_y)
    made.save(output)
    facts["bytes"] = output.stat().st_size
    report = made.report()
    _show(facts, report)
    write_json(json_file, {**facts, "report": report.to_dict()})


@contextmanager
def _bar() -> Iterator[Callable[[int, int | None], None]]:
    """A bar on standard error, on a terminal; yields what moves it."""
    console = err()
    columns = (TextColumn("{task.description}"), BarColumn(40), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("Training", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _show(facts: dict[str, Any], report: PolynomialReport) -> None:
    console = out()
    console.print(report)
    if "float_accuracy" in facts:
        seen = " (which it was trained on)" if facts["trained_on_them"] else ""
        console.print(
            f"On these {facts['samples']:,} inputs{seen}: float accuracy {percent(facts['float_accuracy'])}, "
            f"integer accuracy {percent(facts['integer_accuracy'])}."
        )
    name = plain(facts["output"])
    console.print(f"Wrote {name} ({size(facts['bytes'])}). Next: pqi inspect {name} --protocol bfv", soft_wrap=True)
