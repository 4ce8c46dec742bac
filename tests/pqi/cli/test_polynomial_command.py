from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import pqi as package
from pqi.graph.polynomial import PolynomialModel
from tests.pqi.cli.clikit import pqi
from tests.pqi.cli.conftest import samples


def pooled_net() -> nn.Module:
    """As conftest's, with averages where those have a maximum."""
    generator = torch.Generator().manual_seed(1)
    net = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 5))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
    return net.eval()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's module in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user_squares.py").write_text(
        "from tests.pqi.cli.test_polynomial_command import pooled_net\n"
        "from tests.pqi.cli.conftest import small_net as with_maximum\n"
    )
    return tmp_path


def run(here: Path, calibration: Path, *options: object) -> PolynomialModel:
    result = pqi("polynomial", "user_squares:pooled_net", "--calibration", calibration, "-o", "m.pqi", *options)
    assert result.exit_code == 0, result.output
    model = package.load(here / "m.pqi")
    assert isinstance(model, PolynomialModel)
    return model


def test_the_command_makes_the_model_that_the_library_makes(here: Path, calibration: Path) -> None:
    options = ("--weight-bits", 6, "--input-bits", 5, "--layer", "4:weight_bits=4", "--epochs", 4, "--batch", 16)
    made = run(here, calibration, *options, "--seed", 3, "--learning-rate", 0.03, "--answer-bits", 25)
    arrays = np.load(calibration)
    wanted = package.to_polynomial(
        pooled_net(), arrays["x"], arrays["y"], weight_bits=6, input_bits=5, layers={"4": {"weight_bits": 4}},
        epochs=4, batch=16, seed=3, learning_rate=0.03, answer_bits=25,
    )  # fmt: skip
    assert np.array_equal(made.predict(samples(50, 7), "silent"), wanted.predict(samples(50, 7), "silent"))


def test_accuracy_is_told_on_what_it_was_measured_on(here: Path, calibration: Path) -> None:
    arguments = ("polynomial", "user_squares:pooled_net", "--calibration", calibration, "-o", "m.pqi", "--epochs", 2)
    result = pqi(*arguments)
    assert "On these 200 inputs (which it was trained on): float accuracy" in " ".join(result.stdout.split())
    np.savez(here / "held.npz", x=samples(30, 9), y=np.arange(30) % 5)
    result = pqi(*arguments, "--validation", "held.npz", "--json", "p.json")
    assert "On these 30 inputs: float accuracy" in " ".join(result.stdout.split())
    facts, model = json.loads((here / "p.json").read_text()), package.load(here / "m.pqi")
    top = model.predict(samples(30, 9), "silent").argmax(1)
    assert facts["integer_accuracy"] == (top == np.arange(30) % 5).mean()
    assert facts["report"]["bits"] == model.bits and facts["bytes"] == (here / "m.pqi").stat().st_size  # type: ignore[union-attr]


def test_without_labels_there_is_no_accuracy_to_tell(here: Path, calibration: Path) -> None:
    np.savez(here / "x.npz", samples(60))
    result = pqi("polynomial", "user_squares:pooled_net", "--calibration", "x.npz", "-o", "m.pqi", "--epochs", 2)
    assert result.exit_code == 0 and "accuracy" not in result.stdout and "Polynomial model" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("user_squares:with_maximum",), "layer '2' is a maximum: use average pooling"),
        (("user_squares:pooled_net", "--activation", "square"), "use activation='fitted'"),
        (("user_squares:pooled_net", "--layer", "9:weight_bits=3"), "which have no weights"),
        (("user_squares:pooled_net", "--answer-bits", "3"), "no network whose answers fit answer_bits = 3"),
        (("user_squares:pooled_net", "--validation", "unlabelled.npz"), "holds no labels y"),
        (("user_squares:pooled_net", "-o", "nowhere/m.pqi"), "there is no folder"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(
    here: Path, calibration: Path, arguments: tuple[str, ...], message: str
) -> None:
    np.savez(here / "unlabelled.npz", samples(9))
    result = pqi("polynomial", "--calibration", calibration, "-o", "m.pqi", "--epochs", 2, *arguments)
    assert result.exit_code == 1 and not (here / "m.pqi").exists()
    assert message in " ".join(result.stderr.split()) and "Traceback" not in result.output
