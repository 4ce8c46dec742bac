from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from pqi.graph.errors import GraphError, InputError
from pqi.graph.model import IntegerModel
from pqi.quant.calibrate import calibrate
from pqi.quant.compare import compare
from pqi.quant.comparison import Comparison, Layer
from pqi.quant.fake import fake_quantized
from pqi.quant.finish import finish
from pqi.quant.gauges import NoiseGauge, decibels
from pqi.quant.lower import lower
from pqi.quant.scheme import Recipe, Scheme
from pqi.quant.stages import Calibration, Lowered
from tests import networks

Stages = tuple[Calibration, Lowered, IntegerModel]


def stages(
    net: nn.Module, x: Tensor, scheme: Scheme | None = None, layers: Any = None, rings: Any = None, **more: Any
) -> Stages:
    calibration = calibrate(net, x, **more)
    lowered = lower(calibration, Recipe(scheme or Scheme(), layers or {}))
    return calibration, lowered, finish(lowered, calibration, **(rings or {}))


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layer(comparison: Comparison, name: str) -> Layer:
    return next(each for each in comparison.layers if each.name == name)


def identity_relu() -> nn.Module:
    """x -> relu(x) -> sum of the values, with weights that every grid holds exactly."""
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(1.0)
    return net.eval()


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "mlp": (networks.mlp, randn(120, 20)),
    "small_cnn": (networks.small_cnn, randn(120, 1, 12, 12)),
    "mobile_block": (networks.mobile_block, randn(120, 3, 10, 10)),
    "concat_net": (networks.concat_net, randn(120, 2, 8, 8)),
    "bnn": (networks.bnn, torch.randint(0, 256, (120, 30), generator=torch.Generator().manual_seed(0)).float()),
}


@pytest.fixture(scope="module", params=NETWORKS)
def made(request: pytest.FixtureRequest) -> tuple[Stages, Tensor]:
    make, x = NETWORKS[request.param]
    return stages(make(), x), x


def test_the_ratio_is_ten_times_the_logarithm_of_signal_over_noise() -> None:
    gauge = NoiseGauge()
    gauge.see(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.0]), torch.tensor([3.0, 4.0]))
    gauge.see(torch.tensor([5.0]), torch.tensor([2.0]), torch.tensor([0.0]))
    assert (gauge.floats, gauge.of_fake, gauge.of_integer) == (50, 10, 25)
    assert (gauge.fakes, gauge.of_rings) == (22, 5)
    assert decibels(gauge.floats, gauge.of_fake) == 10 * math.log10(5)
    assert decibels(100.0, 1.0) == 20.0


def test_without_noise_the_ratio_is_infinite_and_without_signal_there_is_none() -> None:
    assert decibels(5.0, 0.0) == math.inf
    assert decibels(0.0, 0.0) == math.inf
    assert decibels(0.0, 1.0) is None


def test_one_bit_for_a_half_and_a_quarter_leaves_zero_decibels() -> None:
    net = nn.Sequential(nn.Linear(2, 2)).eval()
    calibration, lowered, model = stages(net, torch.rand(50, 2), input_bits=1, input_range=(0.0, 1.0))
    comparison = compare(calibration, lowered, model, torch.tensor([[0.5, 0.25]]))
    # 0.5 becomes 1 and 0.25 becomes 0: the noise 0.25 + 0.0625 is the signal's.
    assert comparison.layers[0].integer_db == comparison.layers[0].fake_db == 0.0
    assert comparison.layers[0].rings_db == math.inf


def test_the_fake_network_computes_the_reals_of_the_integers_at_every_layer(made: tuple[Stages, Tensor]) -> None:
    (calibration, lowered, model), x = made
    comparison = compare(calibration, lowered, model, x)
    assert {each.name: each.rings_db for each in comparison.layers} == dict.fromkeys(lowered.graph.by_name, math.inf), (
        "integers and reals part company somewhere, and no ring is to blame"
    )


