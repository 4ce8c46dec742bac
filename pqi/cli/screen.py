"""How things look: consoles, tables, figures with units, JSON files. Results go to standard output, all else to
standard error. Colour carries no meaning that the words do not."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from rich import box
from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from rich.theme import Theme

WIDTH_OF_A_FILE = 100
_THEME = Theme(
    {"title": "bold", "good": "bold green", "bad": "bold red", "warn": "yellow", "soft": "dim", "name": "cyan"}
)
_UNITS = ("B", "kB", "MB", "GB", "TB")


def out() -> Console:
    """The console for results."""
    return _console(sys.stdout, stderr=False)


def err() -> Console:
    """The console for progress, warnings and errors."""
    return _console(sys.stderr, stderr=True)


def _console(stream: IO[str], stderr: bool) -> Console:
    # Neither a terminal nor a stated width: a file or a pipe, which deserves more than 80 columns.
    free = stream.isatty() or "COLUMNS" in os.environ
    width = None if free else WIDTH_OF_A_FILE
    return Console(stderr=stderr, width=width, theme=_THEME, highlight=False, emoji=False)


def complaint(message: str, kind: str = "error") -> None:
    """One message on the error stream, first line marked; brackets in it are text."""
    text = Text(f"{kind}: ", style="bad" if kind == "error" else "warn")
    text.append(message, style="not bold default")
    err().print(text, soft_wrap=True)


def table(title: str, left: Sequence[str], right: Sequence[str] = (), caption: str = "") -> Table:
    """A table in the house style: columns of words at the left, of figures at the right."""
    made = Table(
        title=title or None,
        caption=caption or None,
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
        title_justify="left",
        caption_justify="left",
        title_style="title",
        caption_style="soft",
        header_style="soft",
    )
    for name in left:
        made.add_column(name, overflow="fold")
    for name in right:
        made.add_column(name, justify="right", no_wrap=True)
    return made


def security_statement(adversary: str, learns: Mapping[str, str]) -> Group:
    """Who learns what, and against whom that holds."""
    made = table("Who learns what", ["role", "learns"])
    for role, what in learns.items():
        made.add_row(role, what)
    return Group(made, f"[soft]Adversary: {escape(adversary)}.[/soft]")


def plain(text: str) -> str:
    """Text in which brackets mean brackets."""
    return escape(text)


def size(n: float) -> str:
    """A number of bytes with a decimal unit: 842 B, 53.7 kB, 45.0 MB."""
    value, unit = float(n), 0
    while value >= 999.5 and unit + 1 < len(_UNITS):
        value, unit = value / 1000, unit + 1
    return f"{value:.0f} B" if unit == 0 else f"{_three(value)} {_UNITS[unit]}"


def duration(seconds: float) -> str:
    """3.2 ms, 1.24 s."""
    if seconds >= 0.9995:
        return f"{seconds:.2f} s"
    return f"{_three(seconds * 1e3)} ms" if seconds >= 0.9995e-3 else f"{_three(seconds * 1e6)} us"


def _three(value: float) -> str:
    """Three significant digits, of which trailing noughts are some."""
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def percent(share: float, digits: int = 2) -> str:
    """98.44 %. Only a share of exactly 1 shows as 100."""
    text = f"{100 * share:.{digits}f}"
    if share < 1 and float(text) == 100:
        text = f"{100 - 10**-digits:.{digits}f}"
    return f"{text} %"


def counted(n: int, one: str, many: str = "") -> str:
    """1 input, 1,234 inputs."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def shape(sizes: Sequence[int]) -> str:
    """1x8x8."""
    return "x".join(map(str, sizes))


def write_json(path: Path | None, data: Any) -> None:
    """Write a JSON file whole or not at all; nothing for None."""
    if path is None:
        return
    text = json.dumps(data, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
