"""``pqi bench``: what privacy costs, protocol by protocol, beside the same network without privacy."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pqi.cli.guard import CliError
from pqi.cli.options import DebugOption, JsonOption, Network, NetworkOption, Rings, WeightsOption, visibility
from pqi.cli.screen import counted, err, out, plain, security_statement, table, write_json
from protocols import CATALOGUE, KEYED

if TYPE_CHECKING:
    from torch import nn

    from pqi.measure.bench import Bench
    from pqi.measure.private import Run
    from pqi.measure.subject import Subject

_AT_ONCE = 3  # columns of one table
_LAYERS = 16  # of one table
_RANDOM = 64  # inputs drawn where none are given, if a batch is no larger


def _known(names: list[str] | None) -> list[str] | None:
    known = (*sorted(CATALOGUE), *KEYED)
    for name in names or []:
        if name not in known:
            raise typer.BadParameter(f"there is no protocol {name!r}; choose from {', '.join(known)}")
    return names


def _writable_page(path: Path | None) -> Path | None:
    # Found out now rather than after the work.
    if path is not None and not path.absolute().parent.is_dir():
        raise typer.BadParameter(f"there is no folder {path.absolute().parent}")
    return path


class LinkName(str, Enum):
    """What messages between roles travel over."""

    NONE = "none"
    LAN = "lan"
    WAN = "wan"


def _bits(recipes: list[str] | None) -> list[tuple[int, int]]:
    """W/A, such as 4/4, as numbers."""
    found = []
    for recipe in recipes or []:
        weights, slash, activations = recipe.partition("/")
        if not (slash and weights.isdigit() and activations.isdigit()):
            raise typer.BadParameter(f"--bits {recipe!r}: bits of weights and of activations are needed, such as 4/4")
        found.append((int(weights), int(activations)))
    return found


NetArgument = Annotated[
    str,
    typer.Argument(
        metavar="NET",
        help="A model's file M.pqi, or a name: breast-cancer, digits-mlp, digits-cnn, mnist-cryptonet (trained here); "
        "mlp, lenet, resnet20, vgg16, resnet18-64, resnet18, resnet50, mobilenet (real weights and images where "
        "PQI_DATA has them, else drawn from a seed).",
        show_default=False,
    ),
]
ProtocolsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--protocol",
        metavar="P",
        callback=_known,
        help="Give it once for each; those that cannot serve the network are listed with the reason.",
        show_default="all that hide something",
    ),
]
BatchOption = Annotated[
    list[int] | None,
    typer.Option("--batch", metavar="B", min=1, help="Inputs at a time; give it once for each size.", show_default="1"),
]
LinkOption = Annotated[
    LinkName,
    typer.Option(
        "--link",
        help="Emulate a network between roles: lan (1 Gbit/s, 1 ms round trip) or wan (100 Mbit/s, 40 ms).",
    ),
]
RingsOption = Annotated[
    Rings | None,
    typer.Option("--rings", help="How a named network's rings are chosen; a file has its own.", show_default="proven"),
]
BitsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--bits",
        metavar="W/A",
        help="Bits of weights and activations of one more point of bytes against accuracy; give it once for each.",
        show_default=False,
    ),
]
SamplesOption = Annotated[
    int | None,
    typer.Option(
        min=1, help="Inputs to ask in all, rounded up to whole batches.", show_default="10 batches of each size"
    ),
]
DataOption = Annotated[
    Path | None,
    typer.Option(metavar="X.npz", help="Inputs x (and labels y) for M.pqi.", show_default="drawn at random"),
]
FloatOption = Annotated[
    str | None,
    typer.Option(
        "--float",
        metavar="MODEL",
        help="The network that M.pqi was made of, to compare with: net.pt2 or package.module:function.",
        show_default="not compared",
    ),
]
HtmlOption = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", dir_okay=False, callback=_writable_page, help="Write a page with pictures."),
]


def bench(
    net: NetArgument,
    protocol: ProtocolsOption = None,
    batch: BatchOption = None,
    samples: SamplesOption = None,
    data: DataOption = None,
    floating: FloatOption = None,
    network: NetworkOption = Network.LAN,
    link: LinkOption = LinkName.NONE,
    weights: WeightsOption = None,
    rings: RingsOption = None,
    bits: BitsOption = None,
    json_file: JsonOption = None,
    html: HtmlOption = None,
    debug: DebugOption = False,
) -> None:
    """Measure a network with and without privacy: seconds, bytes, memory, and whether every answer is right.

    Every role runs as a process of its own and talks TLS on this machine. Figures are medians of repeated batches,
    with the least and the largest; float32 is timed in between. Exit status 0 means: every answer was what the integer
    model says (under ckks: no further from it than its bound), and every byte was declared beforehand.
    """
    from pqi.measure.bench import PRIVATE, Wish, measure

    if html is not None:
        from pqi.measure.picture import require

        require()
    sizes = tuple(dict.fromkeys(batch or [1]))
    wish = Wish(
        tuple(dict.fromkeys(protocol or PRIVATE)),
        sizes,
        samples,
        network=network.value,
        link=None if link is LinkName.NONE else link.value,
        weights=visibility(weights),
        recipes=_bits(bits),
    )
    with err().status("reading", spinner="dots") as status:
        subject = _subject(net, data, floating, rings, max(sizes), status.update)
        made = measure(subject, wish, status.update)
    write_json(json_file, made.to_json())
    if html is not None:
        from pqi.measure.html import write_html

        write_html(html, made)
    show(made)
    if not made.runs or not made.held:
        raise typer.Exit(1)


def _subject(
    net: str, data: Path | None, floating: str | None, rings: Rings | None, largest: int, say: Callable[[str], None]
) -> Subject:
    """A network by name, or a model from its file with what else was given of it."""
    from pqi.measure.problems import NAMES, named

    if net in NAMES:
        if data is not None or floating is not None:
            raise CliError(f"{net} brings its own data and network; --data and --float are for a model's file")
        return named(net, say, (rings or Rings.PROVEN).value)
    if not Path(net).is_file():
        raise CliError(f"{net}: there is no such file, and no such network here; there are: {', '.join(NAMES)}")
    if rings is not None:
        raise CliError(f"{net} has the rings that it was made with; --rings is for a network by name")
    from pqi.cli.loading import load_calibration
    from pqi.graph.store import load
    from pqi.measure.subject import subject_of

    x, y = (None, None) if data is None else load_calibration(data)
    known = None if floating is None else _module(floating)
    return subject_of(Path(net).name, load(net), known, x, y, max(largest, _RANDOM))


def _module(spec: str) -> nn.Module:
    from torch import nn

    from pqi.cli.loading import load_network

    found = load_network(spec)
    return found.eval() if isinstance(found, nn.Module) else found.module()


def show(made: Bench) -> None:
    """Without privacy, with it, why not, and who learns what."""
    from pqi.measure.rows import accuracy_line, heading, lines, plain_lines

    console, runs = out(), list(made.runs)
    console.print(f"[title]{plain(made.subject)}[/title]  {plain(made.note)}")
    if accuracy := accuracy_line(made):
        console.print(f"Accuracy on {counted(made.inputs, 'input')}: {accuracy}.")
    for line in plain_lines(made):
        console.print(f"Without privacy, {line}.")
    for first in range(0, len(runs), _AT_ONCE):
        shown = runs[first : first + _AT_ONCE]
        figures = table("\nOne batch: median (least-largest)", [""], [heading(one) for one in shown])
        for name, cells in lines(made, shown):
            figures.add_row(name, *cells)
        console.print(figures)
    for one in runs:
        if one.layers:
            _show_layers(one)
    if len(made.points) > 1:
        _show_points(made)
    for protocol, reason in made.refused.items():
        console.print(f"\n[warn]{protocol} does not serve it[/warn]: {plain(reason)}")
    for one in {each.protocol: each for each in runs}.values():
        console.print(f"\n[title]{one.protocol}[/title]")
        console.print(security_statement(one.security.adversary, one.security.learns))
    if runs and not made.held:
        console.print("\n[bad]Not everything was as promised: see 'right' and 'bytes as declared'.[/bad]")


def _show_layers(one: Run) -> None:
    """The layers that take longest, and all of them together."""
    from pqi.measure.rows import LAYER_COLUMNS, heading, layer_cells, layers_line, slowest

    shown = slowest(one.layers, _LAYERS)
    which = f" (the slowest {len(shown)} of {len(one.layers)})" if len(shown) < len(one.layers) else ""
    rows = table(f"\n{heading(one)}, layer by layer{which}", list(LAYER_COLUMNS[:1]), list(LAYER_COLUMNS[1:]))
    for layer in shown:
        rows.add_row(*map(plain, layer_cells(layer)))
    out().print(rows)
    out().print(f"{layers_line(one)}.")


def _show_points(made: Bench) -> None:
    """Bytes against accuracy."""
    from pqi.measure.rows import size

    rows = table("\nBytes of one input against accuracy", ["bits", "rings"], ["online", "dealt", "right", "as float"])
    for point in made.points:
        shares = ("" if share is None else f"{100 * share:.2f} %" for share in (point.accuracy, point.agreement))
        rows.add_row(point.bits or "measured", point.rings, size(point.online_bytes), size(point.dealt_bytes), *shares)
    out().print(rows)
