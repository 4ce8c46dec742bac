"""The laws of ARCHITECTURE.md, held by machine."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("protocols", "pqi")
SERIALISERS = ("pickle", "marshal", "shelve", "dill")
FORBIDDEN_CALLS = ("print", "eval", "exec")


def sources(*packages: str) -> Iterator[tuple[Path, ast.Module]]:
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path, ast.parse(path.read_text())


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_import_contracts_hold() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_only_net_and_service_open_sockets() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path, tree in sources(*PACKAGES)
        for name in imported(tree)
        if name.split(".")[0] in ("socket", "ssl", "asyncio", "socketserver", "selectors")
        and path.relative_to(ROOT).parts[:2] not in (("pqi", "net"), ("pqi", "service"))
    ]
    assert not wrong


def test_no_weak_randomness_near_a_secret() -> None:
    weak, study = {"random", "numpy.random"}, ROOT / "pqi/federated/study"  # splits of data are no secrets
    rooms = sources("protocols", "pqi/federated", "pqi/net", "pqi/program", "pqi/session")
    near = [(path, tree) for path, tree in rooms if study not in path.parents]
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}" for path, tree in near for name in imported(tree) if name in weak
    ]
    for path, tree in near:
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                name = f"{node.value.id}.{node.attr}"
                if name in ("np.random", "numpy.random") or name.startswith(("torch.rand", "torch.normal")):
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} uses {name}")
    assert not wrong


def test_nothing_is_pickled_and_nothing_printed_and_no_check_is_an_assert() -> None:
    wrong = []
    for path, tree in sources(*PACKAGES):
        where = path.relative_to(ROOT)
        wrong += [f"{where} imports {n}" for n in imported(tree) if n.split(".")[0] in SERIALISERS]
        for node in ast.walk(tree):
            if isinstance(node, ast.Assert):
                wrong.append(f"{where}:{node.lineno} asserts")
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS:
                wrong.append(f"{where}:{node.lineno} calls {node.func.id}")
    assert not wrong


def test_rooms_stay_small() -> None:
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p, _ in sources(*PACKAGES)}
    long_files = {name: lines for name, lines in lengths.items() if lines > 400}
    long_functions = [
        f"{path.relative_to(ROOT)}:{node.name} ({node.end_lineno - node.lineno + 1} lines)"
        for path, tree in sources(*PACKAGES)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and (node.end_lineno or 0) - node.lineno >= 60
    ]
    assert not long_files
    assert not long_functions


def test_a_protocol_is_imported_only_when_it_is_asked_for() -> None:
    code = "import protocols, sys; assert 'protocols.additive2' not in sys.modules; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.slow
def test_the_wheel_has_exactly_two_top_level_packages(tmp_path: Path) -> None:
    source = tmp_path / "source"  # a build in place would leave its files behind, and find those of an earlier one
    for name in ("pqi", "protocols"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*command, str(source)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = {n.split("/")[0] for n in zipfile.ZipFile(wheel).namelist()}
    assert {n for n in names if not n.endswith(".dist-info")} == {"pqi", "protocols"}
    assert {"pqi/py.typed", "protocols/py.typed"} <= set(zipfile.ZipFile(wheel).namelist())
