"""Import from torch: many spellings, one meaning; what cannot be imported is refused with its place and a way out."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from pqi.graph.capture import capture
from pqi.graph.errors import GraphError, UnsupportedOperator
from pqi.graph.floating import Affine, Clamp, FloatConv2d, FloatGraph, MaxPool2d, Threshold
from pqi.graph.rewrite import simplify
from tests import networks


class Function(nn.Module):
    """A function as a module, with some constants to use."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        self.function = function
        self.register_buffer("w", random(6, 5))
        self.register_buffer("k", random(8, 4, 3, 3))
        self.register_buffer("k2", random(8, 2, 2, 2))
        self.register_buffer("row", random(6))
        self.register_buffer("channel", random(4, 1, 1), persistent=False)
        self.weight = nn.Parameter(random(3, 6))
        self.bn = nn.BatchNorm2d(4)
        self.bn.running_mean = random(4)
        self.bn.running_var = random(4).abs() + 0.5
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def mutate_then_reuse(m: Any, x: Tensor) -> Tensor:
    y = x * 2.0
    kept = y
    y = F.relu(y, inplace=True)
    y += 1.0
    return y + kept


def mutate_a_view(m: Any, x: Tensor) -> Tensor:
    y = x * 2.0
    y.flatten(1).add_(1.0)
    return y


def shuffle(m: Any, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


ROWS: list[Callable[[Any, Tensor], Tensor]] = [
    lambda m, x: x @ m.w,
    lambda m, x: torch.matmul(x, m.w.sign()) + 0.5,
    lambda m, x: torch.addmm(m.w[0], x, m.w, beta=2.0, alpha=0.5),
    lambda m, x: torch.mm(x, m.w) + m.w[1],
    lambda m, x: F.linear(x, m.weight, torch.ones(3)),
    lambda m, x: F.linear(x, m.weight * 0.5),
    lambda m, x: x + m.row,
    lambda m, x: m.row - x,
    lambda m, x: 1 - x,
    lambda m, x: (x - 1.5) / 0.25 * m.row,
    lambda m, x: -x,
    lambda m, x: x.add(m.row, alpha=2) + torch.sub(x, x, alpha=3),
    lambda m, x: x + x,
    lambda m, x: torch.where(x >= 0, 1, -1).float(),
    lambda m, x: torch.where(x >= 0, 1.0, -1.0),
    lambda m, x: torch.where(x < 0, -1.0, 1.0),
    lambda m, x: torch.where(x > 0, torch.ones_like(x), -torch.ones_like(x)),
    lambda m, x: torch.where(x <= 0.3, torch.tensor(-1.0), torch.tensor(1.0)),
    lambda m, x: torch.where(x >= 0.2, -1.0, 1.0),
    lambda m, x: torch.where(x > 0.2, 0.0, 1.0),
    lambda m, x: (x >= 0).float() * 2 - 1,
    lambda m, x: (x > 0.1).to(torch.float32),
    lambda m, x: torch.sign(x) + x.sign(),
    lambda m, x: x.clamp(min=-0.5).clamp(max=1.0),
    lambda m, x: torch.clamp(x, -0.25, 0.5),
    lambda m, x: F.relu6(x * 5),
    lambda m, x: F.hardtanh(x, -0.5, 0.75),
    lambda m, x: m.relu(x * 1.0).relu(),
    lambda m, x: F.dropout(x, 0.5, training=m.training),
    lambda m, x: x.clone().detach().contiguous(),
    lambda m, x: torch.cat([x, x[:, 1:3], x[:, ::2]], dim=-1),
    lambda m, x: torch.cat(x.chunk(2, dim=1)[::-1], 1),
    lambda m, x: torch.cat(torch.split(x, [1, 5], 1)[::-1], 1),
    lambda m, x: x.unsqueeze(1).squeeze(1).view(-1, 2, 3).permute(0, 2, 1).reshape(x.size(0), -1),
    lambda m, x: x[:, None, 2:4].flatten(1),
    lambda m, x: x.select(1, 3).unsqueeze(-1),
    lambda m, x: x.narrow(1, 1, 3)[:, -2:],
    mutate_then_reuse,
    mutate_a_view,
]

IMAGES: list[Callable[[Any, Tensor], Tensor]] = [
    lambda m, x: F.conv2d(x, m.k),
    lambda m, x: F.conv2d(x, m.k, torch.ones(8), stride=2, padding=1, dilation=2),
    lambda m, x: F.conv2d(x, m.k2, padding="same", groups=2),
    lambda m, x: F.conv2d(x, m.k, padding="valid"),
    lambda m, x: F.conv2d(x, m.k, padding=(2, 0), stride=(1, 3)),
    lambda m, x: m.bn(x),
    lambda m, x: m.bn(F.relu(m.bn(x))) + m.channel,
    lambda m, x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
    lambda m, x: F.max_pool2d(x, (2, 3), stride=1, dilation=2),
    lambda m, x: F.relu(F.max_pool2d(m.bn(x), 2)),
    lambda m, x: F.avg_pool2d(x, 2),
    lambda m, x: F.avg_pool2d(x, 3, 2, 1),
    lambda m, x: F.avg_pool2d(x, 2, divisor_override=3),
    lambda m, x: F.adaptive_avg_pool2d(x, (3, 1)),
    lambda m, x: F.adaptive_avg_pool2d(x, (None, 2)),
    lambda m, x: F.adaptive_max_pool2d(x, 2),
    lambda m, x: x.mean((2, 3)),
    lambda m, x: x.mean([-1, -2], keepdim=True),
    lambda m, x: x.mean(3),
    lambda m, x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)),
    lambda m, x: F.pad(x, (1, 0, 2, 1)) * 2,
    lambda m, x: x.transpose(1, 3).flatten(2),
    lambda m, x: torch.flatten(x, start_dim=1) - 1,
    lambda m, x: F.relu(x.transpose(1, 2) * torch.arange(4.0)[:, None]),
    lambda m, x: F.linear(x, torch.eye(6)[:2], torch.tensor([1.0, 2.0])) + torch.tensor([0.5, -1.0]),
    shuffle,
]


