"""Model inversion: it draws the class that a network has learnt, and nothing where nothing is learnt."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import pqi
from pqi.audit import attacks
from pqi.audit.attack import Budget
from pqi.audit.attacks.inversion import correlations
from pqi.audit.case import Case, Data
from pqi.audit.errors import AuditError
from pqi.audit.subjects import FLOAT, INTEGERS, STRAIGHT_THROUGH

pytest.importorskip("art")
BUDGET = Budget(queries=600, seed=3)


def _data(seed: int) -> Data:
    """Each class a bright quarter of the image, with noise."""
    generator = np.random.default_rng(seed)
    y = np.arange(200) % 4
    x = 0.3 * generator.random((200, 1, 6, 6))
    for i, quarter in enumerate(y):
        row, column = 3 * (quarter // 2), 3 * (quarter % 2)
        x[i, 0, row : row + 3, column : column + 3] += 0.6
    return Data(x, y)


def _trained(data: Data, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.ReLU(), nn.Linear(24, 4))
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    x, y = torch.tensor(data.x, dtype=torch.float32), torch.tensor(data.y)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net.eval()


def _case(net: nn.Module, answers: str = "scores") -> Case:
    return Case(net, pqi.quantize(net, _data(2).x, answers=answers), _data(1), _data(0))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return _trained(_data(0), 1)


def test_weights_and_answers_alike_give_images_of_their_classes(net: nn.Module) -> None:
    attack = attacks.get("inversion", judge=_trained(_data(5), 6))
    found = {f.subject: f for f in attack.run(_case(net), BUDGET)}
    assert list(found) == [FLOAT, STRAIGHT_THROUGH, INTEGERS]
    for finding in found.values():
        assert finding.figures["margin"].low > 0.2
        assert finding.figures["nearest is its class"].value == 1.0
        assert finding.figures["recognised"].value == 1.0
    assert found[FLOAT].threat.knows == "weights"
    assert found[INTEGERS].threat.knows == "scores"


def test_a_network_that_learnt_nothing_gives_nothing() -> None:
    blank = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    with torch.no_grad():
        for p in blank.parameters():
            p.zero_()
    case = Case(blank, _case(_trained(_data(0), 1)).model, _data(1), _data(0))
    finding = attacks.get("inversion", steps=5).run(case, BUDGET)[0]
    assert finding.subject == FLOAT
    assert finding.figures["correlation"].value == 0.0
    assert finding.figures["nearest is its class"].value == 0.0


def test_hardened_labels_tell_less_than_scores_and_not_nothing(net: nn.Module) -> None:
    attack = attacks.get("inversion")
    means = np.stack([_data(0).x[_data(0).y == y].mean(axis=0) for y in range(4)])
    near = [
        np.diag(correlations(attack.images(_case(net, answers), INTEGERS, BUDGET), means)).mean()
        for answers in ("scores", "label")
    ]
    assert near[0] > near[1] > 0.5


def test_images_stay_within_the_input_s_range_and_repeat_with_the_seed(net: nn.Module) -> None:
    attack, case = attacks.get("inversion", rate=5.0, stride=0.5), _case(net)
    for form in (FLOAT, INTEGERS):
        images = attack.images(case, form, BUDGET)
        assert images.shape == (4, 1, 6, 6)
        assert images.min() >= 0.0
        assert images.max() <= 1.0
        assert np.array_equal(images, attack.images(case, form, BUDGET))


def test_correlations_are_pearson_s_and_zero_of_what_does_not_vary() -> None:
    generator = np.random.default_rng(0)
    one, other = generator.random((3, 2, 5)), generator.random((4, 2, 5))
    one[2] = 0.7
    found = correlations(one, other)
    assert found[0, 1] == pytest.approx(np.corrcoef(one[0].ravel(), other[1].ravel())[0, 1])
    assert np.array_equal(found[2], np.zeros(4))


def test_what_is_missing_or_out_of_range_is_said(net: nn.Module) -> None:
    case = _case(net)
    with pytest.raises(AuditError, match="training data"):
        attacks.get("inversion").run(Case(net, case.model, case.test), BUDGET)
    with pytest.raises(AuditError, match=r"stride = 2 within \(0, 1\]"):
        attacks.get("inversion", stride=2)
