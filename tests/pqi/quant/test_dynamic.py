"""Inputs with scales of their own: quiet ones keep their accuracy, bits stay exact, servers see nothing of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from dynamickit import (
    EACH,
    NETWORKS,
    data,
    exact,
    of_many_loudnesses,
    quantized,
    relative_error,
    with_small_biases,
)
from torch import nn

import pqi.program as program
from pqi.graph.model import IntegerModel
from pqi.graph.ops import Spread
from pqi.graph.ranges import prove
from pqi.quant import quantize
from tests import networks
from tests.pqi.program.lockstep import run


@pytest.mark.parametrize("name", ["mlp", "small_cnn"])
def test_quiet_inputs_keep_the_accuracy_that_static_quantization_loses(name: str) -> None:
    make, shape = NETWORKS[name]
    net, x = with_small_biases(make(), 0.02), data(*shape, n=200)
    spread = of_many_loudnesses(x)
    static, dynamic = quantize(net, spread, 8, 8), quantize(net, spread, 8, 8, dynamic=True)
    loud = of_many_loudnesses(x, 1.0)
    for loudness in (1.0, 0.1, 0.02):
        assert relative_error(net, dynamic, loud * loudness) < 0.1
    assert relative_error(net, static, loud * 0.02) > 0.3
    assert relative_error(net, dynamic, loud * 0.02) < relative_error(net, static, loud * 0.02) / 5


def test_without_biases_quiet_inputs_are_as_good_as_loud_ones() -> None:
    net = nn.Sequential(nn.Linear(20, 30, bias=False), nn.ReLU(), nn.Linear(30, 5, bias=False)).eval()
    x = of_many_loudnesses(data(20, n=100), 1.0)
    model = quantize(net, x, 8, 8, dynamic=True)
    assert np.allclose(model.predict(x / 64) * 64, model.predict(x), atol=1e-9)
    assert relative_error(net, model, x / 100) < 0.05


@EACH
def test_many_bits_come_close_to_the_float_network_at_every_loudness(name: str) -> None:
    make, shape = NETWORKS[name]
    net, x = make(), of_many_loudnesses(data(*shape), 0.1)
    model = quantize(net, x, 10, 11, input_bits=12, percentile=100.0, multiplier=4.0, dynamic=True)
    with torch.no_grad():
        want = net(x).numpy()
    assert float(np.abs(model.predict(x) - want).max() / (want.max() - want.min())) < 6e-3
    model.verify()


@pytest.mark.parametrize(
    "options",
    [
        {"weights": "ternary"},
        {"weight_bits": 2},
        {"per_channel": False},
        {"rings": "calibrated"},
        {"equalize": True, "bias_correction": True},
        {"learned_rounding": True},
    ],
    ids=str,
)
def test_every_other_choice_goes_with_it(options: dict[str, Any]) -> None:
    make, shape = NETWORKS["small_cnn"]
    net, x = with_small_biases(make(), 0.1), of_many_loudnesses(data(*shape), 0.2)
    chosen = {"weight_bits": 8, "activation_bits": 8, **options}
    model, static = quantize(net, x, **chosen, dynamic=True), quantize(net, x, **chosen)
    assert relative_error(net, model, x) < 1.3 * relative_error(net, static, x)
    exact(model, x[:5])


def test_biases_are_as_fine_under_two_bit_weights_as_under_eight() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4)).eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(4)[:, :3] * 0.5)
        net[2].weight.copy_(torch.eye(4))
    x = of_many_loudnesses(data(3), 0.02)
    model = quantize(net, x, 2, 8, dynamic=True)
    silence = torch.zeros(1, 3)
    assert np.allclose(model.predict(silence), net(silence).detach().numpy(), atol=0.02)


# -- exactness, and what the servers see -------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("protocol", ["clear", "additive2"])
def test_private_answers_equal_the_reference_bit_for_bit(name: str, protocol: str) -> None:
    exact(
        quantized(name),
        torch.cat([of_many_loudnesses(data(*NETWORKS[name][1], n=6)), torch.zeros(1, *NETWORKS[name][1])]),
        protocol,
    )


@pytest.mark.parametrize("rings", ["proven", "calibrated"])
@pytest.mark.parametrize("network", ["lan", "wan"])
def test_every_policy_and_network_profile_is_exact(rings: str, network: str) -> None:
    exact(quantized("small_cnn", rings=rings), of_many_loudnesses(data(1, 12, 12, n=5)), "additive2", network)


@EACH
def test_a_batch_of_mixed_loudness_answers_as_its_inputs_alone(name: str) -> None:
    model, x = quantized(name), of_many_loudnesses(data(*NETWORKS[name][1], n=8))
    together = model.predict(x)
    assert len(set(model.encode(x)[:, -1].tolist())) > 4
    assert np.array_equal(together, np.concatenate([model.predict(x[i : i + 1]) for i in range(len(x))]))


@EACH
def test_it_costs_at_most_one_exchange_and_almost_nothing_else(name: str) -> None:
    make, shape = NETWORKS[name]
    static = program.compile(quantize(make(), of_many_loudnesses(data(*shape))))
    dynamic = program.compile(quantized(name))
    assert dynamic.cost(1).exchanges <= static.cost(1).exchanges + 1
    opened = [i for i in dynamic.instructions if i.name == "input.scale/open"]
    assert len(opened) == 1 and dynamic.backend.cost(opened[0].action, 1).online_bits <= 80
    assert sum(
        dynamic.backend.cost(i.action, 1).dealt_bits for i in dynamic.instructions if i.name.endswith(".bias")
    ) <= (32 * sum(n.op.weight.numel() for n in quantized(name).graph.nodes if isinstance(n.op, Spread)))


def test_what_the_servers_receive_has_one_length_for_every_scale() -> None:
    model = quantized("mlp")
    compiled = program.compile(model)
    x = of_many_loudnesses(data(20, n=20))
    seen = set()
    for item in x:
        codes = model.encode(item[None])
        got = run(model, compiled, codes)
        messages = program.encode_input(compiled, codes)
        transcript = [len(m) for party in compiled.parties for _, m in got.log.received[party]]
        seen.add((int(codes[0, -1]), *(len(messages[p]) for p in compiled.parties), *transcript))
    assert len({s[0] for s in seen}) > 5 and len({s[1:] for s in seen}) == 1


def test_no_scale_and_no_extreme_code_leaves_a_proven_ring() -> None:
    for name in ("mlp", "residual"):
        model = quantized(name)
        assert model.dynamic is not None
        node, generator = model.graph.input, torch.Generator().manual_seed(3)
        codes = torch.randint(0, 2, (200, *node.shape), generator=generator) * (node.hi - node.lo) + node.lo
        codes[:, -1] = torch.randint(0, 2, (200,), generator=generator) * (model.dynamic.levels - 1) + 1
        loose = IntegerModel(
            model.graph, model.accumulators, model.input_quantizer, 1.0, "calibrated", dynamic=model.dynamic
        )
        assert torch.equal(loose.integers(codes), model.integers(codes))
        assert not model.verify().can_wrap


def test_few_scales_keep_the_proof_narrow() -> None:
    net, x = networks.mlp(), of_many_loudnesses(data(20), 0.25)
    four = quantize(net, x, dynamic=True)
    assert four.dynamic is not None and four.dynamic.levels == 4
    spread = [n for n in four.graph.nodes if isinstance(n.op, Spread)]
    assert len(spread) == 3 and all(isinstance(n.op, Spread) and n.op.top == 4 for n in spread)
    ranges = prove(four.graph)
    for node in spread:
        assert isinstance(node.op, Spread)
        assert ranges.hi[node.name] - ranges.lo[node.name] <= 4 * 2 * int(node.op.weight.abs().max()) + 2 * int(
            node.op.bias.abs().max()
        )
