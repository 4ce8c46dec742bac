"""The rewritten network: f(a x; a b) = a f(x; b), with the biases on an input of their own."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from dynamickit import (
    EACH,
    NETWORKS,
    data,
    float_graph,
)
from torch import Tensor, nn

from pqi.graph.errors import (
    QuantizationError,
)
from pqi.quant import quantize
from pqi.quant.homogeneous import has_biases, homogeneous


@EACH
@pytest.mark.parametrize("unit", [1.0, 0.03])
def test_the_network_on_scaled_inputs_computes_the_scaled_answer(name: str, unit: float) -> None:
    make, shape = NETWORKS[name]
    net, x = make(), data(*shape, n=9)
    graph = homogeneous(float_graph(net, *shape), 100, unit)
    assert graph.shapes[graph.nodes[0].name] == (math.prod(shape) + 1,)
    with torch.no_grad():
        want = net(x)
    for factor in (1.0, 3.0, 100.0):
        rows = torch.cat([x.flatten(1) * factor, torch.full((len(x), 1), factor * unit)], 1)
        assert torch.allclose(graph.run(rows) / factor, want, rtol=1e-4, atol=1e-5)


@EACH
def test_layers_keep_their_names_and_the_given_graph_its_function(name: str) -> None:
    make, shape = NETWORKS[name]
    before, x = float_graph(make(), *shape), data(*shape, n=3)
    names, want = [n.name for n in before.nodes], before.run(x)
    made = homogeneous(before, 7)
    assert set(names) <= {n.name for n in made.nodes} and not has_biases(made) and has_biases(before)
    assert [n.name for n in before.nodes] == names and torch.equal(before.run(x), want)


def test_a_network_without_biases_gets_no_sums() -> None:
    graph = float_graph(nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False)), 4)
    made = homogeneous(graph, 7)
    assert not has_biases(graph) and len(made.nodes) == len(graph.nodes) + 1


def test_layers_of_any_name_are_welcome() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.input = nn.ModuleDict({"scale": nn.Linear(4, 4), "shaped": nn.Linear(4, 2)})

        def forward(self, x: Tensor) -> Tensor:
            return self.input["shaped"](F.relu(self.input["scale"](x)))

    net = Named().eval()
    graph = homogeneous(float_graph(net, 4), 3)
    assert len({n.name for n in graph.nodes}) == len(graph.nodes)
    rows = torch.cat([2 * data(4, n=5), torch.full((5, 1), 2.0)], 1)
    assert torch.allclose(graph.run(rows) / 2, net(data(4, n=5)), atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        (nn.ReLU6(), r"'1' clamps to \[0, 6\]"),
        (nn.Hardtanh(-2, 2), r"clamps to \[-2, 2\]"),
        (nn.Hardtanh(0.5, math.inf), r"clamps to \[0.5, inf\]"),
    ],
)
def test_a_network_that_does_not_scale_is_refused_with_its_layers(layer: nn.Module, says: str) -> None:
    net = nn.Sequential(nn.Linear(4, 4), layer, nn.Linear(4, 4), nn.ReLU6()).eval()
    with pytest.raises(QuantizationError, match=f"needs a network that scales.*{says}.*quantize statically") as caught:
        quantize(net, data(4), dynamic=True)
    assert "'3'" in str(caught.value) and "Use ReLU" in str(caught.value)


@pytest.mark.parametrize(("step", "kind"), [(torch.sign, "sign"), (lambda x: (x >= 0).float(), "threshold")])
def test_steps_are_refused_since_they_do_not_grow(step: Callable[[Tensor], Tensor], kind: str) -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(step(self.fc(x)))

    with pytest.raises(QuantizationError, match=f"is a {kind}, whose result does not grow"):
        quantize(Steps().eval(), data(4), dynamic=True)
