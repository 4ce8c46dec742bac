"""A deployment over an emulated network: the same answers, later."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from keyedkit import affine_model, same
from keyedkit import inputs as keyed_inputs
from sessionkit import QUICK, deployment, inputs, small_model

from pqi.net.link import Link
from pqi.session.client import Client
from pqi.session.errors import QueryFailed
from pqi.session.local import LocalService, local
from pqi.session.server import ServerOptions

FAR = Link("far", 0.03, 1e8)


def warm_seconds(service: LocalService, x: object) -> float:
    """What one prediction takes when every connection is there."""
    service.predict(x)
    service.await_items(1)
    started = time.monotonic()
    service.predict(x)
    return time.monotonic() - started


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["clear", "additive2"])
def test_every_message_between_two_processes_takes_its_way(protocol: str) -> None:
    model, x = small_model(), inputs(2)
    with local(model, protocol=protocol, link=FAR) as service:
        took = warm_seconds(service, x)
        answer = service.predict(x)
    assert isinstance(answer.integers, torch.Tensor)
    assert torch.equal(answer.integers, model.integers(model.encode(x)))
    # Query and "ready", input and result: two round trips, and between the servers half of one an exchange.
    assert took >= (2 + answer.ledger.exchanges // 2) * FAR.rtt_seconds


@pytest.mark.slow
def test_under_a_key_too(tmp_path: Path) -> None:
    pytest.importorskip("phe")
    model = affine_model()
    x = keyed_inputs(1)
    with local(model, protocol="paillier", options={"key_bits": 2048}, link=FAR) as service:
        assert warm_seconds(service, x) >= 2 * FAR.rtt_seconds
        assert same(service.predict(x), model, x)


def test_roles_that_were_told_of_different_links_do_not_understand_each_other(tmp_path: Path) -> None:
    with deployment(tmp_path, "clear", ServerOptions(patience=QUICK, link=FAR)) as running:
        with running.client() as client, pytest.raises(QueryFailed, match="wrong magic"):
            client.predict(inputs(1))
        with Client(tmp_path / "client" / "client.toml", link=FAR) as client:
            assert client.status()["server_a"]["role"] == "server_a"


def test_a_link_that_is_none_is_refused_before_anything_starts() -> None:
    with pytest.raises(ValueError, match="link 'moon' is none of lan, wan, none"):
        local(small_model(), link="moon")
