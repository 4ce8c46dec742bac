"""What every report's page has in common: one HTML file that loads nothing, runs nothing, and opens offline."""

from __future__ import annotations

import os
from html import escape
from pathlib import Path

# The policy forbids what a page does not do anyway: any load, any script. Pictures are inside the page.
_BEGIN = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'{images}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 2rem auto; max-width: 1080px;
 padding: 0 1rem; }}
h1 {{ font-size: 1.5rem; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.15rem; margin-top: 2.2rem; }}
table {{ border-collapse: collapse; font-size: 0.85rem; }}
th, td {{ text-align: right; padding: 0.15rem 0.8rem; border-bottom: 1px solid #eee; white-space: nowrap; }}
th {{ color: #555; font-weight: 600; }}
th:first-child, td:first-child {{ text-align: left; }}
.facts td {{ text-align: left; white-space: normal; overflow-wrap: anywhere; }}
.facts td:first-child {{ color: #555; white-space: nowrap; }}
.wide {{ overflow-x: auto; }}
.soft {{ color: #555; font-size: 0.85rem; }}
svg {{ max-width: 100%; height: auto; }}
{style}</style>
</head>
<body>
<h1>{title}</h1>
"""
END = "</body>\n</html>\n"


def begin(title: str, style: str = "", bitmaps: bool = False) -> str:
    """A page up to its heading. style: rules of its own, which come last; bitmaps: whether it holds any besides SVG."""
    return _BEGIN.format(title=text(title), style=style, images="; img-src data:" if bitmaps else "")


def text(value: str) -> str:
    """Text for HTML; control characters, which no page may hold, are shown as such."""
    return escape("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in value))


def write(path: str | Path, made: str) -> None:
    """Write the page, whole or not at all. Raises OSError on an unwritable file."""
    target = Path(path)
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        draft.write_text(made, encoding="utf-8", errors="replace")  # a lone surrogate in a name is no reason to fail
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
