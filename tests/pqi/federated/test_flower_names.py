"""Where Flower is imported, what is said where it is not installed, and the example app in one thread."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
APP = ROOT / "examples" / "flower_app"


def test_flower_is_imported_in_one_package_alone() -> None:
    line = re.compile(r"^\s*(import|from) flwr\b", re.MULTILINE)
    importing = {
        path.relative_to(ROOT).parent.as_posix()
        for folder in ("pqi", "protocols")
        for path in (ROOT / folder).rglob("*.py")
        if line.search(path.read_text())
    }
    assert importing == {"pqi/federated/flower"}


def test_without_flower_its_names_say_what_to_install_and_the_others_work() -> None:
    code = (
        "import sys; sys.modules['flwr'] = None; import pqi.federated as f; f.Encoding()\n"
        "try:\n    f.private_updates\nexcept f.MissingExtra as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "pqi.federated.private_updates needs Flower: pip install" in done.stdout


def test_the_files_of_the_example_are_short() -> None:
    files = [*APP.rglob("*.py"), APP / "pyproject.toml"]
    assert {path.name for path in files} >= {"client_app.py", "server_app.py", "task.py"}
    assert all(len(path.read_text().splitlines()) < 60 for path in files)


def test_the_example_app_learns_digits_from_updates_that_nobody_sees(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("flwr", reason="Flower needs Python 3.11 and the extra 'federated'")
    pytest.importorskip("sklearn")
    from flowerkit import MemoryGrid
    from flwr.app import Context, RecordDict

    monkeypatch.syspath_prepend(str(APP))
    client, server = (importlib.import_module(f"digits_app.{name}_app") for name in ("client", "server"))
    grid = MemoryGrid(client.app, 4)
    grid.run_config = {"clients": 4}
    config = {"clients": 4, "aggregator": "pairwise", "num-server-rounds": 2}
    server.app(grid, Context(1, 0, {}, RecordDict(), config))
    told = capsys.readouterr().out
    assert grid.errors == [] and told.count("4 of 4 clients") == 2
    accuracies = [float(line.split()[-1]) for line in told.splitlines() if ": accuracy" in line]
    assert len(accuracies) == 3 and accuracies[-1] > 0.6 > accuracies[0]
