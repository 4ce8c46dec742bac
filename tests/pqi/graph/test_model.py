"""The integer model: what goes in, what comes out, what it refuses, and modular arithmetic where it is asked for."""

from __future__ import annotations

import warnings
from io import StringIO
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from pqi.graph.errors import GraphError, InputError, RangeError, SaturationWarning
from pqi.graph.graph import IntegerGraph, Node
from pqi.graph.model import IntegerModel, observe
from pqi.graph.ops import Dense, Input, Lookup, MaxPool2d, Requantize
from pqi.graph.ranges import lift
from pqi.quant import quantize
from pqi.quant.quantizer import Quantizer
from tests import networks

GRID = Quantizer(1.0, 0.5, 256, None, signed=False)


def tiny(bits: int = 16, policy: str = "proven") -> IntegerModel:
    """255 * 100 needs 16 bits; codes up to 63 leave."""
    graph = IntegerGraph(
        (
            Node("x", Input((1,), 0, 255)),
            Node("fc", Dense(torch.tensor([[100]]), torch.tensor([0])), ("x",)),
            Node("act", Requantize(8, 6), ("fc",)),
        ),
        "act",
    )
    return IntegerModel(graph, {"act": bits, "output": 7}, GRID, 0.5, policy)


def cyclic(policy: str = "proven", bits: int = 8) -> IntegerModel:
    """100 times a code, read mod 256 by a table that counts in the codes of eight bits, -128 to 127."""
    graph = IntegerGraph(
        (
            Node("x", Input((1,), 0, 255)),
            Node("fc", Dense(torch.tensor([[100]]), torch.tensor([-300])), ("x",)),
            Node("wrap", Lookup(8, lift(torch.arange(256), 8)), ("fc",)),
        ),
        "wrap",
    )
    return IntegerModel(graph, {"wrap": bits, "output": 8}, GRID, 0.5, policy)


