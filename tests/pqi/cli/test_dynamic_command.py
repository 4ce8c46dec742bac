"""Scales of single inputs from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import pqi as package
from tests.pqi.cli.clikit import pqi
from tests.pqi.cli.conftest import samples, small_net


@pytest.fixture
def quiet_and_loud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user_dynamic.py").write_text(
        "import torch\n"
        "from tests.pqi.cli.conftest import small_net\n"
        "def clipped(): return torch.nn.Sequential(small_net(), torch.nn.ReLU6(), torch.nn.Linear(5, 2))\n"
    )
    np.save(tmp_path / "x.npy", varied())
    return tmp_path


def varied() -> np.ndarray:
    return (samples(200) * np.logspace(-1.5, 0, 200).reshape(-1, 1, 1, 1)).astype(np.float32)


NET = "tests.pqi.cli.conftest:small_net"


def test_a_dynamic_model_is_made_and_shown_with_the_shape_that_users_give(quiet_and_loud: Path) -> None:
    result = pqi("quantize", NET, "--calibration", "x.npy", "-o", "m.pqi", "--dynamic")
    assert result.exit_code == 0, result.output
    made, same = package.load("m.pqi"), package.quantize(small_net(), varied(), dynamic=True)
    assert made.dynamic is not None and made.dynamic == same.dynamic
    assert np.array_equal(made.predict(varied()), same.predict(varied()))
    shown = pqi("inspect", "m.pqi", "--json", "facts.json")
    facts = json.loads(Path("facts.json").read_text())
    assert (facts["input_shape"], facts["input_scales"]) == ([1, 4, 4], made.dynamic.levels)
    assert "each at a scale of its own" in shown.output
    assert max(len(line) for line in shown.stdout.splitlines()) <= 100


def test_how_quiet_inputs_may_be_can_be_said(quiet_and_loud: Path) -> None:
    result = pqi("quantize", NET, "--calibration", "x.npy", "-o", "m.pqi", "--quieter", 100)
    assert result.exit_code == 0, result.output
    made = package.load("m.pqi")
    assert made.dynamic is not None and made.dynamic.levels == 100
    refused = pqi("quantize", NET, "--calibration", "x.npy", "-o", "n.pqi", "--quieter", 200)
    assert refused.exit_code == 1 and "from 2 to 127" in " ".join(refused.output.split())


def test_static_models_say_nothing_of_scales(model_file: Path) -> None:
    assert "scale of its own" not in pqi("inspect", model_file, "--json", model_file.with_suffix(".json")).output
    assert json.loads(model_file.with_suffix(".json").read_text())["input_scales"] is None


def test_a_network_that_does_not_scale_is_an_error_that_says_what_to_do(quiet_and_loud: Path) -> None:
    result = pqi("quantize", "user_dynamic:clipped", "--calibration", "x.npy", "-o", "m.pqi", "--dynamic")
    text = " ".join(result.output.split())
    assert result.exit_code == 1 and "clamps to [0, 6]" in text and "Traceback" not in text
    assert not Path("m.pqi").exists()
