from __future__ import annotations

import json
import math
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import ClassVar

import numpy as np
import pytest
from federatedkit import Scripted, coins, signed, summed
from scipy import stats

from pqi.federated import (
    Codec,
    Coins,
    DistributedDiscreteGaussian,
    Encoding,
    EncodingError,
    Mechanism,
    PrivacyError,
    Skellam,
    SumRefused,
    WrapError,
)
from pqi.federated.bounds import room
from pqi.federated.privacy import discrete_gaussian, skellam
from pqi.federated.privacy.discrete_gaussian import DiscreteGaussian
from pqi.federated.privacy.inversion import Law, Sampler, refined, tabulated
from pqi.federated.privacy.mechanism import Sensitivity, mechanism_from
from pqi.federated.privacy.skellam import Poisson
from protocols import native

SEED = bytes(range(16))
SAMPLES = 200_000
VARIANCES = (Fraction(1, 4), Fraction(9, 16), Fraction(7), Fraction(40_001, 16))


def gaussian(variance: Fraction, ends: int) -> np.ndarray:
    weights = np.exp(-(np.arange(-ends, ends + 1, dtype=np.float64) ** 2) / (2 * float(variance)))
    return weights / weights.sum()


def p_value(samples: np.ndarray, first: int, probabilities: np.ndarray) -> float:
    """Pearson's test against exact probabilities; neighbouring cells are joined until twenty are expected in each."""
    inside = (samples >= first) & (samples < first + probabilities.size)
    assert inside.all()
    seen = np.bincount(samples - first, minlength=probabilities.size)
    cells, expected, got, more = [], 0.0, 0, []
    for p, count in zip(probabilities, seen, strict=True):
        expected, got = expected + p * samples.size, got + int(count)
        if expected >= 20:
            cells.append(expected)
            more.append(got)
            expected, got = 0.0, 0
    cells[-1], more[-1] = cells[-1] + expected, more[-1] + got
    scaled = np.array(cells) * (sum(more) / sum(cells))
    return float(stats.chisquare(more, scaled).pvalue)


@pytest.mark.parametrize("variance", VARIANCES)
def test_discrete_gaussian_samples_have_the_exact_law(variance: Fraction) -> None:
    ends = 20 * math.isqrt(math.ceil(variance)) + 20
    samples = DistributedDiscreteGaussian(1.0).sample(variance, SAMPLES, coins(11))
    assert samples.dtype == np.int64
    assert p_value(samples, -ends, gaussian(variance, ends)) > 1e-3


@pytest.mark.parametrize("variance", VARIANCES)
def test_skellam_samples_have_the_exact_law(variance: Fraction) -> None:
    ends = 20 * math.isqrt(math.ceil(variance)) + 30
    samples = Skellam(1.0).sample(variance, SAMPLES, coins(12))
    exact = stats.skellam.pmf(np.arange(-ends, ends + 1), float(variance) / 2, float(variance) / 2)
    assert p_value(samples, -ends, exact) > 1e-3


@pytest.mark.parametrize("rate", [Fraction(1, 32), Fraction(3, 2), Fraction(5000)])
def test_poisson_samples_have_the_exact_law(rate: Fraction) -> None:
    top = math.ceil(rate) + 20 * math.isqrt(math.ceil(rate)) + 20
    samples = Sampler(Poisson(rate)).sample(SAMPLES, coins(13))
    assert p_value(samples, 0, stats.poisson.pmf(np.arange(top), float(rate))) > 1e-3


def test_the_test_of_laws_notices_a_variance_that_is_three_percent_off() -> None:
    samples = DistributedDiscreteGaussian(1.0).sample(Fraction(7), SAMPLES, coins(14))
    assert p_value(samples, -80, gaussian(Fraction(7), 80)) > 1e-3
    assert p_value(samples, -80, gaussian(Fraction(7) * Fraction(103, 100), 80)) < 1e-6


LAWS: list[Law] = [
    DiscreteGaussian(Fraction(1, 16)),
    DiscreteGaussian(Fraction(33, 16)),
    DiscreteGaussian(Fraction(900)),
]
LAWS += [Poisson(Fraction(1, 32)), Poisson(Fraction(7, 3)), Poisson(Fraction(400))]


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_a_finer_table_has_the_same_first_bits(law: Law) -> None:
    coarse, fine = tabulated(law, 64), tabulated(law, 192)
    assert fine.first <= coarse.first
    assert len(fine.bounds) > len(coarse.bounds)
    start = coarse.first - fine.first
    assert [b >> 128 for b in fine.bounds[start : start + len(coarse.bounds)]] == coarse.bounds
    assert fine.bounds == sorted(fine.bounds)


