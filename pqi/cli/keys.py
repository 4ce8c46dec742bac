"""``pqi keys``: a certificate authority, and TLS certificates for the roles."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pqi.cli.options import DebugOption, JsonOption
from pqi.cli.screen import out, plain, table, write_json


def keys(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder that pqi split filled.", show_default=False)
    ],
    json_file: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    """Make a certificate authority and a TLS certificate for every role whose bundle lies in DIR.

    Roles trust certificates of this authority only, each in its own role. Keys are made once and never replaced.
    """
    from pqi.net.authority import CA_DAYS, ROLE_DAYS
    from pqi.session.owner import make_keys
    from pqi.session.roles import DEALER

    made = make_keys(directory)
    folders = sorted(path.parent for path in made.glob("*/tls"))
    rows = table(f"Keys in {plain(str(made))}", ["who", "folder", "valid"])
    rows.add_row("authority", plain(str(made / "authority")), f"{CA_DAYS} days")
    for folder in folders:
        rows.add_row(folder.name, plain(str(folder / "tls")), f"{ROLE_DAYS} days")
    out().print(rows)
    deal = ", pqi deal for the dealer" if any(folder.name == DEALER for folder in folders) else ""
    out().print(
        f"{plain(str(made / 'authority'))} holds the key that makes certificates: no role needs it, carry it nowhere.\n"
        f"Next: pqi serve for each server{deal}, each with its own folder."
    )
    roles = {folder.name: str(folder / "tls") for folder in folders}
    days = {"authority_days": CA_DAYS, "role_days": ROLE_DAYS}
    write_json(json_file, {"authority": str(made / "authority"), "roles": roles, **days})
