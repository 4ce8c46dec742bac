"""Every operator of the integer graph: meaning, shapes, batches of 0, share words, refusals."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from itertools import accumulate, product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from pqi.graph.errors import GraphError, RangeError
from pqi.graph.ops import (
    CATALOGUE,
    Add,
    Concat,
    Conv2d,
    Dense,
    Expand,
    Input,
    Lookup,
    MaxPool2d,
    Noise,
    Offset,
    Op,
    Pad,
    Pairwise,
    Permute,
    Polynomial,
    Requantize,
    Reshape,
    Scale,
    Slice,
    Spread,
    Standing,
    Step,
    SumPool2d,
)


def ints(*values: Any) -> torch.Tensor:
    return torch.tensor(values if len(values) > 1 else values[0], dtype=torch.int64)


def every_operator() -> list[tuple[Op, list[tuple[int, ...]]]]:
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> torch.Tensor:
        return torch.randint(-9, 10, shape, generator=generator)

    image = (4, 6, 5)
    return [
        (Conv2d(random(6, 2, 3, 2), random(6), (2, 1), (1, 1), (1, 2), 2), [image]),
        (Dense(random(3, 5), random(3)), [image]),
        (Scale(random(4), random(4)), [image]),
        (Spread(random(4), random(4), 9, (4, 6, 5)), [(1,)]),
        (Spread(random(3), random(3), 60, (2, 3), 1), [(1,)]),
        (Add(), [image, image, image]),
        (Requantize(2, 3, -4), [image]),
        (Requantize(1, 2, 0, ints(-1, 0, 1, 1)), [image]),
        (Requantize(1, 1, 0, random(4, 2)), [image]),
        (Step(), [image]),
        (Lookup(3, random(8)), [image]),
        (Lookup(2, random(4, 4)), [image]),
        (MaxPool2d((3, 2), (2, 2), (1, 0), (1, 2)), [image]),
        (SumPool2d((2, 2), (2, 1), (1, 0)), [image]),
        (SumPool2d((6, 5), (6, 5)), [image]),
        (Concat(0), [image, (2, 6, 5)]),
        (Concat(2), [image, (4, 6, 1)]),
        (Reshape((8, 15)), [image]),
        (Permute((2, 0, 1)), [image]),
        (Slice(1, 1, 6, 2), [image]),
        (Pad(((0, 1), (2, 0), (1, 1))), [image]),
        (Expand((4, 6, 5)), [(4,)]),
        (Expand((2, 3, 5), 1), [(3,)]),
        (Polynomial((0, 0, 1)), [image]),
        (Polynomial((7, -3, 0, -2)), [image]),
        (Polynomial((1, 2, -3, 4, 5)), [image]),
        (Offset(random(4), 3), [image]),
        (Pairwise(), [(7,)]),
        (Standing(5), [(10,)]),
        (Noise(3), [image]),
    ]


OPERATORS = [pytest.param(op, shapes, id=f"{op.kind}-{i}") for i, (op, shapes) in enumerate(every_operator())]


@pytest.mark.parametrize(("op", "shapes"), OPERATORS)
@pytest.mark.parametrize("batch", [0, 1, 7])
def test_shape_rule_and_value_agree_for_every_batch(op: Op, shapes: list[tuple[int, ...]], batch: int) -> None:
    result = op.evaluate([torch.randint(-50, 50, (batch, *s)) for s in shapes])
    assert tuple(result.shape) == (batch, *op.infer_shape(shapes)) and result.dtype == torch.int64


@pytest.mark.parametrize(("op", "shapes"), OPERATORS)
def test_no_value_leaves_its_proven_bounds(op: Op, shapes: list[tuple[int, ...]]) -> None:
    ends = [torch.randint(-30, 30, (2, *s)).sort(0).values for s in shapes]
    lo, hi = op.bounds([(e[:1], e[1:]) for e in ends])
    for _ in range(50):
        inputs = [e[:1] + (torch.rand(e[:1].shape) * (e[1:] - e[:1] + 1)).long() for e in ends]
        if isinstance(op, Spread):  # whose value keeps to its own range, whatever the source could give
            inputs = [x.clamp(0, op.top) for x in inputs]
        value = op.evaluate(inputs)
        assert bool(((value >= lo) & (value <= hi)).all())


@pytest.mark.parametrize(("op", "shapes"), OPERATORS)
def test_an_operator_is_built_again_from_its_fields(op: Op, shapes: list[tuple[int, ...]]) -> None:
    twin = CATALOGUE[op.kind].build(op.params(), op.tensors())
    inputs = [torch.randint(-50, 50, (3, *s)) for s in shapes]
    assert torch.equal(twin.evaluate(inputs), op.evaluate(inputs)) and twin.params() == op.params()


LOCAL = (Add, Reshape, Permute, Slice, Pad, Concat, SumPool2d, Expand, Pairwise, Standing)


@pytest.mark.parametrize(("op", "shapes"), [p for p in OPERATORS if isinstance(p.values[0], LOCAL)])
@pytest.mark.parametrize("dtype", [torch.int16, torch.int32])
def test_local_operators_act_on_share_words(op: Op, shapes: list[tuple[int, ...]], dtype: torch.dtype) -> None:
    info = torch.iinfo(dtype)
    words = [torch.randint(info.min, info.max, (2, *s)) for s in shapes]
    result = op.evaluate([w.to(dtype) for w in words])
    assert result.dtype == dtype and torch.equal(result, op.evaluate(words).to(dtype))


@settings(deadline=None)
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    dilation=st.integers(1, 2),
    pad=st.booleans(),
    ceil_mode=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_pooling_is_pytorchs(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: int,
    pad: bool,
    ceil_mode: bool,
    seed: int,
) -> None:
    padding = (kernel[0] // 2, kernel[1] // 2) if pad else (0, 0)
    size = (max(size[0], dilation * kernel[0]), max(size[1], dilation * kernel[1]))
    x = torch.randint(-99, 99, (2, 3, *size), generator=torch.Generator().manual_seed(seed))
    got = MaxPool2d(kernel, stride, padding, (dilation, dilation), ceil_mode).evaluate([x])
    want = functional.max_pool2d(x.double(), kernel, stride, padding, dilation, ceil_mode)
    assert torch.equal(got, want.long())
    got = SumPool2d(kernel, stride, padding).evaluate([x])
    want = functional.avg_pool2d(x.double(), kernel, stride, padding) * math.prod(kernel)
    assert torch.equal(got, want.round().long())


@given(x=st.integers(-(1 << 40), 1 << 40), shift=st.integers(0, 31), bits=st.integers(1, 8), low=st.integers(-200, 200))
def test_requantize_is_floor_clamp_and_table(x: int, shift: int, bits: int, low: int) -> None:
    index = min(max(math.floor(x / 2**shift) if shift < 10 else x // 2**shift, 0), 2**bits - 1)
    value = torch.tensor([[x]])
    assert int(Requantize(shift, bits, low).evaluate([value])) == low + index
    table = torch.arange(2**bits) ** 2 - 5
    assert int(Requantize(shift, bits, 0, table).evaluate([value])) == index**2 - 5
    assert int(Requantize(shift, bits, 0, torch.stack([table])).evaluate([value])) == index**2 - 5


def test_a_table_per_channel_is_read_on_axis_one() -> None:
    op = Requantize(0, 1, 0, ints([[1, 2], [3, 4]]))
    assert op.evaluate([ints([[0, 0], [1, 1], [-5, 9]])]).tolist() == [[1, 3], [2, 4], [1, 4]]


def test_requantize_does_not_touch_its_input() -> None:
    x = ints([[5, -5]])
    Requantize(0, 2, 3).evaluate([x])
    assert x.tolist() == [[5, -5]]


@given(x=st.integers(-(1 << 62), 1 << 62), bits=st.integers(1, 12))
def test_a_lookup_reads_the_residue_of_any_number_negative_ones_too(x: int, bits: int) -> None:
    table = torch.arange(1 << bits) ** 2 - 5
    assert int(Lookup(bits, table).evaluate([ints([[x]])])) == (x % 2**bits) ** 2 - 5
    assert int(Lookup(bits, table[None]).evaluate([ints([[x]])])) == (x % 2**bits) ** 2 - 5


def test_a_lookup_goes_round() -> None:
    x = ints([[-5, -4, -1, 0, 1, 3, 4, 7, 8]])
    assert Lookup(2, ints(10, 11, 12, 13)).evaluate([x]).tolist() == [[13, 10, 13, 10, 11, 13, 10, 13, 10]]
    assert x.tolist() == [[-5, -4, -1, 0, 1, 3, 4, 7, 8]]


def test_a_lookup_per_channel_is_read_on_axis_one() -> None:
    op = Lookup(1, ints([[1, 2], [3, 4]]))
    assert op.evaluate([ints([[0, 0], [1, 1], [-5, 8]])]).tolist() == [[1, 3], [2, 4], [2, 3]]
    image = torch.arange(12).view(1, 2, 2, 3)
    assert op.evaluate([image]).tolist() == [[[[1, 2, 1], [2, 1, 2]], [[3, 4, 3], [4, 3, 4]]]]


def test_the_bounds_of_a_lookup_are_its_table_s_ends_however_small_its_input_is() -> None:
    zero = torch.zeros(1, 2, 3, dtype=torch.int64)
    lo, hi = Lookup(2, ints(5, -7, 9, 0)).bounds([(zero, zero)])
    assert (lo.shape, lo.unique().tolist(), hi.unique().tolist()) == ((1, 2, 3), [-7], [9])
    lo, hi = Lookup(1, ints([[5, -7], [3, 4]])).bounds([(zero, zero)])
    assert lo.tolist() == [[[-7] * 3, [3] * 3]] and hi.tolist() == [[[5] * 3, [4] * 3]]


def test_a_spread_weighs_one_value_and_repeats_it() -> None:
    op = Spread(ints(2, -3), ints(1, 0), 7, (2, 2, 1))
    assert op.evaluate([ints([[5], [0]])]).tolist() == [[[[11], [11]], [[-15], [-15]]], [[[1], [1]], [[0], [0]]]]
    across = Spread(ints(2, -3), ints(1, 0), 7, (3, 2), 1)
    assert across.evaluate([ints([[5]])]).tolist() == [[[11, -15]] * 3]


def test_a_spread_knows_its_value_to_be_between_zero_and_its_top() -> None:
    op = Spread(ints(2, -3), ints(1, 0), 7, (2,))
    lo, hi = op.bounds([(ints([[-128]]), ints([[127]]))])
    assert (lo.tolist(), hi.tolist()) == ([[1, -21]], [[15, 0]])
    lo, hi = op.bounds([(ints([[2]]), ints([[3]]))])
    assert (lo.tolist(), hi.tolist()) == ([[5, -9]], [[7, -6]])


@given(x=st.integers(-(1 << 40), 1 << 40), c=st.lists(st.integers(-99, 99), min_size=2, max_size=4))
def test_a_polynomial_is_its_definition_modulo_the_word(x: int, c: list[int]) -> None:
    op = Polynomial((*c, 5))
    wanted = sum(k * x**i for i, k in enumerate(op.coefficients))
    assert int(op.evaluate([ints([[x]])])) == (wanted + 2**63) % 2**64 - 2**63


@given(x=st.integers(-(1 << 62), 1 << 62), mantissa=st.integers(-(1 << 61), 1 << 61), shift=st.integers(0, 99))
def test_an_offset_is_its_definition_modulo_the_word(x: int, mantissa: int, shift: int) -> None:
    op = Offset(ints([mantissa]), shift)
    assert op.integers() == [mantissa * 2**shift]
    assert int(op.evaluate([ints([[x]])])) == (x + mantissa * 2**shift + 2**63) % 2**64 - 2**63


@pytest.mark.parametrize("op", [Polynomial((0, 0, 1)), Offset(ints([1, 1]), 61), Offset(ints([-1, 0]), 99)])
def test_bounds_that_int64_cannot_hold_are_an_error_and_no_wrong_number(op: Op) -> None:
    ends = ints([[-(1 << 61), 1]]), ints([[5, 1 << 61]])
    with pytest.raises(RangeError, match=op.kind):
        op.bounds([ends])


def test_step_of_zero_is_one() -> None:
    assert Step().evaluate([ints([[-1, 0, 1]])]).tolist() == [[-1, 1, 1]]


def test_noise_is_no_part_of_the_reference_and_widens_what_is_proven() -> None:
    op, x = Noise(7), ints([[-5, 0, 9]])
    assert torch.equal(op.evaluate([x]), x)
    assert [end.tolist() for end in op.bounds([(x, x)])] == [[[-68, -63, -54]], [[58, 63, 72]]]


@pytest.mark.parametrize("deviation", [1, 2, 7, 1000])
def test_the_law_of_noise_is_the_discrete_gaussian_s_to_the_last_digit(deviation: int) -> None:
    op = Noise(deviation)
    law, k = op.law, range(-op.bound, op.bound + 1)
    with localcontext(prec=40):
        inside = [(-Decimal(j * j) / (2 * deviation**2)).exp() for j in k]
        beyond = sum((-Decimal(j * j) / (2 * deviation**2)).exp() for j in range(op.bound + 1, 12 * deviation))
        total, sums = sum(inside) + 2 * beyond, list(accumulate(inside, initial=beyond))[1:]
        want = [int(s / total * (1 << 62)) for s in sums[:-1]]
    assert law.tolist() == [*want, 1 << 62]


def test_scale_acts_on_axis_one() -> None:
    x = ints(np.ones((1, 2, 3)).tolist())
    assert Scale(ints(2, -3), ints(1, 0)).evaluate([x]).tolist() == [[[3, 3, 3], [-3, -3, -3]]]


W4 = torch.ones(2, 1, 3, 3, dtype=torch.int64)
B2 = torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Conv2d(W4.float(), B2), "int64"),  # type: ignore[arg-type]
        (lambda: Conv2d(W4 << 40, B2), "magnitudes"),
        (lambda: Conv2d(W4, B2[:1]), "2 output channels"),
        (lambda: Conv2d(W4, B2, (0, 1)), "stride"),
        (lambda: Conv2d(W4, B2, groups=3), "groups"),
        (lambda: Conv2d(W4, B2, (True, 1)), "stride"),
        (lambda: Dense(W4[0, 0], B2), "3 output channels"),
        (lambda: Dense(W4[:0, 0, 0], B2), "non-empty"),
        (lambda: Requantize(32, 2), "shift"),
        (lambda: Requantize(0, 17), "bits"),
        (lambda: Requantize(0, 2, 0, ints(1, 2)), "entries"),
        (lambda: MaxPool2d((2, 2), (2, 2), (2, 2)), "half the kernel"),
        (lambda: MaxPool2d((2, 2), (2, 2), ceil_mode=1), "true or false"),  # type: ignore[arg-type]
        (lambda: Permute((0, 0)), "each axis"),
        (lambda: Slice(0, 3, 3), "stop"),
        (lambda: Pad(((0, -1),)), "pads"),
        (lambda: Input((3,), 5, 4), "hi"),
        (lambda: Input((0,), 0, 4), "shape"),
        (lambda: Reshape((-1,)), "shape"),
        (lambda: Step.build({"x": 1}, {}), "fields"),
        (lambda: Lookup(0, ints(1, 2)), "lookup.bits is 0: it must be an integer from 1 to 12"),
        (lambda: Lookup(13, torch.zeros(1 << 13, dtype=torch.int64)), "lookup.bits is 13"),
        (lambda: Lookup(True, ints(1, 2)), "lookup.bits is True"),
        (lambda: Lookup(2, ints(1, 2)), r"lookup.values has 2 entries: 2\^2 are needed"),
        (lambda: Lookup(1, ints([[[1, 2]]])), "1 axes"),
        (lambda: Lookup(1, ints(1, 2).float()), "int64"),
        (lambda: Lookup(1, None), "int64"),  # type: ignore[arg-type]
        (lambda: Lookup(1, ints(1, 1 << 40)), "magnitudes"),
        (lambda: Expand(()), "expand.shape"),
        (lambda: Expand((3, 0)), "shape"),
        (lambda: Expand((1 << 13, 1 << 13)), "at most"),
        (lambda: Expand((3, 2), 2), "expand.axis is 2"),
        (lambda: Spread(B2, B2, 0, (2, 3)), "spread.top is 0"),
        (lambda: Spread(B2, B2, 5, (3, 2)), "does not fit"),
        (lambda: Spread(B2, B2[:1], 5, (2, 3)), "bias has 1 values"),
        (lambda: Polynomial((1, 2)), "degree 2 to 4"),
        (lambda: Polynomial((1, 2, 0)), "the last one not 0"),
        (lambda: Polynomial((0, 0, 0, 0, 0, 1)), "degree 2 to 4"),
        (lambda: Polynomial((0, 0, 1 << 31)), "polynomial.coefficients"),
        (lambda: Polynomial([0, 0, 1]), "a tuple"),  # type: ignore[arg-type]
        (lambda: Noise(0), "noise.deviation"),
        (lambda: Noise(1 << 17), "noise.deviation"),
        (lambda: Noise(2.5), "noise.deviation"),  # type: ignore[arg-type]
        (lambda: Offset(ints([1, 2]), -1), "offset.shift"),
        (lambda: Offset(ints([1, 2]), 1025), "offset.shift"),
        (lambda: Offset(ints([[1, 2]]), 0), "1 axes"),
        (lambda: Offset(ints([1, 1 << 62]), 0), "magnitudes"),
        (lambda: Lookup.build({"bits": 1, "low": 0}, {"values": ints(1, 2)}), "fields"),
    ],
)
def test_fields_that_make_no_sense_are_refused_by_name(make: Any, says: str) -> None:
    with pytest.raises(GraphError, match=says):
        make()


@pytest.mark.parametrize(
    ("op", "shapes", "says"),
    [
        (Conv2d(W4, B2), [(2, 9, 9)], "channels"),
        (Conv2d(W4, B2), [(1, 2, 9)], "does not fit"),
        (Conv2d(W4, B2), [(9,)], "3 axes"),
        (Conv2d(W4, B2, (1, 1), (60000, 60000)), [(1, 9, 9)], "padded"),
        (Dense(ints([[1, 2]]), ints([0])), [(3,)], "last axis"),
        (Scale(B2, B2), [(3, 4)], "channels"),
        (Add(), [(3,), (4,)], "one shape"),
        (Add(), [(3,)], "two or more"),
        (Concat(0), [(3, 1), (4, 2)], "other axes"),
        (Concat(3), [(3, 1)], "does not fit"),
        (Reshape((5,)), [(2, 2)], "elements"),
        (Permute((1, 0)), [(2,)], "axes"),
        (Slice(0, 0, 4), [(3,)], "does not fit"),
        (Pad(((0, 1),)), [(3, 3)], "axes"),
        (Requantize(0, 1, 0, ints([[1, 2], [3, 4]])), [(3,)], "2 channels"),
        (Expand((2, 3)), [(3,)], "does not fit"),
        (Expand((2, 3)), [(2, 3)], "1 axes"),
        (Spread(B2, B2, 5, (2, 3)), [(2,)], "takes one value"),
        (Lookup(1, ints([[1, 2], [3, 4]])), [(3,)], "tables for 2 channels"),
        (Lookup(1, ints([[1, 2], [3, 4]])), [()], "tables for 2 channels"),
        (Offset(ints([1, 2])), [(3,)], "offset holds 2 constants"),
        (Offset(ints([1, 2])), [()], "offset holds 2 constants"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(op: Op, shapes: list[tuple[int, ...]], says: str) -> None:
    with pytest.raises(GraphError, match=says):
        op.infer_shape(shapes)


def test_the_catalogue_names_every_operator_once() -> None:
    assert len(CATALOGUE) == len({op for op, _ in product(CATALOGUE.values(), [0])}) == 22
