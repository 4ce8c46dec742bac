"""From float networks to integer models: close to the float function, exact where the network is."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from pqi.graph.errors import CalibrationWarning, QuantizationError, RangeError, UnsupportedOperator
from pqi.graph.model import IntegerModel
from pqi.graph.ops import Conv2d, Dense, MaxPool2d, Requantize, Scale, Step
from pqi.quant import quantize
from tests import networks


def data(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(64, *shape, generator=torch.Generator().manual_seed(seed))


def error(net: nn.Module, model: IntegerModel, x: Tensor) -> float:
    """Largest difference of the answers, against their spread."""
    with torch.no_grad():
        want = net(x).numpy()
    return float(np.abs(model.predict(x) - want).max() / (want.max() - want.min()))


class PreActivation(nn.Module):
    """Values read by an activation and by an addition; batch norm on sums; average before the activation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.bn1, self.bn2 = nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.conv1, self.conv2 = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 1)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.conv1(F.relu(self.bn1(x)))
        x = x + self.conv2(F.relu(self.bn2(x))) + 0.25
        x = F.relu(F.avg_pool2d(x, 2))
        return self.fc(x.mean((2, 3)))


class Joined(nn.Module):
    """Concatenations of every kind: clamps of different ranges, averages, the input, signs; and at the very end."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 3, 1), nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(10, 4, 1)
        self.left, self.right = nn.Linear(4 * 16, 3), nn.Linear(4 * 16, 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = F.hardtanh(self.a(x)), F.relu6(self.b(x))
        y = torch.cat([a, b, F.avg_pool2d(x, 3, 1, 1), x * 0.5], 1)
        y = F.relu(self.c(y)).flatten(1)
        return torch.cat([self.left(y), self.right(y)], 1)


class Moved(nn.Module):
    """Affine operators along other axes, permutations, slices and reshapes of accumulators."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 4, 3), nn.Linear(4, 5)
        self.register_buffer("columns", torch.linspace(0.5, 1.5, 6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).flatten(2)[:, :, 1:31:5] * self.columns
        y = self.fc(F.relu(y).transpose(1, 2)) + torch.arange(5.0)
        return F.relu(y).reshape(-1, 6 * 5)[:, ::2]


class ManyReaders(nn.Module):
    """One sum read by three, and by the answer; the same value added twice; a clamp above zero."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.g = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        s = self.f(x) + self.g(x)
        return s + s + F.relu(s) - torch.clamp(s, 0.25, 1.0)


class Sums(nn.Module):
    """Sums of sums, of codes only, and of the input; one number as the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.g, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = F.relu(self.f(x)), F.relu(self.g(x))
        y = F.relu((a + b) + (a + x) + self.f(b))
        return self.head(y).squeeze(1)


NETWORKS: list[tuple[Callable[[], nn.Module], tuple[int, ...]]] = [
    (networks.mlp, (20,)),
    (networks.small_cnn, (1, 12, 12)),
    (networks.mobile_block, (3, 10, 10)),
    (networks.concat_net, (2, 8, 8)),
    (lambda: networks.settle(PreActivation(), (3, 6, 6)), (3, 6, 6)),
    (Joined, (2, 4, 4)),
    (Moved, (2, 8, 8)),
    (ManyReaders, (8,)),
    (lambda: nn.Sequential(nn.Conv2d(2, 3, 2), nn.AvgPool2d(2), nn.Flatten()), (2, 5, 5)),
    (lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU()), (4,)),
    (lambda: nn.Sequential(nn.ReLU(), nn.Linear(4, 6)), (4,)),
    (lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 6)), (4,)),
    (Sums, (8,)),
    (lambda: nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3)), (2, 4, 4)),
    (lambda: nn.Sequential(nn.Conv2d(2, 3, 1), nn.MaxPool2d(2), nn.Conv2d(3, 2, 1), nn.MaxPool2d(2)), (2, 4, 4)),
]