def test_the_fake_network_runs_on_its_own(made: tuple[Stages, Tensor]) -> None:
    (calibration, lowered, model), x = made
    answers = fake_quantized(calibration, lowered).run(x).numpy()
    assert np.abs(answers - model.predict(x, "silent")).max() <= 1e-9 * np.abs(answers).max()


@pytest.mark.parametrize(
    "scheme",
    [
        Scheme(weight_bits=4, activation_bits=4, activations="power_of_two"),
        Scheme(weight_bits=4, activation_bits=4, activations="additive_powers_of_two"),
        Scheme(weight_bits=3, activation_bits=3, weights="codebook", activations="codebook"),
        Scheme(weights="ternary", activation_bits=5, per_channel=False),
        Scheme(weights="affine", weight_bits=4, observer="mse"),
    ],
    ids=lambda scheme: f"{scheme.weights}-{scheme.activations}",
)
def test_levels_that_are_not_uniform_are_the_same_reals_in_the_fake_network(scheme: Scheme) -> None:
    x = randn(60, 1, 12, 12)
    calibration, lowered, model = stages(networks.small_cnn(), x, scheme)
    comparison = compare(calibration, lowered, model, x)
    assert all(each.rings_db == math.inf for each in comparison.layers)
    codes = layer(comparison, "relu").codes
    assert codes is not None and sum(codes.used) == 60 * 8 * 12 * 12


def test_inputs_with_a_scale_of_their_own_are_compared_at_that_scale() -> None:
    x = randn(120, 20) * torch.logspace(-2, 0, 120)[:, None]
    calibration, lowered, model = stages(networks.mlp(), x, dynamic=64)
    comparison = compare(calibration, lowered, model, x, labels=np.zeros(120, dtype=np.int64))
    assert all(each.rings_db == math.inf for each in comparison.layers)
    with torch.no_grad():
        top = networks.mlp()(x).argmax(1).numpy()
    assert comparison.accuracies is not None
    assert comparison.accuracies.floating == (top == 0).mean()
    assert comparison.accuracies.integer == (model.predict(x, "silent").argmax(1) == 0).mean()


def test_a_layer_of_one_bit_is_named_as_the_first_to_diverge() -> None:
    x = randn(120, 1, 12, 12)
    broken = stages(networks.small_cnn(), x, layers={"relu#2": {"activation_bits": 1}})
    comparison = compare(*broken, x)
    assert comparison.first_diverging == "relu#2"
    assert "relu#2" in comparison.advice()[0] and "activation_bits" in comparison.advice()[0]
    assert compare(*stages(networks.small_cnn(), x), x).first_diverging is None


def test_a_layer_diverges_below_ten_decibels_or_by_a_fall_of_ten() -> None:
    x = randn(60, 20)
    whole = compare(*stages(networks.mlp(), x), x)

    def first(*ratios: float | None) -> str | None:
        from dataclasses import replace

        names = "abcdef"
        chain = tuple(
            replace(whole.layers[0], name=names[i], inputs=tuple(names[i - 1 : i]) if i else (), integer_db=ratio)
            for i, ratio in enumerate(ratios)
        )
        return replace(whole, layers=chain).first_diverging

    assert first(math.inf, 40, 16, 15) is None
    assert first(math.inf, 40, 14.9, 9) == "c"
    assert first(30, 14, 12, 9.9) == "b"
    assert first(25, 19, 12, 9.9) == "d"
    assert first(25, None, 24, 9.9) == "d"


def test_saturated_shares_are_those_beyond_the_ends_of_the_codes() -> None:
    known = torch.linspace(0, 1, 256)[:, None]
    made = stages(identity_relu(), known, Scheme(observer="minmax"), input_range=(-4.0, 4.0))
    x = torch.tensor([-3.0, -1.0, 0.0, 0.2, 0.4, 0.6, 0.8, 2.0, 3.0, 3.9])[:, None]
    codes = layer(compare(*made, x), "1").codes
    assert codes is not None
    assert codes.saturated_high == 0.3
    assert codes.saturated_low == 0.0  # ReLU itself ends at zero: nothing is lost there
    assert (codes.lowest, codes.highest) == (0.0, float(np.float32(3.9)))
    assert sum(codes.floats.counts) == sum(codes.used) == 10
    assert codes.used[0] == 3 and codes.used[-1] == 3


