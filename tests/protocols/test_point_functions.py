"""Point functions serve no table of the project; these are the figures that say so."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    spec = importlib.util.spec_from_file_location("point_functions", ROOT / "benchmarks" / "point_functions.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_in_the_docs_are_what_the_primitives_declare(figures: ModuleType) -> None:
    text = (ROOT / "docs" / "point_functions.md").read_text()
    assert text == figures.document(text), "run: python benchmarks/point_functions.py --write"


def test_a_key_is_as_short_as_its_best_depth_makes_it(figures: ModuleType) -> None:
    assert figures.key_bits(4, 16) == 256  # no tree: the 16 leaves themselves
    assert figures.key_bits(9, 16) == 5 * 130 + 16 * 16
    assert figures.key_bits(9, 16, columns=2) == 6 * 130 + 8 * 32


@pytest.mark.parametrize("ring_and_shift", [(14, 6), (17, 8), (18, 9), (20, 10), (22, 10)])
def test_no_clamp_is_cheaper_by_point_functions_at_the_same_exchanges(
    figures: ModuleType, ring_and_shift: tuple[int, int]
) -> None:
    ways = figures.ways(*ring_and_shift)
    points, exchanges = ways.pop("fused, by point functions")
    assert any(size < points and rounds <= exchanges for size, rounds in ways.values())


def test_for_public_tables_they_would_win_and_the_docs_say_from_where(figures: ModuleType) -> None:
    wins = {index for index in figures.INDEX if figures.points_bytes(index, 16) < figures.table_bytes(index, 16)}
    assert wins == set(range(7, 13))
