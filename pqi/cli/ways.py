"""Which way each layer is computed, and why: one line for all layers alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.table import Table

from pqi.cli.screen import plain
from protocols import KEYED

if TYPE_CHECKING:
    from rich.console import Console

    from pqi.program.circuits import Model

_NAMED = 2  # layers that a line names


def taken(model: Model, protocol: str, network: str, rounding: str) -> dict[str, str]:
    """Layer -> the way taken and why. Under a client's key there is no choice."""
    from pqi.program import explain
    from pqi.session.owner import shareable

    return {} if protocol in KEYED else explain(shareable(model, protocol), protocol, network, rounding)


def show(console: Console, why: Mapping[str, str], network: str) -> None:
    """Print what ``pqi.program.explain`` said; nothing where there was no choice."""
    if not why:
        return
    alike: dict[str, list[str]] = {}
    for layer, reason in why.items():
        alike.setdefault(reason, []).append(layer)
    lines = Table.grid(padding=(0, 2))
    for reason, layers in alike.items():
        more = f" and {len(layers) - _NAMED} more" if len(layers) > _NAMED else ""
        lines.add_row(plain(", ".join(layers[:_NAMED]) + more), plain(reason))
    console.print(f"Ways taken for the network '{network}', and the next best:")
    console.print(lines)
