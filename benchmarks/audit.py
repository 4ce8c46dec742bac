"""The audit's claims, measured: every attack and defence on planted and clean cases; whether each claim holds.

    PQI_DATA=<folder> python benchmarks/audit.py [NAME ...] [--json FILE] [--small]
    python benchmarks/audit.py --json FILE --write      # docs/audit_figures.md from the kept figures

A part is one file benchmarks/audit_NAME.py with a function part(small) -> Part; seeds are fixed there. --small asks
little of everything, to see that it runs. Figures are added to the JSON file, part by part.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module

from parts import ROOT, Part, document, kept_in, options, run

NAMES = ("backdoor", "rounding", "bits", "membership", "noise", "adversarial", "training", "fairness", "clean")


def _part(name: str, small: bool) -> Part:
    made: Part = import_module(f"audit_{name}").part(small)
    return made


def main() -> None:
    parser = options(__doc__.splitlines()[0], dict.fromkeys(NAMES))
    arguments = parser.parse_args()
    if arguments.write:
        made_by = "benchmarks/audit.py --json FILE --write"
        page = document("The audit: measured", made_by, NAMES, kept_in(arguments.json))
        (ROOT / "docs" / "audit_figures.md").write_text(page)
        return
    parts = {name: partial(_part, name, arguments.small) for name in NAMES}
    raise SystemExit(0 if run(parts, arguments.parts, arguments.json) else 1)


if __name__ == "__main__":
    main()
