from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from sessionkit import QUICK, Deployment, deployment, inputs, make_deployment, small_model

import pqi.program
import pqi.session.conversation
import pqi.session.sharing
from pqi.graph.errors import InputError, SaturationWarning
from pqi.net.errors import CannotConnect, PeerReported
from pqi.program import Program
from pqi.session.bundle import load_server
from pqi.session.client import Client
from pqi.session.errors import QueryFailed
from pqi.session.journal import audit, compare
from pqi.session.server import ServerOptions

OPTIONS = ServerOptions(max_batch=16, pool_items=40, patience=QUICK)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployment(tmp_path_factory.mktemp("running"), options=OPTIONS) as made:
        yield made


@pytest.fixture
def client(running: Deployment) -> Iterator[Client]:
    with running.client() as client:
        yield client


def program_of(running: Deployment) -> Program:
    return load_server(running.directory / "server_a").program


def test_private_answers_equal_the_integer_reference_bit_for_bit(client: Client) -> None:
    model, x = small_model(), inputs(50)
    answer = client.predict(x)
    assert torch.equal(answer.integers, model.integers(model.encode(x)))
    assert np.array_equal(answer.values, model.predict(x))


def test_the_single_server_protocol_answers_through_the_same_code(tmp_path: Path) -> None:
    model, x = small_model(), inputs(20)
    with deployment(tmp_path, "clear", OPTIONS) as made, made.client() as client:
        answer = client.predict(x)
        assert torch.equal(answer.integers, model.integers(model.encode(x)))
        assert set(answer.ledger.parties) == {"server_a"}
        assert client.status()["server_a"]["epoch"]
    assert audit(tmp_path / "server_a" / "journal.sqlite").items == 20


@pytest.mark.parametrize("n", [1, 7, 16])
def test_what_crossed_the_wire_is_what_the_program_declares(running: Deployment, client: Client, n: int) -> None:
    ledger = client.predict(inputs(n)).ledger
    program = program_of(running)
    online, offline = program.online_cost(n), program.offline_cost(n)
    assert ledger.exchanges == online.exchanges
    assert {role: 8 * count for role, count in ledger.online_bytes.items()} == {
        "server_a": online.online_bits,
        "server_b": online.online_bits,
    }
    assert {role: 8 * count for role, count in ledger.offline_bytes.items()} == {
        "server_a": 0,
        "server_b": offline.dealt_bits,
    }
    a, b = ledger.parties["server_a"], ledger.parties["server_b"]
    assert (a.online_sent, a.online_received) == (b.online_received, b.online_sent)
    assert sum(step["sent"] for step in a.steps.values()) == a.online_sent
    assert a.overhead_bytes == 2 * a.exchanges * 12


def test_a_batch_over_the_limit_goes_in_parts_and_tells_its_progress(running: Deployment, client: Client) -> None:
    model, x, heard = small_model(), inputs(40), []
    answer = client.predict(x, progress=lambda done, of: heard.append((done, of)))
    assert heard == [(16, 40), (32, 40), (40, 40)]
    assert torch.equal(answer.integers, model.integers(model.encode(x)))
    assert (answer.ledger.queries, answer.ledger.samples) == (3, 40)
    assert answer.ledger.exchanges == 3 * program_of(running).online_cost(1).exchanges
    assert answer.ledger.to_json()["parties"]["server_b"]["queries"] == 3


def test_a_query_is_bounded_in_dealt_bytes_too(tmp_path: Path) -> None:
    model, x = small_model(), inputs(5)
    record = pqi.program.compile(model, "additive2").record_bytes
    options = ServerOptions(batch_bytes=2 * record + 1, patience=QUICK)
    with deployment(tmp_path, options=options) as made, made.client() as client:
        answer = client.predict(x)
        assert client.status()["server_b"]["max_batch"] == 2
        assert answer.ledger.queries == 3
        assert torch.equal(answer.integers, model.integers(model.encode(x)))


def test_an_empty_batch_is_answered_without_any_server(tmp_path: Path) -> None:
    make_deployment(tmp_path)
    with Client(tmp_path / "client" / "client.toml") as client:
        answer = client.predict(np.zeros((0, 6)))
    assert answer.values.shape == answer.integers.shape == (0, 3)
    assert answer.ledger.exchanges == 0


