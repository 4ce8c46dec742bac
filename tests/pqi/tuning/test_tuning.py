from __future__ import annotations

import builtins
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

import pqi
from pqi.graph.errors import InputError, QuantizationError
from pqi.program.errors import ProgramError
from pqi.tuning.api import Tuned
from pqi.tuning.judge import answers
from pqi.tuning.search import NothingFits
from tests.pqi.program.lockstep import run
from tests.pqi.tuning.conftest import FEATURES, blobs

_ORDER = torch.randperm(600, generator=torch.Generator().manual_seed(0)).numpy()
SEARCHED, HELD_BACK = _ORDER[300:], _ORDER[:300]


def test_the_choice_is_within_the_budget_and_cheaper_than_uniform_eight_bits(net: nn.Module, tuned: Tuned) -> None:
    seen, back = tuned.curve.choice.measured, tuned.confirmed
    assert back is not None and back.drop <= 0.04
    for measured in (seen, seen.together(back)):
        assert measured.drop + 2 * measured.drop_error <= 0.04
    uniform = pqi.compile(pqi.quantize(net, blobs(300, 1)[0], 8, 8)).cost(1)
    assert tuned.bill.offline_bytes < uniform.dealt_bytes


def test_every_figure_of_the_choice_is_that_of_the_saved_model(net: nn.Module, tuned: Tuned, tmp_path: Path) -> None:
    tuned.save(tmp_path / "m.pqi")
    model, (x, y) = pqi.load(tmp_path / "m.pqi"), blobs(600, 2)
    x, y = x[SEARCHED], y[SEARCHED]
    right = model.predict(x, "silent").argmax(1) == y
    with torch.no_grad():
        float_right = net(torch.from_numpy(x)).argmax(1).numpy() == y
    measured = tuned.curve.choice.measured
    assert measured.samples == 300 and measured.accuracy == right.mean()
    assert measured.accuracy_error == pytest.approx(np.sqrt(right.mean() * (1 - right.mean()) / 300))
    assert measured.drop == pytest.approx(float_right.mean() - right.mean())
    assert measured.drop_error == pytest.approx((float_right.astype(float) - right).std() / np.sqrt(300))
    cost = pqi.compile(model).cost(1)
    assert (tuned.bill.offline_bytes, tuned.bill.exchanges) == (cost.dealt_bytes, cost.exchanges)
    assert tuned.program == pqi.compile(model, "additive2", tuned.network, tuned.rounding)


def test_what_was_held_back_confirms_the_choice(tuned: Tuned) -> None:
    x, y = (part[HELD_BACK] for part in blobs(600, 2))
    assert tuned.confirmed is not None and tuned.confirmed.samples == 300
    assert tuned.confirmed.accuracy == (tuned.model.predict(x, "silent").argmax(1) == y).mean()


def test_two_measurements_together_are_the_one_of_all(tuned: Tuned) -> None:
    seen, back = tuned.curve.choice.measured, tuned.confirmed
    assert back is not None
    x, y = blobs(600, 2)
    both, right = seen.together(back), tuned.model.predict(x, "silent").argmax(1) == y
    assert both.samples == 600 and both.accuracy == pytest.approx(right.mean())
    assert min(seen.drop_error, back.drop_error) / 2 < both.drop_error < max(seen.drop_error, back.drop_error)


def test_nothing_is_held_back_if_that_is_the_wish(net: nn.Module) -> None:
    made = pqi.tune(
        net, blobs(300, 1)[0], blobs(600, 2), accuracy_drop=4.0, held_back=0.0, minutes=None, evaluations=20
    )
    assert made.confirmed is None and made.curve.samples == 600


