from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_cost_table_in_the_docs_is_what_the_primitives_declare() -> None:
    spec = importlib.util.spec_from_file_location("cost_table", ROOT / "benchmarks" / "cost_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = (ROOT / "docs" / "costs.md").read_text()
    assert text == module.document(text), "run: python benchmarks/cost_table.py --write"
