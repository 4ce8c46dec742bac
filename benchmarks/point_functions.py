"""Distributed point functions against what is dealt today, in bytes. ``--write`` puts the tables into the docs.

A key for one point of 2^t, with leaves of 2^(t-d) values of k' bits (Boyle, Gilboa, Ishai, CCS 2016: early
termination; both roots come from the parties' key streams and cost nothing), takes ``d (128 + 2) + 2^(t-d) k'`` bits.
Its correction words are the same for both parties and both need them, so they are dealt twice.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import protocols
from protocols import api

DOC = Path(__file__).resolve().parents[1] / "docs" / "point_functions.md"
BEGIN, END = "<!-- begin {} -->", "<!-- end {} -->"
N, SEED_BITS = 800, 128
INDEX, RINGS = range(5, 13), (8, 12, 16, 20)
CLAMPS = ((14, 6), (16, 7), (17, 8), (18, 9), (20, 10), (21, 9), (22, 10))
CODE, RING_OUT = 6, 16


def key_bits(index: int, ring: int, columns: int = 1) -> int:
    """Bits of the shortest key for a point of ``2^index`` with ``columns`` values of ``ring`` bits there."""
    return min(d * (SEED_BITS + 2) + (columns * ring << (index - d)) for d in range(index + 1))


def dealt_bytes(step: api.Step) -> float:
    """What additive2 deals for one value of a step."""
    return protocols.get("additive2").cost(step, 1).dealt_bits / 8 / N


def table_bytes(index: int, ring: int) -> float:
    return dealt_bytes(api.Table((N,), index, ring))


def points_bytes(index: int, ring: int, columns: int = 1) -> float:
    return 2 * key_bits(index, ring, columns) / 8


def ways(ring: int, shift: int) -> dict[str, tuple[float, int]]:
    """Exact shift and clamp to a code: dealt bytes and exchanges of each way; the last one with point functions."""
    shape, index = (N,), ring - shift
    steps = {
        "comparison by digits": api.Clamp(shape, ring, shift, CODE, 0, RING_OUT),
        "in one exchange less": api.QuickClamp(shape, ring, shift, CODE, 0, RING_OUT),
        "fused table": api.FusedTable(shape, ring, shift, RING_OUT),
    }
    cost = protocols.get("additive2").cost
    found = {name: (dealt_bytes(step), cost(step, 1).exchanges) for name, step in steps.items()}
    borrow = (1 << shift) / 8
    return {**found, "fused, by point functions": (borrow + points_bytes(index, RING_OUT, 2), 2)}


def _tables() -> str:
    lines = ["| index bits | " + " | ".join(f"{ring}-bit results" for ring in RINGS) + " |"]
    lines.append("|---" * (1 + len(RINGS)) + "|")
    for index in INDEX:
        cells = [f"{table_bytes(index, ring):.0f} / {points_bytes(index, ring):.0f}" for ring in RINGS]
        lines.append(f"| {index} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _clamps() -> str:
    lines = ["| ring, shift | " + " | ".join(ways(18, 9)) + " |", "|---" * 5 + "|"]
    for ring, shift in CLAMPS:
        cells = [f"{size:.0f} B, {exchanges}" for size, exchanges in ways(ring, shift).values()]
        lines.append(f"| {ring}, {shift} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def document(text: str) -> str:
    """The document with fresh tables."""
    for name, made in (("tables", _tables()), ("clamps", _clamps())):
        head, rest = text.split(BEGIN.format(name))
        _, tail = rest.split(END.format(name))
        text = f"{head}{BEGIN.format(name)}\n{made}\n{END.format(name)}{tail}"
    return text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"update {DOC.name}")
    if parser.parse_args().write:
        DOC.write_text(document(DOC.read_text()))
    else:
        print(_tables(), _clamps(), sep="\n\n")