def test_the_tables_are_the_laws_to_sixty_digits() -> None:
    with localcontext() as context:
        context.prec = 80
        variance = Decimal(33) / 16
        weights = {k: (-Decimal(k * k) / (2 * variance)).exp() for k in range(-40, 41)}
        table, total = tabulated(DiscreteGaussian(Fraction(33, 16)), 192), sum(weights.values())
        for k in range(-12, 13):
            exact = sum(weights[j] for j in range(-40, k + 1)) / total * 2**192
            assert abs(Decimal(table.bounds[k - table.first]) - exact) <= 1
        rate = Decimal(7) / 3
        poisson, table = Decimal(0), tabulated(Poisson(Fraction(7, 3)), 192)
        for k in range(30):
            poisson += (-rate).exp() * rate**k / math.factorial(k)
            # 7/3 itself has eighty digits here, which leaves some seventy of the sum.
            assert abs(Decimal(table.bounds[k - table.first]) - poisson * 2**192) <= 1


@pytest.mark.parametrize("compiled", [True, False])
def test_a_word_that_meets_a_bound_is_decided_by_further_bits(compiled: bool) -> None:
    law = DiscreteGaussian(Fraction(2))
    coarse, fine = tabulated(law, 64), tabulated(law, 128)
    place = -1 - coarse.first
    word, rest = coarse.bounds[place], fine.bounds[-1 - fine.first] & ((1 << 64) - 1)
    assert fine.bounds[-1 - fine.first] >> 64 == word
    for more, sample in ((rest - 1, -1), (rest + 1, 0)):
        if compiled:
            assert Sampler(law).sample(3, Scripted([word, more])).tolist() == [sample] * 3
        else:
            with native.switched_off():
                assert Sampler(law).sample(3, Scripted([word, more])).tolist() == [sample] * 3
    assert refined(law, word, Scripted([rest, 0])) == -1
    assert refined(law, word, Scripted([rest, (1 << 64) - 1])) == 0


@pytest.mark.parametrize(("word", "side"), [(0, -1), ((1 << 64) - 1, 1)])
def test_words_beyond_the_window_are_decided_in_the_tail(word: int, side: int) -> None:
    law = DiscreteGaussian(Fraction(2))
    table = tabulated(law, 64)
    sample = int(Sampler(law).sample(1, Scripted([word, word, 1 << 63]))[0])
    assert sample < table.first if side < 0 else sample > table.first + len(table.bounds) - 1
    # 128 bits of the word are those of the end: the sample lies where the tail has some 2^-128 left.
    assert math.log2(float(stats.norm.sf(abs(sample), scale=math.sqrt(2)))) < -110


