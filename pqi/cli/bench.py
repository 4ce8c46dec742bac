"""``pqi bench``: what privacy costs, protocol by protocol, beside the same network without privacy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pqi.cli.guard import CliError
from pqi.cli.options import DebugOption, JsonOption, Network, NetworkOption
from pqi.cli.screen import counted, err, out, plain, security_statement, table, write_json
from protocols import CATALOGUE, KEYED

if TYPE_CHECKING:
    from torch import nn

    from pqi.measure.bench import Bench
    from pqi.measure.subject import Subject

_AT_ONCE = 3  # columns of one table
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


NetArgument = Annotated[
    str,
    typer.Argument(
        metavar="NET",
        help="A model's file M.pqi, or a name: breast-cancer, digits-mlp, digits-cnn, mnist-cryptonet (trained here).",
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
    json_file: JsonOption = None,
    html: HtmlOption = None,
    debug: DebugOption = False,
) -> None:
    """Measure a network with and without privacy: seconds, bytes, memory, and whether every answer is right.

    Every role runs as a process of its own and talks TLS on this machine. Figures are medians of repeated batches,
    with the least and the largest. Exit status 0 means: every answer was what the integer model says (under ckks: no
    further from it than its bound), and every byte was declared beforehand.
    """
    from pqi.measure.bench import PRIVATE, measure

    if html is not None:
        from pqi.measure.picture import require

        require()
    sizes = tuple(dict.fromkeys(batch or [1]))
    with err().status("reading", spinner="dots") as status:
        subject = _subject(net, data, floating, max(sizes), status.update)
        made = measure(
            subject,
            tuple(dict.fromkeys(protocol or PRIVATE)),
            sizes,
            samples,
            network=network.value,
            say=status.update,
        )
    write_json(json_file, made.to_json())
    if html is not None:
        from pqi.measure.html import write_html

        write_html(html, made)
    show(made)
    if not made.runs or not made.held:
        raise typer.Exit(1)


def _subject(net: str, data: Path | None, floating: str | None, largest: int, say: Callable[[str], None]) -> Subject:
    """A network by name, or a model from its file with what else was given of it."""
    from pqi.measure.problems import NAMES, named

    if net in NAMES:
        if data is not None or floating is not None:
            raise CliError(f"{net} brings its own data and network; --data and --float are for a model's file")
        return named(net, say)
    if not Path(net).is_file():
        raise CliError(f"{net}: there is no such file, and no such network here; there are: {', '.join(NAMES)}")
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
    for protocol, reason in made.refused.items():
        console.print(f"\n[warn]{protocol} does not serve it[/warn]: {plain(reason)}")
    for one in {each.protocol: each for each in runs}.values():
        console.print(f"\n[title]{one.protocol}[/title]")
        console.print(security_statement(one.security.adversary, one.security.learns))
    if runs and not made.held:
        console.print("\n[bad]Not everything was as promised: see 'right' and 'bytes as declared'.[/bad]")
