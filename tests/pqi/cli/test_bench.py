from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import pqi as package
from pqi.measure import bench
from tests.pqi.cli.clikit import pqi
from tests.pqi.cli.conftest import samples, small_net


@pytest.mark.slow
def test_a_model_s_file_is_measured_and_all_is_written_down(model_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    np.savez(tmp_path / "x.npz", x=samples(9), y=np.arange(9) % 5)
    result = pqi(
        "bench", model_file, "--data", tmp_path / "x.npz", "--float", "tests.pqi.cli.conftest:small_net",
        "--protocol", "additive2", "--protocol", "paillier", "--batch", 4, "--samples", 8,
        "--link", "none", "--json", tmp_path / "b.json", "--html", tmp_path / "b.html",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    facts = json.loads((tmp_path / "b.json").read_text())
    (run,) = facts["runs"]
    assert (run["protocol"], run["batch"], run["samples"], run["private_equals_integer"]) == ("additive2", 4, 8, 1.0)
    assert run["as_declared"] is True and run["float32_seconds"] > 0 and facts["held"] is True
    cost = package.compile(package.load(model_file)).cost(4)
    assert sum(run["offline_bytes"].values()) == cost.dealt_bytes and run["exchanges"] == cost.exchanges
    assert "additive2" in facts["refused"]["paillier"]
    layers = run["layers"]
    assert sum(layer["sent_bytes"] for layer in layers) == cost.online_bytes
    assert sum(layer["dealt_bytes"] for layer in layers) == cost.dealt_bytes
    assert all(layer["deal_seconds"] > 0 for layer in layers) and "layer by layer" in result.stdout
    assert run["online_to_float32"] > 0 and facts["size"]["macs"] > 0
    assert "paillier does not serve it" in result.stdout and "Who learns what" in result.stdout
    assert max(len(line) for line in result.stdout.splitlines()) <= 100
    assert "<svg" in (tmp_path / "b.html").read_text()


def test_the_fields_of_a_run_are_those_of_the_demonstration(model: package.IntegerModel, tmp_path: Path) -> None:
    from pqi.measure.subject import subject_of
    from tests.pqi.cli.test_demo import KEYS

    made = bench.measure(subject_of("m", model, small_net(), samples(2), None, 2), bench.Wish(("clear",), samples=1))
    assert set(made.to_json()["runs"][0]) >= KEYS


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["nowhere.pqi"], 1, "there are: breast-cancer, digits-mlp"),
        (["breast-cancer", "--data", "x.npz"], 1, "brings its own data"),
        (["breast-cancer", "--protocol", "magic"], 2, "there is no protocol 'magic'"),
        (["breast-cancer", "--html", "nowhere/b.html"], 2, "there is no folder"),
        (["resnet20", "--bits", "4x4"], 2, "such as 4/4"),
        (["mlp", "--link", "dsl"], 2, "'none', 'lan', 'wan'"),
        (["breast-cancer", "--batch", "0"], 2, "--batch"),
    ],
)
def test_a_wrong_wish_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], status: int, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = pqi("bench", *arguments)
    assert result.exit_code == status
    assert words in " ".join(result.stderr.replace("│", " ").split())


def test_a_file_has_its_own_rings(model_file: Path) -> None:
    result = pqi("bench", model_file, "--rings", "calibrated")
    assert result.exit_code == 1
    assert "has the rings that it was made with" in result.stderr.replace("\n", " ")


def test_a_network_that_no_protocol_served_is_no_success(model_file: Path) -> None:
    result = pqi("bench", model_file, "--protocol", "paillier")
    assert result.exit_code == 1
    assert "paillier does not serve it" in result.stdout
