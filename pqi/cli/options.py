"""What commands share: options with one meaning everywhere, and how an example is written."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from protocols import CATALOGUE, KEYED


class Network(str, Enum):
    """What a program is planned for."""

    LAN = "lan"
    WAN = "wan"


class Rounding(str, Enum):
    """How accumulators are shifted."""

    EXACT = "exact"
    STOCHASTIC = "stochastic"


class Rings(str, Enum):
    """How rings are chosen."""

    PROVEN = "proven"
    CALIBRATED = "calibrated"


class KnownTo(str, Enum):
    """Who may know a layer's weights."""

    SHARED = "shared"
    OWNED = "owned"
    PUBLIC = "public"


class Weights(str, Enum):
    """Which integers a weight may be."""

    SYMMETRIC = "symmetric"
    AFFINE = "affine"
    TERNARY = "ternary"
    BINARY = "binary"
    POWER_OF_TWO = "power_of_two"
    ADDITIVE = "additive_powers_of_two"
    CODEBOOK = "codebook"


class Activations(str, Enum):
    """Which values the codes between layers stand for."""

    UNIFORM = "uniform"
    POWER_OF_TWO = "power_of_two"
    ADDITIVE = "additive_powers_of_two"
    CODEBOOK = "codebook"


class Observer(str, Enum):
    """How a range is chosen from what calibration saw."""

    MINMAX = "minmax"
    MOVING_AVERAGE = "moving_average"
    PERCENTILE = "percentile"
    MSE = "mse"
    ENTROPY = "entropy"


class Ends(str, Enum):
    """What the first and the last layer get."""

    SAME = "same"
    EIGHT_BITS = "eight_bits"


_PROTOCOLS = (*sorted(CATALOGUE), *KEYED)


def _known_protocol(name: str) -> str:
    if name not in _PROTOCOLS:
        raise typer.BadParameter(f"there is no protocol {name!r}; choose from {', '.join(_PROTOCOLS)}")
    return name


def _share_protocol(name: str) -> str:
    if name in KEYED:
        raise typer.BadParameter(
            f"{name} computes under a client's key, with no rings and no dealt material to make cheaper; choose from "
            f"{', '.join(sorted(CATALOGUE))}"
        )
    return _known_protocol(name)


def chosen(settings: list[str] | None) -> dict[str, int | bool | str]:
    """{name: value} of settings NAME=VALUE; whole numbers, true and false are read as such."""
    found: dict[str, int | bool | str] = {}
    for setting in settings or []:
        name, equals, text = setting.partition("=")
        if not (name and equals and text) or name in found:
            raise typer.BadParameter(f"--option {setting!r}: NAME=VALUE is needed, each name once")
        truth = {"true": True, "false": False}.get(text.lower(), text)
        found[name] = int(text) if text.isdigit() else truth
    return found


def visibility(settings: list[str] | None) -> str | dict[str, str]:
    """The settings of --weights as compilers take them: one for all layers, or {layer: visibility}."""
    found: dict[str, str] = {}
    there_are = [each.value for each in KnownTo]
    for setting in settings or []:
        layer, equals, known_to = setting.rpartition("=")
        layer = layer if equals else "*"
        if known_to not in there_are or not layer or layer in found:
            raise typer.BadParameter(
                f"--weights {setting!r}: one of {', '.join(there_are)}, or LAYER=one of them, each layer once"
            )
        found[layer] = known_to
    return found.get("*", "shared") if set(found) <= {"*"} else found


def _writable(path: Path | None) -> Path | None:
    # Found out now rather than after the work.
    if path is not None and not path.absolute().parent.is_dir():
        raise typer.BadParameter(f"there is no folder {path.absolute().parent}")
    return path


ProtocolOption = Annotated[
    str,
    typer.Option(
        "--protocol",
        metavar=f"[{'|'.join(_PROTOCOLS)}]",
        callback=_known_protocol,
        help="How the model is computed. additive2: two servers and a dealer. paillier, bfv, ckks: one server, under a "
        "key that the client keeps. clear: plaintext, for comparison only.",
    ),
]
ShareProtocolOption = Annotated[
    str,
    typer.Option(
        "--protocol",
        metavar=f"[{'|'.join(sorted(CATALOGUE))}]",
        callback=_share_protocol,
        help="How the model is computed; clear is plaintext, for comparison only.",
    ),
]
OptionOption = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        metavar="NAME=VALUE",
        help="A setting of paillier, bfv or ckks, such as packing=batch. Repeatable.",
        show_default=False,
    ),
]
NetworkOption = Annotated[
    Network,
    typer.Option("--network", help="Plan for 1 Gbit/s and 1 ms (lan) or 100 Mbit/s and 40 ms there and back (wan)."),
]
RoundingOption = Annotated[
    Rounding, typer.Option("--rounding", help="exact equals the integer model; stochastic is cheaper and does not.")
]
WeightsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--weights",
        metavar="[LAYER=]WHO",
        help="Who may know the weights. shared: nobody; owned: server A, which is the model owner's, while server B "
        "may be the client's own; public: both servers. LAYER=WHO is for a layer or a module of layers. Repeatable.",
        show_default="shared",
    ),
]
JsonOption = Annotated[
    Path | None,
    typer.Option(
        "--json",
        metavar="FILE",
        dir_okay=False,
        callback=_writable,
        help="Also write what the screen shows to FILE.",
    ),
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
ModelArgument = Annotated[
    Path, typer.Argument(metavar="M.pqi", help="An integer model, as pqi quantize writes it.", show_default=False)
]
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device", metavar="[cpu|cuda|cuda:N]", help="On shares: where to compute. It changes no byte on the wire."
    ),
]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, help="Threads for tensor work.", show_default="shared out")
]


def example(*lines: str) -> str:
    """The closing lines of a help text."""
    # An empty line between them: older typer joins lines that have none.
    return "\n\n".join(["[bold]Example[/bold]", *(f"  [cyan]{line}[/cyan]" for line in lines)])
