"""The examples are programs that users copy: each is short, and each runs, with warnings as errors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pqi.cli.clikit import left_in

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


def run(example: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = next(path for path in EXAMPLES if path.stem == example)
    return subprocess.run(
        [sys.executable, "-W", "error", str(path), *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"},
    )


def test_there_are_examples() -> None:
    assert {path.stem for path in EXAMPLES} == {
        "quickstart",
        "bring_your_own_module",
        "split_and_serve",
        "fewer_bits",
        "one_server",
        "client_and_owner",
        "federated_circle",
    }


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_under_sixty_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 60


@pytest.mark.slow
def test_quickstart_answers_privately_what_the_plain_model_answers(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    done = run("quickstart", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "equal to the plain model: 100.0%" in done.stdout


@pytest.mark.slow
def test_fewer_bits_shows_four_prices_and_four_equalities(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    done = run("fewer_bits", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "private answers equal the plain ones in all four" in done.stdout
    accuracies = [float(line.split("%")[0].split()[-1]) for line in done.stdout.splitlines() if "%" in line]
    assert len(accuracies) == 4 and min(accuracies) > 95


def test_bring_your_own_module_shows_the_refusal_the_fix_and_the_cost(tmp_path: Path) -> None:
    done = run("bring_your_own_module", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "aten.gelu" in done.stdout and "bring_your_own_module.py:" in done.stdout
    assert "dealt beforehand" in done.stdout


@pytest.mark.slow
def test_one_server_answers_under_a_key_what_the_plain_model_answers(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    done = run("one_server", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "100.0% of 8 private images" in done.stdout
    assert left_in(tmp_path) == set()


@pytest.mark.slow
def test_federated_circle_trains_attacks_and_serves(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    done = run("federated_circle", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "10 of 10 clients got the integer model's answers" in done.stdout
    line = next(line for line in done.stdout.splitlines() if line.startswith("accuracy"))
    plain, private = (float(word[:-1]) for word in line.split() if word.endswith("%"))
    assert min(plain, private) > 90 and abs(plain - private) < 1.5  # 450 images: one of them is 0.2 points
    read = [float(line.split(": ")[1].split()[0]) for line in done.stdout.splitlines() if "likeness" in line]
    assert read[0] > 0.3 > read[1] > read[2]
    assert "Gradient inversion" in (tmp_path / "federated_circle.html").read_text()
    assert left_in(tmp_path) == {"federated_circle.html"}


@pytest.mark.slow
def test_client_and_owner_compute_with_each_other_and_say_who_learns_what(tmp_path: Path) -> None:
    from pqi.session.local import free_ports

    done = run("client_and_owner", *map(str, free_ports(2)), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "all equal to the plain model: True" in done.stdout
    assert "server A learns: layer shapes, rings and shifts; the weights (owned)" in done.stdout
    assert left_in(tmp_path) == set()


@pytest.mark.slow
def test_split_and_serve_leaves_nothing_behind(tmp_path: Path) -> None:
    from pqi.session.local import free_ports

    done = run("split_and_serve", *map(str, free_ports(2)), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "all equal to the plain model: True" in done.stdout
    assert left_in(tmp_path) == set()