@pytest.fixture(scope="module")
def model() -> IntegerModel:
    x = torch.rand(32, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    return quantize(networks.small_cnn(), x)


def test_prediction_is_encode_integers_decode(model: IntegerModel) -> None:
    x = np.random.default_rng(0).random((5, 1, 12, 12))
    integers = model.integers(model.encode(x, "silent"))
    assert integers.dtype == torch.int64 and tuple(integers.shape) == (5, *model.output_shape)
    assert np.array_equal(model.predict(x, "silent"), integers.numpy() * model.output_scale)


@pytest.mark.parametrize("batch", [0, 1, 7])
def test_every_batch_size_is_the_same_function(model: IntegerModel, batch: int) -> None:
    x = np.random.default_rng(1).random((7, 1, 12, 12)).astype(np.float32) * 0.9
    assert np.array_equal(model.predict(x[:batch], "silent"), model.predict(x, "silent")[:batch])
    assert model.predict(x[:batch], "silent").shape == (batch, 10)


def test_chunks_do_not_change_the_answer(model: IntegerModel, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = torch.randint(0, 256, (11, 1, 12, 12))
    whole = model.integers(codes)
    monkeypatch.setattr("pqi.graph.model._CHUNK_VALUES", 1)
    assert torch.equal(model.integers(codes), whole)


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (np.zeros((2, 12, 12)), r"shape \(2, 12, 12\): \(N, 1, 12, 12\)"),
        (np.zeros((1, 12, 12)), "batch axis"),
        (np.zeros((2, 1, 12, 13)), "shape"),
        (np.zeros((2, 1, 12, 12), dtype=complex), "complex128"),
        (np.zeros((2, 1, 12, 12), dtype=bool), "bool"),
        (np.array([["a"]]), "dtype"),
        (np.full((2, 1, 12, 12), np.nan), r"288 NaN and 0 infinite values, the first at index \(0, 0, 0, 0\)"),
        (np.full((2, 1, 12, 12), -np.inf), "288 infinite"),
    ],
)
def test_an_input_that_makes_no_sense_is_refused_with_the_reason(model: IntegerModel, x: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        model.encode(x)


def test_values_outside_the_range_saturate_and_it_is_said(model: IntegerModel) -> None:
    x = np.zeros((1, 1, 12, 12))
    x[0, 0, 0, :3] = [50.0, -50.0, 1e200]
    with pytest.warns(SaturationWarning, match=r"3 of 144 input values \(2.083%\)"):
        codes = model.encode(x)
    assert codes[0, 0, 0, :3].tolist() == [255, 0, 255]
    with pytest.raises(InputError, match="3 of 144"):
        model.encode(x, on_saturation="error")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(model.encode(x, on_saturation="silent"), codes)
    with pytest.raises(InputError, match="on_saturation"):
        model.encode(x, on_saturation="ignore")


@pytest.mark.parametrize(
    ("codes", "says"),
    [
        (torch.zeros(2, 1), "float32"),
        (torch.zeros(2, 2, dtype=torch.int64), "shape"),
        (torch.tensor([[256]]), "declared range"),
        (torch.tensor([[-1]]), "declared range"),
    ],
)
def test_codes_outside_the_contract_are_refused(codes: torch.Tensor, says: str) -> None:
    with pytest.raises(InputError, match=says):
        tiny().integers(codes)


def test_a_proven_ring_that_is_too_small_is_refused() -> None:
    assert tiny(16).verify().can_wrap == ()
    with pytest.raises(RangeError, match="'act': 16 bits needed, 15 given"):
        tiny(15)


def test_rings_have_at_most_32_bits() -> None:
    with pytest.raises(RangeError, match="1 to 32"):
        tiny(33)


def test_codes_too_wide_to_compare_are_refused() -> None:
    nodes = (Node("x", Input((1, 2, 2), 0, (1 << 31) - 1)), Node("pool", MaxPool2d((2, 2), (2, 2)), ("x",)))
    quantizer = Quantizer(1.0, 0.5, 256, None, signed=False)
    with pytest.raises(RangeError, match="more than 32 bits"):
        IntegerModel(IntegerGraph(nodes, "pool"), {"output": 32}, quantizer, 1.0)


def test_calibrated_rings_are_arithmetic_modulo_2_to_the_k() -> None:
    model = tiny(12, "calibrated")
    codes = torch.arange(256)[:, None]
    want = (lift(codes * 100, 12) >> 8).clamp(0, 63)
    assert torch.equal(model.integers(codes), want)
    assert model.verify().can_wrap == ("act",)


def test_wraps_are_counted_where_they_happen() -> None:
    shares = tiny(12, "calibrated").wraps(np.arange(256.0)[:, None])
    assert shares == {"act": sum(100 * c > 2047 for c in range(256)) / 256, "output": 0.0}
    assert tiny().wraps(np.zeros((0, 1))) == {"act": 0.0, "output": 0.0}


@pytest.mark.parametrize("policy", ["proven", "calibrated"])
def test_a_lookup_wraps_by_definition_under_both_policies(policy: str) -> None:
    model = cyclic(policy)
    codes = torch.arange(256)[:, None]
    assert torch.equal(model.integers(codes), lift(100 * codes - 300, 8))
    assert model.rings == {"x": 8, "fc": 8, "wrap": 8}
    assert model.ranges.bits["fc"] == 16


@pytest.mark.parametrize("policy", ["proven", "calibrated"])
def test_a_lookup_is_no_breach_and_its_wraps_are_told_as_information(policy: str) -> None:
    model = cyclic(policy)
    verified = model.verify()
    assert verified.can_wrap == ()
    assert verified.proven_bits == verified.accumulators == {"wrap": 8, "output": 8}
    shares = model.wraps(np.arange(256.0)[:, None])
    assert shares == {"wrap": sum(not -128 <= 100 * c - 300 <= 127 for c in range(256)) / 256, "output": 0.0}
    assert shares["wrap"] > 0.9
    assert observe(model.graph, torch.tensor([[3], [9]])) == {"wrap": (0, 600), "output": (0, 600 - 512)}


@pytest.mark.parametrize("policy", ["proven", "calibrated"])
@pytest.mark.parametrize("bits", [7, 9, 16])
def test_another_ring_for_a_lookup_than_that_of_its_table_is_refused(policy: str, bits: int) -> None:
    with pytest.raises(GraphError, match=rf"lookup 'wrap' reads mod 2\^8 by definition, but a ring of {bits} bits"):
        cyclic(policy, bits)


def test_the_report_calls_a_lookup_what_it_is() -> None:
    report = cyclic().report(np.arange(256.0)[:, None])
    row = next(row for row in report.rows if row.name == "wrap")
    assert (row.reads, row.shift, row.index_bits, row.cyclic, row.index) == (8, 0, 8, True, "mod 2^8")
    assert row.wrapped is not None and row.wrapped > 0.9 and row.activations == 1
    assert [r.cyclic for r in report.rows] == [False, False, True]
    assert report.to_dict()["layers"][2]["cyclic"] is True
    text = " ".join(report_text(cyclic()).split())
    assert "mod 2^8" in text and "1 lookup reads mod 2^k by definition: no breach where it wraps" in text
    assert "by definition" not in report_text(tiny())


def test_shares_that_wrap_are_shown_by_magnitude_or_in_per_cent() -> None:
    x = np.arange(256.0)[:, None]
    assert "99%" in report_text(cyclic(), x) and "e-" not in report_text(cyclic(), x)
    rare = tiny(15, "calibrated"), np.append(np.zeros(199), 255.0)[:, None]
    assert rare[0].wraps(rare[1])["act"] == 1 / 200 and "5e-03" in report_text(*rare)


def report_text(model: IntegerModel, data: Any = None) -> str:
    console = Console(width=150, record=True, file=StringIO())
    console.print(model.report(data))
    return console.export_text()


def test_observed_ends_are_those_of_the_data() -> None:
    assert observe(tiny().graph, torch.tensor([[3], [9]])) == {"act": (0, 900), "output": (0, 3)}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"policy": "hoped"}, "policy"),
        ({"output_scale": 0.0}, "output_scale"),
        ({"output_scale": float("nan")}, "output_scale"),
        ({"accumulators": {"act": 16}}, "rings are given"),
        ({"input_quantizer": Quantizer(1.0, 0.5, 512, None, signed=False)}, "input quantizer"),
    ],
)
def test_a_model_that_contradicts_itself_is_refused(change: dict[str, Any], says: str) -> None:
    good = tiny()
    fields: dict[str, Any] = {
        "graph": good.graph,
        "accumulators": good.accumulators,
        "input_quantizer": GRID,
        "output_scale": 0.5,
    }
    with pytest.raises(GraphError, match=says):
        IntegerModel(**{**fields, **change})