def test_bad_input_is_refused_before_any_connection_and_servers_do_not_notice(tmp_path: Path) -> None:
    make_deployment(tmp_path)  # nobody runs: an attempt to connect would raise QueryFailed
    with Client(tmp_path / "client" / "client.toml") as client:
        for x in (
            np.zeros(6),
            np.zeros((1, 5)),
            np.full((1, 6), np.nan),
            np.full((1, 6), np.inf),
            np.array([["a"] * 6]),
        ):
            with pytest.raises(InputError):
                client.predict(x)


def test_values_out_of_range_saturate_with_a_warning(client: Client) -> None:
    model, x = small_model(), np.full((1, 6), 99.0)
    with pytest.warns(SaturationWarning):
        answer = client.predict(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = client.predict(x, on_saturation="silent")
    assert torch.equal(answer.integers, model.integers(model.encode(x, "silent")))
    assert torch.equal(again.integers, answer.integers)


def test_several_clients_at_once_get_their_own_answers_and_no_item_is_used_twice(running: Deployment) -> None:
    model = small_model()
    wrong: list[object] = []

    def ask(seed: int) -> None:
        with running.client() as client:
            for turn in range(4):
                x = inputs(1 + (seed + turn) % 5, seed=100 * seed + turn)
                if not torch.equal(client.predict(x).integers, model.integers(model.encode(x))):
                    wrong.append((seed, turn))

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    a, b = (audit(running.directory / role / "journal.sqlite") for role in ("server_a", "server_b"))
    compare(a, b)
    assert a.uses == b.uses


def test_status_tells_the_level_and_the_common_epoch_and_nothing_secret(client: Client) -> None:
    status = client.status()
    assert status["server_a"]["epoch"] == status["server_b"]["epoch"]
    assert 0 <= status["server_b"]["level"] <= status["server_b"]["capacity"] == 40
    assert all(state["dealer"] for state in status.values())


def test_a_client_that_was_closed_opens_again(client: Client) -> None:
    first = client.predict(inputs(1)).integers
    client.close()
    assert torch.equal(client.predict(inputs(1)).integers, first)


def test_no_server_is_named_with_its_address(tmp_path: Path) -> None:
    make_deployment(tmp_path)
    with Client(tmp_path / "client" / "client.toml") as client, pytest.raises(QueryFailed) as caught:
        client.predict(inputs(1))
    assert isinstance(caught.value.causes[0], CannotConnect)
    assert "cannot connect to server_a at 127.0.0.1:" in str(caught.value)
    assert "connection refused" in str(caught.value)


def test_without_a_dealer_the_cause_names_it_with_level_and_need(tmp_path: Path) -> None:
    with deployment(tmp_path, options=OPTIONS, dealer=False) as made, made.client() as client:
        with pytest.raises(QueryFailed, match=r"the dealer has not delivered within 1 s: level 0 of 3 items"):
            client.predict(inputs(3))
        made.start_dealer()
        made.await_epoch(1)
        assert len(client.predict(inputs(3)).integers) == 3


def test_a_dealer_that_comes_back_begins_a_new_epoch_and_the_old_one_is_burnt(tmp_path: Path) -> None:
    with deployment(tmp_path, options=OPTIONS) as made, made.client() as client:
        client.predict(inputs(5))
        made.end_dealer()
        client.predict(inputs(5))  # what was delivered is still good
        made.start_dealer()
        made.await_epoch(2)
        client.predict(inputs(5))
    a, b = (audit(tmp_path / role / "journal.sqlite") for role in ("server_a", "server_b"))
    assert a.uses == b.uses
    assert {use.epoch for use in a.uses} == set(made.epochs)
    assert sorted((use.epoch, use.first) for use in a.uses) == sorted(
        [(made.epochs[0], 0), (made.epochs[0], 5), (made.epochs[1], 0)]
    )


@pytest.mark.parametrize("role", ["server_a", "server_b"])
def test_after_a_servers_restart_the_next_queries_succeed_with_fresh_material(tmp_path: Path, role: str) -> None:
    model, x = small_model(), inputs(4)
    with deployment(tmp_path, options=OPTIONS) as made, made.client() as client:
        client.predict(x)
        made.stop_server(role)
        with pytest.raises(QueryFailed, match=role):
            client.predict(x)
        made.start_server(role)
        made.await_epoch(2)
        assert torch.equal(client.predict(x).integers, model.integers(model.encode(x)))
    a, b = (audit(tmp_path / name / "journal.sqlite") for name in ("server_a", "server_b"))
    compare(a, b)


def test_a_client_of_another_split_is_found_out_by_both_sides_before_a_share_exists(
    running: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    other = make_deployment(tmp_path)
    config = (running.directory / "client" / "client.toml").read_text()
    config = config.replace('bundle = "."', f'bundle = "{other / "client"}"').replace(
        '"tls/', f'"{running.directory}/client/tls/'
    )
    (tmp_path / "mixed.toml").write_text(config)
    monkeypatch.setattr(pqi.session.sharing, "encode_input", lambda *_: pytest.fail("a share was made"))
    with Client(tmp_path / "mixed.toml") as client, pytest.raises(QueryFailed, match="server_a differs in deployment"):
        client.predict(inputs(1))
    running.servers["server_a"].status()
    for _ in range(50):
        if "client differs in deployment" in caplog.text:
            break
        threading.Event().wait(0.1)
    assert "client differs in deployment" in caplog.text


def test_servers_with_bundles_of_two_models_are_found_out_before_a_share_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import json
    import shutil

    mine, other = make_deployment(tmp_path / "mine"), make_deployment(tmp_path / "other", small_model(seed=2))
    # Server B gets the other model under the same deployment id: only the program's digest and the shares differ.
    ours = json.loads((mine / "server_b" / "bundle.json").read_text())
    theirs = json.loads((other / "server_b" / "bundle.json").read_text())
    theirs["addresses"] = ours["addresses"]
    (other / "server_b" / "bundle.json").write_text(json.dumps(theirs))
    shutil.rmtree(other / "server_b" / "tls")
    shutil.copytree(mine / "server_b" / "tls", other / "server_b" / "tls")
    shutil.rmtree(mine / "server_b")
    shutil.copytree(other / "server_b", mine / "server_b")
    made = Deployment(mine, OPTIONS)
    monkeypatch.setattr(pqi.session.sharing, "encode_input", lambda *_: pytest.fail("a share was made"))
    try:
        made.start_server("server_b")
        made.start_server("server_a")
        with made.client() as client, pytest.raises(QueryFailed, match="server_b differs in deployment"):
            client.predict(inputs(1))
    finally:
        made.close()


def test_a_failed_query_carries_what_the_servers_report(tmp_path: Path) -> None:
    with deployment(tmp_path, options=OPTIONS, dealer=False) as made, made.client() as client:
        with pytest.raises(QueryFailed) as caught:
            client.predict(inputs(1))
        assert all(isinstance(cause, PeerReported) for cause in caught.value.causes)
        assert {cause.peer for cause in caught.value.causes if isinstance(cause, PeerReported)} <= {
            "server_a",
            "server_b",
        }


def test_a_client_with_a_foreign_certificate_hears_that_it_is_refused(running: Deployment, tmp_path: Path) -> None:
    other = make_deployment(tmp_path)
    config = (running.directory / "client" / "client.toml").read_text()
    config = config.replace('bundle = "."', f'bundle = "{running.directory / "client"}"')
    config = config.replace('ca = "tls', f'ca = "{running.directory}/client/tls').replace(
        '"tls/', f'"{other}/client/tls/'
    )
    (tmp_path / "foreign.toml").write_text(config)
    with Client(tmp_path / "foreign.toml") as client, pytest.raises(QueryFailed, match=r"server_a.*alert"):
        client.predict(inputs(1))


def test_a_server_that_cannot_write_its_journal_refuses_to_use_material(tmp_path: Path) -> None:
    with deployment(tmp_path, options=OPTIONS) as made, made.client() as client:
        client.predict(inputs(1))
        made.servers["server_a"].journal.close()
        with pytest.raises(QueryFailed, match=r"server_a reports: journal .* cannot be used"):
            client.predict(inputs(1))
    assert audit(tmp_path / "server_a" / "journal.sqlite").items == 1


def test_words_from_a_server_are_made_printable() -> None:
    facts = pqi.session.conversation._facts({"kind": "status", "epoch": "\x1b[2J", "level": 3, "odd": ["list"]})
    assert facts == {"kind": "status", "epoch": "?[2J", "level": 3}
