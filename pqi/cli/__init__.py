"""The command line. Reading order: ``app`` (the commands), ``guard`` (errors and exit statuses), ``screen`` (how
things look), ``options`` (what commands share), then one file per command."""

from __future__ import annotations

import sys

INTERRUPTED = 130


def main() -> None:
    """Run ``pqi`` and leave with an honest status: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    try:
        from pqi.cli.app import app

        app(prog_name="pqi")
    except KeyboardInterrupt:  # between the commands' own guard and the interpreter: while modules are imported
        sys.exit(INTERRUPTED)
