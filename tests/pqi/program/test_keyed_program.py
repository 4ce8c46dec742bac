from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pqi
from pqi.graph.graph import IntegerGraph, Node
from pqi.graph.ops import Add, Conv2d, Dense, Input, Offset, Op, Polynomial, Reshape, Scale, SumPool2d
from pqi.graph.polynomial import PolynomialModel
from pqi.program.circuits import circuit_of
from pqi.program.errors import ProgramError
from pqi.program.keyed import KeyedProgram, compile_keyed, keyed_tensors, owned
from pqi.quant.quantizer import Quantizer
from protocols.clear.circuit import define_circuit

SQUARE = Polynomial((0, 0, 1))


def whole(shape: tuple[int, ...], low: int, high: int, seed: int = 0) -> Tensor:
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(seed))


def polynomial_model(*nodes: tuple[str, Op, tuple[str, ...]], shape: tuple[int, ...] = (1, 6, 6)) -> PolynomialModel:
    made = (Node("x", Input(shape, 0, 15)), *(Node(name, op, inputs) for name, op, inputs in nodes))
    quantizer = Quantizer(scale=1.0, offset=0.5, modulus=16, signed=False)
    return PolynomialModel(IntegerGraph(made, nodes[-1][0]), quantizer, 1.0)


def small_network() -> PolynomialModel:
    """Convolution with a wide bias, square, pooling, dense, a polynomial with every term, dense."""
    return polynomial_model(
        ("conv", Conv2d(whole((3, 1, 3, 3), -7, 7), whole((3,), -99, 99), (1, 1), (1, 1), (1, 1), 1), ("x",)),
        ("wide", Offset(whole((3,), -(1 << 40), 1 << 40, 1), 5), ("conv",)),
        ("square", SQUARE, ("wide",)),
        ("pool", SumPool2d((2, 2), (2, 2)), ("square",)),
        ("flat", Reshape((27,)), ("pool",)),
        ("fc1", Dense(whole((5, 27), -7, 7, 2), whole((5,), -99, 99, 3)), ("flat",)),
        ("shift", Offset(whole((5,), -(1 << 40), 1 << 40, 4), 70), ("fc1",)),
        ("cubic", Polynomial((5, -3, 1, 2)), ("shift",)),
        ("fc2", Dense(whole((4, 5), -7, 7, 5), whole((4,), -9, 9, 6)), ("cubic",)),
    )


def test_a_circuit_computes_the_integers_of_its_model_beyond_64_bits() -> None:
    model = small_network()
    circuit, weights = circuit_of(model)
    codes = whole((5, 1, 6, 6), 0, 15, 9)
    want = model.integers(codes)
    assert circuit.bits > 64
    assert [stage.name for stage in circuit.stages] == ["wide", "square", "shift", "cubic", "fc2"]
    got = define_circuit(circuit, weights, codes.reshape(5, -1).numpy())
    assert (got == np.asarray(want, dtype=object)).all()


def test_the_support_of_a_convolution_is_its_geometry_and_not_its_zeros() -> None:
    full = Conv2d(torch.ones(2, 1, 3, 3, dtype=torch.int64), torch.zeros(2).long(), (2, 2), (0, 0), (1, 1), 1)
    holes = Conv2d(torch.zeros(2, 1, 3, 3, dtype=torch.int64), torch.zeros(2).long(), (2, 2), (0, 0), (1, 1), 1)
    supports = [circuit_of(polynomial_model(("conv", op, ("x",))))[0].affine[0].support for op in (full, holes)]
    assert (supports[0] == supports[1]).all()
    assert supports[0].sum(1).tolist() == [9] * 8


def test_two_branches_of_affine_layers_add_up_in_one_stage() -> None:
    model = polynomial_model(
        ("a", Scale(torch.tensor([3]), torch.tensor([1])), ("x",)),
        ("b", Scale(torch.tensor([-5]), torch.tensor([2])), ("x",)),
        ("sum", Add(), ("a", "b")),
        ("square", SQUARE, ("sum",)),
        ("out", Scale(torch.tensor([1]), torch.tensor([0])), ("square",)),
    )
    circuit, weights = circuit_of(model)
    codes = whole((2, 1, 6, 6), 0, 15)
    got = define_circuit(circuit, weights, codes.reshape(2, -1).numpy())
    assert (got.astype(np.int64) == ((-2 * codes + 3) ** 2).reshape(2, -1).numpy()).all()


