"""Which networks have a polynomial form: parabolas, squares, joins, and refusals by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pqi
from pqi.graph.capture import capture
from pqi.graph.errors import QuantizationError, UnsupportedOperator
from pqi.graph.ops import Add, Concat, Offset, Polynomial
from pqi.quant import quantize, to_polynomial
from pqi.quant.batches import Batches
from pqi.quant.polynomial.api import _quantizer
from pqi.quant.polynomial.form import Moments, measure, parabola
from pqi.quant.polynomial.lower import lowered, offset
from pqi.quant.polynomial.student import Student


def data(n: int = 120, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(n, *(shape or (6,)), generator=torch.Generator().manual_seed(seed))


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return make().eval()


class Written(nn.Module):
    """A function with two layers at hand."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], features: int = 6) -> None:
        super().__init__()
        self.function = function
        self.fc1, self.fc2 = nn.Linear(features, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


SQUARES: dict[str, Callable[[Tensor], Tensor]] = {
    "x * x": lambda x: x * x,
    "torch.square": torch.square,
    "torch.pow": lambda x: torch.pow(x, 2),
    "x ** 2": lambda x: x**2,
    "x.pow(2.0)": lambda x: x.pow(2.0),
    "in place": lambda x: x.square_(),
}


@pytest.mark.parametrize("spelling", SQUARES)
def test_a_square_is_recognised_however_it_is_written_and_kept(spelling: str) -> None:
    net = seeded(lambda: Written(lambda own, x: own.fc2(SQUARES[spelling](own.fc1(x)))))
    x = data()
    model = to_polynomial(net, x, activation="square", weight_bits=8, input_bits=8, epochs=2, learning_rate=1e-4)
    assert [node.op.kind for node in model.graph.nodes] == ["input", "dense", "polynomial", "dense"]
    with torch.no_grad():
        floats = net(x)
    assert float((torch.from_numpy(model.predict(x)) - floats).abs().max()) < 0.05 * float(floats.abs().max())


def test_the_fourth_power_is_a_square_of_a_square() -> None:
    net = seeded(lambda: Written(lambda own, x: own.fc2(0.1 * own.fc1(x) ** 4)))
    model = to_polynomial(net, data(), epochs=2)
    assert model.depth == 2 and model.report().rows[-1].degree == 4


def test_quantize_refuses_squares_and_says_who_takes_them() -> None:
    for function in (lambda own, x: own.fc1(x) * own.fc1(x), lambda own, x: own.fc1(x) ** 2):
        with pytest.raises(UnsupportedOperator, match=r"pqi\.to_polynomial"):
            quantize(seeded(lambda f=function: Written(f)), data())


@pytest.mark.parametrize("power", [3, 0.5, -1])
def test_other_powers_are_refused(power: float) -> None:
    with pytest.raises(UnsupportedOperator, match="the powers 2, 4 and 8"):
        to_polynomial(seeded(lambda: Written(lambda own, x: own.fc2(own.fc1(x) ** power))), data())


def test_products_of_two_different_values_are_refused() -> None:
    with pytest.raises(UnsupportedOperator, match="it multiplies two values"):
        to_polynomial(seeded(lambda: Written(lambda own, x: own.fc1(x) * own.fc1(2 * x))), data())


def moments(f: Callable[[Tensor], Tensor], z: Tensor) -> Moments:
    powers = torch.stack([(z**i).mean(1) for i in range(5)], 1)
    return Moments(powers, torch.stack([(f(z) * z**i).mean(1) for i in range(3)], 1))


def test_the_parabola_is_numpy_s_least_squares_fit() -> None:
    z = torch.randn(1, 5000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3 + 0.5
    a, h, k = (float(v) for v in parabola(moments(torch.relu, z)))
    wanted = np.polyfit(z[0].numpy(), torch.relu(z)[0].numpy(), 2)
    assert np.allclose([a, 2 * a * h, a * h * h + k], wanted, rtol=1e-3, atol=1e-3)


def test_a_polynomial_of_degree_two_is_fitted_by_itself() -> None:
    z = torch.randn(3, 400, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a, h, k = parabola(moments(lambda z: -0.7 * (z - 0.4) ** 2 + 5, z))
    assert torch.allclose(torch.stack([a, h, k], 1), torch.tensor([-0.7, -0.4, 5.0]).double(), atol=1e-3)


@pytest.mark.parametrize("f", [torch.sigmoid, torch.tanh, lambda z: 0 * z, lambda z: z])
def test_a_parabola_is_never_nearly_straight(f: Callable[[Tensor], Tensor]) -> None:
    z = torch.randn(2, 4000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2
    a, h, k = parabola(moments(f, z))
    assert bool((a.abs() > 1e-4).all() and (h.abs() <= 6.5).all() and torch.isfinite(k).all())


def test_a_channel_that_calibration_never_moves_gets_a_finite_parabola() -> None:
    z = torch.randn(3, 400, dtype=torch.float64)
    z[1] = -2.0
    assert all(bool(torch.isfinite(part).all()) for part in parabola(moments(torch.relu, z)))


def test_measuring_is_the_same_however_the_data_are_cut() -> None:
    net = seeded(lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4), nn.ReLU()))
    x = data(60, 2, 6, 6)
    graph = capture(net, x)
    graph.refresh()
    whole, parts = measure(graph, Batches(x)), measure(graph, Batches([x[:7], x[7:50], x[50:]]))
    assert set(whole) == {"1", "4"} and whole["1"].powers.shape == (3, 5) and whole["4"].products.shape == (4, 3)
    for name, found in whole.items():
        assert torch.allclose(found.powers, parts[name].powers) and torch.allclose(found.products, parts[name].products)


def net_of(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), *layers, nn.Flatten(), nn.LazyLinear(3))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: net_of(nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2)),
    "pool first": lambda: net_of(nn.AvgPool2d(2), nn.ReLU(), nn.Conv2d(4, 5, 3, padding=1), nn.ReLU6()),
    "smooth": lambda: net_of(nn.GELU(), nn.Conv2d(4, 4, 3, groups=2), nn.SiLU(), nn.AdaptiveAvgPool2d(1)),
    "s-shaped": lambda: net_of(nn.Sigmoid(), nn.Conv2d(4, 4, 2, stride=2), nn.Tanh()),
    "rectifiers": lambda: net_of(nn.LeakyReLU(0.1), nn.Conv2d(4, 4, 3), nn.ELU(), nn.Softplus(), nn.Mish()),
    "activation first": lambda: nn.Sequential(nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)),
    "affine": lambda: net_of(nn.AvgPool2d(2)),
    "rows": lambda: nn.Sequential(nn.Flatten(2), nn.Linear(36, 5), nn.ReLU(), nn.Linear(5, 4), nn.Flatten()),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_integer_model_equals_the_trained_forward_pass(name: str) -> None:
    x = data(60, 2, 6, 6)

    def make() -> nn.Module:
        net = NETWORKS[name]()
        net(x[:2])
        return net

    net = seeded(make)
    made: list[tuple[Student, Any]] = []
    original = Student.quantize

    def watched(student: Student) -> None:
        made.append((student, None))
        original(student)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Student, "quantize", watched)
        model = to_polynomial(net, x, epochs=3, weight_bits=6)
    student, codes = made[0][0].double(), model.encode(x)
    with torch.no_grad():
        units, weights = student.units(), student.weights()
        counted = {n: (w, (b / units[n]).round() * units[n]) for n, (w, b) in weights.items()}
        floats, exact = student(codes.double(), weights)[0].numpy(), student(codes.double(), counted)[0].numpy()
    answers, size = model.decode(model.integers(codes)), np.abs(floats).max()
    assert np.abs(answers - exact).max() <= 1e-6 * size
    assert np.abs(answers - floats).max() <= 1e-2 * size
    assert lowered(student, model.input_quantizer).bits == model.bits


