"""The networks that figures are of: their shapes are those of the literature, and every one becomes integer."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from measurekit import FEATURES, linear, rows, subject
from torch import nn

import pqi
from pqi.graph.errors import CalibrationWarning
from pqi.measure import folder, problems
from pqi.measure.errors import MeasureError
from pqi.measure.facts import Facts, facts
from pqi.measure.nets import registry
from pqi.measure.nets.registry import NETWORKS
from pqi.measure.nets.settle import settled
from pqi.measure.points import points

# Multiply-accumulates of convolutions and dense layers, ReLUs, comparisons in max-pooling, weights and biases with
# batch norm folded in, by hand from the definitions; the first are the figures known from the literature.
KNOWN = {
    "mlp": (118_016, 256, 0, 118_282),
    "lenet": (2_293_000, 15_220, 11_040, 431_080),
    "resnet20": (40_551_040, 188_416, 0, 269_034),
    "vgg16": (313_463_808, 276_992, 93_696, 14_982_474),
    "resnet18-64": (148_557_824, 188_416, 131_072, 11_684_712),
    "resnet18": (1_814_073_344, 2_308_096, 1_605_632, 11_684_712),
    "resnet50": (4_089_184_256, 9_608_704, 1_605_632, 25_530_472),
    "mobilenet": (13_570_048, 411_648, 0, 467_336),
}
QUICK = ("mlp", "lenet", "resnet20", "mobilenet")


def made(name: str) -> pqi.IntegerModel:
    network = NETWORKS[name]
    x = torch.rand((2, *network.shape), generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)  # sizes do not depend on ranges
        return pqi.quantize(settled(network.make, x), x, 8, 6)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in KNOWN]
)
def test_a_network_has_the_size_that_the_literature_gives_and_compiles(name: str) -> None:
    model = made(name)
    found = facts(model)
    assert (found.macs, found.relus, found.maxima, found.parameters) == KNOWN[name]
    cost = pqi.compile(model).cost(1)
    assert 0 < cost.online_bytes < cost.dealt_bytes


def test_every_network_has_a_known_size() -> None:
    assert set(KNOWN) == set(NETWORKS) <= set(problems.NAMES)


@pytest.mark.parametrize("name", QUICK)
def test_a_network_has_as_many_weights_as_its_module_but_for_batch_norm(name: str) -> None:
    module = NETWORKS[name].make()
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    folded = sum(m.weight.numel() for m in norms)  # of a scale and an offset a bias remains
    assert sum(p.numel() for p in module.parameters()) - folded == KNOWN[name][3]


def test_drawn_weights_are_the_same_every_time_and_leave_the_callers_random_state() -> None:
    x = torch.rand((4, 3, 32, 32), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second = settled(NETWORKS["resnet20"].make, x), settled(NETWORKS["resnet20"].make, x)
    assert torch.equal(torch.rand(3), expected)
    assert not first.training
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_settled_statistics_keep_a_deep_network_s_values_of_one_size() -> None:
    x = torch.rand((8, 3, 32, 32), generator=torch.Generator().manual_seed(1))
    net = settled(NETWORKS["vgg16"].make, x)
    sizes: list[float] = []
    for module in net.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda _m, _i, out: sizes.append(float(out.std())))
    with torch.no_grad():
        net(x)
    assert len(sizes) == 14
    assert all(0.05 < size < 5 for size in sizes)


def test_without_real_data_a_subject_is_drawn_and_says_that_its_decisions_mean_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("PQI_DATA", raising=False)
    found = problems.named("mlp")
    assert found.y is None and found.x.shape == (64, 1, 28, 28)
    assert found.x.min() >= 0 and found.x.max() <= 1
    for words in ("118 k MACs", "256 ReLUs", "weights drawn from a seed", "64 images drawn at random", "proven rings"):
        assert words in found.note
    assert found.integer is not None and found.integer.policy == "proven"
    assert np.array_equal(problems.named("mlp").x, found.x)
    other = problems.named("mlp", rings="calibrated").integer
    assert other is not None and other.policy == "calibrated"


@pytest.mark.data
@pytest.mark.skipif("PQI_DATA" not in os.environ, reason="needs the real data sets")
def test_resnet20_has_published_weights_and_their_accuracy() -> None:
    found = registry.subject("resnet20")
    assert "published weights" in found.note and found.y is not None and found.integer is not None
    answers = found.integer.predict(found.x[:300], "silent")
    assert (answers.argmax(1) == found.y[:300]).mean() > 0.88


def test_an_unknown_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(MeasureError, match="mlp, lenet, resnet20, vgg16, resnet18-64, resnet18, resnet50, mobilenet"):
        registry.subject("alexnet")


def test_sizes_are_told_in_words() -> None:
    words = str(Facts(1_814_073_344, 5, 2_308_096, 0, 999))
    assert words == "1.81 G MACs, 2,308,096 ReLUs, 999 parameters"


def test_cifar_s_format_is_read_and_damage_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PQI_DATA", str(tmp_path))
    (tmp_path / "cifar10").mkdir()
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), np.uint8)
    stored = images.copy()
    stored[:, 0] -= images[:, 1]
    stored[:, 2] -= images[:, 1]
    for axis in (3, 2):  # differences to the neighbour, modulo 256
        stored = np.concatenate([np.take(stored, [0], axis), np.diff(stored, axis=axis)], axis)
    np.savez(tmp_path / "cifar10" / "test.npz", x_filtered=stored, y=np.array([3, 1, 4]))
    x, y = folder.cifar_images("test", 2)
    assert y.tolist() == [3, 1]
    assert np.array_equal(x, folder.normalised(images[:2].astype(np.float32) / 255))
    np.savez(tmp_path / "cifar10" / "train_a.npz", x=stored)
    with pytest.raises(MeasureError, match="lacks x_filtered, y; it holds x"):
        folder.cifar_images("train", 2)
    (tmp_path / "cifar10" / "train_a.npz").write_bytes(b"PK no archive")
    with pytest.raises(MeasureError, match="cannot be read"):
        folder.cifar_images("train", 2)


def test_points_are_one_model_for_each_wish_and_a_file_has_only_its_own() -> None:
    found = points(subject(), (), "additive2", "lan")
    assert [point.bits for point in found] == [""]
    assert found[0].quality == found[0].accuracy == 1.0 and found[0].agreement is not None
    with pytest.raises(MeasureError, match="a model's file has the bits it was made with"):
        points(subject(), [(4, 4)], "additive2", "lan")


def test_fewer_bits_are_fewer_bytes() -> None:
    from dataclasses import replace

    net = nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, 2))

    def remade(weight_bits: int, activation_bits: int, rings: str) -> pqi.IntegerModel:
        return pqi.quantize(net, rows(50), weight_bits, activation_bits, rings=rings, input_range=(-1.0, 1.0))

    own = replace(subject(), integer=remade(8, 6, "proven"), floating=linear(), made=remade, y=None)
    eight, four = points(own, [(4, 4)], "additive2", "lan")
    assert four.online_bytes < eight.online_bytes and four.dealt_bytes < eight.dealt_bytes
    assert four.accuracy is None and four.quality == four.agreement
