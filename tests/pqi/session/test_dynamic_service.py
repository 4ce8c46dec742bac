"""Scales of single inputs through a whole deployment: exact, decoded by the client, unknown to every server."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sessionkit import make_deployment
from torch import Tensor, nn

import pqi
from pqi.graph.errors import InputError, SaturationWarning
from pqi.graph.model import IntegerModel
from pqi.session.bundle import load_client, load_server
from pqi.session.client import Client
from pqi.session.errors import BundleError
from pqi.session.inputs import InputSpec
from pqi.session.local import LocalService
from tests import networks

SHAPE = (1, 6, 6)


class Small(nn.Module):
    """A convolution and a dense layer, both with biases."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 3, 3, padding=1), nn.Linear(3 * 9, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.max_pool2d(torch.relu(self.conv(x)), 2).flatten(1))


def inputs(n: int, seed: int = 0) -> Tensor:
    """As many loudnesses as inputs, from 1 down to 1/100."""
    x = torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(seed))
    return x / x.flatten(1).abs().amax(1).view(-1, 1, 1, 1) * torch.logspace(-2, 0, n).view(-1, 1, 1, 1)


@pytest.fixture(scope="module")
def model() -> IntegerModel:
    return pqi.quantize(networks.seeded(lambda: Small().eval())(), inputs(64), dynamic=True)


@pytest.fixture(scope="module")
def service(model: IntegerModel) -> Iterator[LocalService]:
    with pqi.local(model, server_options={"max_batch": 8, "pool_items": 24}) as service:
        yield service


@pytest.mark.slow
def test_private_answers_equal_the_reference_bit_for_bit_whatever_the_scale(
    service: LocalService, model: IntegerModel
) -> None:
    x = torch.cat([inputs(18, seed=1), torch.zeros(1, *SHAPE)])
    codes, answer = model.encode(x), service.predict(x)
    assert len(set(codes[:, -1].tolist())) > 6 and answer.ledger.queries == 3
    assert torch.equal(answer.integers, model.integers(codes))
    assert np.array_equal(answer.values, model.predict(x))
    assert np.array_equal(answer.values, answer.integers.numpy() * model.output_scale / codes[:, -1:].numpy())
    assert service.predict(x[:0]).values.shape == (0, 4)


@pytest.mark.slow
def test_what_a_query_costs_and_leaves_behind_says_nothing_of_the_scale(
    service: LocalService, model: IntegerModel
) -> None:
    loud = inputs(8, seed=2) * torch.logspace(2, 0, 8).view(-1, 1, 1, 1)
    seen, scales = [], set()
    for loudness in (1.0, 0.3, 0.1, 0.05, 0.0):
        x = loud * loudness
        scales.add(tuple(model.encode(x)[:, -1].tolist()))
        seen.append(without_times(service.predict(x).ledger.to_json()))
    assert len(scales) == 5 and all(facts == seen[0] for facts in seen)


TIMES = ("seconds", "rss", "level", "first", "query")


def without_times(value: Any) -> Any:
    """A ledger without what differs between any two queries: times, memory, counters."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if not any(word in k for word in TIMES)}
    return [without_times(v) for v in value] if isinstance(value, list) else value


@pytest.mark.slow
def test_an_input_too_loud_is_told_before_it_is_sent(service: LocalService, model: IntegerModel) -> None:
    x = 5 * inputs(1)[:1] / inputs(1)[:1].abs().max()
    with pytest.raises(InputError, match="Nothing was computed or sent"):
        service.predict(x, on_saturation="error")
    with pytest.warns(SaturationWarning, match="lie outside the calibrated range") as caught:
        answer = service.predict(x)
    assert torch.equal(answer.integers, model.integers(model.encode(x, "silent")))
    assert len(caught) == 1


# -- bundles -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def bundles(tmp_path: Path, model: IntegerModel) -> Path:
    return make_deployment(tmp_path / "d", model)


def test_the_client_knows_the_shape_of_its_inputs_and_of_their_codes(bundles: Path, model: IntegerModel) -> None:
    bundle, x = load_client(bundles / "client"), inputs(9)
    assert bundle.input == InputSpec.of_model(model) and bundle.input.dynamic == model.dynamic
    assert bundle.input.shape == SHAPE and bundle.input.size == 36 and bundle.program.input_shape == (37,)
    assert torch.equal(bundle.input.encode(x), model.encode(x))
    with pytest.raises(InputError, match=r"\(N, 1, 6, 6\) is needed"):
        bundle.input.encode(x.flatten(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Client(bundles / "client" / "client.toml").close()


def test_no_server_and_no_dealer_holds_how_inputs_are_scaled(bundles: Path, model: IntegerModel) -> None:
    assert "dynamic" in json.loads((bundles / "client" / "bundle.json").read_text())["input"]
    assert model.dynamic is not None and model.dynamic.levels == 100
    for role in ("server_a", "server_b", "dealer"):
        document = json.loads((bundles / role / "bundle.json").read_text())
        assert not {"input", "output_scale", "dynamic", "quantizer"} & set(document)
        assert not {"levels", "top", "quantizer"} & set(keys(document)) and 100 not in numbers(document["program"])
    program = load_server(bundles / "server_a").program
    assert program.input_shape == (37,) and [i.name for i in program.instructions if i.name.endswith(".bias")] == [
        "conv.bias",
        "fc.bias",
    ]


def keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from keys(inner)


def numbers(value: Any) -> Iterator[int]:
    if isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from numbers(inner)
    elif type(value) is int:
        yield value


@pytest.mark.parametrize(
    ("dynamic", "says"),
    [
        (None, r"'input\.dynamic'.*must hold shape"),
        ({"shape": [36], "levels": 5}, r"input\.shape"),
        ({"shape": [1, 6, 7], "levels": 5}, r"input\.shape"),
        ({"shape": [1, 6, 6], "levels": 0}, r"'input\.dynamic'.*levels is 0"),
        ({"shape": [1, 6, 6], "levels": 128}, r"levels is 128"),
        ({"shape": [1, 6, -6], "levels": 5}, r"'input\.dynamic'.*shape"),
        ("absent", r"input\.shape"),
    ],
)
def test_a_client_s_altered_scales_are_refused_by_name(bundles: Path, dynamic: Any, says: str) -> None:
    path = bundles / "client" / "bundle.json"
    document = json.loads(path.read_text())
    document["input"]["dynamic"] = dynamic
    if dynamic == "absent":
        del document["input"]["dynamic"]
    path.write_text(json.dumps(document))
    with pytest.raises(BundleError, match=says):
        load_client(bundles / "client")