def test_both_forms_take_the_same_samples() -> None:
    fast = Sampler(DiscreteGaussian(Fraction(50))).sample(5000, coins(3))
    with native.switched_off():
        assert np.array_equal(fast, Sampler(DiscreteGaussian(Fraction(50))).sample(5000, coins(3)))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DiscreteGaussian(Fraction(1, 17)), "not within 1/16"),
        (lambda: DiscreteGaussian(Fraction(2**32 + 1)), "not within 1/16 .. 2\\^32"),
        (lambda: Poisson(Fraction(1, 33)), "not within 1/32"),
        (lambda: Skellam(0.0), "noise_multiplier is 0.0"),
        (lambda: Skellam(math.inf), "noise_multiplier is inf"),
        (lambda: Skellam(1.0, -1), "colluding is -1"),
        (lambda: Skellam(1.0, 3).honest(3), "colluding = 3 of at least threshold = 3"),
        (
            lambda: mechanism_from({"name": "gaussian"}),
            "name no mechanism; there are distributed_discrete_gaussian, skellam",
        ),
        (lambda: mechanism_from({"name": "skellam"}), "have the fields"),
    ],
)
def test_noise_that_cannot_work_is_refused_by_name(make, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(PrivacyError, match=words):
        make()


MECHANISMS: list[Mechanism] = [DistributedDiscreteGaussian(0.7, 1), Skellam(0.7, 1)]


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=lambda m: m.name)
def test_a_noisy_mean_has_the_noise_that_it_is_told_to_have(mechanism: Mechanism) -> None:
    codec = Encoding(clip=1.0, mechanism=mechanism).codec(6000, 8, 5, SEED)
    x = np.full(6000, 0.9 / math.sqrt(6000), np.float32)
    total = summed(codec, [codec.encode(x, coins=coins(i)).values for i in range(7)])
    decoded = codec.decode(total, 7)
    deviation = float(np.std(decoded.mean - x))
    assert abs(deviation / decoded.noise - 1) < 0.04
    assert abs(float(np.mean(decoded.mean - x))) < 4 * decoded.noise / math.sqrt(6000)
    assert decoded.clipped_share is None
    assert decoded.shortened_share is None
    assert decoded.total_weight == 7
    # Four honest clients of the five at least that are in a sum make up the whole noise.
    noise = codec.noise
    assert noise is not None
    assert noise.honest == 4
    assert math.isclose(math.sqrt(4 * float(noise.variance)) / noise.clip_codes, 0.7, rel_tol=1e-4)


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=lambda m: m.name)
def test_the_scale_is_the_finest_that_the_proof_allows(mechanism: Mechanism) -> None:
    noise = Encoding(mechanism=mechanism).codec(1000, 20, 10).noise
    assert noise is not None
    assert 20 * noise.value_codes + noise.tail <= room(16)
    finer = noise.clip_codes + max(1, noise.clip_codes // 200)
    tail = mechanism.tail(mechanism.variance(finer, noise.honest), 20, 1000)
    assert 20 * noise.value_codes * finer // noise.clip_codes + tail > room(16) - 20


@pytest.mark.parametrize(("variance", "clients"), [(Fraction(4), 3), (Fraction(1, 2), 2), (Fraction(90), 10)])
def test_noise_leaves_its_bound_with_less_than_the_stated_probability(variance: Fraction, clients: int) -> None:
    both = 2 * 1000  # sides, and sums that are counted on
    sigma = clients * float(variance)
    bound = Skellam(1.0).tail(variance, clients, 1000)
    assert both * stats.skellam.sf(bound, sigma / 2, sigma / 2) < 2.0**-40
    one = gaussian(variance, 400)
    whole = np.array([1.0])
    for _ in range(clients):
        whole = np.convolve(whole, one)
    middle = whole.size // 2
    bound = DistributedDiscreteGaussian(1.0).tail(variance, clients, 1000)
    assert both * float(whole[middle + bound + 1 :].sum()) < 2.0**-40


def test_a_ring_too_small_for_the_noise_is_refused() -> None:
    with pytest.raises(WrapError, match=r"20 noisy updates of 100000 values.*modulus_bits = 8 .*use more modulus_bits"):
        Encoding(modulus_bits=8, mechanism=Skellam(1.0)).codec(100_000, 20, 10)
    with pytest.raises(WrapError, match="only a scale whose rounding doubles the sensitivity"):
        Encoding(modulus_bits=12, mechanism=Skellam(1.0)).codec(1_000_000, 20, 10)
    Encoding(modulus_bits=16, mechanism=Skellam(1.0)).codec(1_000_000, 20, 10)


@dataclass(frozen=True)
class Silent(DistributedDiscreteGaussian):
    name: ClassVar[str] = "silent"

    def sample(self, variance: Fraction, count: int, coins: Coins) -> np.ndarray:
        return np.zeros(count, np.int64)


@pytest.mark.parametrize("length", [1, 3, 257, 5000])
@pytest.mark.parametrize("dither", ["fair", "always up"])
def test_rounded_codes_never_exceed_the_sensitivity(length: int, dither: str) -> None:
    codec = Encoding(modulus_bits=12, mechanism=Silent(0.3)).codec(length, 4, 4, SEED)
    assert codec.noise is not None
    for number in range(5):
        x = np.random.default_rng(number).normal(size=length)
        drawn = coins(number) if dither == "fair" else Scripted([0xFFFF])
        codes = signed(codec.encode(x * 100, coins=drawn).values, 12)
        assert 0 < int(codes @ codes) <= codec.noise.sensitivity.l2_squared
        assert int(np.abs(codes).sum()) <= codec.noise.sensitivity.l1


def test_sensitivity_is_that_of_the_paper() -> None:
    # min(100^2 + 400/4 + 1 (100 + 10), (100 + 20)^2) with sqrt(2 log(1/beta)) = 1
    assert Sensitivity.rounded(100, 400).l2_squared in (10210, 10211)
    assert Sensitivity.rounded(1, 1).l2_squared == 3


def test_a_private_sum_of_fewer_than_the_threshold_is_not_decoded() -> None:
    codec = Encoding(mechanism=Skellam(1.0)).codec(50, 8, 5)
    total = summed(codec, [codec.encode(np.zeros(50)).values for _ in range(4)])
    with pytest.raises(SumRefused, match="the noise is calibrated to no fewer"):
        codec.decode(total, {0, 1, 2, 3})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"clip": None, "value_clip": 1.0}, "clip is None: without a bound"),
        ({"value_clip": 1.0}, "value_clip is 1.0 beside a mechanism"),
        ({"max_weight": 2}, "max_weight is 2 beside a mechanism"),
        ({"steps": 5}, "steps is 5 beside a mechanism"),
    ],
)
def test_what_does_not_go_with_noise_is_named(fields: dict[str, object], words: str) -> None:
    with pytest.raises(EncodingError, match=words):
        Encoding(mechanism=Skellam(1.0), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=lambda m: m.name)
def test_a_noisy_codec_is_the_same_after_its_facts_crossed_the_wire(mechanism: Mechanism) -> None:
    codec = Encoding(mechanism=mechanism).codec(33, 5, 3)
    again = Codec.from_facts(json.loads(json.dumps(codec.facts())))
    assert again == codec
    record = json.loads(json.dumps(again.record()))
    assert record["noise"]["wrap_probability"] == "2^-40"


def test_samplers_are_kept_for_the_next_round() -> None:
    assert discrete_gaussian.sampler(Fraction(3)) is discrete_gaussian.sampler(Fraction(3))
    assert skellam.sampler(Fraction(3)) is skellam.sampler(Fraction(3))
