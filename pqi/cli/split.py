"""``pqi split``: an integer model -> one bundle per role."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
    chosen,
)
from pqi.cli.screen import out, plain, table, write_json
from protocols import KEYED

_HOLDS = {
    "server_a": "its shares of the weights",
    "server_b": "its shares of the weights",
    "dealer": "masks and activation tables; no weight",
    "client": "how to quantize an input and read an answer",
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
    option: OptionOption = None,
    json_file: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    """Cut a model into one bundle per role, each holding only what that role may know.

    Shares are drawn anew at every split: bundles of two splits do not work together. Under paillier, bfv and ckks
    there is one server, with the weights; --server-b means nothing then. Next come the keys.
    """
    from pqi.graph.store import load
    from pqi.session.bundle import load_client
    from pqi.session.owner import split as cut

    addresses = {"server_a": server_a, "server_b": server_b}
    made = cut(
        load(model),
        directory,
        protocol=protocol,
        addresses=addresses,
        network=network.value,
        rounding=rounding.value,
        options=chosen(option),
    )
    bundle = load_client(made / "client")
    where = {role: f"{host}:{port}" for role, (host, port) in bundle.addresses.items()}
    rows = table(f"Bundles in {plain(str(made))}", ["role", "folder", "listens at", "holds"])
    roles = [role for role in _HOLDS if (made / role).is_dir()]
    holds = {**_HOLDS, "server_a": _SERVER_ALONE.get(protocol, _HOLDS["server_a"])}
    holds["client"] = _CLIENT_WITH_KEY if protocol in KEYED else _HOLDS["client"]
    for role in roles:
        rows.add_row(role, plain(str(made / role)), where.get(role, ""), holds[role])
    out().print(rows)
    out().print(f"Next: pqi keys {plain(str(made))}, then carry each folder to its own machine.")
    folders = {role: str(made / role) for role in roles}
    facts = {"protocol": protocol, "deployment": bundle.deployment, "digest": bundle.program.digest}
    write_json(json_file, {**facts, "bundles": folders, "addresses": where})
