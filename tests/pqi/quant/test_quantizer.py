"""The formula Q(x) = floor(C x + d) mod p, its inverse and its refusals."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pqi.graph.errors import QuantizationError
from pqi.quant.quantizer import Quantizer

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "quantizer.json").read_text())


def number(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else float(value)


def quantizer(case: dict[str, Any]) -> Quantizer:
    modulus = case["modulus"]
    return Quantizer(number(case["scale"]), number(case["offset"]), modulus, case.get("axis"), case.get("signed", True))


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda c: c["name"])
def test_known_answers(case: dict[str, Any]) -> None:
    q = quantizer(case)
    codes = q.quantize(np.array(case["x"]))
    assert codes.tolist() == case["q"]
    assert q.lift(codes).tolist() == case["lift"]
    assert np.allclose(q.dequantize(codes), case["dequantized"], rtol=1e-15, atol=0)


@pytest.mark.parametrize("case", VECTORS["refused"], ids=lambda c: c["name"])
def test_known_refusals_say_what_is_wrong(case: dict[str, Any]) -> None:
    with pytest.raises(QuantizationError, match=case["says"]):
        quantizer(case).quantize(np.array([float(v) for v in case["x"]]))


@given(
    x=st.floats(-1e6, 1e6),
    scale=st.floats(1e-3, 1e3),
    zero=st.integers(-1000, 1000),
    modulus=st.one_of(st.integers(2, 1 << 40), st.sampled_from([2, 3, 257, 65537, (1 << 61) - 1])),
)
def test_the_code_is_the_floor_in_exact_arithmetic_of_the_rounded_argument(
    x: float, scale: float, zero: int, modulus: int
) -> None:
    q = Quantizer(scale, zero + 0.5, modulus)
    argument = x * scale + (zero + 0.5)
    assert int(q.quantize(x)) == math.floor(Fraction(argument)) % modulus


@given(code=st.integers(-(1 << 62), 1 << 62), modulus=st.integers(2, 1 << 62), signed=st.booleans())
def test_lift_is_the_one_representative_in_its_interval(code: int, modulus: int, signed: bool) -> None:
    lifted = int(Quantizer(1.0, 0.5, modulus, None, signed).lift(code))
    low = -(modulus // 2) if signed else 0
    assert low <= lifted < low + modulus and (lifted - code) % modulus == 0


@given(x=st.lists(st.floats(-3, 5), min_size=1, max_size=20), bits=st.integers(2, 12))
def test_affine_codes_are_within_half_a_step(x: list[float], bits: int) -> None:
    q = Quantizer.affine(-3.0, 5.0, bits)
    assert isinstance(q.scale, float)
    codes, outside = q.saturating_codes(np.array(x))
    assert outside == 0
    assert np.abs(codes / q.scale - np.array(x)).max() <= 0.5 / q.scale * (1 + 1e-9)
    assert codes.min() >= q.code_range[0] and codes.max() <= q.code_range[1]


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 0.0), (2.0, 3.0), (-1000.0, 0.001), (-0.001, 1000.0)])
def test_an_affine_range_contains_zero_and_both_ends(low: float, high: float) -> None:
    q = Quantizer.affine(low, high, 8)
    codes, outside = q.saturating_codes(np.array([low, 0.0, high]))
    assert outside == 0 and codes[1] == 0 and int(q.quantize(0.0)) == q.zero_point


def test_saturation_moves_to_the_nearest_end_and_is_counted() -> None:
    q = Quantizer.affine(0.0, 1.0, 8)
    codes, outside = q.saturating_codes(np.array([-5.0, 0.5, 2.0, 1e300]))
    assert codes.tolist() == [0, 128, 255, 255] and outside == 3


def test_symmetric_codes_have_no_zero_point() -> None:
    q = Quantizer.symmetric((1.0, 2.0), 8, axis=0)
    assert q.lift(q.quantize([[1.0, -1.0], [2.0, -2.0]])).tolist() == [[127, -127], [127, -127]]


def test_torch_tensors_and_integers_are_taken() -> None:
    q = Quantizer(1.0, 0.5, 256)
    assert q.quantize(torch.tensor([1, 2])).tolist() == [1, 2]
    assert q.lift(torch.tensor([255])).tolist() == [-1]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Quantizer.symmetric(0.0, 8), "all zero"),
        (lambda: Quantizer.symmetric(1.0, 0), "bits"),
        (lambda: Quantizer.affine(1.0, 0.0, 8), "lower first"),
        (lambda: Quantizer.affine(0.0, 0.0, 8), "always zero"),
        (lambda: Quantizer.affine(math.nan, 0.0, 8), "finite"),
        (lambda: Quantizer.affine(-1.0, 1.0, 1), "2 bits"),
        (lambda: Quantizer(1.0, 0.5, 8, None, "yes"), "signed"),  # type: ignore[arg-type]
        (lambda: Quantizer(1.0, 0.5, 8).lift([0.5]), "integers"),
        (lambda: Quantizer(1.0, 0.5, 8).quantize(["a"]), "dtype"),
        (lambda: Quantizer(1.0, 0.25, 8).zero_point, "zero point"),
        (lambda: Quantizer((1.0,), 0.5, 8, 0).value_range, "per channel"),
    ],
)
def test_numbers_that_cannot_work_are_refused(make: Any, says: str) -> None:
    with pytest.raises(QuantizationError, match=says):
        make()