def test_a_connection_around_a_polynomial_is_refused_by_layer() -> None:
    model = polynomial_model(("square", SQUARE, ("x",)), ("sum", Add(), ("square", "x")))
    with pytest.raises(ProgramError, match=r"'sum'.*additive2"):
        circuit_of(model)


def test_a_relu_network_is_refused_by_layer_with_what_would_help() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    model = pqi.quantize(net, torch.randn(50, 4, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(ProgramError, match=r"to_polynomial.*additive2"):
        compile_keyed(model, "bfv")


@pytest.mark.parametrize("protocol", ["paillier", "bfv", "ckks"])
def test_a_linear_model_made_by_quantize_is_served_by_every_keyed_protocol(protocol: str) -> None:
    net = nn.Linear(4, 2).eval()
    model = pqi.quantize(net, torch.randn(50, 4, generator=torch.Generator().manual_seed(0)))
    program = compile_keyed(model, protocol)
    weights = owned(program, keyed_tensors(model, program))
    holder = program.backend.key_holder(program.plan)
    evaluator = program.backend.evaluator(program.plan, weights, holder.evaluation_keys())
    codes = model.encode(np.random.default_rng(1).normal(size=(3, 4)), "silent")
    answers = [evaluator.evaluate(3, i, q) for i, q in enumerate(holder.encrypt(codes.numpy()))]
    opened = holder.decrypt(3, answers)
    want = model.integers(codes).numpy()
    assert np.abs(opened.approximate - want).max() <= opened.error_bound
    if opened.exact is not None:
        assert (opened.exact == want).all()


@pytest.mark.parametrize("protocol", ["paillier", "bfv", "ckks"])
def test_a_keyed_program_survives_json_and_keeps_its_digest(protocol: str) -> None:
    model = pqi.quantize(nn.Linear(4, 2).eval(), torch.randn(50, 4, generator=torch.Generator().manual_seed(0)))
    program = compile_keyed(model, protocol)
    plain = json.loads(json.dumps(program.to_json()))
    again = KeyedProgram.from_json(plain)
    assert again.digest == program.digest
    (stage,) = plain["plan"]["circuit"]["stages"]
    assert set(stage) == {"name", "bits", "outputs", "inputs", "columns"}  # sizes, and no weight
    assert stage["columns"] == "dense"


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.pop("plan"),
        lambda d: d.update(format=99),
        lambda d: d.update(protocol="additive2"),
        lambda d: d.update(protocol=7),
        lambda d: d.update(input_shape=[5]),
        lambda d: d.update(output_shape=["2"]),
    ],
)
def test_a_damaged_program_is_refused(damage: Any) -> None:
    model = pqi.quantize(nn.Linear(4, 2).eval(), torch.randn(50, 4, generator=torch.Generator().manual_seed(0)))
    plain = json.loads(json.dumps(compile_keyed(model, "paillier").to_json()))
    damage(plain)
    with pytest.raises(ProgramError):
        KeyedProgram.from_json(plain)


def test_weights_that_do_not_fit_their_program_are_refused() -> None:
    model = pqi.quantize(nn.Linear(4, 2).eval(), torch.randn(50, 4, generator=torch.Generator().manual_seed(0)))
    program = compile_keyed(model, "paillier")
    tensors = keyed_tensors(model, program)
    name = next(n for n in tensors if n.endswith(".weight"))
    for bad in ({**tensors, name: tensors[name][:, :3]}, {**tensors, name: tensors[name].int()}, {}):
        with pytest.raises(ProgramError, match=name.removesuffix(".weight")):
            owned(program, bad)


def test_a_ring_that_can_wrap_is_refused() -> None:
    net = nn.Linear(40, 2).eval()
    data = 0.01 * torch.randn(50, 40, generator=torch.Generator().manual_seed(0))
    data[0] = 3.0
    model = pqi.quantize(net, data, rings="calibrated", margin_bits=0)
    assert model.verify().can_wrap
    with pytest.raises(ProgramError, match="proven"):
        compile_keyed(model, "paillier")