def test_the_report_tells_what_each_protocol_would_cost_and_how_accuracy_changes(model: IntegerModel) -> None:
    x = np.random.default_rng(0).random((6, 1, 12, 12)) * 0.9
    answers = model.predict(x)
    labels = answers.argmax(1)
    wrong = np.roll(answers, 1, axis=1)
    report = model.report(x, labels, wrong)
    price = report.prices["additive2"]
    assert price.dealt_bytes == sum(layer[2] for layer in price.layers.values()) > 0
    assert price.exchanges == sum(layer[0] for layer in price.layers.values())
    assert "clear" not in report.prices
    assert report.accuracy is not None
    assert (report.accuracy.integer, report.accuracy.floating, report.accuracy.agreement) == (1.0, 0.0, 0.0)
    console = Console(width=150, record=True, file=StringIO())
    console.print(report)
    text = console.export_text()
    assert f"additive2: {price.exchanges} exchanges" in text
    assert "change +100.00 points" in text
    assert model.report().accuracy is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"labels": [1, 2]}, "without the data"),
        ({"data": np.zeros((2, 1, 12, 12)), "labels": [1]}, r"labels have shape \(1,\)"),
        ({"data": np.zeros((2, 1, 12, 12)), "float_answers": np.zeros((2, 3))}, r"float_answers have shape \(2, 3\)"),
    ],
)
def test_a_report_on_data_that_do_not_fit_says_which(model: IntegerModel, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        model.report(**arguments)


def test_the_report_counts_and_can_be_shown(model: IntegerModel) -> None:
    report = model.report(np.random.default_rng(0).random((4, 1, 12, 12)) * 0.9)
    as_dict = report.to_dict()
    conv = next(row for row in as_dict["layers"] if row["name"] == "conv1")
    assert conv["macs"] == 8 * 12 * 12 * 9 and conv["weights"] == 8 * 9 + 8 and conv["shape"] == [8, 12, 12]
    relu = next(row for row in as_dict["layers"] if row["name"] == "relu")
    assert relu["reads"] == model.accumulators["relu"] == relu["shift"] + relu["index_bits"]
    assert relu["activations"] == 8 * 12 * 12 and relu["wrapped"] == 0.0
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report)
    assert "conv1" in console.export_text() and "proven" in str(report)
    console.file.close()
