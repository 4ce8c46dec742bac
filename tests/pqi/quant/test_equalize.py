"""Cross-layer equalization: another graph, the same function."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from pqi.graph.capture import capture
from pqi.graph.floating import FloatConv2d, FloatDense, FloatGraph, Linear
from pqi.graph.rewrite import simplify
from pqi.quant.equalize import equalized, pairs
from tests import networks


def graph_of(net: nn.Module, *shape: int) -> tuple[FloatGraph, Tensor]:
    x = torch.randn(12, *shape, generator=torch.Generator().manual_seed(0))
    return simplify(capture(net.eval(), x)), x


def uneven(net: nn.Module) -> nn.Module:
    """The network with channels of very different sizes."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                size = torch.exp2(torch.randint(-6, 5, (module.weight.shape[0],), generator=generator).float())
                module.weight.mul_(size.view(-1, *[1] * (module.weight.ndim - 1)))
    return net


def weight(graph: FloatGraph, name: str) -> Tensor:
    op = graph.by_name()[name].op
    assert isinstance(op, (FloatConv2d, FloatDense))
    return op.weight


def rows(graph: FloatGraph, name: str) -> Tensor:
    return weight(graph, name).abs().flatten(1).amax(1)


def columns(graph: FloatGraph, name: str) -> Tensor:
    return weight(graph, name).abs().transpose(0, 1).flatten(1).amax(1)


class Grouped(nn.Module):
    """Grouped and depthwise convolutions, both kinds of pooling, a permutation, padding, and a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, groups=4)
        self.c, self.d = nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.Conv2d(12, 6, 1)
        self.e, self.f = nn.Linear(6, 5), nn.Linear(5 * 9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(F.max_pool2d(F.relu(self.a(x)), 2)))
        x = F.avg_pool2d(F.relu(self.c(F.pad(x, (1, 1, 1, 1)))), 2)
        x = F.relu(self.d(x)).permute(0, 2, 3, 1)
        return self.f(F.relu(self.e(x)).flatten(1))


CASES: list[tuple[Callable[[], nn.Module], tuple[int, ...], int]] = [
    (networks.mlp, (20,), 2),
    (networks.small_cnn, (1, 12, 12), 3),
    (Grouped, (3, 12, 12), 5),
    (networks.mobile_block, (3, 10, 10), 0),
    (networks.concat_net, (2, 8, 8), 1),
    (lambda: networks.settle(networks.ResNetCIFAR(1, (4, 8, 16)), (3, 16, 16)), (3, 16, 16), 3),
]


@pytest.mark.parametrize(("make", "shape", "count"), CASES)
def test_the_function_stays_and_the_pairs_are_balanced(
    make: Callable[[], nn.Module], shape: tuple[int, ...], count: int
) -> None:
    torch.manual_seed(1)
    graph, x = graph_of(uneven(make()), *shape)
    found, balanced = pairs(graph), equalized(graph)
    assert len(found) == count
    want = graph.run(x)
    assert float((balanced.run(x) - want).abs().max()) <= 1e-4 * float(want.abs().max())
    assert [n.name for n in balanced.nodes] == [n.name for n in graph.nodes]
    if not count:
        assert torch.equal(balanced.run(x), want)


def test_both_ranges_of_a_channel_become_equal() -> None:
    graph, _ = graph_of(uneven(networks.mlp()), 20)
    balanced = equalized(graph)
    for pair in pairs(graph):
        before, after = rows(graph, pair.first), rows(balanced, pair.first)
        assert float((before / columns(graph, pair.second)).log().abs().max()) > 1
        assert torch.allclose(after, columns(balanced, pair.second), rtol=1e-3)
        assert float(after.max() / after.min()) < float(before.max() / before.min())


def test_the_channels_of_a_flattened_picture_share_one_factor() -> None:
    graph, _ = graph_of(uneven(networks.small_cnn()), 1, 12, 12)
    pair = next(p for p in pairs(graph) if len(p.channel) == 12 * 9)
    assert pair.channel.tolist() == [c for c in range(12) for _ in range(9)]
    factor = (weight(equalized(graph), pair.second) / weight(graph, pair.second))[0].view(12, 9)
    assert torch.allclose(factor, factor[:, :1].expand(12, 9))
    assert float(factor.max() / factor.min()) > 2


def test_the_convolutions_inside_a_residual_block_are_a_pair_and_its_sum_is_none() -> None:
    net = networks.settle(networks.ResNetCIFAR(1, (4, 8, 16)), (3, 16, 16))
    found = pairs(graph_of(net, 3, 16, 16)[0])
    assert [(p.first, p.second) for p in found] == [(f"layer{i}.0.conv1", f"layer{i}.0.conv2") for i in (1, 2, 3)]


class Between(nn.Module):
    def __init__(self, middle: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.middle = nn.Linear(6, 6), nn.Linear(6, 3), middle

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.middle(self.a(x)))


@pytest.mark.parametrize(
    ("middle", "is_pair"),
    [
        (F.relu, True),
        (lambda x: x, True),
        (lambda x: x.clamp(max=0.0), True),
        (F.relu6, False),
        (lambda x: F.hardtanh(x, -1.0, 1.0), False),
        (torch.sign, False),
        (lambda x: torch.where(x >= 0, 1.0, -1.0), False),
        (lambda x: F.relu(x).view(-1, 2, 3).transpose(1, 2).flatten(1), True),
        (lambda x: F.pad(F.relu(x[:, 1:5]), (1, 1)), True),
        (lambda x: F.relu(x) + x, False),
        (lambda x: torch.cat([F.relu(x[:, :3]), x[:, 3:]], 1), False),
    ],
)
def test_only_what_keeps_a_factor_may_stand_between(middle: Callable[[Tensor], Tensor], is_pair: bool) -> None:
    torch.manual_seed(2)
    graph, x = graph_of(uneven(Between(middle)), 6)
    assert bool(pairs(graph)) == is_pair
    want = graph.run(x)
    assert float((equalized(graph).run(x) - want).abs().max()) <= 1e-4 * float(want.abs().max())


def test_the_given_graph_is_left_as_it_is() -> None:
    graph, x = graph_of(uneven(networks.mlp()), 20)
    before = [n.op.weight.clone() for n in graph.nodes if isinstance(n.op, Linear)]
    want = graph.run(x)
    equalized(graph)
    assert all(
        torch.equal(b, n.op.weight)
        for b, n in zip(before, [n for n in graph.nodes if isinstance(n.op, Linear)], strict=True)
    )
    assert torch.equal(graph.run(x), want)


def test_dead_channels_and_constants_do_not_blow_up() -> None:
    net = networks.mlp()
    with torch.no_grad():
        net[0].weight[0] = 0.0
        net[0].weight[1] = 1e-12
        net[0].bias[1] = 1.0
        net[3].weight[:, 2] = 0.0
    graph, x = graph_of(net, 20)
    balanced = equalized(graph)
    assert torch.allclose(balanced.run(x), graph.run(x), rtol=1e-4, atol=1e-5)
    first = balanced.by_name()[pairs(graph)[0].first].op
    assert isinstance(first, Linear)
    largest = float((net[0].bias.abs() + net[0].weight.abs().sum(1)).detach().max())
    assert bool(torch.isfinite(first.bias).all()) and float(first.bias.abs().max()) <= largest * 1.001
