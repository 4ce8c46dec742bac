"""Levels: the sets of the papers, deterministic clusters, and tables of codes in which zero is always one."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pqi.graph.floating import Clamp
from pqi.quant.codes import Codes, activation_levels, code_range
from pqi.quant.levels import (
    additive_powers_of_two,
    around,
    best_clusters,
    both_signs,
    clusters,
    nearest,
    powers_of_two,
)
from pqi.quant.observers import Observation
from pqi.quant.scheme import TABLE_BITS, Scheme


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_powers_of_two_fill_their_bits() -> None:
    assert powers_of_two(1).tolist() == [0, 1]
    assert powers_of_two(2).tolist() == [0, 1, 2, 4]
    assert powers_of_two(3).tolist() == [0, 1, 2, 4, 8, 16, 32, 64]
    assert powers_of_two(8).tolist() == [0, *(2**j for j in range(31))]


def test_additive_powers_of_two_are_those_of_the_paper() -> None:
    assert additive_powers_of_two(1).tolist() == [0, 1]
    assert additive_powers_of_two(2).tolist() == [0, 1, 2, 4]
    assert additive_powers_of_two(3).tolist() == [0, 1, 2, 3, 4, 6, 8, 10]
    assert additive_powers_of_two(4).tolist() == [0, 1, 2, 3, 4, 6, 8, 9, 12, 16, 18, 24, 32, 33, 36, 48]
    # Section 2.2: k = 2 bits a term, the i-th of n terms from {0, 2^-i, 2^-(i + n), 2^-(i + 2n)}.
    for bits in (2, 4, 6):
        n = bits // 2
        terms = [[0.0, *(2.0 ** -(i + j * n) for j in range(3))] for i in range(n)]
        sums = sorted({sum(entries) for entries in itertools.product(*terms)})
        assert additive_powers_of_two(bits).tolist() == [x * 2 ** (3 * n - 1) for x in sums]


@pytest.mark.parametrize("bits", range(1, 9))
def test_additive_powers_of_two_are_as_many_as_their_bits_allow(bits: int) -> None:
    magnitudes = additive_powers_of_two(bits)
    assert len(magnitudes) == 1 << bits and bool((magnitudes.diff() > 0).all())
    signed = both_signs(magnitudes)
    assert len(signed) == 2 * len(magnitudes) - 1 and torch.equal(signed, -signed.flip(0))


def test_nearest_and_around_agree_with_their_definition() -> None:
    levels, values = torch.tensor([-4.0, 0.0, 1.0, 1.0, 10.0]).double(), torch.linspace(-6, 12, 73).double()[None]
    below, above = around(values, levels)
    for x, a, b in zip(values[0].tolist(), below[0].tolist(), above[0].tolist(), strict=True):
        assert a == max([v for v in levels.tolist() if v <= x], default=-4)
        assert b == min([v for v in levels.tolist() if v > x], default=10)
    distance = (values.T - levels).abs().amin(1)
    assert torch.equal((values - nearest(values, levels))[0].abs(), distance)


# -- clusters --------------------------------------------------------------------------------------------------------


def test_clusters_reach_the_known_optimum_for_the_normal_distribution() -> None:
    values = torch.special.ndtri((torch.arange(20000, dtype=torch.float64) + 0.5) / 20000)[None]
    for count, distortion in ((2, 0.3634), (4, 0.1175), (8, 0.03454), (16, 0.009497)):  # Max, 1960, table I
        error = float((values - nearest(values, clusters(values, count))).square().mean())
        assert error == pytest.approx(distortion, rel=0.01)


@given(seed=st.integers(0, 1000), count=st.integers(1, 9), n=st.integers(1, 30))
def test_each_centre_is_the_mean_of_what_is_nearest_to_it(seed: int, count: int, n: int) -> None:
    values = normal(3, n, seed=seed)
    centres = clusters(values, count)
    assert centres.shape == (3, count) and bool((centres.diff(dim=1) >= 0).all())
    for row, own in zip(values, centres, strict=True):
        places = (row[:, None] - own).abs().argmin(1)
        for i in places.unique().tolist():
            assert float(row[places == i].mean()) == pytest.approx(float(own[i]), abs=1e-9)


def test_mass_counts_as_repetition() -> None:
    values, mass = normal(2, 40), torch.randint(1, 5, (2, 40), generator=torch.Generator().manual_seed(1))
    centres = clusters(values, 5, mass)
    for row, counts, own in zip(values, mass, centres, strict=True):
        places = (row[:, None] - own).abs().argmin(1)
        for i in places.unique().tolist():
            held = places == i
            mean = float((row * counts)[held].sum() / counts[held].sum())
            assert mean == pytest.approx(float(own[i]), abs=1e-9)


def test_few_different_values_are_kept_exactly() -> None:
    values = torch.tensor([[3.0, 1.0, 3.0, 1.0, 7.0], [5.0, 5.0, 5.0, 5.0, 5.0], [1.0, 2.0, 3.0, 4.0, 5.0]])
    found = clusters(values, 3)
    assert found[0].tolist() == [1, 3, 7] and found[1].tolist() == [5, 5, 5]
    assert torch.equal(clusters(values, 5)[2], values[2].double())
    assert clusters(values[2:], 2, torch.tensor([[0, 1, 0, 2, 0]])).tolist() == [[2, 4]]


def test_clusters_do_not_depend_on_the_order_of_the_values() -> None:
    values = normal(1, 200)
    shuffled = values[:, torch.randperm(200, generator=torch.Generator().manual_seed(3))]
    assert torch.equal(clusters(values, 7), clusters(shuffled, 7))


@given(seed=st.integers(0, 1000), count=st.integers(1, 6), n=st.integers(1, 8), pin=st.booleans())
def test_the_best_clusters_are_those_of_an_exhaustive_search(seed: int, count: int, n: int, pin: bool) -> None:
    values, mass = (
        normal(n, seed=seed).sort().values,
        torch.rand(n, generator=torch.Generator().manual_seed(seed)) + 0.1,
    )
    pinned = float(values[seed % n]) if pin else None
    least = math.inf
    for inner in itertools.combinations(range(1, n), min(count, n) - 1):
        error = 0.0
        for a, b in itertools.pairwise((0, *inner, n)):
            part, counts = values[a:b], mass[a:b]
            own = pinned is not None and bool((part == pinned).any())
            centre = pinned if own and pinned is not None else float((part * counts).sum() / counts.sum())
            error += float((counts * (part - centre) ** 2).sum())
        least = min(least, error)
    centres = best_clusters(values, mass, count, pinned)
    assert len(centres) == min(count, n) and bool((centres.diff() >= 0).all())
    assert pinned is None or pinned in centres.tolist()
    found = float((mass * (values - nearest(values[None], centres)[0]) ** 2).sum())
    assert found <= least + 1e-9


# -- codes of activations --------------------------------------------------------------------------------------------

NON_UNIFORM = ("power_of_two", "additive_powers_of_two", "codebook")


def observed(values: Tensor) -> Observation:
    seen = Observation()
    seen.see(values)
    return seen


def codes_of(values: Tensor, scheme: Scheme, op: Clamp) -> Codes:
    seen = observed(op.evaluate([values]))
    lo, hi = code_range(seen, scheme, op)
    scale = (hi - lo) / ((1 << scheme.grid_bits) - 1)
    return Codes(lo, hi, scale, scheme.grid_bits, activation_levels(seen, scheme, lo, hi, scale))


OPS = [Clamp(0.0), Clamp(), Clamp(-1.0, 1.0), Clamp(0.0, 6.0), Clamp(0.25, 1.0), Clamp(-math.inf, 0.0)]


@pytest.mark.parametrize("bits", [2, 4, 7])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("activations", NON_UNIFORM)
def test_a_table_has_few_levels_rises_and_keeps_zero(activations: str, op: Clamp, bits: int) -> None:
    codes = codes_of(normal(4000) * 2, Scheme(activations=activations, activation_bits=bits, observer="minmax"), op)
    made = codes.requantize(5, op.hi)
    assert made.values is not None and made.bits == bits + TABLE_BITS and made.shift == 5
    assert len(made.values.unique()) <= 1 << bits
    assert bool((made.values.diff() >= 0).all())
    low, high = round(codes.lo / codes.scale), round(codes.hi / codes.scale)
    assert low <= int(made.values[0]) and int(made.values[-1]) <= high
    if low <= 0 <= high:
        assert int(made.values[-low]) == 0
    if not math.isinf(op.hi):
        assert int(made.values[-1]) * codes.scale <= op.hi + codes.scale / 2


def test_the_range_s_end_is_a_level_of_scaled_sets() -> None:
    for activations in ("power_of_two", "additive_powers_of_two"):
        scheme = Scheme(activations=activations, activation_bits=4, observer="minmax")
        assert int(codes_of(normal(1000), scheme, Clamp(0.0)).requantize(0, math.inf).values[-1]) == 63  # type: ignore[index]
    powers = codes_of(
        normal(1000), Scheme(activations="power_of_two", activation_bits=4, observer="minmax"), Clamp(0.0)
    )
    assert powers.levels is not None and powers.levels.tolist() == [0, 1, 2, 4, 8, 16, 32, 63]


def test_code_books_are_nearest_to_what_was_seen() -> None:
    values, error = normal(20000).abs() ** 2, {}
    for activations in ("uniform", *NON_UNIFORM):
        codes = codes_of(values, Scheme(activations=activations, activation_bits=3, observer="minmax"), Clamp(0.0))
        made = codes.requantize(0, math.inf)
        index = torch.floor(values / codes.scale + 0.5).long()
        error[activations] = float((values - made.evaluate([index]) * codes.scale).square().mean())
    assert min(error, key=lambda name: error[name]) == "codebook"


def test_uniform_codes_have_a_table_only_for_a_limit_below_their_top() -> None:
    codes = Codes(0.0, 12.0, 0.1, 7)
    assert codes.requantize(3, math.inf).values is None and codes.requantize(3, 12.7).values is None
    table = codes.requantize(3, 6.0).values
    assert table is not None and int(table.max()) == 60 and len(table) == 128


@pytest.mark.parametrize("activations", ["uniform", *NON_UNIFORM])
@pytest.mark.parametrize("values", [torch.zeros(10), torch.full((10,), 3.0), torch.full((10,), -2.0)])
def test_a_constant_value_still_gets_codes(values: Tensor, activations: str) -> None:
    options: dict[str, Any] = {"activations": activations, "activation_bits": 4}
    made = codes_of(values, Scheme(**options), Clamp()).requantize(2, math.inf)
    assert made.bits >= 4


def test_headroom_widens_the_range_but_not_past_the_activation_s_ends() -> None:
    seen, scheme = observed(torch.tensor([-1.0, 2.0])), Scheme(observer="minmax", headroom=2.0)
    assert code_range(seen, scheme, Clamp()) == (-2.0, 4.0)
    assert code_range(seen, scheme, Clamp(0.0, 3.0)) == (0.0, 3.0)