def check(net: nn.Module, x: Tensor) -> FloatGraph:
    net.eval()
    graph = capture(net, x)
    with torch.no_grad():
        want = net(x)
    for _ in range(2):
        for batch in (x, x[:1], x[:0]):
            assert torch.allclose(graph.run(batch), want[: len(batch)].float(), atol=1e-5)
        simplify(graph)
    return graph


@pytest.mark.parametrize("function", ROWS, ids=lambda f: inspect.getsource(f).strip()[:70])
def test_functions_of_rows(function: Callable[[Any, Tensor], Tensor]) -> None:
    x = torch.randn(7, 6, generator=torch.Generator().manual_seed(3))
    x[0] = 0.0
    check(Function(function), x)


@pytest.mark.parametrize("function", IMAGES, ids=lambda f: inspect.getsource(f).strip()[:70])
def test_functions_of_images(function: Callable[[Any, Tensor], Tensor]) -> None:
    check(Function(function), torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(4)))


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (networks.mlp, (20,)),
        (networks.small_cnn, (1, 12, 12)),
        (networks.mobile_block, (3, 10, 10)),
        (networks.concat_net, (2, 8, 8)),
        (networks.bnn, (30,)),
        (networks.resnet20, (3, 32, 32)),
    ],
)
def test_whole_networks(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    check(make(), torch.randn(4, *shape, generator=torch.Generator().manual_seed(5)))


def test_batch_norm_disappears_into_the_convolution_before_it() -> None:
    graph = check(networks.small_cnn(), torch.randn(2, 1, 12, 12))
    assert not any(isinstance(n.op, Affine) for n in graph.nodes)
    assert sum(isinstance(n.op, FloatConv2d) for n in graph.nodes) == 2


def test_batch_norm_stays_where_others_read_the_convolution_too() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return torch.relu(self.bn(y)) + y

    graph = check(networks.settle(Net(), (2, 3, 3)), torch.randn(2, 2, 3, 3))
    assert any(isinstance(n.op, Affine) for n in graph.nodes)


def test_an_affine_disappears_into_the_linear_operator_after_it() -> None:
    functions = [
        lambda m, x: F.conv2d((x - 0.5) / torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None, None], m.k2, groups=2),
        lambda m, x: F.conv2d(x * m.channel, m.k, padding=1),
        lambda m, x: F.linear(x * torch.arange(6.0) + 1, m.weight),
    ]
    for function in functions:
        graph = check(Function(function), torch.randn(3, 4, 6, 6))
        assert [n.op.kind.split()[0] for n in graph.nodes] == ["float"] * 2


def test_an_affine_stays_before_zero_padding() -> None:
    graph = check(Function(lambda m, x: F.conv2d(x + 1, m.k, padding=1)), torch.randn(3, 4, 6, 6))
    assert any(isinstance(n.op, Affine) for n in graph.nodes)


def test_pooling_comes_after_the_activation() -> None:
    graph = check(networks.small_cnn(), torch.randn(2, 1, 12, 12))
    known = graph.by_name()
    for node in graph.nodes:
        if isinstance(node.op, MaxPool2d):
            assert isinstance(known[node.inputs[0]].op, Clamp)


