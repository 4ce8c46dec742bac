"""Models with polynomials: the reference by residues, the proof, files, and what is refused."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pqi
from pqi.graph import store
from pqi.graph.errors import GraphError, InputError, ModelFileError, RangeError
from pqi.graph.graph import IntegerGraph, Node
from pqi.graph.ops import (
    Add,
    Concat,
    Conv2d,
    Dense,
    Input,
    Offset,
    Op,
    Pad,
    Permute,
    Polynomial,
    Requantize,
    Reshape,
    Scale,
    Slice,
    SumPool2d,
)
from pqi.graph.polynomial import PolynomialModel
from pqi.graph.wide import PRIMES, apply, lifted, prove
from pqi.program import compile as compiled
from pqi.program.errors import ProgramError
from pqi.quant.quantizer import Quantizer


def random(seed: int, reach: int, *shape: int) -> torch.Tensor:
    return torch.randint(-reach, reach + 1, shape, generator=torch.Generator().manual_seed(seed))


def chain(*ops: Op, shape: tuple[int, ...] = (2, 6, 6), lo: int = -7, hi: int = 8) -> IntegerGraph:
    nodes = [Node("input", Input(shape, lo, hi))]
    for i, op in enumerate(ops):
        nodes.append(Node(f"{op.kind}{i}", op, (nodes[-1].name,)))
    return IntegerGraph(tuple(nodes), nodes[-1].name)


def model_of(graph: IntegerGraph, scale: float = 0.5) -> PolynomialModel:
    lo, hi = graph.input.lo, graph.input.hi
    return PolynomialModel(graph, Quantizer(1.0, 0.5 - lo, hi - lo + 1, None, signed=False), scale)


def deep() -> IntegerGraph:
    """Two squares and a cube: some 150 bits, with everything in between."""
    return chain(
        Conv2d(random(1, 9, 3, 2, 3, 3), random(2, 99, 3), (1, 2), (1, 1)),
        Polynomial((0, 0, 1)),
        Offset(random(3, 1 << 40, 3), 7),
        SumPool2d((2, 1), (2, 1)),
        Polynomial((-5, 3, 2, -1)),
        Permute((1, 2, 0)),
        Scale(random(4, 9, 3), random(5, 1 << 30, 3)),
        Pad(((0, 1), (0, 0), (1, 0))),
        Reshape((4 * 3 * 4,)),
        Slice(0, 2, 46, 3),
        Dense(random(6, 30, 5, 15), torch.zeros(5, dtype=torch.int64)),
        Offset(random(7, 1 << 60, 5), 40),
        Polynomial((0, 0, 1)),
        Dense(random(8, 30, 2, 5), random(9, 1 << 39, 2)),
    )


def plainly(graph: IntegerGraph, codes: torch.Tensor) -> list[Any]:
    """The definition in Python integers, one input at a time, index by index; a chain only."""
    value = np.array(codes.tolist(), dtype=object)
    return [_plain_chain(graph, x).tolist() for x in value]


def _plain_chain(graph: IntegerGraph, x: Any) -> Any:
    for node in graph.nodes[1:]:
        x = np.vectorize(int, otypes=[object])(_plain(node.op, x))  # numpy pads with integers of its own
    return x


def _plain(op: Op, x: Any) -> Any:
    spread = (-1,) + (1,) * (x.ndim - 1)
    if isinstance(op, Polynomial):
        return sum((c * x**i for i, c in enumerate(op.coefficients)), 0 * x)
    if isinstance(op, Offset):
        return x + np.array([m * 2**op.shift for m in op.mantissa.tolist()], dtype=object).reshape(spread)
    if isinstance(op, Scale):
        own = [np.array(t.tolist(), dtype=object).reshape(spread) for t in (op.weight, op.bias)]
        return x * own[0] + own[1]
    if isinstance(op, Dense):
        return np.array(op.weight.tolist(), dtype=object) @ x + np.array(op.bias.tolist(), dtype=object)
    if isinstance(op, Conv2d):
        return _plain_conv(op, x)
    if isinstance(op, SumPool2d):
        rows, columns = range(0, x.shape[1], op.stride[0]), range(0, x.shape[2], op.stride[1])
        return np.array(
            [
                [[x[c, i : i + op.kernel[0], j : j + op.kernel[1]].sum() for j in columns] for i in rows]
                for c in range(3)
            ],
            dtype=object,
        )
    if isinstance(op, Pad):
        return np.pad(x, op.pads)
    if isinstance(op, Permute):
        return x.transpose(op.axes)
    return x.reshape(op.shape) if isinstance(op, Reshape) else x[op.start : op.stop : op.step]  # type: ignore[attr-defined]


def _plain_conv(op: Conv2d, x: Any) -> Any:
    weight = np.array(op.weight.tolist(), dtype=object)
    x = np.pad(x, ((0, 0), (op.padding[0],) * 2, (op.padding[1],) * 2))
    _, kh, kw = weight.shape[1:]
    rows, columns = range(0, x.shape[1] - kh + 1, op.stride[0]), range(0, x.shape[2] - kw + 1, op.stride[1])
    out = np.zeros((len(weight), len(rows), len(columns)), dtype=object)
    for o, (a, i), (b, j) in itertools.product(range(len(weight)), enumerate(rows), enumerate(columns)):
        out[o, a, b] = int(op.bias[o]) + (weight[o] * x[:, i : i + kh, j : j + kw]).sum()
    return out


@pytest.mark.parametrize("stages", [2, 4, 5, 8, 11, 12, 14])
def test_the_reference_equals_plain_python_integers(stages: int) -> None:
    whole = deep()
    graph = IntegerGraph(whole.nodes[: stages + 1], whole.nodes[stages].name)
    model = model_of(graph)
    codes = torch.cat([random(11, 7, 6, 2, 6, 6), torch.full((1, 2, 6, 6), 8), torch.full((1, 2, 6, 6), -7)])
    answer = model.integers(codes)
    assert isinstance(answer, torch.Tensor) == (model.bits <= 63)
    assert answer.tolist() == plainly(graph, codes)


def test_the_deep_model_is_wider_than_any_machine_word_and_several_primes() -> None:
    model = model_of(deep())
    assert model.bits > 130 and model.depth == 4
    answer = model.integers(random(12, 7, 3, 2, 6, 6))
    assert isinstance(answer, np.ndarray) and all(type(value) is int for value in answer.flat)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1 << 30), lo=st.integers(-9, 3), span=st.integers(1, 9), power=st.integers(2, 4))
def test_no_value_leaves_its_proven_range_and_the_ends_of_a_single_layer_are_met(
    seed: int, lo: int, span: int, power: int
) -> None:
    coefficients = (*random(seed, 5, power).tolist(), 3)
    ops = (Dense(random(seed + 1, 6, 3, 2), random(seed + 2, 9, 3)), Polynomial(coefficients))
    graph = chain(*ops, Dense(random(seed + 3, 6, 2, 3), random(seed + 4, 9, 2)), shape=(2,), lo=lo, hi=lo + span)
    every = list(itertools.product(range(lo, lo + span + 1), repeat=2))
    proof, answers = prove(graph), np.array(model_of(graph).integers(torch.tensor(every)).tolist(), dtype=object)
    assert proof.lo["dense2"] <= answers.min() and answers.max() <= proof.hi["dense2"]
    assert -(1 << (proof.bits["dense2"] - 1)) <= proof.lo["dense2"]
    assert proof.hi["dense2"] < 1 << (proof.bits["dense2"] - 1)
    first = np.array([_plain(ops[0], np.array(x, dtype=object)) for x in every])
    assert (first.min(), first.max()) == (proof.lo["dense0"], proof.hi["dense0"])


@given(st.lists(st.integers(-(1 << 200), 1 << 200), min_size=4, max_size=4))
def test_a_linear_operator_acts_on_integers_of_any_size(x: list[int]) -> None:
    op = Dense(torch.tensor([[1, -2, 3, 4], [0, 5, -6, 7]]), torch.zeros(2, dtype=torch.int64))
    wanted = [x[0] - 2 * x[1] + 3 * x[2] + 4 * x[3], 5 * x[1] - 6 * x[2] + 7 * x[3]]
    assert apply(op, [np.array(x, dtype=object)]).tolist() == wanted


@given(st.integers(-(1 << 90), 1 << 90), st.integers(1, 5))
def test_residues_give_back_the_number_nearest_to_zero(x: int, primes: int) -> None:
    parts = [(np.array([x % m], dtype=object), m) for m in ((1 << 64), *PRIMES[:primes])]
    product = (1 << 64) * int(np.prod(np.array(PRIMES[:primes], dtype=object)))
    assert lifted(parts)[0] == (x + product // 2) % product - product // 2


def test_branches_are_joined_as_in_any_graph() -> None:
    nodes = (
        Node("input", Input((2,), 0, 3)),
        Node("a", Scale(torch.tensor([2, -1]), torch.tensor([1, 0])), ("input",)),
        Node("b", Polynomial((1, 0, 1)), ("input",)),
        Node("sum", Add(), ("a", "b", "b")),
        Node("both", Concat(0), ("sum", "a")),
    )
    model = model_of(IntegerGraph(nodes, "both"))
    assert model.integers(torch.tensor([[3, 2]])).tolist() == [[27, 8, 7, -2]]
    assert (model.proof.lo["sum"], model.proof.hi["sum"]) == (-1, 27)


def test_a_saved_model_comes_back_whole_and_says_what_it_is(tmp_path: Path) -> None:
    model = model_of(deep(), 1e-30)
    model.save(tmp_path / "m.pqi")
    back = pqi.load(tmp_path / "m.pqi")
    assert isinstance(back, PolynomialModel)
    codes = random(13, 7, 4, 2, 6, 6)
    assert back.integers(codes).tolist() == model.integers(codes).tolist()
    assert back.bits == model.bits and back.output_scale == 1e-30 and back.input_quantizer == model.input_quantizer
    assert store.to_bytes(back) == store.to_bytes(model) == (tmp_path / "m.pqi").read_bytes()
    assert b"pqi-polynomial-model 1" in store.to_bytes(model)


def test_no_altered_byte_of_a_file_goes_unnoticed() -> None:
    data = store.to_bytes(model_of(deep()))
    for position in np.random.default_rng(0).integers(0, len(data), 200):
        altered = bytearray(data)
        altered[position] ^= 4
        with pytest.raises(ModelFileError):
            store.from_bytes(bytes(altered))


def altered(model: PolynomialModel, change: Any) -> bytes:
    """The file of a model with another description, its digest in order."""
    from safetensors.torch import load, save

    data = store.to_bytes(model)
    title, digest, text = store._header(data)
    tensors, described = load(data), json.loads(text)
    assert digest == store._digest(text, tensors, title)
    title = change(described) or title
    text = json.dumps(described, sort_keys=True, separators=(",", ":"))
    return save(tensors, {"pqi": f"{title}\n{store._digest(text, tensors, title)}\n{text}"})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d["nodes"][2]["params"].update(coefficients=[1, 2]), "degree 2 to 4"),
        (lambda d: d["nodes"][2]["params"].update(coefficients=[0, 0, 1.5]), "no integers"),
        (lambda d: d["nodes"][3]["params"].update(shift=9999), "offset.shift"),
        (lambda d: d["nodes"][2].update(kind="step", params={}), "'polynomial1' is a step, which is no polynomial"),
        (lambda d: d.update(output_scale=0), "output_scale is 0"),
        (lambda d: d.update(output_scale=True), "output scale is malformed"),
        (lambda d: d["input_quantizer"].update(modulus=1 << 20), "input quantizer gives codes"),
        (lambda d: d.update(output="nowhere"), "is not the name of a node"),
        (lambda d: "pqi-polynomial-model 2", "format version '2'"),
        (lambda d: "pqi-integer-model 1", "malformed"),
        (lambda d: "pqi-other-model 1", "not written by this library"),
    ],
)
def test_a_malformed_file_is_refused_with_the_reason(change: Any, says: str) -> None:
    with pytest.raises(ModelFileError, match=says):
        store.from_bytes(altered(model_of(deep()), change))


def test_squares_without_end_are_refused_before_they_are_computed() -> None:
    with pytest.raises(RangeError, match=r"layer 'polynomial4' can need \d+ bits, 1000 are possible"):
        model_of(chain(*[Polynomial((0, 0, 0, 0, 1))] * 500, shape=(1,), lo=-2, hi=2))


def test_weights_that_could_leave_a_word_are_refused_by_layer() -> None:
    graph = chain(Dense(torch.full((1, 4), (1 << 31) - 1), torch.zeros(1, dtype=torch.int64)), shape=(4,))
    with pytest.raises(RangeError, match=r"layer 'dense0': its weights add up to 2\^33"):
        model_of(graph)


def test_a_layer_that_is_no_polynomial_is_refused_by_name() -> None:
    with pytest.raises(GraphError, match=r"layer 'requantize1' is a requantize, .* additive2"):
        model_of(chain(Polynomial((0, 0, 1)), Requantize(3, 4)))


@pytest.mark.parametrize(
    ("codes", "says"),
    [
        (torch.zeros(1, 2, 6, 6), "int64"),
        (torch.zeros(1, 2, 6, 5, dtype=torch.int64), "2, 6, 6"),
        (torch.full((1, 2, 6, 6), 9), r"\[-7, 8\] is the declared range"),
        ([1], "list"),
    ],
)
def test_codes_that_do_not_fit_are_refused(codes: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        model_of(deep()).integers(codes)


@pytest.mark.parametrize("wide", [False, True])
def test_an_empty_batch_has_an_empty_answer(wide: bool) -> None:
    model = model_of(deep() if wide else chain(Polynomial((0, 0, 1))))
    assert tuple(model.integers(torch.zeros(0, 2, 6, 6, dtype=torch.int64)).shape) == (0, *model.output_shape)


@pytest.mark.parametrize("protocol", ["additive2", "clear"])
def test_protocols_on_rings_refuse_polynomials_by_layer(protocol: str) -> None:
    with pytest.raises(ProgramError, match=r"layer 'polynomial1' is a polynomial, .* use bfv or ckks"):
        compiled(model_of(deep()), protocol)  # type: ignore[arg-type]
    affine = model_of(chain(Dense(random(0, 5, 3, 4), random(1, 5, 3)), shape=(4,)))
    with pytest.raises(ProgramError, match=r"pqi\.quantize makes one"):
        compiled(affine, protocol)  # type: ignore[arg-type]


def test_predictions_are_decoded_integers() -> None:
    model = model_of(chain(Polynomial((0, 0, 1)), shape=(2,)), 0.25)
    assert model.predict([[2.2, -3.0]]).tolist() == [[1.0, 2.25]]
    with pytest.raises(InputError, match="Nothing was computed"):
        model.predict([[100.0, 0.0]], "error")


def test_the_report_tells_bits_and_degrees_layer_by_layer() -> None:
    model = model_of(deep())
    report = model.report()
    facts = report.to_dict()
    assert facts["bits"] == model.bits and facts["depth"] == 4
    assert [row["degree"] for row in facts["layers"] if row["op"] == "polynomial"] == [2, 6, 12]
    assert facts["polynomials"] == 54 + 27 + 5 and facts["macs"] == report.macs > 54 * 18
    assert f"answers of {model.bits} bits" in str(report) and "PolynomialModel" in repr(model)
    assert json.loads(json.dumps(facts)) == facts
