"""``pqi tune``: the cheapest program within an accuracy budget, and the trade-off curve."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from pqi.cli.guard import CliError
from pqi.cli.options import (
    DebugOption,
    JsonOption,
    Network,
    Rings,
    Rounding,
    ShareProtocolOption,
)
from pqi.cli.quantize import CalibrationOption, NetworkArgument, OutputOption
from pqi.cli.screen import counted, duration, err, out, percent, plain, size, write_json

if TYPE_CHECKING:
    from pqi.tuning.api import Tuned
    from pqi.tuning.search import State

ValidationOption = Annotated[
    Path,
    typer.Option(
        metavar="V.npz",
        help="Labelled inputs x (N, ...) and y (N,) that the network was not trained on; some thousand.",
        show_default=False,
    ),
]
TestOption = Annotated[
    Path | None,
    typer.Option(metavar="T.npz", help="Others, for the final figure: the choice was not made on them."),
]
DropOption = Annotated[float, typer.Option(min=0.0, max=100.0, help="Points of accuracy that may be lost.")]
ErrorsOption = Annotated[
    float, typer.Option(min=0.0, max=10.0, help="Standard errors that count with a loss before it is compared.")
]
HeldBackOption = Annotated[
    float, typer.Option(min=0.0, max=0.9, help="Share of V that the search does not see and that confirms its choice.")
]
ObjectiveOption = Annotated[
    str,
    typer.Option(
        metavar="QUANTITY",
        help="offline_bytes, online_bytes, exchanges or seconds; or a sum: offline_bytes=1,exchanges=500.",
    ),
]
ProfileOption = Annotated[
    Network, typer.Option(help="Between the servers. lan: 1 Gbit/s, 1 ms. wan: 100 Mbit/s, 40 ms, fewest exchanges.")
]
RingsOption = Annotated[
    Rings, typer.Option(help="calibrated also allows narrower rings, which are arithmetic mod 2^k by definition.")
]
RoundingOption = Annotated[
    Rounding, typer.Option(help="stochastic also allows shifts that are cheaper and not bit-exact.")
]
WeightsOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KIND", help="Kinds of weight levels allowed; give it once for each.", show_default="symmetric"
    ),
]
LearnedOption = Annotated[
    bool, typer.Option("--learned-rounding", help="Also try learned rounding, on what nearly fits (slow).")
]
PictureOption = Annotated[
    Path | None, typer.Option(metavar="FILE", dir_okay=False, help="Draw the curve: .png, .svg or .pdf.")
]


def tune(
    model: NetworkArgument,
    calibration: CalibrationOption,
    validation: ValidationOption,
    output: OutputOption,
    test: TestOption = None,
    accuracy_drop: DropOption = 0.5,
    standard_errors: ErrorsOption = 2.0,
    held_back: HeldBackOption = 0.5,
    objective: ObjectiveOption = "offline_bytes",
    network: ProfileOption = Network.LAN,
    protocol: ShareProtocolOption = "additive2",
    rings: RingsOption = Rings.PROVEN,
    rounding: RoundingOption = Rounding.EXACT,
    weights: WeightsOption = None,
    learned_rounding: LearnedOption = False,
    minutes: Annotated[float, typer.Option(min=0.0, help="Stop after so long; 0: no limit.")] = 5.0,
    evaluations: Annotated[
        int | None, typer.Option(min=1, help="Stop after looking at so many programs.", show_default="no limit")
    ] = None,
    picture: PictureOption = None,
    json_file: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    """Find the cheapest program that loses no more accuracy than you allow.

    Bits of inputs, weights and activations, accumulator units and ranges are searched layer by layer against labelled
    data and the declared cost. Ctrl-C ends the search and keeps the best so far. MODEL is code, as for pqi quantize.
    """
    from pqi.cli.loading import load_calibration, load_network
    from pqi.tuning.api import tune as tuned

    _refuse_unwritable(output, picture)
    held, final = _labelled(validation), None if test is None else _labelled(test)
    x, _ = load_calibration(calibration)
    with _bar() as progress:
        made = tuned(
            load_network(model),
            x,
            held,
            accuracy_drop=accuracy_drop,
            objective=objective,
            network=network.value,
            protocol=protocol,
            test=final,
            rings=rings.value,
            rounding=rounding.value,
            weights=tuple(weights or ("symmetric",)),
            improvements=("bias_correction", *(["learned_rounding"] if learned_rounding else [])),
            standard_errors=standard_errors,
            held_back=held_back,
            minutes=minutes or None,
            evaluations=evaluations,
            progress=progress,
        )
    _deliver(made, model, output, picture, json_file)


def _deliver(made: Tuned, model: str, output: Path, picture: Path | None, json_file: Path | None) -> None:
    """Files first, then the screen."""
    made.save(output)
    if picture is not None:
        made.curve.save_picture(picture)
    _show(made, output, picture)
    drawn = None if picture is None else str(picture)
    files = {"output": str(output), "bytes": output.stat().st_size, "picture": drawn}
    write_json(json_file, {"model": model, **files, **made.to_dict()})


def _refuse_unwritable(output: Path, picture: Path | None) -> None:
    """Found out now rather than after the work."""
    for path in (output, *([] if picture is None else [picture])):
        if not path.absolute().parent.is_dir():
            raise CliError(f"{path}: there is no folder {path.absolute().parent} to write it to.")
    if picture is not None:
        from pqi.tuning.picture import refuse_unless_drawable

        refuse_unless_drawable(picture)


def _labelled(path: Path) -> tuple[Any, Any]:
    from pqi.cli.loading import load_calibration

    x, y = load_calibration(path)
    if y is None:
        raise CliError(
            f"{path} holds no labels y beside the inputs x: accuracy cannot be measured on it. "
            "numpy.savez(path, x=inputs, y=labels) writes both."
        )
    return x, y


@contextmanager
def _bar() -> Iterator[Callable[[State], None]]:
    """A bar on standard error, on a terminal; yields what moves it."""
    console = err()
    columns = (TextColumn("Tuning"), BarColumn(24), TaskProgressColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("calibrating", total=1.0)

        def show(state: State) -> None:
            best = "nothing within the budget yet"
            if state.fitting is not None and state.loss is not None:
                best = f"best {state.fitting:,.6g} at {100 * state.loss:+.2f} points lost"
            words = f"{state.phase}, {counted(state.evaluations, 'program')}; {best}"
            bar.update(task, completed=min(state.share, 1.0), description=words)

        yield show


def _show(made: Tuned, output: Path, picture: Path | None) -> None:
    console = out()
    console.print(made.curve)
    bill, measured = made.bill, made.curve.choice.measured
    console.print(
        f"Chosen after {counted(made.evaluations, 'program')} ({made.ended}): {plain(made.curve.choice.summary)}.\n"
        f"One input: {size(bill.offline_bytes)} dealt, {size(bill.online_bytes)} each way online, {bill.exchanges} "
        f"exchanges, about {duration(bill.seconds)} ({made.curve.network.name})."
    )
    console.print(
        f"Searched on: {percent(measured.accuracy)} of {measured.samples:,}, {100 * measured.drop:+.2f} points lost "
        f"(standard error {100 * measured.drop_error:.2f}); float {percent(made.curve.float_accuracy)}."
    )
    for name, other in (("Held back", made.confirmed), ("Test", made.test)):
        if other is not None:
            console.print(
                f"{name}: {percent(other.accuracy)} of {other.samples:,}, {100 * other.drop:+.2f} points lost "
                f"(standard error {100 * other.drop_error:.2f})."
            )
    if picture is not None:
        console.print(f"Drew {plain(str(picture))}.", soft_wrap=True)
    name = plain(str(output))
    more = f" --network {made.network}" * (made.network != "lan") + f" --rounding {made.rounding}" * (
        made.rounding != "exact"
    )
    console.print(
        f"Wrote {name} ({size(output.stat().st_size)}). Next: pqi split {name} -o bundles{more}", soft_wrap=True
    )