def test_inputs_beyond_the_client_s_range_count_as_saturated() -> None:
    made = stages(identity_relu(), torch.linspace(0, 1, 64)[:, None], input_range=(-1.0, 1.0))
    codes = compare(*made, torch.tensor([[-2.0], [-1.5], [0.5], [7.0]])).layers[0].codes
    assert codes is not None
    assert (codes.saturated_low, codes.saturated_high) == (0.5, 0.25)


def test_wrapped_shares_are_those_that_leave_a_calibrated_ring() -> None:
    known = torch.linspace(0, 0.2, 256)[:, None]
    rings = {"rings": "calibrated", "margin_bits": 0}
    made = stages(identity_relu(), known, Scheme(observer="minmax"), rings=rings, input_range=(0.0, 4.0))
    x = torch.cat([known[::64], torch.full((1, 1), 4.0)])
    comparison = compare(*made, x)
    read = layer(comparison, "1").read
    assert read is not None
    assert read.wrapped == 0.2
    assert made[2].wraps(x)["1"] == 0.2
    assert read.seen_bits > read.ring
    fallen = layer(comparison, "1")
    assert fallen.rings_db is not None and fallen.rings_db < 10
    assert any("wrap" in sentence and "margin_bits" in sentence for sentence in comparison.advice())


def test_rings_of_index_bits_wrap_as_the_model_says() -> None:
    x = randn(120, 1, 12, 12)
    made = stages(networks.small_cnn(), x, layers={"relu": {"index_bits": 7}}, rings={"rings": "calibrated"})
    comparison, wraps = compare(*made, 3 * x), made[2].wraps(3 * x)
    found = {each.name: each.read.wrapped for each in comparison.layers if each.read is not None}
    assert found | {"output": comparison.answer.wrapped} == wraps
    assert wraps["relu"] > 0.01
    hurt = layer(comparison, "relu")
    assert hurt.fake_db is not None and hurt.integer_db is not None and hurt.fake_db > hurt.integer_db + 3
    assert hurt.read is not None and hurt.read.index_bits is not None and hurt.read.index_bits > 7
    assert f"{{'relu': {{'index_bits': {hurt.read.index_bits}}}}}" in " ".join(comparison.advice())


def test_the_answer_s_decibels_are_those_of_the_predictions(made: tuple[Stages, Tensor]) -> None:
    (calibration, lowered, model), x = made
    found = compare(calibration, lowered, model, x).layers[-1].integer_db
    floating = calibration.placed.graph.run(x).to(torch.float64).numpy()
    noise = np.square(floating - model.predict(x, "silent")).sum()
    assert found == (math.inf if noise == 0 else pytest.approx(10 * math.log10(np.square(floating).sum() / noise)))


def test_however_the_batch_is_cut_the_comparison_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = randn(90, 1, 12, 12), np.arange(90) % 10
    made = stages(networks.small_cnn(), x)
    steps: list[tuple[int, int | None]] = []
    whole = compare(*made, x, labels)
    monkeypatch.setattr("pqi.quant.compare._CHUNK_VALUES", 1200 * 8)
    parts = compare(*made, x, labels, progress=lambda done, total: steps.append((done, total)))
    assert len(steps) > 5 and steps[-1] == (90, 90)
    assert parts.accuracies == whole.accuracies
    for one, other in zip(parts.layers, whole.layers, strict=True):
        assert (one.codes, one.weights, one.read) == (other.codes, other.weights, other.read)
        assert one.integer_db == pytest.approx(other.integer_db)


