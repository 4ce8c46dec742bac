"""The model file: what is saved comes back; anything else is one clear error."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load as parse
from safetensors.torch import save as write

from pqi.graph import store
from pqi.graph.errors import ModelFileError
from pqi.graph.model import IntegerModel
from pqi.quant import quantize
from tests import networks


@pytest.fixture(scope="module")
def model() -> IntegerModel:
    x = torch.rand(16, 2, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.3
    return quantize(networks.concat_net(), x, rings="calibrated")


@pytest.fixture(scope="module")
def saved(model: IntegerModel) -> bytes:
    return store.to_bytes(model)


def test_a_saved_model_comes_back_whole(model: IntegerModel, tmp_path: Path) -> None:
    path = tmp_path / "m.pqi"
    model.save(path)
    back = store.load(path)
    codes = torch.randint(model.graph.input.lo, model.graph.input.hi + 1, (9, 2, 8, 8))
    assert torch.equal(back.integers(codes), model.integers(codes))
    assert back.rings == model.rings and back.accumulators == model.accumulators and back.policy == model.policy
    assert back.output_scale == model.output_scale and back.input_quantizer == model.input_quantizer
    assert [n.source for n in back.graph.nodes] == [n.source for n in model.graph.nodes]
    assert store.to_bytes(back) == store.to_bytes(model)


def test_the_file_holds_no_pickle_and_no_local_paths(saved: bytes) -> None:
    assert str(Path.cwd()).encode() not in saved and b"torch" not in saved


@pytest.mark.parametrize("make", [networks.mlp, networks.bnn])
def test_other_networks_come_back_too(make: Callable[[], torch.nn.Module]) -> None:
    features = 20 if make is networks.mlp else 30
    x = torch.randint(0, 256, (16, features)).float()
    model = quantize(make(), x)
    back = store.from_bytes(store.to_bytes(model))
    assert np.array_equal(back.predict(x), model.predict(x))


def test_saving_replaces_the_file_in_one_step_and_leaves_nothing_else(model: IntegerModel, tmp_path: Path) -> None:
    path = tmp_path / "m.pqi"
    path.write_bytes(b"old")
    model.save(path)
    assert os.listdir(tmp_path) == ["m.pqi"] and store.load(path).output_shape == (3,)


def test_a_failed_save_leaves_the_old_file(
    model: IntegerModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.pqi"
    path.write_bytes(b"old")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ModelFileError, match="No space left"):
        model.save(path)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["m.pqi"]


def test_a_directory_that_does_not_exist_is_named(model: IntegerModel, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="No such file"):
        model.save(tmp_path / "missing" / "m.pqi")
    with pytest.raises(ModelFileError, match="cannot read"):
        store.load(tmp_path / "missing.pqi")


def test_a_truncated_file_is_refused_by_name(saved: bytes, tmp_path: Path) -> None:
    path = tmp_path / "short.pqi"
    for length in [0, 1, 7, 8, 9, 100, len(saved) // 2, len(saved) - 1]:
        path.write_bytes(saved[:length])
        with pytest.raises(ModelFileError, match=r"short\.pqi"):
            store.load(path)


def test_no_altered_byte_goes_unnoticed(saved: bytes) -> None:
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(saved), 300):
        altered = bytearray(saved)
        altered[position] ^= 1 << rng.integers(8)
        with pytest.raises(ModelFileError):
            store.from_bytes(bytes(altered))


def test_an_empty_directory_or_other_file_is_refused(tmp_path: Path) -> None:
    for content in (b"PK\x03\x04" + b"x" * 99, b"\x80\x04pickle." * 9, b"{}", struct.pack("<Q", 1 << 60) + b"{}"):
        (tmp_path / "f").write_bytes(content)
        with pytest.raises(ModelFileError):
            store.load(tmp_path / "f")
    with pytest.raises(ModelFileError):
        store.load(tmp_path)


def test_safetensors_of_something_else_are_refused() -> None:
    with pytest.raises(ModelFileError, match="not written by this library"):
        store.from_bytes(write({"a": torch.zeros(1)}))


def forged(
    saved: bytes, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None], version: str = "1"
) -> bytes:
    """The file after a change, with a digest that fits: what a hostile writer would hand over."""
    length = struct.unpack("<Q", saved[:8])[0]
    described = json.loads(json.loads(saved[8 : 8 + length])["__metadata__"]["pqi"].split("\n")[2])
    tensors = parse(saved)
    change(described, tensors)
    text = json.dumps(described)
    return write(tensors, {"pqi": f"{store.FORMAT} {version}\n{store._digest(text, tensors)}\n{text}"})


def node(kind: str, described: dict[str, Any]) -> dict[str, Any]:
    return next(n for n in described["nodes"] if n["kind"] == kind)


def drop(name: str) -> Callable[[dict[str, Any], dict[str, torch.Tensor]], None]:
    return lambda d, t: d.pop(name) and None


def put(path: str, value: Any) -> Callable[[dict[str, Any], dict[str, torch.Tensor]], None]:
    """Set ``a.b`` of the description, where a may be the kind of a node."""

    def change(described: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        *way, last = path.split(".")
        at: Any = described
        for step in way:
            at = at[step] if isinstance(at, dict) and step in at else node(step, described)
        at[last] = value

    return change


def first_tensor(
    make: Callable[[torch.Tensor], torch.Tensor],
) -> Callable[[dict[str, Any], dict[str, torch.Tensor]], None]:
    def change(described: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        name = next(k for k in sorted(tensors) if k.endswith("weight"))
        tensors[name] = make(tensors[name]).contiguous()

    return change


HOSTILE = {
    "unknown kind": put("conv2d.kind", "__import__"),
    "kind that is a list": put("conv2d.kind", ["conv2d"]),
    "dangling input": put("conv2d.inputs", ["nobody"]),
    "cycle": lambda d, t: d["nodes"][1].update(inputs=[d["nodes"][2]["name"]]),
    "own input": lambda d, t: d["nodes"][1].update(inputs=[d["nodes"][1]["name"]]),
    "two nodes of one name": lambda d, t: d["nodes"][2].update(name=d["nodes"][1]["name"]),
    "no nodes": put("nodes", []),
    "nodes that are a number": put("nodes", 3),
    "a node that is a text": lambda d, t: d["nodes"].append("x"),
    "huge input": put("input.params", {"shape": [1 << 24, 1 << 24], "lo": 0, "hi": 1}),
    "huge shape that is no int64": put("input.params", {"shape": [1 << 200], "lo": 0, "hi": 1}),
    "negative shape": put("input.params", {"shape": [-1], "lo": 0, "hi": 1}),
    "text for a number": put("conv2d.params", {"stride": "1", "padding": [0, 0], "dilation": [1, 1], "groups": 1}),
    "fraction for a number": put(
        "conv2d.params", {"stride": [1.5, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1}
    ),
    "huge padding": put(
        "conv2d.params", {"stride": [9999, 9999], "padding": [65000, 65000], "dilation": [1, 1], "groups": 1}
    ),
    "unknown field": put("conv2d.params", {"evil": 1}),
    "code as a field": put("conv2d.params", {"__class__": "x"}),
    "deep list": put("conv2d.params", {"stride": [[[[[[1]]]]]]}),
    "missing tensor": lambda d, t: t.__delitem__(sorted(t)[0]),
    "extra tensor": lambda d, t: t.update(extra=torch.zeros(3, dtype=torch.int8)),
    "float weights": first_tensor(lambda t: t.float()),
    "weights of another shape": first_tensor(lambda t: t.flatten()),
    "empty weights": first_tensor(lambda t: t[:0]),
    "weights beyond 32 bits": first_tensor(lambda t: torch.full(t.shape, 1 << 40)),
    "no output": drop("output"),
    "unknown output": put("output", "nobody"),
    "output that is a list": put("output", ["fc"]),
    "no rings": drop("accumulators"),
    "rings as text": put("accumulators", "all"),
    "ring of 64 bits": put("accumulators.output", 64),
    "ring of no bits": put("accumulators.output", 0),
    "fractional ring": put("accumulators.output", 12.5),
    "ring that is true": put("accumulators.output", True),
    "unknown policy": put("policy", "none"),
    "proven without proof": put("policy", "proven"),
    "infinite scale": put("output_scale", float("inf")),
    "scale as text": put("output_scale", "1"),
    "scale that is NaN": put("output_scale", float("nan")),
    "quantizer of modulus 0": put("input_quantizer.modulus", 0),
    "quantizer of huge modulus": put("input_quantizer.modulus", 1 << 80),
    "quantizer with text": put("input_quantizer.scale", "1"),
    "quantizer without integer zero point": put("input_quantizer.offset", 0.3),
    "description that is a list": lambda d, t: d.update(nodes=None),
    "source that is a number": put("conv2d.source", 7),
    "name of a megabyte": put("conv2d.name", "x" * (1 << 20)),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_file_with_a_fitting_digest_is_one_clear_error(
    saved: bytes, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]
) -> None:
    with pytest.raises(ModelFileError) as caught:
        store.from_bytes(forged(saved, change))
    assert len(str(caught.value)) > 10


def test_a_forged_file_without_a_change_is_accepted(saved: bytes) -> None:
    assert store.from_bytes(forged(saved, lambda d, t: None)).output_shape == (3,)


@pytest.mark.parametrize("rings", ["proven", "calibrated"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_a_network_of_lookups_comes_back_whole(per_channel: bool, rings: str) -> None:
    model = networks.integer_model(networks.cyclic_graph(8, per_channel), rings)
    back = store.from_bytes(store.to_bytes(model))
    codes = torch.randint(0, 256, (5, 2, 6, 6))
    assert torch.equal(back.integers(codes), model.integers(codes))
    assert (back.rings, back.accumulators, back.policy) == (model.rings, model.accumulators, rings)
    assert store.to_bytes(back) == store.to_bytes(model)


def first_table(
    make: Callable[[torch.Tensor], torch.Tensor],
) -> Callable[[dict[str, Any], dict[str, torch.Tensor]], None]:
    def change(described: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        name = next(k for k in sorted(tensors) if k.endswith("values"))
        tensors[name] = make(tensors[name]).contiguous()

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (first_table(lambda t: t[:-1]), "255 entries"),
        (first_table(lambda t: torch.cat([t, t])), "512 entries"),
        (first_table(lambda t: t.reshape(2, 128)), "128 entries"),
        (first_table(lambda t: t.repeat(3, 1)), "tables for 3 channels"),
        (first_table(lambda t: t.reshape(1, 1, 256)), "1 axes"),
        (first_table(lambda t: t[:0]), "non-empty"),
        (first_table(lambda t: t.float()), "signed integers"),
        (first_table(lambda t: torch.full(t.shape, 1 << 40)), "magnitudes"),
        (put("lookup.params", {"bits": 7}), "256 entries"),
        (put("lookup.params", {"bits": 13}), "lookup.bits is 13"),
        (put("lookup.params", {"bits": 200}), "lookup.bits is 200"),
        (put("lookup.params", {"bits": True}), "lookup.bits is True"),
        (put("lookup.params", {}), "fields"),
        (put("lookup.tensors", []), "fields"),
        (put("accumulators.wrap1", 7), "'wrap1' reads mod 2.8 by definition"),
        (put("accumulators.wrap1", 32), "'wrap1' reads mod 2.8 by definition"),
        (put("accumulators.wrap1", None), "'wrap1' has None bits"),
        (put("accumulators.wrap1", 8.0), r"'wrap1' has 8\.0 bits"),
    ],
)
def test_a_malformed_table_is_refused_with_the_reason(
    change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None], says: str
) -> None:
    data = store.to_bytes(networks.integer_model(networks.cyclic_graph(8)))
    with pytest.raises(ModelFileError, match=says):
        store.from_bytes(forged(data, change))


def test_another_version_is_named(saved: bytes) -> None:
    with pytest.raises(ModelFileError, match=r"version '2', this library reads version 1"):
        store.from_bytes(forged(saved, lambda d, t: None, version="2"))