@pytest.mark.parametrize(("make", "shape"), NETWORKS)
def test_many_bits_come_close_to_the_float_network(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(7)
    net, x = make().eval(), data(*shape)
    model = quantize(net, x, 10, 11, input_bits=12, observer="minmax", multiplier=4.0)
    assert error(net, model, x) < 4e-3
    model.verify()


@pytest.mark.parametrize(("make", "shape"), NETWORKS)
def test_few_bits_follow_the_float_network(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(7)
    net, x = make().eval(), data(*shape)
    for model in (quantize(net, x), quantize(net, x, rings="calibrated"), quantize(net, x, per_channel=False)):
        assert error(net, model, x) < 0.1
        assert model.predict(x[:0]).shape == (0, *model.output_shape)


def test_calibrated_rings_are_narrower_and_change_nothing_on_the_data() -> None:
    net, x = networks.small_cnn(), data(1, 12, 12)
    proven, calibrated = quantize(net, x), quantize(net, x, rings="calibrated", margin_bits=0)
    assert sum(calibrated.accumulators.values()) < sum(proven.accumulators.values())
    assert np.array_equal(proven.predict(x), calibrated.predict(x))
    assert set(calibrated.wraps(x).values()) == {0.0}
    assert calibrated.verify().can_wrap and not proven.verify().can_wrap


def test_fewer_weight_bits_mean_fewer_levels() -> None:
    net, x = networks.mlp(), data(20)
    for bits in (2, 4, 8):
        model = quantize(net, x, weight_bits=bits)
        for node in model.graph.nodes:
            if isinstance(node.op, Dense):
                assert all(len(row.unique()) <= 2**bits - 1 for row in node.op.weight)


def test_codes_have_the_bits_asked_for() -> None:
    for bits in (1, 3, 6):
        model = quantize(networks.small_cnn(), data(1, 12, 12), activation_bits=bits)
        assert all(n.op.bits == bits for n in model.graph.nodes if isinstance(n.op, Requantize))


def test_relu_codes_begin_at_zero_and_maxima_compare_codes() -> None:
    model = quantize(networks.small_cnn(), data(1, 12, 12))
    for node in model.graph.nodes:
        if isinstance(node.op, Requantize):
            assert node.op.low == 0 and node.op.values is None
        if isinstance(node.op, MaxPool2d):
            assert isinstance(model.graph.by_name[node.inputs[0]].op, Requantize)


def test_a_hard_upper_end_holds_even_inside_a_wider_scale() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([F.relu6(x * 1.0), F.relu(x * 4.0)], 1)

    x = data(3) * 20
    model = quantize(Net(), x, observer="minmax", activation_bits=8)
    assert model.predict(x)[:, :3].max() == pytest.approx(6.0, abs=model.output_scale)
    assert model.predict(x)[:, 3:].max() > 100


# -- binarised networks ----------------------------------------------------------------------------------------------


def test_a_binarised_network_is_exactly_itself() -> None:
    net = networks.bnn()
    x = torch.randint(0, 256, (200, 30), generator=torch.Generator().manual_seed(1)).float()
    model = quantize(net, x[:32])
    assert model.output_scale == 1.0 and model.input_quantizer.scale == 1.0
    assert np.array_equal(model.predict(x), net(x).numpy())
    kinds = [n.op.kind for n in model.graph.nodes]
    assert kinds == ["input", "dense", "step", "dense", "step", "dense"]
    for node in model.graph.nodes:
        if isinstance(node.op, Dense):
            assert set(node.op.weight.unique().tolist()) == {-1, 1}


class Signs(nn.Module):
    """+-a weights and fractional thresholds: batch norm before every kind of sign."""

    def __init__(self, sign: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        rng = np.random.default_rng(5)
        self.sign = sign
        self.fc1, self.fc2, self.fc3 = nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        self.bn1, self.bn2 = nn.BatchNorm1d(16), nn.BatchNorm1d(16)
        with torch.no_grad():
            for layer in (self.fc1, self.fc2, self.fc3):
                layer.weight.copy_(torch.from_numpy(rng.choice([-0.25, 0.25], tuple(layer.weight.shape))))
                layer.bias.copy_(torch.from_numpy(rng.integers(-4, 5, layer.bias.shape) * 0.25))
            for bn in (self.bn1, self.bn2):
                bn.weight.copy_(torch.from_numpy(rng.uniform(0.5, 2, 16) * rng.choice([-1, 1], 16)))
                bn.bias.copy_(torch.from_numpy(rng.normal(0, 0.3, 16)))
                bn.running_mean.copy_(torch.from_numpy(rng.normal(0, 1, 16)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.sign(self.bn1(self.fc1(x))).to(x.dtype)
        return self.fc3(self.sign(self.bn2(self.fc2(x))).to(x.dtype))


@pytest.mark.parametrize(
    "sign",
    [
        lambda v: torch.where(v >= 0, 1.0, -1.0),
        lambda v: torch.where(v > 0, 1.0, -1.0),
        lambda v: torch.where(v < 0.3, -1.0, 1.0),
        lambda v: torch.where(v <= 0, 1.0, -1.0),
        lambda v: (v >= 0).float(),
        lambda v: (v > 0.1).float() * 2 - 1,
        torch.sign,
    ],
)
def test_thresholds_after_batch_norm_are_exact(sign: Callable[[Tensor], Tensor]) -> None:
    net = Signs(sign).double().eval()
    x = torch.randint(0, 256, (300, 12), generator=torch.Generator().manual_seed(2)).double()
    model = quantize(net, x[:64])
    assert np.allclose(model.predict(x), net(x).detach().numpy(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("strict", [False, True])
def test_ties_at_a_threshold_after_batch_norm_fall_as_in_the_network(strict: bool) -> None:
    net = nn.Sequential(nn.Linear(6, 40), nn.BatchNorm1d(40)).double().eval()
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        net[0].weight.copy_(torch.randint(0, 2, (40, 6), generator=generator) * 2 - 1)
        net[0].bias.zero_()
        net[1].weight.copy_(torch.rand(40, generator=generator) + 0.1)
        net[1].running_mean.copy_(torch.randint(-3, 4, (40,), generator=generator) * 2)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            y = self.net(x)
            return torch.where(y > 0, 1.0, -1.0) if strict else torch.where(y >= 0, 1.0, -1.0)

    x = torch.randint(0, 3, (200, 6), generator=generator).double()
    exact = x @ net[0].weight.detach().T - net[1].running_mean
    assert float((exact == 0).double().mean()) > 0.05
    assert np.array_equal(quantize(Net(), x).predict(x) > 0, ((exact > 0) if strict else (exact >= 0)).numpy())


def test_sign_of_zero_is_zero_for_torch_sign_and_one_for_where() -> None:
    class Net(nn.Module):
        def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.function, self.fc = function, nn.Linear(2, 1, bias=False)
            nn.init.constant_(self.fc.weight, 1.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.function(self.fc(x) - 6.0)

    x = torch.tensor([[1.0, 2.0], [3.0, 3.0], [250.0, 1.0], [6.0, 0.0]] * 3)
    for function, want in (
        (torch.sign, [-1, 0, 1, 0]),
        (lambda v: torch.where(v >= 0, 1.0, -1.0), [-1, 1, 1, 1]),
        (lambda v: torch.where(v > 0, 1.0, -1.0), [-1, -1, 1, -1]),
    ):
        assert quantize(Net(function), x).predict(x)[:4, 0].tolist() == want


def test_a_sum_of_two_layers_before_a_sign() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f, self.g = nn.Linear(6, 5), nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            return torch.sign(self.f(x) + self.g(x) + 0.5)

    torch.manual_seed(0)
    net, x = Net(), data(6)
    agree = quantize(net, x, input_bits=12).predict(x) == net(x).detach().numpy()
    assert agree.mean() > 0.98


def test_integer_weights_and_inputs_make_an_exact_last_layer() -> None:
    net = nn.Linear(5, 3)
    with torch.no_grad():
        net.weight.copy_(torch.randint(-100, 101, (3, 5)))
        net.bias.copy_(torch.tensor([1.0, -2.0, 3.0]))
    x = torch.randint(0, 256, (20, 5)).float()
    assert np.array_equal(quantize(net, x).predict(x), net(x).detach().numpy())


def test_a_fractional_bias_after_whole_weights_keeps_its_fraction() -> None:
    class Net(nn.Module):
        def __init__(self, weight: Tensor, bias: Tensor) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 3)
            self.fc.weight, self.fc.bias = nn.Parameter(weight), nn.Parameter(bias)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.where(x >= 0, 1.0, -1.0)) + 0.1

    x = data(6)
    for weight in (torch.randint(-1, 2, (3, 6)) * 0.75, torch.randint(-100, 101, (3, 6)).float()):
        net = Net(weight.float(), torch.tensor([0.3, -0.2, 0.01]))
        assert np.abs(quantize(net, x).predict(x) - net(x).detach().numpy()).max() <= 0.01


# -- choices and refusals --------------------------------------------------------------------------------------------


def test_an_input_range_can_be_declared() -> None:
    x = data(20)
    model = quantize(networks.mlp(), x, input_range=(-8.0, 8.0))
    lo, hi = model.input_quantizer.value_range
    assert lo <= -8 + 0.04 and hi >= 8 - 0.04
    assert model.graph.input.hi - model.graph.input.lo == 255


def test_values_beyond_a_declared_input_range_widen_no_range_behind_it() -> None:
    x = data(20).clamp(-1, 1)
    wild = x.clone()
    wild[0] = 1000.0
    declared = [quantize(networks.mlp(), given, input_range=(-1.0, 1.0)) for given in (wild.clamp(-1, 1), wild)]
    for clean, poisoned in zip(*(model.graph.nodes for model in declared), strict=True):
        assert repr(clean.op.params()) == repr(poisoned.op.params())
        assert all(torch.equal(t, poisoned.op.tensors()[name]) for name, t in clean.op.tensors().items())


def test_integer_pixels_keep_their_grid_and_zero_is_code_zero() -> None:
    x = torch.randint(0, 256, (16, 20)).float()
    model = quantize(networks.mlp(), x)
    assert torch.equal(model.encode(x), x.long())
    signed = torch.randint(-128, 128, (16, 20)).float()
    model = quantize(networks.mlp(), signed)
    assert torch.equal(model.encode(signed), signed.long()) and model.input_quantizer.scale == 1.0
    shifted = quantize(networks.mlp(), data(20))
    assert int(shifted.encode(np.zeros((1, 20))).abs().max()) == 0


def test_the_network_and_the_data_are_left_as_they_were() -> None:
    net, x = networks.small_cnn(), data(1, 12, 12)
    net.train()
    state, kept = {k: v.clone() for k, v in net.state_dict().items()}, x.clone()
    quantize(net, x)
    assert net.training and torch.equal(x, kept)
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())


def test_quantization_is_deterministic() -> None:
    x = data(1, 12, 12)
    first, second = quantize(networks.small_cnn(), x), quantize(networks.small_cnn(), x)
    assert first.accumulators == second.accumulators and first.output_scale == second.output_scale
    for a, b in zip(first.graph.nodes, second.graph.nodes, strict=True):
        assert all(torch.equal(v, b.op.tensors()[k]) for k, v in a.op.tensors().items())


def test_numpy_and_exported_programs_are_taken() -> None:
    net, x = networks.mlp(), data(20)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("n")},), strict=False)
    assert np.array_equal(quantize(program, x.numpy()).predict(x), quantize(net, x).predict(x))


def test_a_dead_layer_still_has_a_scale_and_is_named() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        net[0].bias.fill_(-1000.0)
    x = data(4)
    for weight in (net[0].weight, net[0].bias):
        want = net(x).detach().numpy()
        with pytest.warns(CalibrationWarning, match=r"leave \['1'\] constant"):
            model = quantize(net, x)
        assert np.abs(model.predict(x) - want).max() < 1e-2
        with torch.no_grad():
            weight.zero_()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"weight_bits": 1}, "weight_bits is 1: it must be an integer from 2 to 12"),
        ({"weight_bits": 8.0}, "weight_bits"),
        ({"activation_bits": 0}, "activation_bits"),
        ({"activation_bits": True}, "activation_bits"),
        ({"input_bits": 20}, "input_bits"),
        ({"margin_bits": -1}, "margin_bits"),
        ({"rings": "hoped"}, "rings"),
        ({"percentile": 10.0}, "percentile"),
        ({"input_range": (1.0, -1.0)}, "lower first"),
        ({"input_range": (0.0, float("inf"))}, "finite"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(QuantizationError, match=says):
        quantize(networks.mlp(), data(20), **options)


def test_codes_joined_by_a_concatenation_share_their_grid_or_are_refused_by_name() -> None:
    net, x = networks.concat_net(), data(2, 8, 8)
    names = [n.name for n in quantize(net, x).graph.nodes if isinstance(n.op, Requantize)]
    joined = next(n for n in quantize(net, x).graph.nodes if n.op.kind == "concat").inputs
    assert set(joined) <= set(names)
    for activations in ("power_of_two", "additive_powers_of_two", "codebook"):
        model = quantize(net, x, 8, 5, activations=activations)
        tables = [model.graph.by_name[name].op for name in joined]
        assert all(isinstance(op, Requantize) and op.values is not None for op in tables)
        assert error(net, model, x) < 0.2
        with pytest.raises(QuantizationError, match=f"'{joined[0]}' .*joined by a concatenation"):
            quantize(net, x, 8, 5, layers={joined[0]: {"activations": activations}})
    model = quantize(net, x, 8, 5, layers={joined[0]: {"activation_bits": 4}})  # uniform codes share a step
    assert error(net, model, x) < 0.2


@pytest.mark.parametrize("bits", [4, 6])
@pytest.mark.parametrize("activations", ["power_of_two", "additive_powers_of_two", "codebook"])
def test_levels_of_activations_are_few_and_leave_on_one_scale(activations: str, bits: int) -> None:
    net, x = networks.small_cnn(), data(1, 12, 12)
    model = quantize(net, x, activation_bits=bits, activations=activations)
    tables = [n.op for n in model.graph.nodes if isinstance(n.op, Requantize)]
    assert tables
    for op in tables:
        assert op.bits == bits + 2 and op.values is not None and int(op.values[0]) == 0
        assert len(op.values.unique()) <= 1 << bits
    assert error(net, model, x) < 0.25


def test_index_bits_are_the_ring_above_the_shift_and_wraps_are_told() -> None:
    net, x = networks.small_cnn(), data(1, 12, 12) / 5
    common: dict[str, Any] = {"input_range": (-5.0, 5.0), "input_bits": 12, "rings": "calibrated"}
    tight = quantize(net, x, activation_bits=5, index_bits=6, **common)
    roomy = quantize(net, x, activation_bits=5, index_bits=9, **common)
    for model, bits in ((tight, 6), (roomy, 9)):
        for node in model.graph.nodes:
            if isinstance(node.op, Requantize):
                proven = model.verify().proven_bits[node.name]
                assert model.accumulators[node.name] == min(node.op.shift + bits, proven)
    assert max(tight.wraps(5 * x).values()) > 0 == max(roomy.wraps(x).values())
    assert error(net, roomy, x) < 0.1 < error(net, tight, 5 * x)


def test_index_bits_need_rings_that_may_wrap() -> None:
    with pytest.raises(QuantizationError, match=r"index_bits is set for \['1', '4'\].*rings='calibrated'"):
        quantize(networks.mlp(), data(20), index_bits=8)


def test_thresholds_have_no_index_and_keep_their_rings() -> None:
    x = torch.randint(0, 256, (64, 30)).float()
    plain = quantize(networks.bnn(), x, rings="calibrated")
    assert quantize(networks.bnn(), x, rings="calibrated", index_bits=8).accumulators == plain.accumulators


def test_a_ring_cap_that_can_wrap_is_refused_by_layer() -> None:
    with pytest.raises(RangeError, match=r"layer '0', read by '1': \d+ bits needed, 12 allowed"):
        quantize(networks.mlp(), data(20), max_ring=12)
    assert max(quantize(networks.mlp(), data(20), 4, 3, input_bits=5, max_ring=16).rings.values()) <= 16


def test_unsupported_operators_are_refused_before_any_calibration() -> None:
    def progress(done: int, total: int) -> None:
        raise RuntimeError("calibration ran")

    with pytest.raises(UnsupportedOperator, match="sigmoid"):
        quantize(nn.Sequential(nn.Linear(4, 4), nn.Sigmoid()), data(4), progress=progress)


def test_nothing_warns_on_the_way() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize(networks.concat_net(), data(2, 8, 8))


def test_layers_carry_their_names_and_places() -> None:
    model = quantize(networks.mobile_block(), data(3, 10, 10))
    conv = model.graph.by_name["stem.0"]
    assert isinstance(conv.op, Conv2d) and conv.source.startswith("networks.py:")
    assert {type(n.op) for n in model.graph.nodes} >= {Conv2d, Dense, Requantize, Scale}
    assert not any(isinstance(n.op, Step) for n in model.graph.nodes)


def test_a_percentile_that_few_values_cannot_tell_is_warned_of_by_layer() -> None:
    net, x = networks.mlp(), data(20)
    with pytest.warns(CalibrationWarning, match=r"layer '1' \(and 1 more layers\): percentile 99.999 asks for"):
        model = quantize(net, x, percentile=99.999)
    # The range is then the largest value, to a bin of the histogram, as the warning says.
    largest = quantize(net, x, observer="minmax")
    assert np.abs(model.predict(x) - largest.predict(x)).max() < 0.05 * np.abs(largest.predict(x)).max()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize(net, x, percentile=99.0)
        quantize(net, x)
