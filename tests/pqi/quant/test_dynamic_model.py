"""The dynamic model as an object: shapes, saturation, decoding, its file."""

from __future__ import annotations

import json
import struct
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from dynamickit import (
    EACH,
    NETWORKS,
    data,
    of_many_loudnesses,
    quantized,
)
from safetensors.torch import load as parse
from safetensors.torch import save as write

import pqi.program as program
from pqi.graph import store
from pqi.graph.errors import (
    GraphError,
    InputError,
    ModelFileError,
    SaturationWarning,
)
from pqi.graph.graph import IntegerGraph, Node
from pqi.graph.model import IntegerModel
from pqi.graph.ops import Dense, Input, Slice, Spread
from pqi.graph.ranges import prove, proven_accumulators
from pqi.quant import quantize
from pqi.quant.dynamic import DynamicScale
from pqi.quant.quantizer import Quantizer
from tests import networks


def test_the_user_s_shape_is_not_the_shape_of_the_codes() -> None:
    model, x = quantized("small_cnn"), of_many_loudnesses(data(1, 12, 12, n=4))
    assert model.input_shape == (1, 12, 12) and model.graph.input.shape == (145,)
    assert model.encode(x).shape == (4, 145) and "(1, 12, 12) -> (10,)" in repr(model)
    assert program.compile(model).input_shape == (145,)
    with pytest.raises(InputError, match=r"\(N, 1, 12, 12\) is needed"):
        model.encode(x.flatten(1))
    assert model.predict(x[:0]).shape == (0, 10)


def test_saturation_is_told_as_ever() -> None:
    model = quantized("mlp")
    x = torch.zeros(2, 20)
    x[0, 3] = 5.0
    with pytest.warns(
        SaturationWarning, match=r"1 of 40 input values \(2.500%\) lie outside the calibrated range \[-1"
    ):
        codes = model.encode(x)
    assert codes[:, -1].tolist() == [1, model.dynamic.levels if model.dynamic else 0]
    with pytest.raises(InputError, match="Nothing was computed"):
        model.encode(x, on_saturation="error")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.encode(x, on_saturation="silent")
        model.encode(x * 0.2)


def test_an_answer_cannot_be_decoded_without_its_scale() -> None:
    model, x = quantized("mlp"), of_many_loudnesses(data(20, n=3))
    codes = model.encode(x)
    integers = model.integers(codes)
    assert np.array_equal(model.decode(integers.numpy(), codes), model.predict(x))
    for wrong in (None, codes[:2]):
        with pytest.raises(InputError, match="decoded by its input's own scale: give the codes"):
            model.decode(integers.numpy(), wrong)


def test_codes_with_an_impossible_scale_are_refused() -> None:
    model = quantized("mlp")
    assert model.dynamic is not None
    for scale in (0, -1, model.dynamic.levels + 1):
        codes = torch.ones(2, 21, dtype=torch.int64)
        codes[1, -1] = scale
        with pytest.raises(InputError, match=f"scales run from .* 1 to {model.dynamic.levels} are possible"):
            model.integers(codes)


@EACH
def test_a_saved_model_comes_back_whole(name: str) -> None:
    model, x = quantized(name), of_many_loudnesses(data(*NETWORKS[name][1], n=5))
    back = store.from_bytes(store.to_bytes(model))
    assert back.dynamic == model.dynamic and back.rings == model.rings and back.input_shape == model.input_shape
    assert np.array_equal(back.predict(x), model.predict(x)) and store.to_bytes(back) == store.to_bytes(model)


def described(saved: bytes) -> dict[str, Any]:
    length = struct.unpack("<Q", saved[:8])[0]
    loaded: dict[str, Any] = json.loads(json.loads(saved[8 : 8 + length])["__metadata__"]["pqi"].split("\n")[2])
    return loaded


def test_static_models_are_written_as_before() -> None:
    assert "dynamic" not in described(store.to_bytes(quantize(networks.mlp(), data(20))))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "must hold shape"),
        ({}, "must hold shape"),
        ({"shape": [20], "levels": 5, "more": 1}, "must hold shape"),
        ({"shape": "20", "levels": 5}, "must hold shape"),
        ({"shape": [20], "levels": "5"}, r"dynamic\.levels is '5'"),
        ({"shape": [20], "levels": 0}, r"dynamic\.levels is 0"),
        ({"shape": [20], "levels": 1 << 70}, "largest code 127"),
        ({"shape": [20], "levels": 127}, "expects scales up to"),
        ({"shape": [19], "levels": 5}, r"takes codes \(20,\)"),
        ({"shape": [-20], "levels": 5}, r"dynamic\.shape"),
        ({"shape": [4, 5], "levels": 5}, ""),
        ("absent", "the model is not dynamic"),
    ],
)
def test_a_file_with_altered_scales_is_refused(value: Any, says: str) -> None:
    saved = store.to_bytes(quantized("mlp"))
    facts, tensors = described(saved), parse(saved)
    facts["dynamic"] = value
    if value == "absent":
        del facts["dynamic"]
    text = json.dumps(facts)
    forged = write(tensors, {"pqi": f"{store.FORMAT} {store.VERSION}\n{store._digest(text, tensors)}\n{text}"})
    if says:
        with pytest.raises(ModelFileError, match=says):
            store.from_bytes(forged)
    else:
        assert store.from_bytes(forged).input_shape == (4, 5)


def test_a_bias_that_follows_anything_but_the_scale_is_refused() -> None:
    ones = torch.ones(2, dtype=torch.int64)
    for start in (0, 1):
        graph = IntegerGraph(
            (
                Node("x", Input((4,), -128, 127)),
                Node("e", Slice(0, start, start + 1), ("x",)),
                Node("y", Spread(ones, 0 * ones, 9, (2,)), ("e",)),
            ),
            "y",
        )
        with pytest.raises(GraphError, match="'y' must read the scale, the last code of the input"):
            model_of(graph)
    graph = IntegerGraph(
        (
            Node("x", Input((4,), -128, 127)),
            Node("d", Dense(torch.ones(4, 4, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)), ("x",)),
            Node("e", Slice(0, 3, 4), ("d",)),
            Node("y", Spread(ones, 0 * ones, 9, (2,)), ("e",)),
        ),
        "y",
    )
    with pytest.raises(GraphError, match="it reads 'e'"):
        model_of(graph)


def model_of(graph: IntegerGraph) -> IntegerModel:
    return IntegerModel(
        graph, proven_accumulators(graph, prove(graph)), Quantizer(1.0, 0.5, 256), 1.0, dynamic=DynamicScale((3,), 9)
    )
