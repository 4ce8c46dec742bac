"""Range search: a headroom for each requantization at which the answers are nearest to the float ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from pqi.quant.calibrate import calibrate
from pqi.quant.correct import corrected
from pqi.quant.lower import lower
from pqi.quant.ranging import STEP, tuned_ranges
from pqi.quant.scheme import Recipe, Scheme
from pqi.quant.stages import Calibration, Lowered
from tests import networks


def seen_by(net: nn.Module, *shape: int) -> Calibration:
    return calibrate(net.eval(), torch.randn(64, *shape, generator=torch.Generator().manual_seed(0)))


def coarse(**fields: object) -> Recipe:
    return Recipe(Scheme(**{"weight_bits": 8, "activation_bits": 3, "observer": "minmax", **fields}))  # type: ignore[arg-type]


def divergence(seen: Calibration, lowered: Lowered) -> float:
    """As the module's text says it: of the softmaxes of answers over the float answers' standard deviation."""
    want = seen.placed.graph.run(seen.sample).double()
    codes = torch.from_numpy(seen.quantizer.saturating_codes(seen.sample)[0])
    have = lowered.graph.run(codes).double() * lowered.output_scale
    p, q = (torch.softmax(a / want.std(), 1) for a in (want, have))
    return float((p * (p / q).log()).sum(1).mean())


class Joined(nn.Module):
    """Clamps that share one scale, a shortcut, and values that stay alive across several of them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 3, 1), nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(6, 6, 1)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([F.relu(self.a(x)), F.hardtanh(self.b(x))], 1)
        return self.fc(F.relu(self.c(y) + y).mean((2, 3)))


CASES: list[tuple[Callable[[], nn.Module], tuple[int, ...]]] = [
    (networks.mlp, (20,)),
    (Joined, (2, 6, 6)),
    (lambda: networks.settle(networks.ResNetCIFAR(1, (4, 8, 12)), (3, 8, 8)), (3, 8, 8)),
]


@pytest.mark.parametrize(("make", "shape"), CASES)
@pytest.mark.parametrize("correct", [True, False])
def test_the_answers_come_nearer_and_only_headrooms_change(
    make: Callable[[], nn.Module], shape: tuple[int, ...], correct: bool
) -> None:
    torch.manual_seed(0)
    seen, recipe = seen_by(make(), *shape), coarse()
    steps: list[tuple[int, int | None]] = []
    tuned = tuned_ranges(seen, recipe, bias_correction=correct, progress=lambda *now: steps.append(now))

    def distance(each: Recipe) -> float:
        lowered = lower(seen, each)
        return divergence(seen, corrected(seen, lowered) if correct else lowered)

    assert distance(tuned) < 0.95 * distance(recipe)
    assert tuned.default == recipe.default and tuned.layers
    for name, own in tuned.layers.items():
        power = torch.log(torch.tensor(own["headroom"])) / torch.log(torch.tensor(STEP))
        assert name in seen.seen and set(own) == {"headroom"} and float((power - power.round()).abs()) < 1e-4
    assert steps == [(i + 1, len(seen.seen)) for i in range(len(seen.seen))]


def test_what_a_recipe_says_of_single_layers_is_kept_and_gone_on_from() -> None:
    seen = seen_by(networks.mlp(), 20)
    (first, *_) = seen.seen
    recipe = coarse().changed(first, activation_bits=5, headroom=20.0)
    own = tuned_ranges(seen, recipe).layers[first]
    assert own["activation_bits"] == 5 and own["headroom"] == pytest.approx(20.0 * STEP**4)


def test_a_network_whose_codes_are_exact_keeps_its_recipe() -> None:
    seen = calibrate(
        networks.bnn(), torch.randint(0, 256, (40, 30), generator=torch.Generator().manual_seed(0)).float()
    )
    recipe = Recipe()
    assert tuned_ranges(seen, recipe) is recipe


def test_answers_that_are_no_vector_are_compared_by_their_squares() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1))
    seen, recipe = seen_by(net, 2, 6, 6), coarse()
    tuned = tuned_ranges(seen, recipe, bias_correction=False)

    def squares(each: Recipe) -> float:
        lowered = lower(seen, each)
        codes = torch.from_numpy(seen.quantizer.saturating_codes(seen.sample)[0])
        have = lowered.graph.run(codes) * lowered.output_scale
        return float(((have - seen.placed.graph.run(seen.sample)) ** 2).mean())

    assert squares(tuned) < squares(recipe)
