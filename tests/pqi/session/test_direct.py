"""Weights that server A owns: two servers, or server B in the client's own process; the dealer has dealt beforehand."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from sessionkit import QUICK, Deployment, inputs, make_deployment, small_model

import pqi.session.direct
from pqi.graph.model import IntegerModel
from pqi.program import Program
from pqi.program.errors import ProgramError
from pqi.session.bundle import load_client, load_server
from pqi.session.client import Client
from pqi.session.direct import OwnServer
from pqi.session.errors import BundleError, MaterialMissing
from pqi.session.journal import audit, compare
from pqi.session.local import local
from pqi.session.owner import make_keys, split
from pqi.session.server import ComputeServer, ServerOptions
from protocols import api
from protocols.rounds import PartyId

OPTIONS = ServerOptions(max_batch=16, pool_items=40, patience=replace(QUICK, pool=30.0))


def cut(directory: Path, weights: str = "owned") -> Path:
    """Bundles and keys of the small model on free ports."""
    return make_deployment(directory, weights=weights)


def tensors(bundles: Path, role: str) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(bundles / role / "secrets.safetensors")


def program_of(bundles: Path) -> Program:
    return load_server(bundles / "server_a").program


def exact(client: Client, n: int = 5, model: IntegerModel | None = None) -> bool:
    model, x = model or small_model(), inputs(n)
    return bool(torch.equal(client.predict(x).integers, model.integers(model.encode(x))))


@pytest.fixture
def without_b(tmp_path: Path) -> Iterator[Deployment]:
    """Server A and the dealer, who looks for server B."""
    made = Deployment(cut(tmp_path), OPTIONS)
    try:
        made.start_server("server_a")
        made.start_dealer()
        yield made
    finally:
        made.close()


def test_bundles_of_owned_weights_hold_only_what_their_role_may_know(tmp_path: Path) -> None:
    cut(tmp_path)
    layers = ("dense1", "dense2")
    assert set(tensors(tmp_path, "server_a")) == {f"{x}.{key}" for x in layers for key in ("weight", "bias")}
    assert set(tensors(tmp_path, "server_b")) == {f"{x}.masked" for x in layers}
    steps = load_server(tmp_path / "server_a").program.steps
    tables = {f"{name}.table" for name, step, _ in steps if isinstance(step, (api.Table, api.FusedTable))}
    assert set(tensors(tmp_path, "dealer")) == {f"{x}.mask" for x in layers} | tables
    assert not list((tmp_path / "client").glob("*.safetensors"))
    weights = {name: node.op.weight for name, node in small_model().graph.by_name.items() if name in layers}
    for name, weight in weights.items():
        assert torch.equal(tensors(tmp_path, "server_a")[f"{name}.weight"].long(), weight)
        raw = weight.to(tensors(tmp_path, "server_a")[f"{name}.weight"].dtype).numpy().tobytes()
        for role in ("server_b", "dealer", "client"):
            for path in (tmp_path / role).rglob("*"):
                assert not path.is_file() or raw not in path.read_bytes()


def test_a_server_that_is_given_weights_it_must_not_know_does_not_start(tmp_path: Path) -> None:
    bundle = load_server(cut(tmp_path) / "server_b")
    stolen = {**bundle.tensors, **tensors(tmp_path, "server_a")}
    with pytest.raises(BundleError, match=r"P1 holds what it must not know: dense1\.bias"):
        ComputeServer(replace(bundle, tensors=stolen))


@pytest.mark.parametrize("weights", ["owned", "public"])
@pytest.mark.parametrize("n", [1, 16])
def test_what_crosses_the_wire_is_what_each_party_is_declared_to_send(tmp_path: Path, weights: str, n: int) -> None:
    made = Deployment(cut(tmp_path, weights), OPTIONS)
    try:
        made.start_server("server_b")
        made.start_server("server_a")
        made.start_dealer()
        made.await_epoch(1)
        with made.client() as client:
            ledger = client.predict(inputs(n)).ledger
            assert exact(client, 20)
            assert client.program.visibilities == (weights,)
            assert client.program.security == program_of(tmp_path).security
    finally:
        made.close()
    cost = program_of(tmp_path).cost(n)
    declared = {"server_a": cost.sent_bytes(PartyId.P0), "server_b": cost.sent_bytes(PartyId.P1)}
    assert ledger.online_bytes == declared
    assert (declared["server_a"] < declared["server_b"]) == (weights == "owned")
    assert ledger.offline_bytes == {"server_a": 0, "server_b": cost.dealt_bytes}
    assert ledger.exchanges == cost.exchanges
    a, b = ledger.parties["server_a"], ledger.parties["server_b"]
    assert (a.online_sent, a.online_received) == (b.online_received, b.online_sent)


def test_a_client_that_is_server_b_itself_computes_with_the_model_owner_alone(without_b: Deployment) -> None:
    where = without_b.directory
    with Client(where / "client" / "client.toml", own_server=where / "server_b") as client:
        assert exact(client, 40)
        state = client.status()
        assert state["server_b"]["dealer"] and state["server_b"]["digest"] == program_of(where).digest
        client.close()
        assert exact(client)  # started anew, with a new epoch
    assert len(set(without_b.epochs)) >= 2
    a, b = (audit(where / role / "journal.sqlite") for role in ("server_a", "server_b"))
    assert a.items == b.items == 45
    compare(a, b)


def test_a_port_of_the_client_s_own_server_is_free_again_when_it_is_closed(without_b: Deployment) -> None:
    where = without_b.directory
    with Client(where / "client" / "client.toml", own_server=where / "server_b") as client:
        assert exact(client)
    with ComputeServer(load_server(where / "server_b"), options=OPTIONS) as server:
        assert server.address == load_server(where / "server_b").addresses["server_b"]


def test_a_client_without_a_dealer_says_so_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pqi.session.direct, "_DEALER_SECONDS", 0.1)
    where = cut(tmp_path)
    with Client(where / "client" / "client.toml", own_server=where / "server_b") as client:
        with pytest.raises(MaterialMissing, match=r"no dealer has delivered to server_b at 127.*pqi deal.*server_a"):
            client.predict(inputs(1))
        assert client.predict(inputs(0)).values.shape == (0, 3)  # nobody is needed for nothing


def test_another_role_s_or_another_split_s_bundle_is_no_server_of_the_client_s_own(tmp_path: Path) -> None:
    where, other = cut(tmp_path / "one"), cut(tmp_path / "two")
    config = where / "client" / "client.toml"
    with pytest.raises(BundleError, match="is the bundle of server_a; a client can run server_b only"):
        Client(config, own_server=where / "server_a")
    with pytest.raises(BundleError, match="of another split"):
        Client(config, own_server=other / "server_b")
    with pytest.raises(BundleError, match="is the bundle of 'dealer'"):
        Client(config, own_server=where / "dealer")


@pytest.mark.parametrize(("host", "found"), [("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("10.0.0.9", "10.0.0.9")])  # noqa: S104
def test_a_server_that_listens_everywhere_is_found_on_loopback(tmp_path: Path, host: str, found: str) -> None:
    address = f"[{host}]:7402" if ":" in host else f"{host}:7402"
    split(small_model(), tmp_path, weights="owned", addresses={"server_a": "127.0.0.1:7401", "server_b": address})
    make_keys(tmp_path)
    assert OwnServer(tmp_path / "server_b", load_client(tmp_path / "client")).address == (found, 7402)


def test_a_keyed_protocol_has_no_setting_for_weights(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match="the one server owns all weights"):
        split(small_model(), tmp_path, protocol="paillier", weights="owned")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["owned", {"*": "shared", "dense1": "public"}], ids=str)
def test_processes_answer_exactly_whoever_knows_the_weights(weights: str | dict[str, str]) -> None:
    with local(small_model(), weights=weights, server_options={"max_batch": 16, "pool_items": 32}) as service:
        assert exact(service.client, 20)
        cost = program_of(service.directory).cost(3)
        sent = service.predict(inputs(3)).ledger.online_bytes
        assert sent == {"server_a": cost.sent_bytes(PartyId.P0), "server_b": cost.sent_bytes(PartyId.P1)}


ASK = """
import sys
import numpy as np
import pqi
with pqi.Client(sys.argv[1] + "/client/client.toml", own_server=sys.argv[1] + "/server_b") as client:
    np.save(sys.argv[1] + "/answer.npy", client.predict(np.load(sys.argv[1] + "/x.npy")).integers.numpy())
"""


@pytest.mark.slow
def test_a_client_s_process_with_server_b_in_it_asks_a_model_owner_s_process(without_b: Deployment) -> None:
    import numpy as np

    where, x, model = without_b.directory, inputs(7), small_model()
    np.save(where / "x.npy", x)
    done = subprocess.run([sys.executable, "-c", ASK, str(where)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert np.array_equal(np.load(where / "answer.npy"), model.integers(model.encode(x)).numpy())