def test_accuracies_are_those_of_the_three_networks() -> None:
    net, x = networks.small_cnn(), randn(100, 1, 12, 12)
    calibration, lowered, model = stages(net, x, Scheme(weight_bits=3, activation_bits=2))
    labels = np.arange(100) % 10
    found = compare(calibration, lowered, model, x, labels).accuracies
    with torch.no_grad():
        floating = net(x).argmax(1).numpy()
    fake = fake_quantized(calibration, lowered).run(x).argmax(1).numpy()
    integer = model.predict(x).argmax(1)
    assert found is not None
    assert (found.floating, found.fake, found.integer) == tuple((t == labels).mean() for t in (floating, fake, integer))
    assert found.integer_agrees == (integer == floating).mean() < 1
    without = compare(calibration, lowered, model, x).accuracies
    assert without is not None and without.floating is None and without.integer_agrees == found.integer_agrees


def test_weights_are_compared_with_their_grid() -> None:
    x = randn(60, 20)
    coarse = compare(*stages(networks.mlp(), x, Scheme(weight_bits=2)), x)
    fine = compare(*stages(networks.mlp(), x, Scheme(weight_bits=8)), x)
    few, many = layer(coarse, "0").weights, layer(fine, "0").weights
    assert few is not None and many is not None and few.db is not None and many.db is not None
    assert few.levels == (-1.0, 0.0, 1.0)
    assert sum(few.integers.counts) == sum(few.floats.counts) == 20 * 32
    assert many.levels == ()  # 255 of them are no list to look at
    assert few.db < 15 < 30 < many.db
    assert any("weight_bits" in sentence for sentence in coarse.advice())


def test_a_range_far_too_wide_is_told_by_the_codes_left_idle() -> None:
    x = randn(100, 20)
    made = stages(networks.mlp(), torch.cat([x, 50 * x[:1]]), Scheme(observer="minmax"))
    assert any("codes: its range is too wide" in sentence for sentence in compare(*made, x).advice())


def test_a_comparison_is_json_and_a_table_and_a_line() -> None:
    x = randn(60, 20)
    comparison = compare(*stages(networks.mlp(), x, layers={"1": {"percentile": 60.0}}), x, np.arange(60) % 5)
    again = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    assert again["layers"][0]["name"] == comparison.layers[0].name
    assert again["layers"][0]["rings_db"] == "inf"
    assert again["accuracies"]["integer_agrees"] <= 1
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(comparison)
    console.file.close()
    shown = console.export_text()
    assert "Layer by layer" in shown and "requantize" in shown and "first layer to diverge" in shown
    assert "saturates" in shown
    assert str(comparison).startswith("Comparison: 6 layers on 60 inputs")


def test_what_does_not_fit_is_refused_in_words() -> None:
    x = randn(60, 20)
    made = stages(networks.mlp(), x)
    with pytest.raises(InputError, match=r"shape \(60, 19\): \(N, 20\), N > 0, is needed"):
        compare(*made, x[:, 1:])
    with pytest.raises(InputError, match="N > 0"):
        compare(*made, x[:0])
    with pytest.raises(InputError, match=r"labels have shape \(59,\).*60 integers are needed"):
        compare(*made, x, np.zeros(59, dtype=np.int64))
    with pytest.raises(InputError, match="dtype float64"):
        compare(*made, x, np.zeros(60))
    with pytest.raises(InputError, match="NaN"):
        compare(*made, torch.full((3, 20), math.nan))


def test_stages_of_two_networks_are_not_compared() -> None:
    x = randn(60, 20)
    calibration, lowered, model = stages(networks.mlp(), x)
    other_calibration, _, other_model = stages(networks.mlp(hidden=16), x)
    with pytest.raises(GraphError, match="not made of this lowered graph"):
        compare(calibration, lowered, other_model, x)
    with pytest.raises(GraphError, match="not one of this calibration"):
        compare(other_calibration, lowered, model, x)