def narrow(net: nn.Module, n: int, start: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """Inputs on which the float network is right, but barely."""
    x, y = blobs(6000, 7)
    with torch.no_grad():
        top = net(torch.from_numpy(x)).softmax(1).topk(2, 1)
    right = top.indices[:, 0].numpy() == y
    order = np.argsort(np.where(right, (top.values[:, 0] - top.values[:, 1]).numpy(), 2.0))[start : start + n]
    return x[order], y[order]


def test_a_choice_that_does_not_hold_on_what_was_held_back_is_passed_over(net: nn.Module) -> None:
    """Held back are inputs on which the float network is barely right: coarse programs fail there and only there."""
    x, y = blobs(600, 2)
    x[HELD_BACK], y[HELD_BACK] = narrow(net, 300)
    made = pqi.tune(net, blobs(300, 1)[0], (x, y), accuracy_drop=4.0, minutes=None, evaluations=60)
    assert made.confirmed is not None and made.confirmed.drop <= 0.04
    assert any(p.fits and p.cost < made.curve.choice.cost for p in made.curve.points)


def test_the_test_set_is_measured_apart(tuned: Tuned) -> None:
    x, y = blobs(400, 3)
    assert tuned.test is not None and tuned.test.samples == 400
    assert tuned.test.accuracy == (tuned.model.predict(x, "silent").argmax(1) == y).mean()


def test_the_chosen_program_runs_in_private_bit_for_bit_at_the_declared_cost(tuned: Tuned) -> None:
    codes = tuned.model.encode(blobs(40, 5)[0], "silent")
    got = run(tuned.model, tuned.program, codes)
    assert tuned.program.exact
    assert torch.equal(got.answer, tuned.model.integers(codes))
    assert got.dealt == tuned.program.cost(40).dealt_bytes


def test_the_front_falls_in_cost_and_accuracy_and_holds_or_beats_every_point(tuned: Tuned) -> None:
    front = tuned.curve.front
    costs, accuracies = [p.cost for p in front], [p.measured.accuracy for p in front]
    assert costs == sorted(set(costs)) and accuracies == sorted(set(accuracies))
    for point in tuned.curve.points:
        assert any(p.cost <= point.cost and p.measured.accuracy >= point.measured.accuracy for p in front)


def test_the_curve_survives_json_and_shows_its_choice(tuned: Tuned) -> None:
    facts = json.loads(json.dumps(tuned.to_dict(), allow_nan=False))
    curve = facts["curve"]
    assert curve["points"][curve["chosen"]] == facts["chosen"]
    assert facts["chosen"]["offline_bytes"] == tuned.bill.offline_bytes
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(tuned.curve)
    text = console.export_text()
    assert sum(line.startswith((" >", ">")) for line in text.splitlines()) == 1
    assert f"{tuned.bill.offline_bytes:,}" in text


def test_proven_rings_are_the_default_and_nothing_else_is_tried_then(net: nn.Module) -> None:
    made = pqi.tune(net, blobs(300, 1)[0], blobs(600, 2), accuracy_drop=4.0, minutes=None, evaluations=40)
    assert made.model.policy == "proven" and made.rounding == "exact"
    assert {p.candidate.rings for p in made.curve.points} == {"proven"}
    assert {p.candidate.rounding for p in made.curve.points} == {"exact"}


def test_the_same_question_has_the_same_answer(net: nn.Module) -> None:
    one, two = (
        pqi.tune(net, blobs(300, 1)[0], blobs(600, 2), accuracy_drop=4.0, minutes=None, evaluations=50)
        for _ in range(2)
    )
    assert one.to_dict() == two.to_dict() and one.program == two.program


def test_learned_rounding_is_tried_only_at_the_end_and_only_if_allowed(net: nn.Module, tuned: Tuned) -> None:
    phases: list[str] = []
    made = pqi.tune(
        net, blobs(300, 1)[0], blobs(600, 2), accuracy_drop=4.0, rings="calibrated", minutes=None, evaluations=160,
        improvements=("bias_correction", "learned_rounding"), progress=lambda state: phases.append(state.phase),
    )  # fmt: skip
    learned = [i for i, p in enumerate(made.curve.points) if "learned_rounding" in p.candidate.improved]
    plain = [i for i, p in enumerate(made.curve.points) if "learned_rounding" not in p.candidate.improved]
    assert phases[-1] == "late moves" and plain and all(i > max(plain) for i in learned)
    assert all("learned_rounding" not in p.candidate.improved for p in tuned.curve.points)


def test_stochastic_shifts_are_tried_when_allowed_and_cost_less(net: nn.Module) -> None:
    made = pqi.tune(
        net, blobs(300, 1)[0], blobs(600, 2), accuracy_drop=20.0, rounding="stochastic", minutes=None, evaluations=90
    )
    assert made.rounding == "stochastic"
    assert not made.program.exact
    exact = pqi.compile(made.model, "additive2", made.network, "exact").cost(1)
    assert made.bill.offline_bytes < exact.dealt_bytes


def test_drawn_shifts_are_those_of_the_protocol_in_distribution(net: nn.Module) -> None:
    """The mean answer over many draws, and that no draw is the exact answer everywhere."""
    model = pqi.quantize(net, blobs(300, 1)[0], 6, 4)
    codes = model.encode(blobs(1, 8)[0], "silent").expand(3000, FEATURES).contiguous()
    drawn = answers(model, codes, "stochastic", seed=4)
    private = run(model, pqi.compile(model, rounding="stochastic"), codes).answer
    assert not torch.equal(drawn, answers(model, codes))
    spread = (drawn.double().var(0) + private.double().var(0)).div(3000).sqrt()
    assert bool(((drawn.double().mean(0) - private.double().mean(0)).abs() < 5 * spread + 1e-9).all())
    assert torch.equal(drawn, answers(model, codes, "stochastic", seed=4))


def test_without_a_program_that_fits_the_best_reached_is_named(net: nn.Module) -> None:
    x, y = narrow(net, 120, 0)
    with pytest.raises(
        NothingFits, match=r"within 0 points of float accuracy 100.00%.*loses \d.*standard error \d.*bytes"
    ):
        pqi.tune(net, blobs(300, 1)[0], (x, y), accuracy_drop=0.0, standard_errors=10.0, minutes=None, evaluations=5)


def bad(**changed: Any) -> dict[str, Any]:
    x, y = blobs(60, 2)
    return {"validation": (x, y), "minutes": None, "evaluations": 5, **changed}


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"validation": (blobs(60, 2)[0], None)}, InputError, "validation: labels are needed, 60 int.*there are none"),
        ({"validation": (blobs(60, 2)[0], np.zeros(59, int))}, InputError, r"60 integers.*\(59,\)"),
        ({"validation": (blobs(60, 2)[0], np.zeros(60))}, InputError, "60 integers.*float64"),
        ({"validation": (blobs(60, 2)[0], np.full(60, 4))}, InputError, r"labels run from 4 to 4.*4 classes"),
        ({"validation": (blobs(60, 2)[0][:, :5], np.zeros(60, int))}, InputError, r"shape \(60, 5\).*\(N, 12\)"),
        ({"validation": (blobs(1, 2)[0], np.zeros(1, int))}, InputError, "1 inputs cannot tell"),
        ({"validation": blobs(60, 2)[0]}, QuantizationError, r"must be a pair \(inputs, labels\)"),
        ({"test": (blobs(60, 2)[0], None)}, InputError, "test: labels are needed"),
        ({"rings": "tight"}, QuantizationError, "rings is .*tight.*proven, calibrated"),
        ({"rounding": "up"}, QuantizationError, "rounding is .*up.*exact, stochastic"),
        ({"weights": ("round",)}, QuantizationError, "weights is .*round"),
        ({"weights": ()}, QuantizationError, "weights is empty"),
        ({"improvements": ("luck",)}, QuantizationError, "improvements is .*luck"),
        ({"accuracy_drop": -1.0}, QuantizationError, "accuracy_drop is -1"),
        ({"standard_errors": 11.0}, QuantizationError, "standard_errors is 11"),
        ({"minutes": 0.0}, QuantizationError, "minutes is 0"),
        ({"evaluations": 0}, QuantizationError, "evaluations is 0"),
        ({"held_back": 1.0}, QuantizationError, "held_back is 1"),
        ({"objective": "bytes"}, QuantizationError, "objective names"),
        ({"network": "moon"}, ProgramError, "network = 'moon'"),
    ],
)  # fmt: skip
def test_a_question_that_cannot_be_answered_is_refused_by_name(
    net: nn.Module, arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    asked = bad(**arguments)
    with pytest.raises(error, match=words):
        pqi.tune(net, blobs(300, 1)[0], asked.pop("validation"), **asked)


def test_a_network_without_classes_is_refused() -> None:
    flat = nn.Sequential(nn.Linear(FEATURES, 1)).eval()
    with pytest.raises(InputError, match="at least 2 classes"):
        pqi.tune(flat, blobs(300, 1)[0], blobs(60, 2))


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_picture_is_written(tuned: Tuned, tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"curve{suffix}"
    tuned.curve.save_picture(path)
    start = path.read_bytes()[:200]
    assert start.startswith(b"\x89PNG") if suffix == ".png" else b"<svg" in path.read_bytes()
    assert path.stat().st_size > 5000


def test_a_picture_of_an_unknown_kind_is_refused(tuned: Tuned, tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match=r"must end in one of .png, .svg, .pdf"):
        tuned.curve.save_picture(tmp_path / "curve.doc")


def test_without_matplotlib_the_error_says_what_to_install(
    tuned: Tuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(QuantizationError, match=r"pip install .*\[pictures\]"):
        tuned.curve.save_picture(tmp_path / "curve.png")
