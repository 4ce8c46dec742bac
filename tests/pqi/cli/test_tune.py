from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.export import Dim, export

import pqi as package
from tests.pqi.cli.clikit import pqi
from tests.pqi.cli.conftest import samples, small_net


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    program = export(small_net(), (torch.from_numpy(samples(2)),), dynamic_shapes=({0: Dim("batch")},))
    torch.export.save(program, tmp_path / "net.pt2")
    return tmp_path / "net.pt2"


def labelled(path: Path, n: int, seed: int) -> Path:
    """Inputs with the classes that the network gives them, one in twenty wrong."""
    x = samples(n, seed)
    with torch.no_grad():
        y = small_net()(torch.from_numpy(x)).argmax(1).numpy()
    y[::20] = (y[::20] + 1) % 5
    np.savez(path, x=x, y=y)
    return path


@pytest.fixture
def question(exported: Path, calibration: Path, tmp_path: Path) -> list[object]:
    """A tuning of the small network, all but where the model goes."""
    held = labelled(tmp_path / "held.npz", 400, 5)
    asked = ["tune", exported, "--calibration", calibration, "--validation", held, "--minutes", 0]
    return [*asked, "--evaluations", 45, "--accuracy-drop", 5]


def test_a_network_is_tuned_and_the_model_is_one_like_any_other(question: list[object], tmp_path: Path) -> None:
    output, facts_file, picture = (tmp_path / name for name in ("m.pqi", "facts.json", "curve.svg"))
    test = labelled(tmp_path / "test.npz", 300, 6)
    pytest.importorskip("matplotlib")
    result = pqi(*question, "-o", output, "--test", test, "--json", facts_file, "--picture", picture)
    assert result.exit_code == 0, result.output
    model, facts = package.load(output), json.loads(facts_file.read_text())
    cost = package.compile(model).cost(1)
    assert model.policy == "proven"
    assert facts["chosen"]["offline_bytes"] == cost.dealt_bytes and facts["chosen"]["exchanges"] == cost.exchanges
    with np.load(test) as arrays:
        assert facts["test"]["accuracy"] == (model.predict(arrays["x"], "silent").argmax(1) == arrays["y"]).mean()
    assert facts["bytes"] == output.stat().st_size and facts["picture"] == str(picture)
    assert "<svg" in picture.read_text() and picture.stat().st_size > 5000
    assert "Trade-off" in result.stdout and "Held back: " in result.stdout and "Test: " in result.stdout
    assert f"pqi split {output} -o bundles" in result.stdout
    split = pqi("split", output, "-o", tmp_path / "bundles")
    assert split.exit_code == 0, split.output


def test_the_wide_network_profile_plans_for_few_exchanges(question: list[object], tmp_path: Path) -> None:
    result = pqi(
        *question, "-o", tmp_path / "m.pqi", "--network", "wan", "--objective", "seconds", "--json", tmp_path / "f"
    )
    assert result.exit_code == 0, result.output
    facts = json.loads((tmp_path / "f").read_text())
    program = package.compile(package.load(tmp_path / "m.pqi"), network="wan")
    assert facts["network"] == "wan" and facts["chosen"]["exchanges"] == program.cost(1).exchanges
    assert facts["curve"]["network"] == {"name": "wan", "bandwidth": 1e8, "round_trip": 0.04}
    assert "--network wan" in result.stdout


def test_what_cannot_be_met_is_an_error_with_the_numbers(question: list[object], tmp_path: Path) -> None:
    result = pqi(*question, "-o", tmp_path / "m.pqi", "--accuracy-drop", 0, "--standard-errors", 10)
    assert result.exit_code == 1 and not (tmp_path / "m.pqi").exists()
    assert re.search(r"no program is within 0 points.*loses -?\d+\.\d\d points", result.stderr.replace("\n", " "))


def test_a_validation_set_without_labels_is_refused(question: list[object], tmp_path: Path) -> None:
    np.savez(tmp_path / "bare.npz", x=samples(50))
    question[question.index("--validation") + 1] = tmp_path / "bare.npz"
    result = pqi(*question, "-o", tmp_path / "m.pqi")
    assert result.exit_code == 1 and "no labels y" in result.stderr and "numpy.savez" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-o", "nowhere/m.pqi"], "there is no folder"),
        (["-o", "m.pqi", "--picture", "curve.doc"], "must end in one of"),
        (["-o", "m.pqi", "--objective", "bytes"], "objective names"),
        (["-o", "m.pqi", "--weights", "round"], "weights is"),
    ],
)
def test_a_wrong_wish_is_refused_before_the_work(
    question: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = pqi(*question, *arguments)
    assert result.exit_code == 1 and words in result.stderr
    assert not (tmp_path / "m.pqi").exists()