def test_large_biases_behind_squares_are_offsets() -> None:
    deep = [layer for _ in range(4) for layer in (nn.Linear(6, 6), nn.ReLU())]
    model = to_polynomial(seeded(lambda: nn.Sequential(*deep, nn.Linear(6, 2))), data(), epochs=3, weight_bits=6)
    assert any(isinstance(node.op, Offset) and node.name.endswith(".bias") for node in model.graph.nodes)
    assert model.bits > 64 and model.integers(model.encode(data(3))).shape == (3, 2)


@pytest.mark.parametrize("largest", [0.4, 3.6, 2.0**39, 2.0**200])
def test_an_offset_is_the_nearest_whole_number_or_60_bits_of_it(largest: float) -> None:
    constants = torch.tensor([largest, -largest / 3, 0.0], dtype=torch.float64)
    for found, wanted in zip(offset(constants).integers(), constants.tolist(), strict=True):
        assert abs(found - wanted) <= max(0.5, largest * 2.0**-52)


class Inception(nn.Module):
    """Two branches of one depth, joined before an activation and behind one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(6, 4)
        self.last = nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.relu(self.a(x) + 0.1 * self.b(x))
        out: Tensor = self.last(torch.cat([both, torch.relu(self.c(x))], 1))
        return out


def test_branches_of_one_degree_are_joined_in_one_unit() -> None:
    net, x = seeded(Inception), data(200)
    model = to_polynomial(net, x, epochs=20, weight_bits=8, input_bits=8)
    kinds = {type(node.op) for node in model.graph.nodes}
    assert {Add, Concat, Polynomial} <= kinds
    with torch.no_grad():
        floats = net(x).numpy()
    assert np.corrcoef(model.predict(x).ravel(), floats.ravel())[0, 1] > 0.97


def test_a_connection_that_skips_a_square_is_refused_by_the_layer_that_joins() -> None:
    def skipping(own: Any, x: Tensor) -> Tensor:
        out: Tensor = own.fc2(own.fc1(x) + torch.relu(own.fc1(x)))
        return out

    with pytest.raises(QuantizationError, match=r"layer 'add' joins values of different .*additive2"):
        to_polynomial(seeded(lambda: Written(skipping)), data(), epochs=2)


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        ([nn.ReLU(), nn.MaxPool2d(2)], "layer '2' .*is a maximum: use average pooling, or .*additive2"),
        ([nn.Hardtanh(), nn.MaxPool2d(2)], "layer '2' .*is a maximum"),
    ],
)
def test_a_maximum_is_refused_by_name_with_what_serves_it(layers: list[nn.Module], says: str) -> None:
    def make() -> nn.Module:
        net = net_of(*layers)
        net(data(2, 2, 6, 6))
        return net

    with pytest.raises(QuantizationError, match=says):
        to_polynomial(seeded(make), data(60, 2, 6, 6))


def test_all_that_has_no_form_is_told_at_once() -> None:
    def several(own: Any, x: Tensor) -> Tensor:
        out: Tensor = own.fc2(torch.sign(own.fc1(x)))
        return torch.where(out >= 0, 1.0, -1.0)

    with pytest.raises(QuantizationError) as caught:
        to_polynomial(seeded(lambda: Written(several)), data())
    assert "'sign'" in str(caught.value) and "'where'" in str(caught.value) and "additive2" in str(caught.value)


def test_operators_that_cannot_be_imported_are_told_with_their_place() -> None:
    def inner(own: Any, x: Tensor) -> Tensor:
        out: Tensor = own.fc2(torch.softmax(own.fc1(x), 1))
        return out

    with pytest.raises(UnsupportedOperator, match=r"softmax[\s\S]*test_polynomial_form\.py"):
        to_polynomial(seeded(lambda: Written(inner)), data())


@pytest.mark.parametrize("last", [nn.Sigmoid(), nn.ReLU()])
def test_an_activation_at_the_very_end_is_left_to_the_client(last: nn.Module) -> None:
    with pytest.raises(QuantizationError, match="layer '1' is an activation at the very end: leave it out"):
        to_polynomial(seeded(lambda: nn.Sequential(nn.Linear(6, 2), last)), data())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"activation": "cubic"}, "activation is 'cubic': it must be one of fitted, square"),
        ({"activation": "square"}, "layer '1' is a clamp .*use activation='fitted'"),
        ({"weight_bits": 1}, "weight_bits is 1"),
        ({"input_bits": 13}, "input_bits is 13"),
        ({"epochs": 1}, "epochs is 1"),
        ({"batch": 0}, "batch is 0"),
        ({"learning_rate": 0.0}, r"learning_rate is 0\.0"),
        ({"labels_weight": 2.0}, r"labels_weight is 2\.0"),
        ({"answer_bits": 1}, "answer_bits is 1"),
        ({"layers": {"9": {"weight_bits": 3}}}, r"names \['9'\], which have no weights. Those that do: \['0', '2'\]"),
        ({"layers": {"0": {"bits": 3}}}, "layer '0' has fields"),
        ({"layers": {"0": {"weight_bits": 99}}}, "layer '0': weight_bits is 99"),
        ({"labels": [0, 1]}, r"integers of shape \(120,\) are needed"),
        ({"labels": np.full(120, 7)}, "labels run from 7 to 7: 0 to 2 is possible"),
        ({"labels": np.zeros(120)}, "labels are torch.float64"),
        ({"learning_rate": 1.0, "labels": None, "poison": True}, "NaN or infinity"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused_by_name(options: dict[str, Any], says: str) -> None:
    net = seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)))
    if options.pop("poison", False):
        with torch.no_grad():
            net[0].weight.fill_(3e38)  # type: ignore[index, union-attr, operator]
    with pytest.raises(QuantizationError, match=says):
        to_polynomial(net, data(), **options)


def test_labels_need_answers_that_are_one_row_of_classes() -> None:
    net = seeded(lambda: nn.Conv2d(2, 3, 3))
    with pytest.raises(QuantizationError, match="one row of classes"):
        to_polynomial(net, data(20, 2, 6, 6), labels=np.zeros(20, dtype=np.int64))


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("labelled", [False, True])
def test_a_logistic_regression_needs_no_square_and_just_works(outputs: int, labelled: bool) -> None:
    net, x = seeded(lambda: nn.Linear(6, outputs)), data(300)
    with torch.no_grad():
        answers = net(x)
    labels = (answers[:, 0] > 0).long() if outputs == 1 else answers.argmax(1)
    known = labels if labelled else None
    model = to_polynomial(net, x, known, weight_bits=7, input_bits=8, epochs=15, labels_weight=0.1)
    found = model.predict(x)
    classes = (found[:, 0] > 0) if outputs == 1 else found.argmax(1)
    assert model.depth == 0 and float((classes == labels.numpy()).mean()) > 0.96


def test_counts_from_zero_keep_their_own_grid_up_to_the_largest() -> None:
    counts = torch.arange(17).float().repeat(4, 2)
    assert _quantizer(counts, 6, None).code_range == (0, 16)
    assert _quantizer(counts, 4, None).code_range == (0, 15)
    assert _quantizer(counts, 6, (0.0, 32.0)).code_range == (0, 63)
    assert _quantizer(counts - 3, 6, None).code_range == (-32, 31)


def test_data_may_come_in_batches_and_an_exported_program_is_a_network() -> None:
    net, x = seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))), data()
    whole = to_polynomial(net, x, epochs=2)
    parts = to_polynomial(net, [x[:50], x[50:]], epochs=2)
    program = torch.export.export(net, (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    exported = pqi.to_polynomial(program, x, epochs=2)
    answers = [model.predict(x).tolist() for model in (whole, parts, exported)]
    assert answers[0] == answers[1] == answers[2]
