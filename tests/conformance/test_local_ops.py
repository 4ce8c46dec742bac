"""Operators that act on shares as they are: applied to both shares, they give shares of the operator's result.

Every ring from 4 to 32 bits, ragged shapes, batches of 0, 1 and 7, extreme values, shares in the ring's own words.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pqi.graph.ops import Add, Concat, Expand, MaxPool2d, Op, Pad, Permute, Reshape, Slice, SumPool2d
from pqi.program.windows import Windows
from protocols import ring
from protocols.prg import Random
from tests.conformance.battery import values

OPS: list[tuple[Op, list[tuple[int, ...]]]] = [
    (Add(), [(3, 5), (3, 5), (3, 5)]),
    (Concat(0), [(2, 3, 5), (1, 3, 5), (4, 3, 5)]),
    (Concat(2), [(2, 3, 5), (2, 3, 1)]),
    (Reshape((15,)), [(3, 5)]),
    (Permute((2, 0, 1)), [(2, 3, 5)]),
    (Slice(1, 1, 5, 3), [(2, 5)]),
    (Pad(((0, 2), (1, 0), (3, 3))), [(2, 3, 5)]),
    (SumPool2d((2, 3), (1, 2), (1, 0)), [(2, 5, 7)]),
    (SumPool2d((5, 7), (5, 7), (0, 0)), [(2, 5, 7)]),
    (Expand((3, 2, 5)), [(3,)]),
    (Expand((2, 3, 5), 1), [(3,)]),
]


def shares(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    first = Random().words(tuple(x.shape), bits)
    return first, ring.to_word(x, bits) - first


@pytest.mark.parametrize("bits", range(4, 33))
@pytest.mark.parametrize("n", [0, 1, 7])
def test_local_operators_commute_with_sharing(bits: int, n: int) -> None:
    for op, shapes in OPS:
        plain = [values(bits, (n, *shape), i) for i, shape in enumerate(shapes)]
        mine, theirs = zip(*(shares(x, bits) for x in plain), strict=True)
        got = op.evaluate(list(mine)) + op.evaluate(list(theirs))
        want = op.evaluate(plain)
        assert got.shape == want.shape
        assert torch.equal(ring.centred(got, bits), ring.centred(want, bits)), op


@pytest.mark.parametrize("bits", range(4, 32))
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "ceil"),
    [
        ((2, 2), (2, 2), (0, 0), (1, 1), False),
        ((3, 3), (2, 2), (1, 1), (1, 1), False),
        ((3, 2), (2, 3), (0, 1), (1, 2), False),
        ((2, 2), (2, 2), (0, 0), (1, 1), True),
        ((3, 3), (2, 2), (1, 1), (1, 1), True),
    ],
)
def test_the_maximum_over_shared_windows_is_the_max_pool(
    bits: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    ceil: bool,
) -> None:
    pool = MaxPool2d(kernel, stride, padding, dilation, ceil)
    for n in (0, 1, 7):
        x = values(bits, (n, 2, 5, 7))
        want = pool.evaluate([x])
        rows, columns = want.shape[2:]
        cut = Windows(kernel, stride, padding, dilation, (rows, columns), -(1 << (bits - 1)))
        mine, theirs = shares(x, bits + 1)
        windows = ring.centred(cut.apply(mine, True) + cut.apply(theirs, False), bits + 1)
        assert torch.equal(windows.amax(-1) if windows.numel() else want, want)
