from __future__ import annotations

import json
import math
import sys
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from pqi.federated import (
    Accountant,
    DistributedDiscreteGaussian,
    Encoding,
    Mechanism,
    MissingExtra,
    PrivacyError,
    Skellam,
)
from pqi.federated.privacy.accounting import ORDERS, amplified
from pqi.federated.privacy.discrete_gaussian import gap
from pqi.federated.privacy.mechanism import Sensitivity


def gaussian_sum(variance: float, clients: int, ends: int) -> np.ndarray:
    one = np.exp(-(np.arange(-ends, ends + 1, dtype=np.float64) ** 2) / (2 * variance))
    whole = np.array([1.0])
    for _ in range(clients):
        whole = np.convolve(whole, one / one.sum())
    middle = whole.size // 2
    return whole[middle - ends : middle + ends + 1]


def divergence(law: np.ndarray, shift: int, order: float) -> float:
    """Renyi divergence of the law moved by ``shift`` from the law itself, summed out."""
    log = np.log(law)
    terms = order * log[:-shift] + (1 - order) * log[shift:]
    return float(np.logaddexp.reduce(terms)) / (order - 1)


@pytest.mark.parametrize("shift", [1, 2, 5])
@pytest.mark.parametrize("order", [2.0, 3.0, 6.0])
@pytest.mark.parametrize("variance", [Fraction(1, 2), Fraction(1), Fraction(5)])
def test_the_exact_divergence_of_sums_is_within_the_bound(shift: int, order: float, variance: Fraction) -> None:
    sensitivity, clients = Sensitivity(shift**2, shift, 1), 4
    ends = 14 * math.ceil(math.sqrt(clients * variance)) + 10
    exact = divergence(gaussian_sum(float(variance), clients, ends), shift, order)
    bound = DistributedDiscreteGaussian(1.0).renyi(order, sensitivity, variance, clients)
    assert 0.5 * order * shift**2 / (clients * float(variance)) * 0.9 < exact <= bound * (1 + 1e-9)
    mu = clients * float(variance)
    law = stats.skellam.pmf(np.arange(-ends, ends + 1), mu / 2, mu / 2)
    assert divergence(law[law > 1e-250], shift, order) <= Skellam(1.0).renyi(order, sensitivity, variance, clients)


def test_formulas_have_their_values_by_hand() -> None:
    assert gap(1.0, 2) == pytest.approx(10 * math.exp(-(math.pi**2)))
    assert gap(1.0, 3) == pytest.approx(10 * (math.exp(-(math.pi**2)) + math.exp(-4 * math.pi**2 / 3)))
    assert gap(9.0, 100) < 1e-30
    sensitivity = Sensitivity(4, 4, 10)
    # 2*4/(2*100) + min((3*4 + 24)/(4*10^4), 12/200)
    assert Skellam(1.0).renyi(2, sensitivity, Fraction(25), 4) == pytest.approx(0.04 + 0.0009)
    assert Skellam(1.0).renyi(2.5, sensitivity, Fraction(25), 4) == math.inf
    assert DistributedDiscreteGaussian(1.0).renyi(3, sensitivity, Fraction(25), 4) == pytest.approx(1.5 * 4 / 100)


def codec(mechanism: Mechanism | None, bits: int = 24):  # type: ignore[no-untyped-def]
    return Encoding(modulus_bits=bits, mechanism=mechanism).codec(64, 10, 8, bytes(16))


@pytest.mark.parametrize("kind", [DistributedDiscreteGaussian, Skellam])
@pytest.mark.parametrize(("z", "rounds"), [(1.0, 1), (4.0, 30), (20.0, 100)])
def test_fine_codes_cost_what_the_plain_gaussian_costs(kind: type[Mechanism], z: float, rounds: int) -> None:
    accounting = pytest.importorskip("dp_accounting")
    plain = accounting.rdp.RdpAccountant(list(ORDERS))
    plain.compose(accounting.GaussianDpEvent(z), rounds)
    spent = Accountant(1e-5).spend(codec(kind(z)), rounds)
    assert spent.rounds == rounds
    assert spent.noise_multiplier == pytest.approx(z, rel=1e-4)
    assert plain.get_epsilon(1e-5) <= spent.epsilon * (1 + 1e-9)
    assert spent.epsilon <= plain.get_epsilon(1e-5) * 1.03


def test_coarse_codes_cost_more() -> None:
    pytest.importorskip("dp_accounting")
    fine, coarse = (Accountant(1e-5).spend(codec(Skellam(1.0), bits)).epsilon for bits in (20, 10))
    assert coarse > fine * 1.01


def test_rounds_add_up_whatever_their_mechanism() -> None:
    pytest.importorskip("dp_accounting")
    books = Accountant(1e-5)
    assert books.spent().epsilon == 0.0
    first = books.spend(codec(DistributedDiscreteGaussian(3.0)))
    second = books.spend(codec(Skellam(3.0)))
    whole = Accountant(1e-5).spend(codec(Skellam(3.0)), 2)
    assert first.epsilon < second.epsilon
    assert second.epsilon == pytest.approx(whole.epsilon, rel=0.02)
    assert (second.rounds, second.mechanism, second.honest) == (2, "skellam", 8)
    assert "at least 8 clients of a sum keep their noise" in second.assumed
    assert "also against the server" in second.assumed
    assert json.loads(json.dumps(second.facts()))["epsilon"] == second.epsilon


def test_a_round_without_noise_costs_everything_for_good() -> None:
    pytest.importorskip("dp_accounting")
    books = Accountant(1e-5)
    books.spend(codec(None))
    spent = books.spend(codec(Skellam(1.0)))
    assert spent.epsilon == math.inf
    assert spent.facts()["epsilon"] is None


def test_sampling_counts_for_those_who_do_not_know_who_took_part() -> None:
    pytest.importorskip("dp_accounting")
    full = Accountant(1e-5).spend(codec(DistributedDiscreteGaussian(4.0)), 50)
    sampled = Accountant(1e-5, sampled=0.1).spend(codec(DistributedDiscreteGaussian(4.0)), 50)
    assert sampled.epsilon < 0.5 * full.epsilon
    assert "not against the server" in sampled.assumed


def test_amplification_is_the_formula_summed_in_plain_numbers() -> None:
    def plain(order: float) -> float:
        return 0.1 * order

    q, a = 0.2, 4
    total = (1 - q) ** 3 * (a * q - q + 1) + 6 * q**2 * (1 - q) ** 2 * math.exp(plain(2))
    total += 3 * (4 * (1 - q) * q**3 * math.exp(2 * plain(3)) + q**4 * math.exp(3 * plain(4)))
    assert amplified(q, 4.0, plain) == pytest.approx(math.log(total) / 3)
    assert amplified(q, 4.5, plain) == math.inf


@pytest.mark.parametrize(
    ("delta", "sampled", "words"),
    [
        (0.0, 1.0, "delta is 0.0"),
        (1.0, 1.0, "delta is 1.0"),
        (1e-5, 0.0, "sampled is 0.0"),
        (1e-5, 1.5, "sampled is 1.5"),
    ],
)
def test_numbers_out_of_range_are_refused(delta: float, sampled: float, words: str) -> None:
    with pytest.raises(PrivacyError, match=words):
        Accountant(delta, sampled)


def test_the_extra_is_named_where_its_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    monkeypatch.setitem(sys.modules, "dp_accounting.rdp", None)
    with pytest.raises(MissingExtra, match=r"pip install 'private-quantized-inference\[federated\]'"):
        Accountant(1e-5)