def test_thresholds_keep_what_happens_at_zero() -> None:
    for function, strict in ((ROWS[13], False), (ROWS[16], True)):
        graph = simplify(capture(Function(function), torch.randn(2, 6)))
        assert [n.op.strict for n in graph.nodes if isinstance(n.op, Threshold)] == [strict]


def test_dead_code_leaves_no_node() -> None:
    def function(m: Any, x: Tensor) -> Tensor:
        torch.relu(x @ m.w)
        return x * 2

    assert len(check(Function(function), torch.randn(2, 6)).nodes) == 2


def test_the_network_is_left_as_it_was() -> None:
    net = networks.small_cnn()
    net.train()
    net.bn1.eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    capture(net, torch.randn(2, 1, 12, 12))
    assert net.training and not net.bn1.training and net.fc1.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_an_exported_program_is_taken_as_it_is() -> None:
    net, x = networks.mlp(), torch.randn(3, 20)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("n")},), strict=False)
    assert torch.allclose(capture(program, x).run(x), net(x), atol=1e-6)


def test_a_network_that_fixes_its_batch_size_is_still_taken() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(2, -1) if x.shape[0] == 2 else x.flatten(1)

    x = torch.randn(5, 2, 3)
    assert torch.equal(capture(Net(), x).run(x), x.flatten(1))


REFUSED: list[tuple[Callable[[Any, Tensor], Tensor], str, str]] = [
    (lambda m, x: F.gelu(x), "gelu", "use relu"),
    (lambda m, x: torch.softmax(x, 1), "softmax", "decoded answer"),
    (lambda m, x: F.layer_norm(x, (6,)), "layer_norm", "batch norm"),
    (lambda m, x: x * x, "mul", "products with constants"),
    (lambda m, x: x @ x.t(), "aten.t", "batch axis"),
    (lambda m, x: x - x.mean(0), "mean", "pooling|spatial"),
    (lambda m, x: x.flatten(), "flatten", "batch axis"),
    (lambda m, x: torch.cat([x, x]), "cat", "batch axis"),
    (lambda m, x: x[1:], "slice", "batch axis"),
    (lambda m, x: torch.where(x >= 0, 3.0, -1.0), "where", "1 and -1"),
    (lambda m, x: torch.where(x >= 0, x, -x), "where", "constant|two numbers"),
    (lambda m, x: F.dropout(x, 0.5, training=True), "dropout", "eval"),
    (lambda m, x: F.pad(x, (1, 1), value=2.0), "pad", "constant 0"),
    (lambda m, x: F.pad(x, (-1, 1)), "pad", "negative"),
    (lambda m, x: x / 0, "div", "zero"),
    (lambda m, x: x + torch.randn(x.shape[0], 6), "randn", "deterministic|depends"),
    (lambda m, x: x[:, :, None] + x[:, None, :], "add", "equal shapes"),
    (lambda m, x: x * float("nan"), "mul", "NaN"),
]


@pytest.mark.parametrize(("function", "operator", "advice"), REFUSED, ids=lambda v: v if isinstance(v, str) else "")
def test_other_operators_are_refused_with_a_way_out(
    function: Callable[[Any, Tensor], Tensor], operator: str, advice: str
) -> None:
    with pytest.raises(UnsupportedOperator, match=advice) as caught:
        capture(Function(function), torch.randn(3, 6))
    first = caught.value.operators[0]
    assert operator in first.operator and "test_capture.py" in first.place


def test_all_unsupported_operators_are_listed_at_once_with_file_line_and_text() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Sequential(nn.Linear(6, 6), nn.Sigmoid())

        def forward(self, x: Tensor) -> Tensor:
            y = torch.tanh(x)
            z = self.head(x)
            return y + z + torch.exp(y)  # the exponential reads something refused: still one line for each

    with pytest.raises(UnsupportedOperator) as caught:
        capture(Net(), torch.randn(3, 6))
    assert [u.operator.split(".")[1] for u in caught.value.operators] == ["tanh", "sigmoid"]
    line = inspect.getsourcelines(Net.forward)[1] + 1
    assert f"test_capture.py:{line}: y = torch.tanh(x)" in str(caught.value)
    assert "head.1" in caught.value.operators[1].place


def test_several_inputs_or_outputs_are_refused() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x * 2

    with pytest.raises(GraphError, match="2 outputs"):
        capture(Two(), torch.randn(2, 3))


def test_what_torch_cannot_trace_is_refused_with_torchs_reason() -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if float(x.sum()) > 0 else -x

    with pytest.raises(GraphError, match="cannot trace"):
        capture(Branch(), torch.randn(2, 3))


def test_something_that_is_no_network_is_refused() -> None:
    with pytest.raises(GraphError, match="Module"):
        capture("resnet", torch.randn(2, 3))  # type: ignore[arg-type]
