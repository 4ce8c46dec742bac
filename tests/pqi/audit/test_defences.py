"""Defences as options of quantization: chosen by name, called at their places in order, priced by measuring."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pqi
from pqi.audit.case import Case, Data
from pqi.audit.defences import defence as defences
from pqi.audit.defences.defence import CATALOGUE, Defence, chosen, get
from pqi.audit.defences.price import price
from pqi.audit.errors import AuditError
from pqi.graph.model import IntegerModel

CALLS: list[str] = []


class Telling(Defence):
    """Alters nothing, and tells where it was called."""

    name = "telling"
    answers = ("none",)
    source = "none"
    reads_calibration: ClassVar[bool] = True

    def __init__(self, mark: float = 0, size: float = 1.0) -> None:
        self.mark, self.size = mark, size

    def calibration(self, net: nn.Module, x: Tensor) -> Tensor:
        CALLS.append(f"calibration {self.mark}")
        return x[: int(len(x) * self.size)]

    def network(self, net: nn.Module, x: Tensor) -> nn.Module:
        CALLS.append(f"network {self.mark} of {len(x)}")
        return net

    def weights(self, seen: Any, lowered: Any) -> Any:
        CALLS.append(f"weights {self.mark}")
        return lowered

    def model(self, model: IntegerModel) -> IntegerModel:
        CALLS.append(f"model {self.mark}")
        return model


@pytest.fixture(autouse=True)
def catalogued(monkeypatch: pytest.MonkeyPatch) -> None:
    CALLS.clear()
    monkeypatch.setitem(CATALOGUE, "telling", f"{__name__}:Telling")


@pytest.fixture(scope="module")
def problem() -> tuple[nn.Module, np.ndarray[Any, Any]]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    return net, np.random.default_rng(0).random((64, 4)).astype(np.float32)


def test_defences_are_called_at_their_places_in_the_order_given(problem: Any) -> None:
    pqi.quantize(*problem, defences=[Telling(1, 0.5), "telling:mark=2"])
    assert CALLS == [
        "calibration 1",
        "network 1 of 32",
        "calibration 2",
        "network 2 of 32",
        "weights 1",
        "weights 2",
        "model 1",
        "model 2",
    ]


def test_a_defence_that_alters_nothing_leaves_the_model_as_it_is_without_it(problem: Any) -> None:
    net, x = problem
    plain, defended = pqi.quantize(net, x), pqi.quantize(net, x, defences="telling")
    assert torch.equal(plain.integers(plain.encode(x)), defended.integers(defended.encode(x)))


def test_settings_in_text_are_numbers_by_name() -> None:
    (made,) = chosen(["telling:mark=-3,size=0.25"])
    assert isinstance(made, Telling)
    assert (made.mark, made.size) == (-3, 0.25)
    assert isinstance(made.mark, int)
    assert repr(made) == "Telling(mark=-3, size=0.25)"


def test_one_defence_alone_needs_no_list() -> None:
    alone = Telling()
    assert chosen(alone) == (alone,)
    assert [type(each) for each in chosen("telling")] == [Telling]
    assert chosen(()) == ()


@pytest.mark.parametrize(
    ("wish", "told"),
    [
        ("nothing", "there is no defence 'nothing'; there are: .*telling"),
        ("telling:", "NAME:FIELD=NUMBER"),
        ("telling:mark", "NAME:FIELD=NUMBER"),
        ("telling:mark=", "NAME:FIELD=NUMBER"),
        ("telling:mark=high", "mark must be a number"),
        ("telling:height=3", "height"),
        (3, "defences hold 3"),
    ],
)
def test_what_names_no_defence_is_refused_with_what_there_is(wish: Any, told: str) -> None:
    with pytest.raises(AuditError, match=told):
        chosen([wish])


def test_a_defence_that_reads_the_data_needs_one_array_and_a_module(problem: Any) -> None:
    net, x = problem
    with pytest.raises(AuditError, match="give one array"):
        pqi.quantize(net, iter([x]), defences=["telling"])
    exported = torch.export.export(net, (torch.from_numpy(x[:2]),))
    with pytest.raises(AuditError, match="needs the torch module"):
        pqi.quantize(exported, x, defences=["telling"])
    assert CALLS == []


def test_every_name_in_the_catalogue_is_a_defence_that_says_what_it_answers() -> None:
    for name in sorted(set(CATALOGUE) - {"telling"}):
        made = get(name)
        assert (made.name, bool(made.answers), bool(made.source)) == (name, True, True), name


def test_every_defence_that_needs_no_more_than_data_gives_a_model_of_the_same_answers_shape(problem: Any) -> None:
    net, x = problem
    plain = pqi.quantize(net, x)
    for name in sorted(set(CATALOGUE) - {"telling"}):
        made = pqi.quantize(net, x, defences=[name])
        assert made.output_shape == plain.output_shape, name
        agreement = float((made.predict(x).argmax(1) == plain.predict(x).argmax(1)).mean())
        assert agreement > 0.5, name


def test_the_price_of_nothing_is_nothing_and_of_fewer_bits_what_they_cost(problem: Any) -> None:
    net, x = problem
    plain, coarse = pqi.quantize(net, x), pqi.quantize(net, x, weight_bits=2)
    y = plain.predict(x).argmax(1)
    case = Case(net, plain, Data(x, y))
    nothing = price(case, plain)
    assert (nothing.accuracy.value, nothing.change.value, nothing.p) == (1.0, 0.0, 1.0)
    assert nothing.private == nothing.private_defended
    less = price(case, coarse)
    wrong = float((coarse.predict(x).argmax(1) != y).mean())
    assert wrong > 0
    assert less.change.value == pytest.approx(-wrong)
    assert less.private_defended.online < less.private.online
    assert defences.get("telling").answers == ("none",)
