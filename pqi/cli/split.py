"""``pqi split``: an integer model -> one bundle per role."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pqi.cli import ways
from pqi.cli.options import (
    DebugOption,
    JsonOption,
    ModelArgument,
    Network,
    NetworkOption,
    OptionOption,
    ProtocolOption,
    Rounding,
    RoundingOption,
    WeightsOption,
    chosen,
    visibility,
)
from pqi.cli.screen import out, plain, table, write_json
from protocols import KEYED

if TYPE_CHECKING:
    from pqi.session.bundle import ClientBundle, KeyedClientBundle

_HOLDS = {
    "server_a": "its part of the weights",
    "server_b": "its part of the weights",
    "dealer": "masks and activation tables; no weight",
    "client": "how to quantize an input and read an answer",
}
_BY_VISIBILITY: dict[tuple[str, ...], tuple[str, str]] = {
    ("shared",): ("its shares of the weights", "its shares of the weights"),
    ("owned",): ("the weights", "masked weights, which tell it nothing"),
    ("public",): ("the weights", "the weights"),
}
_SERVER_ALONE = {"clear": "the whole model: clear hides nothing", **dict.fromkeys(KEYED, "the weights; no key")}
_CLIENT_WITH_KEY = "circuit and parameters, no weight; it makes its keys itself"


def split(
    model: ModelArgument,
    directory: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where the bundles go.", show_default=False)
    ],
    server_a: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where server A listens.")] = "127.0.0.1:7401",
    server_b: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where server B listens.")] = "127.0.0.1:7402",
    protocol: ProtocolOption = "additive2",
    network: NetworkOption = Network.LAN,
    rounding: RoundingOption = Rounding.EXACT,
    weights: WeightsOption = None,
    option: OptionOption = None,
    answers_per_client: Annotated[
        int | None,
        typer.Option(min=1, help="How many inputs one client may have answered, in all.", show_default="any number"),
    ] = None,
    json_file: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    """Cut a model into one bundle per role, each holding only what that role may know.

    Shares are drawn anew at every split: bundles of two splits do not work together. Under paillier, bfv and ckks
    there is one server, with the weights; --server-b means nothing then. With --weights owned server A holds the
    weights and server B runs next to the client: two parties and an offline dealer. Next come the keys.
    """
    from pqi.graph.store import load
    from pqi.session.bundle import KeyedClientBundle, load_client
    from pqi.session.owner import split as cut

    addresses = {"server_a": server_a, "server_b": server_b}
    loaded = load(model)
    made = cut(
        loaded,
        directory,
        protocol=protocol,
        addresses=addresses,
        network=network.value,
        rounding=rounding.value,
        weights=visibility(weights),
        options=chosen(option),
        answers_per_client=answers_per_client,
    )
    bundle = load_client(made / "client")
    where = {role: f"{host}:{port}" for role, (host, port) in bundle.addresses.items()}
    holds = _holds(protocol, bundle)
    rows = table(f"Bundles in {plain(str(made))}", ["role", "folder", "listens at", "holds"])
    roles = [role for role in _HOLDS if (made / role).is_dir()]
    for role in roles:
        rows.add_row(role, plain(str(made / role)), where.get(role, ""), holds[role])
    out().print(rows)
    taken = ways.taken(loaded, protocol, network.value, rounding.value)
    ways.show(out(), taken, network.value)
    out().print(f"Next: pqi keys {plain(str(made))}, then carry each folder to its own machine.")
    known_to = [] if isinstance(bundle, KeyedClientBundle) else list(bundle.program.visibilities)
    if "owned" in known_to:
        out().print("server_a is the model owner's. server_b may go to the client: pqi predict --own-server runs it.")
    folders = {role: str(made / role) for role in roles}
    facts = {"protocol": protocol, "deployment": bundle.deployment, "digest": bundle.program.digest}
    write_json(json_file, {**facts, "ways": taken, "visibilities": known_to, "bundles": folders, "addresses": where})


def _holds(protocol: str, bundle: ClientBundle | KeyedClientBundle) -> dict[str, str]:
    """What each role holds, in words."""
    from pqi.session.bundle import KeyedClientBundle

    if isinstance(bundle, KeyedClientBundle):
        return {**_HOLDS, "server_a": _SERVER_ALONE[protocol], "client": _CLIENT_WITH_KEY}
    a, b = _BY_VISIBILITY.get(bundle.program.visibilities, (_HOLDS["server_a"], _HOLDS["server_b"]))
    return {**_HOLDS, "server_a": _SERVER_ALONE.get(protocol, a), "server_b": b}
