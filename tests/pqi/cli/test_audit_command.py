"""``pqi audit``: a clean model is reported clean, a bad one by its exit status, and wrong data before the work."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import pqi as package
from tests.pqi.cli.clikit import pqi
from tests.pqi.cli.conftest import samples, small_net

QUICK = ("--attacks", "fidelity,fairness,membership,bit-flips", "--samples", 40, "--seed", 5)


def other_net() -> nn.Module:
    """Not what the model was made of."""
    torch.manual_seed(7)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 5)).eval()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Labels are what the network says, so that it is right about them."""
    arrays: dict[str, np.ndarray] = {}
    for end, seed in (("", 1), ("_train", 2)):
        x = samples(150, seed)
        with torch.no_grad():
            arrays[f"x{end}"], arrays[f"y{end}"] = x, small_net()(torch.tensor(x)).argmax(1).numpy()
    np.savez(tmp_path / "data.npz", groups=np.arange(150) % 2, **arrays)
    return tmp_path / "data.npz"


def _asked(model: Path, data: Path, net: str = "small_net") -> tuple[object, ...]:
    return "audit", model, "--float", f"tests.pqi.cli.conftest:{net}", "--data", data, "--range", -1, 1


def test_a_clean_model_leaves_with_status_0_and_a_folder_that_tells_all(
    model_file: Path, data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    result = pqi(*_asked(model_file, data), *QUICK, "-o", tmp_path / "audit")
    assert result.exit_code == 0, result.output
    assert "Nothing that was looked at needs attention" in result.stdout
    assert max(len(line) for line in result.stdout.splitlines() if "Wrote" not in line) <= 100
    found = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert found["status"] == "clean"
    assert {each["attack"] for each in found["attacks"] if each["findings"]} == set(QUICK[1].split(","))
    assert found["command"][:3] == ["pqi", "audit", str(model_file)]
    assert found["command"][-2:] == ["--attacks", QUICK[1]]
    assert "SHA-256" in found["sources"]["model"]
    assert found["budget"]["seed"] == 5
    assert "<svg" in (tmp_path / "audit" / "audit.html").read_text()


def test_the_command_line_that_is_kept_asks_for_the_same_again(model_file: Path, data: Path, tmp_path: Path) -> None:
    arguments = (*_asked(model_file, data), "--attacks", "fidelity,membership", "--samples", 40)
    assert pqi(*arguments, "--json", tmp_path / "a.json").exit_code == 0
    first = json.loads((tmp_path / "a.json").read_text())
    assert pqi(*first["command"][1:], "--json", tmp_path / "b.json").exit_code == 0
    again = json.loads((tmp_path / "b.json").read_text())
    assert again["command"] == first["command"]
    for one, other in zip(first["attacks"], again["attacks"], strict=True):
        figures = [[finding["figures"] for finding in attack["findings"]] for attack in (one, other)]
        assert figures[0] == figures[1]


def test_a_model_that_answers_otherwise_than_its_network_leaves_with_status_3(model_file: Path, data: Path) -> None:
    arrays = dict(np.load(data))
    with torch.no_grad():
        arrays["y"] = other_net()(torch.tensor(arrays["x"])).argmax(1).numpy()
    np.savez(data, **arrays)
    arguments = ("audit", model_file, "--float", "tests.pqi.cli.test_audit_command:other_net", "--data", data)
    result = pqi(*arguments, "--range", -1, 1, "--attacks", "fidelity")
    assert result.exit_code == 3, result.output
    assert "Something needs attention" in result.stdout


def test_an_audit_that_could_judge_nothing_is_no_success(model_file: Path, data: Path) -> None:
    arrays = dict(np.load(data))
    np.savez(data, x=arrays["x"], y=arrays["y"])
    result = pqi(*_asked(model_file, data), "--attacks", "fairness")
    assert result.exit_code == 1
    assert "no groups were given" in " ".join(result.stdout.split())


def test_an_exported_program_is_taken_for_the_network(model_file: Path, data: Path, tmp_path: Path) -> None:
    program = torch.export.export(small_net(), (torch.tensor(samples(2)),))
    torch.export.save(program, tmp_path / "net.pt2")
    arguments = ("audit", model_file, "--float", tmp_path / "net.pt2", "--data", data, "--range", -1, 1)
    result = pqi(*arguments, "--attacks", "fidelity", "--json", tmp_path / "a.json")
    assert result.exit_code == 0, result.output
    assert "SHA-256" in json.loads((tmp_path / "a.json").read_text())["sources"]["network"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"y": None}, "an audit needs x (inputs) and y (labels)"),
        ({"y_train": None}, "holds one of x_train and y_train"),
        ({"groups": np.zeros(3, int)}, "groups has shape (3,)"),
        ({"y": np.zeros(150)}, "dtype float64; it must hold 150 integers"),
        ({"x": 3 * samples(150)}, "outside --range -1 1"),
        ({"x": np.zeros((150, 3))}, "the model takes (1, 4, 4)"),
    ],
)
def test_data_that_cannot_be_audited_on_are_refused_with_what_to_do(
    model_file: Path, data: Path, change: dict[str, np.ndarray | None], words: str
) -> None:
    arrays = {**dict(np.load(data)), **change}
    np.savez(data, **{name: array for name, array in arrays.items() if array is not None})
    result = pqi(*_asked(model_file, data), "--attacks", "fidelity")
    assert result.exit_code == 1
    assert words in " ".join(result.stderr.split())


def test_an_unknown_attack_is_wrong_usage_and_answered_with_those_there_are(model_file: Path, data: Path) -> None:
    result = pqi(*_asked(model_file, data), "--attacks", "fidelity,magic")
    assert result.exit_code == 2
    assert "there is no attack 'magic'" in " ".join(result.stderr.replace("│", " ").split())


def test_a_polynomial_model_is_refused_by_name(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pqi.graph.store.load", lambda path: object())
    result = pqi(*_asked(tmp_path / "p.pqi", data))
    assert result.exit_code == 1
    assert "polynomial model" in result.stderr


def test_the_function_that_audits_does_not_hide_the_package() -> None:
    import pqi.audit.run

    assert package.audit is pqi.audit
    assert callable(pqi.audit.run.audit)
