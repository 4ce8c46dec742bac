from __future__ import annotations

import math

import pytest
import torch

import pqi
from pqi.graph.errors import QuantizationError
from pqi.program.network import LAN, WAN, Profile
from pqi.tuning.cost import Bill, Objective, bill
from tests.pqi.tuning.conftest import blobs


@pytest.fixture(scope="module")
def model(net: torch.nn.Module) -> pqi.IntegerModel:
    return pqi.quantize(net, blobs(300, 1)[0], 6, 5)


@pytest.mark.parametrize("network", [LAN, WAN])
@pytest.mark.parametrize("rounding", ["exact", "stochastic"])
def test_a_bill_is_the_program_s_declared_cost(model: pqi.IntegerModel, network: Profile, rounding: str) -> None:
    program = pqi.compile(model, "additive2", network, rounding)
    made, cost = bill(model, program, network), program.cost(1)
    assert (made.offline_bytes, made.online_bytes, made.exchanges) == (
        cost.dealt_bytes,
        cost.online_bytes,
        cost.exchanges,
    )


def test_the_profiles_are_those_that_the_help_names() -> None:
    assert {p.name: (p.bandwidth, p.round_trip) for p in (LAN, WAN)} == {"lan": (1e9, 1e-3), "wan": (1e8, 40e-3)}


def test_seconds_grow_with_the_round_trip_and_with_scarcer_bandwidth(model: pqi.IntegerModel) -> None:
    program = pqi.compile(model)

    def seconds(bandwidth: float, round_trip: float) -> float:
        return bill(model, program, Profile("n", bandwidth, round_trip)).seconds

    cost, base = program.cost(1), seconds(1e9, 0.0)
    assert math.isclose(seconds(1e9, 0.5) - base, 0.25 * cost.exchanges)
    assert math.isclose(seconds(1e3, 0.0) - base, 8 * cost.online_bytes * (1e-3 - 1e-9), rel_tol=1e-6)
    assert base > 8 * cost.online_bytes / 1e9  # what the servers compute is a part of it


A_BILL = Bill(1000, 200, 9, 0.5)


@pytest.mark.parametrize(
    ("spec", "name", "value"),
    [
        ("offline_bytes", "offline_bytes", 1000),
        ("online_bytes", "online_bytes", 200),
        ("exchanges", "exchanges", 9),
        ("seconds", "seconds", 0.5),
        ("offline_bytes=1, exchanges=500", "1 offline_bytes + 500 exchanges", 5500),
        ({"online_bytes": 2.0, "offline_bytes": 0.5}, "2 online_bytes + 0.5 offline_bytes", 900),
    ],
)
def test_an_objective_is_a_quantity_or_a_weighted_sum(spec: str, name: str, value: float) -> None:
    made = Objective.of(spec)
    assert (made.name, made.value(A_BILL)) == (name, value)
    assert Objective.of(made) is made


@pytest.mark.parametrize(
    "spec", ["bytes", "offline_bytes=much", "", {}, {"seconds": -1.0}, {"seconds": 0.0}, "seconds=nan"]
)
def test_an_objective_that_means_nothing_is_refused(spec: str) -> None:
    with pytest.raises(QuantizationError, match="objective"):
        Objective.of(spec)
