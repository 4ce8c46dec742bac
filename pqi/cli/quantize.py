"""``pqi quantize``: a trained network and typical inputs -> an exact integer model in a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from pqi.cli.guard import CliError
from pqi.cli.options import Activations, DebugOption, Ends, JsonOption, Observer, Rings, Weights
from pqi.cli.report import Reporter, ReportOption
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
WeightBitsOption = Annotated[int, typer.Option(min=1, max=12, help="Bits of a weight; ternary and binary know theirs.")]
WeightsOption = Annotated[Weights, typer.Option(help="Which integers a weight may be, times a factor per channel.")]
ActivationBitsOption = Annotated[int, typer.Option(min=1, max=12, help="Bits of the codes between layers.")]
ActivationsOption = Annotated[
    Activations, typer.Option(help="Which values those codes stand for; all but uniform are tables.")
]
ObserverOption = Annotated[Observer, typer.Option(help="How ranges are chosen from what the typical inputs show.")]
PercentileOption = Annotated[
    float, typer.Option(min=50.0, max=100.0, help="For --observer percentile: the share of values that keep codes.")
]
IndexBitsOption = Annotated[
    int | None,
    typer.Option(
        min=2,
        max=16,
        help="With --rings calibrated: accumulators have so many bits above the shift, by definition. 2 more than "
        "--activation-bits are usually enough.",
        show_default="from the data",
    ),
]
EndsOption = Annotated[Ends, typer.Option(help="Weights of the first and the last layer: as all, or 8 bits.")]
LayerOption = Annotated[
    list[str] | None,
    typer.Option(
        "--layer",
        metavar="NAME:FIELD=VALUE",
        help="One layer's own setting, e.g. conv1:weight_bits=8. Repeatable. Fields are these options, with _ for -.",
        show_default=False,
    ),
]
EqualizeOption = Annotated[bool, typer.Option("--equalize", help="Share out channels' ranges between layers first.")]
CorrectionOption = Annotated[
    bool, typer.Option("--bias-correction", help="Take each channel's mean error back through its bias.")
]
RoundingOption = Annotated[
    bool, typer.Option("--learned-rounding", help="Learn which of its two nearest levels a weight takes (slow).")
]
DynamicOption = Annotated[
    bool, typer.Option("--dynamic", help="Each input gets a scale of its own, which only its client knows.")
]
QuieterOption = Annotated[
    int | None,
    typer.Option(
        min=2,
        max=4095,
        help="As --dynamic, for inputs up to so many times quieter than the loudest.",
        show_default="from the data",
    ),
]
RingsOption = Annotated[
    Rings, typer.Option(help="proven: no input can wrap. calibrated: narrower, mod 2^k by definition.")
]

AnswersOption = Annotated[
    str,
    typer.Option(
        metavar="POLICY",
        help="What a client is told, computed inside the protocol: scores, label, top:K (the K best, without order), "
        "ranked:K (in order), rounded:BITS, noisy:S (noise of standard deviation S on every integer, which the dealer "
        "draws; not exact any more).",
    ),
]
DefenceOption = Annotated[
    list[str] | None,
    typer.Option(
        "--defence",
        metavar="NAME[:FIELD=NUMBER,...]",
        help="Against an attack on quantization, such as re-rounding. Repeatable, made in this order.",
        show_default=False,
    ),
]


def quantize(
    model: NetworkArgument,
    calibration: CalibrationOption,
    output: OutputOption,
    weight_bits: WeightBitsOption = 8,
    weights: WeightsOption = Weights.SYMMETRIC,
    activation_bits: ActivationBitsOption = 6,
    activations: ActivationsOption = Activations.UNIFORM,
    input_bits: Annotated[int, typer.Option(min=1, max=12, help="Bits of the client's codes.")] = 8,
    dynamic: DynamicOption = False,
    quieter: QuieterOption = None,
    observer: ObserverOption = Observer.PERCENTILE,
    percentile: PercentileOption = 99.99,
    index_bits: IndexBitsOption = None,
    ends: EndsOption = Ends.SAME,
    layer: LayerOption = None,
    equalize: EqualizeOption = False,
    bias_correction: CorrectionOption = False,
    learned_rounding: RoundingOption = False,
    rings: RingsOption = Rings.PROVEN,
    margin_bits: Annotated[int, typer.Option(min=0, max=16, help="Bits above what calibration saw.")] = 1,
    max_ring: Annotated[int, typer.Option(min=1, max=32, help="Refuse rings wider than this.")] = 32,
    answers: AnswersOption = "scores",
    defence: DefenceOption = None,
    report_file: ReportOption = None,
    json_file: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    """Turn a trained network into an exact integer model.

    MODEL is code: it is loaded with your rights, so open only what you trust. The result, M.pqi, holds numbers only.
    """
    from pqi.audit.defences.defence import chosen as defences_of
    from pqi.audit.defences.outputs import policy_of
    from pqi.cli.loading import load_calibration, load_network
    from pqi.quant import quantize as quantized

    if not output.absolute().parent.is_dir():
        raise CliError(f"{output}: there is no folder {output.absolute().parent} to write it to.")
    layers, policy, defences = layer_fields(layer or []), policy_of(answers), defences_of(defence or [])
    x, labels = load_calibration(calibration)
    network = load_network(model)
    reporter = Reporter(report_file)
    chosen: dict[str, Any] = {"ends": ends.value, "layers": layers, "input_bits": input_bits, "index_bits": index_bits}
    chosen |= {"weights": weights.value, "activations": activations.value, "dynamic": quieter or dynamic}
    chosen |= {"observer": observer.value, "percentile": percentile, "equalize": equalize}
    chosen |= {"bias_correction": bias_correction, "learned_rounding": learned_rounding}
    chosen |= {"rings": rings.value, "margin_bits": margin_bits, "max_ring": max_ring, "answers": policy}
    chosen["defences"] = defences
    with _bar() as progress:
        made = quantized(network, x, weight_bits, activation_bits, **chosen, progress=progress, look=reporter.look)
    facts: dict[str, Any] = {"model": model, "output": str(output)}
    if labels is not None:
        facts |= _accuracies(network, made, x, labels)
    made.save(output)
    facts["bytes"] = output.stat().st_size
    report = made.report(x if rings is Rings.CALIBRATED else None)
    _show(facts, report)
    compared = reporter.write(x, labels, report, model)
    write_json(json_file, {**facts, "report": report.to_dict(), "comparison": compared and compared.to_dict()})


def _accuracies(network: Any, made: Any, x: Any, labels: Any) -> dict[str, Any]:
    from pqi.cli.accuracy import accuracies

    before, after = accuracies(network, made, x, labels)
    return {"samples": len(x), "float_accuracy": before, "integer_accuracy": after}


def layer_fields(settings: list[str]) -> dict[str, dict[str, Any]]:
    """{layer: {field: value}} of settings NAME:FIELD=VALUE. Whether there is such a layer, the network will tell.

    Raises CliError on another form, an unknown field, or a value of the wrong kind.
    """
    from pqi.quant.scheme import FIELD_TYPES

    found: dict[str, dict[str, Any]] = {}
    for setting in settings:
        place, equals, text = setting.partition("=")
        name, colon, field = place.rpartition(":")
        if not (name and colon and field and equals and text):
            raise CliError(f"--layer {setting!r}: NAME:FIELD=VALUE is needed, such as conv1:weight_bits=8.")
        if field not in FIELD_TYPES:
            raise CliError(f"--layer {setting!r}: there is no field {field!r}; choose from {', '.join(FIELD_TYPES)}.")
        if field in found.setdefault(name, {}):
            raise CliError(f"--layer {setting!r}: {field} of {name!r} is given twice.")
        try:
            found[name][field] = _VALUES[FIELD_TYPES[field]](text)
        except (KeyError, ValueError):
            wanted = {"int": "a whole number", "float": "a number", "bool": "true or false"}[FIELD_TYPES[field]]
            raise CliError(f"--layer {setting!r}: {field} must be {wanted}.") from None
    return found


_VALUES: dict[str, Callable[[str], Any]] = {
    "int": int,
    "float": float,
    "str": str,
    "bool": lambda text: {"true": True, "false": False}[text.lower()],
}


@contextmanager
def _bar() -> Iterator[Callable[[int, int | None], None]]:
    """A bar on standard error, on a terminal; yields what moves it.

    A count that falls begins the next stage. A stage that does not know how much there is shows what is done.
    """
    console = err()
    columns = (TextColumn("{task.description}"), BarColumn(40), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task, before = bar.add_task("Calibrating", total=None), 0

        def move(done: int, total: int | None) -> None:
            nonlocal task, before
            if done < before:
                bar.remove_task(task)
                task = bar.add_task("Learning rounding", total=None)
            before = done
            bar.update(task, completed=done, total=total)

        yield move


def _show(facts: dict[str, Any], report: Report) -> None:
    console = out()
    console.print(report)
    if "float_accuracy" in facts:
        console.print(
            f"On these {facts['samples']:,} inputs: float accuracy {percent(facts['float_accuracy'])}, "
            f"integer accuracy {percent(facts['integer_accuracy'])}{', without the noise' if report.noise else ''}."
        )
    name = plain(facts["output"])
    console.print(f"Wrote {name} ({size(facts['bytes'])}). Next: pqi inspect {name}", soft_wrap=True)
