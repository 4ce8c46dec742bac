"""The scale of one input, and what calibration decides about scales."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from dynamickit import (
    data,
    of_many_loudnesses,
    relative_error,
    with_small_biases,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pqi.graph import store
from pqi.graph.errors import (
    CalibrationWarning,
    QuantizationError,
)
from pqi.quant import quantize
from pqi.quant.dynamic import DynamicScale
from pqi.quant.quantizer import Quantizer
from tests import networks

SIGNED, UNSIGNED = Quantizer(127 / 2.0, 0.5, 256), Quantizer(255 / 2.0, 0.5, 256, signed=False)


@given(
    peak=st.floats(1e-310, 1e300),
    reach=st.floats(1e-3, 1e3),
    levels=st.integers(1, 127),
    negative=st.booleans(),
)
def test_the_scale_is_the_largest_at_which_the_input_fits(
    peak: float, reach: float, levels: int, negative: bool
) -> None:
    quantizer, scale = Quantizer(127 / reach, 0.5, 256), DynamicScale((2,), levels)
    x = np.array([[peak / 3, -peak if negative else peak]])
    j = int(scale.factors(x, quantizer)[0])
    codes, outside = scale.encode(x, quantizer)
    fits = peak * quantizer.scale * (1 - 1e-12)
    assert 1 <= j <= levels and codes[0, -1] == j
    assert j == levels or (j + 1) * fits * (1 + 2e-12) > 127 * (1 - 1e-12)
    assert j == 1 or j * fits <= 127
    assert (outside > 0) == (abs(math.floor((-1 if negative else 1) * min(peak * quantizer.scale, 1e6) + 0.5)) > 127)


@pytest.mark.parametrize(("quantizer", "top"), [(SIGNED, 127), (UNSIGNED, 255)])
def test_borders_between_scales_are_hit_exactly(quantizer: Quantizer, top: int) -> None:
    quantizer, scale = Quantizer(1.0, 0.5, 256, signed=quantizer.signed), DynamicScale((1,), top)
    for j in (1, 2, 3, 10, top):
        peaks = np.array([[top / j], [math.nextafter(top / j, math.inf)], [top / j * (1 + 1e-9)]])
        factors = scale.factors(peaks, quantizer)
        assert factors[0] == j and factors[2] == max(j - 1, 1)
        codes, outside = scale.encode(peaks, quantizer)
        assert outside == 0 and int(codes[:, 0].max()) <= top


def test_silence_gets_the_largest_scale_and_so_does_what_is_next_to_it() -> None:
    x = np.array([[0.0, 0.0], [5e-324, 0.0], [-1e-200, 0.0]])
    codes, outside = DynamicScale((2,), 99).encode(x, SIGNED)
    assert codes.tolist() == [[0, 0, 99]] * 3 and outside == 0


def test_an_input_too_loud_for_any_scale_saturates_at_scale_one() -> None:
    codes, outside = DynamicScale((2,), 99).encode(np.array([[1e308, -1e308], [2.0, 3.0]]), SIGNED)
    assert codes.tolist() == [[127, -128, 1], [127, 127, 1]] and outside == 3


def test_unsigned_codes_look_at_what_they_can_hold() -> None:
    codes, outside = DynamicScale((2,), 255).encode(np.array([[0.5, -9.0], [-1.0, -2.0]]), UNSIGNED)
    assert codes.tolist() == [[255, 0, 4], [0, 0, 255]] and outside == 3


def test_no_input_is_no_work() -> None:
    codes, outside = DynamicScale((3, 2), 9).encode(np.zeros((0, 3, 2)), SIGNED)
    assert codes.shape == (0, 7) and outside == 0
    assert DynamicScale((3, 2), 9).decode(np.zeros((0, 4)), codes, 1.0).shape == (0, 4)


def test_answers_are_divided_by_each_inputs_own_scale() -> None:
    answers = DynamicScale((1,), 9).decode(np.full((2, 2, 2), 6), np.array([[0, 2], [0, 3]]), 0.5)
    assert np.array_equal(answers, [[[1.5] * 2] * 2, [[1.0] * 2] * 2])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: DynamicScale((), 4), r"dynamic\.shape is \(\)"),
        (lambda: DynamicScale((0,), 4), r"dynamic\.shape is \(0,\)"),
        (lambda: DynamicScale([3], 4), r"dynamic\.shape is \[3\]"),  # type: ignore[arg-type]
        (lambda: DynamicScale((3,), 0), r"dynamic\.levels is 0"),
        (lambda: DynamicScale((3,), True), r"dynamic\.levels is True"),
        (
            lambda: DynamicScale((3,), 128).check(SIGNED),
            r"levels is 128, the input's largest code 127.*more input_bits",
        ),
        (lambda: DynamicScale((3,), 8).check(Quantizer(1.0, 3.5, 256)), "zero point 3, not 0"),
        (lambda: DynamicScale((3,), 8).check(Quantizer((1.0,) * 3, 0.5, 256, 1)), "one scale for the whole tensor"),
        (lambda: DynamicScale.from_json({"shape": [3]}), "must hold shape"),
        (lambda: DynamicScale.from_json({"shape": 3, "levels": 2}), "must hold shape"),
        (lambda: DynamicScale.from_json({"shape": [1.5], "levels": 2}), r"dynamic\.shape"),
        (lambda: DynamicScale.from_json(None), "must hold shape"),
    ],
)
def test_numbers_that_cannot_work_are_refused_by_name(make: Callable[[], object], says: str) -> None:
    with pytest.raises(QuantizationError, match=says):
        make()


# -- what calibration decides ------------------------------------------------------------------------------------------


def test_the_data_say_how_many_scales_there_are() -> None:
    shape = (20,)
    loud = of_many_loudnesses(data(*shape), 1 / 20)
    assert quantize(networks.mlp(), loud, dynamic=True).dynamic == DynamicScale(shape, 20)
    stray = torch.cat([loud] * 4)
    stray[0] *= 1e-3
    stray[1] = 0.0
    assert quantize(networks.mlp(), stray, dynamic=True).dynamic == DynamicScale(shape, 20)


def test_without_biases_every_scale_is_free() -> None:
    net = nn.Sequential(nn.Linear(20, 9, bias=False), nn.ReLU(), nn.Linear(9, 3, bias=False)).eval()
    model = quantize(net, data(20), dynamic=True)
    assert model.dynamic == DynamicScale((20,), 127)
    assert quantize(net, data(20).abs(), dynamic=True).dynamic == DynamicScale((20,), 255)
    assert quantize(net, data(20), dynamic=True, input_bits=4).dynamic == DynamicScale((20,), 7)


def test_data_that_are_all_equally_loud_are_told() -> None:
    x = of_many_loudnesses(data(20), 1.0)
    with pytest.warns(CalibrationWarning, match=r"all about equally loud.*scale is 1/1 of.*dynamic=64"):
        model = quantize(networks.mlp(), x, dynamic=True)
    assert model.dynamic == DynamicScale((20,), 1)


def test_a_declared_number_of_scales_is_calibrated_though_no_input_is_so_quiet() -> None:
    net, x = with_small_biases(networks.mlp(), 0.05), of_many_loudnesses(data(20), 1.0)
    model = quantize(net, x, 8, 8, dynamic=50)
    assert model.dynamic == DynamicScale((20,), 50)
    assert relative_error(net, model, x / 50) < 0.1 and relative_error(net, model, x) < 0.1


def test_the_declared_range_is_the_loudest_input_of_either_sign() -> None:
    x = of_many_loudnesses(data(20))
    assert quantize(networks.mlp(), x, dynamic=True, input_range=(-3.0, 1.0)).input_quantizer == Quantizer(
        127 / 3, 0.5, 256
    )
    assert quantize(networks.mlp(), x.abs(), dynamic=True, input_range=(0.0, 4.0)).input_quantizer == Quantizer(
        255 / 4, 0.5, 256, signed=False
    )
    for bad in ((1.0, 1.0), (0.0, math.inf)):
        with pytest.raises(QuantizationError, match="input_range is"):
            quantize(networks.mlp(), x, dynamic=True, input_range=bad)


def test_whole_numbers_keep_their_grid_at_every_scale() -> None:
    x = torch.randint(0, 17, (64, 20), generator=torch.Generator().manual_seed(0)).float()
    x[:32] = (x[:32] / 8).floor()
    model = quantize(networks.mlp(), x, dynamic=True)
    codes = model.encode(x)
    assert model.input_quantizer.scale == 1.0 and int(codes[:, -1].max()) > 15
    assert torch.equal(codes[:, :-1], x.long() * codes[:, -1:])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dynamic": 1}, "dynamic is 1: it must be True, False, or .*from 2 to 127"),
        ({"dynamic": 128}, "from 2 to 127 with these input codes. Use more input_bits"),
        ({"dynamic": 2.5}, r"dynamic is 2\.5"),
        ({"dynamic": True, "input_bits": 1}, "input_bits is 1: codes of both signs need at least 2"),
    ],
)
def test_scales_that_cannot_be_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(QuantizationError, match=says):
        quantize(networks.mlp(), data(20), **options)


def test_data_that_can_be_read_only_once_need_both_declared() -> None:
    x = of_many_loudnesses(data(20))
    with pytest.raises(QuantizationError, match=r"reads the calibration data twice.*or input_range and a number"):
        quantize(networks.mlp(), iter(x.split(16)), dynamic=True)
    declared = quantize(networks.mlp(), iter(x.split(16)), dynamic=100, input_range=(-1.0, 1.0))
    whole = quantize(networks.mlp(), x, dynamic=100, input_range=(-1.0, 1.0))
    assert np.array_equal(declared.predict(x), whole.predict(x))


def test_batches_or_one_array_make_the_same_model() -> None:
    x = of_many_loudnesses(data(20))
    whole, parts = quantize(networks.mlp(), x, dynamic=True), quantize(networks.mlp(), x.split(7), dynamic=True)
    assert store.to_bytes(whole) == store.to_bytes(parts)
