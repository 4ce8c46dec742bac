"""Print the cost of every primitive, from its own declaration. ``--write`` puts the table into docs/costs.md."""

from __future__ import annotations

import argparse
from pathlib import Path

import protocols
from protocols import api
from protocols.cost import Cost
from protocols.linmap import DenseMap

DOC = Path(__file__).resolve().parents[1] / "docs" / "costs.md"
BEGIN, END = "<!-- begin generated -->", "<!-- end generated -->"
N = 800  # a multiple of 8, so that no bit is lost to padding

ROWS: list[tuple[str, api.Step]] = [
    ("open a value for linear maps, 18-bit ring", api.Open((N,), 18)),
    ("linear map, shared weights, per output, 18-bit ring", api.Linear((N,), 18, DenseMap(N, 4))),
    ("clamp: exact shift by 9 + ReLU + 6-bit clamp, 18-bit ring", api.Clamp((N,), 18, 9, 6, 0, 18)),
    ("clamp: the same, 21-bit ring", api.Clamp((N,), 21, 10, 6, 0, 20)),
    ("ReLU + exact shift by 9 (clamp idle), 18-bit ring", api.Clamp((N,), 18, 9, 8, 0, 18)),
    ("quick clamp: the first of these in fewer exchanges", api.QuickClamp((N,), 18, 9, 6, 0, 18)),
    ("quick clamp: the second of these", api.QuickClamp((N,), 21, 10, 6, 0, 20)),
    ("lift of a 6-bit code from a 7-bit into an 18-bit ring", api.Lift((N,), 7, 0, 18)),
    ("exact shift by 8 (borrow by table), 16-bit ring", api.Shift((N,), 16, 8)),
    ("exact shift by 10 (borrow by digits), 18-bit ring", api.Shift((N,), 18, 10)),
    ("stochastic shift by 10 (not bit-exact)", api.Shift((N,), 18, 10, "stochastic")),
    ("table, 6-bit index, 16-bit result", api.Table((N,), 6, 16)),
    ("table, 8-bit index, 18-bit result", api.Table((N,), 8, 18)),
    ("fused exact shift by 8 + table, 8-bit index, 16-bit result", api.FusedTable((N,), 16, 8, 16)),
    ("sign, 14-bit ring", api.Sign((N,), 14, 14)),
    ("ReLU by sign-and-select, 8-bit value, 16-bit result", api.Relu((N,), 8, 16)),
    ("maximum of 4 values of 7 bits, 18-bit ring", api.Maximum((N,), 4, 7, 18)),
    ("maximum of 4 codes of 6 bits, 7-bit ring", api.Maximum((N,), 4, 6, 7)),
    ("noise that the dealer draws, 18-bit ring (not exact)", api.Noise((N,), 18, 900)),
]


def figures(value: Cost) -> str:
    """Per value: bytes dealt to P1, bits each way online, exchanges."""
    return f"{value.dealt_bits / 8 / N:.1f} | {value.online_bits / N:g} | {value.exchanges}"


def table() -> str:
    """The table in Markdown."""
    backend = protocols.get("additive2")
    head = "| primitive of `additive2` | dealt to B, bytes a value | online, bits a value each way | exchanges |"
    rows = [f"| {name} | {figures(backend.cost(step, 1))} |" for name, step in ROWS]
    return "\n".join([head, "|---|---|---|---|", *rows, ""])


def document(text: str) -> str:
    """``text`` with the generated part replaced."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table()}{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="rewrite the table in docs/costs.md")
    if parser.parse_args().write:
        DOC.write_text(document(DOC.read_text()))
    print(table())
