"""Networks that scale with their input, inputs of many loudnesses, and what to hold dynamic models to."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import pqi.program as program
from pqi.graph.capture import capture
from pqi.graph.floating import FloatGraph
from pqi.graph.model import IntegerModel
from pqi.graph.rewrite import simplify
from pqi.quant import quantize
from tests import networks
from tests.pqi.program.lockstep import run


def data(*shape: int, n: int = 64, seed: int = 0) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


def of_many_loudnesses(x: Tensor, quietest: float = 0.01) -> Tensor:
    """Every input at a loudness of its own, spread evenly on a logarithmic scale."""
    loud = torch.logspace(math.log10(quietest), 0, len(x)).view(-1, *[1] * (x.ndim - 1))
    return x / x.flatten(1).abs().amax(1).view(loud.shape) * loud


def with_small_biases(net: nn.Module, factor: float) -> nn.Module:
    with torch.no_grad():
        for module in net.modules():
            for name in ("bias", "running_mean"):
                if isinstance(value := getattr(module, name, None), Tensor):
                    value.mul_(factor)
    return net


def float_graph(net: nn.Module, *shape: int) -> FloatGraph:
    return simplify(capture(net, data(*shape, n=2)))


class Residual(nn.Module):
    """Additions of codes, of linear layers and of both; an affine of its own on a value that two read; a tail."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.short, self.fc = nn.Conv2d(4, 4, 1), nn.Linear(4, 3)
        self.register_buffer("factor", torch.linspace(-0.5, 1.5, 4).view(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = x * self.factor + 0.25
        y = F.relu(self.conv(x) + self.short(x) + y) + F.max_pool2d(x, 3, 1, 1)
        return self.fc(F.avg_pool2d(y, 4).flatten(1)) - 0.5


class Rows(nn.Module):
    """A dense layer on rows: its channels are the last axis; a transposed constant."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 7), nn.Linear(21, 2)
        self.register_buffer("shift", torch.linspace(-1, 1, 3).view(3, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.first(x) + self.shift).flatten(1))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (networks.mlp, (20,)),
    "small_cnn": (networks.small_cnn, (1, 12, 12)),
    "concat_net": (networks.concat_net, (2, 8, 8)),
    "residual": (networks.seeded(lambda: Residual().eval()), (2, 8, 8)),
    "rows": (networks.seeded(lambda: Rows().eval()), (3, 5)),
}
EACH = pytest.mark.parametrize("name", NETWORKS)


@cache
def quantized(name: str, **options: Any) -> IntegerModel:
    """The dynamic model of one of NETWORKS, made once for every choice of options."""
    build, shape = NETWORKS[name]
    return quantize(build(), of_many_loudnesses(data(*shape)), **{"dynamic": True, **options})


def relative_error(net: nn.Module, model: IntegerModel, x: Tensor) -> float:
    """Root mean square error, against how much the answers differ from the answer to silence."""
    with torch.no_grad():
        want, silence = net(x).numpy(), net(torch.zeros_like(x[:1])).numpy()
    got = model.predict(x, "silent")
    return float(np.sqrt(((got - want) ** 2).mean() / ((want - silence) ** 2).mean()))


def exact(model: IntegerModel, x: Tensor, protocol: str = "additive2", network: str = "lan") -> None:
    codes = model.encode(x, "silent")
    compiled = program.compile(model, protocol, network)
    got = run(model, compiled, codes)
    assert compiled.exact and torch.equal(got.answer, model.integers(codes))
    cost = compiled.cost(len(x))
    assert got.dealt == cost.dealt_bytes
    for party in compiled.parties:
        assert (got.log.sent_bytes[party], got.log.exchanges[party]) == (cost.online_bytes, cost.exchanges)
