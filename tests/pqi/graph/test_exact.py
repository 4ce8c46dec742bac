"""Integer products and convolutions against plain loops that share no code with them."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pqi.graph.ops.exact import int_conv2d, int_matmul, signed_bytes, signed_digits
from protocols import ring

Ints = NDArray[np.int64]
EXTREMES = st.sampled_from([0, 1, 7, 8, 9, 15, 16, 17, 24, 31])


def naive_conv(x: Ints, w: Ints, stride: tuple[int, int], pad: tuple[int, int], dil: tuple[int, int], g: int) -> Ints:
    """Seven nested loops, one scalar product term each, in Python integers."""
    n, _, height, width = x.shape
    outputs, per_in, kh, kw = w.shape
    oh = (height + 2 * pad[0] - dil[0] * (kh - 1) - 1) // stride[0] + 1
    ow = (width + 2 * pad[1] - dil[1] * (kw - 1) - 1) // stride[1] + 1
    y = np.zeros((n, outputs, oh, ow), dtype=object)
    for b, o, i, j in product(range(n), range(outputs), range(oh), range(ow)):
        first = o // (outputs // g) * per_in
        for c, u, v in product(range(per_in), range(kh), range(kw)):
            row, col = i * stride[0] + u * dil[0] - pad[0], j * stride[1] + v * dil[1] - pad[1]
            if 0 <= row < height and 0 <= col < width:
                y[b, o, i, j] += int(x[b, first + c, row, col]) * int(w[o, c, u, v])
    return word(y) if y.size else y.astype(np.int64)


def word(values: NDArray[Any]) -> Ints:
    """Python integers as 64-bit words, modulo 2^64."""
    return np.vectorize(lambda v: (int(v) + (1 << 63)) % (1 << 64) - (1 << 63), otypes=[np.int64])(values)


def integers(rng: np.random.Generator, shape: tuple[int, ...], bits: int, signed: bool) -> Ints:
    top = 1 << bits
    return rng.integers(-top if signed else 0, top, shape, endpoint=True)


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.sampled_from([0, 1, 2]),
    groups=st.sampled_from([1, 2, 3]),
    per_in=st.sampled_from([1, 2, 5]),
    per_out=st.integers(1, 3),
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    x_bits=EXTREMES,
    w_bits=EXTREMES,
    signed=st.booleans(),
)
def test_convolution_equals_nested_loops(
    seed: int,
    batch: int,
    groups: int,
    per_in: int,
    per_out: int,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    x_bits: int,
    w_bits: int,
    signed: bool,
) -> None:
    reach = [d * (k - 1) + 1 - 2 * p for d, k, p in zip(dilation, kernel, padding, strict=True)]
    size = (max(size[0], reach[0]), max(size[1], reach[1]))
    rng = np.random.default_rng(seed)
    x = integers(rng, (batch, groups * per_in, *size), x_bits, signed)
    w = integers(rng, (groups * per_out, per_in, *kernel), w_bits, True)
    got = int_conv2d(torch.from_numpy(x), torch.from_numpy(w), stride, padding, dilation, groups)
    want = naive_conv(x, w, stride, padding, dilation, groups)
    assert got.dtype == torch.int64 and tuple(got.shape) == want.shape
    assert (got.numpy() == want).all()


@given(
    seed=st.integers(0, 2**32 - 1),
    m=st.integers(0, 5),
    k=st.integers(1, 40),
    n=st.integers(1, 5),
    x=EXTREMES,
    w=EXTREMES,
)
def test_matrix_product_equals_integer_arithmetic(seed: int, m: int, k: int, n: int, x: int, w: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = integers(rng, (m, k), x, True), integers(rng, (n, k), w, True)
    want = np.zeros((m, n), dtype=object)
    for i, j in product(range(m), range(n)):
        want[i, j] = sum(int(p) * int(q) for p, q in zip(a[i], b[j], strict=True))
    got = int_matmul(torch.from_numpy(a), torch.from_numpy(b))
    assert tuple(got.shape) == (m, n) and (got.numpy() == (word(want) if m else 0)).all()


def test_products_of_extreme_words_wrap_like_64_bit_words() -> None:
    ends = torch.tensor([[-(1 << 63), (1 << 63) - 1, -1, 1 << 62, 255, -256]])
    assert torch.equal(int_matmul(ends, ends), (ends * ends).sum(1, keepdim=True))


@given(st.lists(st.integers(-(1 << 63), (1 << 63) - 1), min_size=1, max_size=6))
def test_digits_are_bytes_that_add_up(values: list[int]) -> None:
    x = torch.tensor(values)
    for digits, offset in (signed_bytes(x), (signed_digits(x), 0)):
        assert all(d.dtype == torch.int8 for d in digits)
        total = [offset + sum(int(d[i]) << (8 * j) for j, d in enumerate(digits)) for i in range(len(values))]
        assert all((t - v) % (1 << 64) == 0 for t, v in zip(total, values, strict=True))


def test_quantized_activations_need_one_digit_only() -> None:
    for low, high in ((0, 255), (-128, 127), (1000, 1255), (-3, 60)):
        digits, _ = signed_bytes(torch.tensor([low, high]))
        assert len(digits) == 1


@pytest.mark.parametrize("length", [200_000, 65_537])
def test_long_sums_are_cut_before_32_bits_overflow(length: int) -> None:
    x, w = torch.full((1, length), -128), torch.full((2, length), -128)
    assert int_matmul(x, w).tolist() == [[length << 14] * 2]


@pytest.mark.parametrize(("m", "n"), [(1, 2), (3, 5), (64, 33)])
def test_an_inner_length_of_one_is_an_outer_product(m: int, n: int) -> None:
    x, w = torch.arange(m)[:, None], torch.arange(n)[:, None]
    assert torch.equal(int_matmul(x, w), x * w.t())


def test_a_machine_whose_int8_units_saturate_gets_the_same_results(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    a, b = torch.from_numpy(rng.integers(-500, 500, (7, 30))), torch.from_numpy(rng.integers(-500, 500, (4, 30)))
    with_units = int_matmul(a, b)
    monkeypatch.setattr(ring, "_units_are_exact", lambda _: False)
    assert torch.equal(int_matmul(a, b), with_units)
