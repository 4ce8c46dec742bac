"""One server under clients' keys: exact answers, declared bytes, keys once a connection, clients in turn."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import keyedkit
import numpy as np
import pytest
import torch
from keyedkit import Deployment, affine_model, deep_model, deployment, inputs, options, same

import pqi
from pqi.graph.errors import InputError, SaturationWarning
from pqi.session.bundle import load_server
from pqi.session.client import Client
from pqi.session.errors import QueryFailed
from pqi.session.keyed import words
from pqi.session.keyed.server import KeyedServer


@pytest.fixture(scope="module", autouse=True)
def protocols_of_the_kit() -> Iterator[None]:
    with keyedkit.registered():
        yield


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployment(tmp_path_factory.mktemp("running"), bounds=options(workers=2, max_batch=16, clients=3)) as made:
        yield made


def test_private_answers_equal_the_integer_reference_bit_for_bit(running: Deployment) -> None:
    with running.client() as client:
        answer = client.predict(inputs(11))
    assert same(answer, affine_model(), inputs(11))
    assert (answer.error_bound, answer.integers.dtype) == (0.0, torch.int64)


def test_what_crossed_the_wire_is_what_the_plan_declares(running: Deployment) -> None:
    with running.client() as client:
        ledger = client.predict(inputs(11)).ledger
        cost = client.program.plan.cost(11)
    party = ledger.parties["server_a"]
    assert (party.client_received, party.client_sent) == (cost.question, cost.answer)
    assert ledger.own is not None
    assert (ledger.own.key_bytes, ledger.own.noise_left) == (cost.keys, 20.0)
    steps = [(step["received"], step["sent"]) for step in party.steps.values()]
    assert steps == list(zip(cost.questions, cost.answers, strict=True))
    told = ledger.to_json()
    assert told["client"]["key_bytes"] == cost.keys
    assert (told["exchanges"], told["online_bytes"], told["offline_bytes"]) == (0, {"server_a": 0}, {"server_a": 0})


def test_a_batch_over_the_limit_goes_in_parts_and_tells_its_progress(running: Deployment) -> None:
    heard: list[tuple[int, int]] = []
    with running.client() as client:
        answer = client.predict(inputs(40), progress=lambda done, of: heard.append((done, of)))
        assert client.status()["server_a"]["max_batch"] == 16
    assert heard == [(16, 40), (32, 40), (40, 40)]
    assert same(answer, affine_model(), inputs(40))
    assert (answer.ledger.queries, answer.ledger.samples) == (3, 40)
    assert answer.ledger.own is not None and answer.ledger.own.key_bytes == 100


def test_keys_are_made_once_and_sent_once_a_connection(running: Deployment) -> None:
    with running.client() as client:
        first = client.predict(inputs(1)).ledger.own
        again = client.predict(inputs(1)).ledger.own
        keys = client._talk._evaluation_keys
        client.close()
        after = client.predict(inputs(1)).ledger.own
        assert client._talk._evaluation_keys == keys
    assert [own.key_bytes for own in (first, again, after) if own is not None] == [100, 0, 100]


def test_of_more_clients_than_places_the_longest_idle_sends_its_keys_again(running: Deployment) -> None:
    clients = [running.client() for _ in range(4)]  # there are three places
    try:
        for _ in range(2):
            for client in clients:
                answer = client.predict(inputs(3))
                assert same(answer, affine_model(), inputs(3))
                assert answer.ledger.own is not None and answer.ledger.own.key_bytes == 100
        assert clients[-1].predict(inputs(3)).ledger.own.key_bytes == 0
        assert running.server.status()["clients_with_keys"] == 3
    finally:
        for client in clients:
            client.close()


def test_keys_are_forgotten_when_their_client_leaves(running: Deployment) -> None:
    with running.client() as client:
        client.predict(inputs(1))
        assert running.server.workers.clients == 1
    deadline = time.monotonic() + 10
    while running.server.workers.clients and time.monotonic() < deadline:
        time.sleep(0.01)
    assert running.server.workers.clients == 0


def test_several_clients_at_once_get_their_own_answers(running: Deployment) -> None:
    model, wrong = affine_model(), []

    def ask(seed: int) -> None:
        with running.client() as client:
            for turn in range(4):
                x = inputs(1 + (seed + turn) % 9, seed=100 * seed + turn)
                if not same(client.predict(x), model, x):
                    wrong.append((seed, turn))

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong


def test_threads_may_share_a_client(running: Deployment) -> None:
    model, right = affine_model(), []
    with running.client() as client:

        def ask(seed: int) -> None:
            right.append(same(client.predict(inputs(5, seed)), model, inputs(5, seed)))

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert right == [True] * 4


def test_an_empty_batch_is_answered_without_any_server(tmp_path: Path) -> None:
    keyedkit.make_deployment(tmp_path)
    with Client(tmp_path / "client" / "client.toml") as client:
        answer = client.predict(np.zeros((0, 6)))
    assert answer.values.shape == answer.integers.shape == (0, 3)
    assert answer.ledger.own is not None and answer.ledger.own.key_bytes == 0


def test_bad_input_is_refused_before_any_connection_and_any_key(tmp_path: Path) -> None:
    keyedkit.make_deployment(tmp_path)  # nobody runs: an attempt to connect would raise QueryFailed
    with Client(tmp_path / "client" / "client.toml") as client:
        for x in (np.zeros(6), np.zeros((1, 5)), np.full((1, 6), np.nan), np.array([["a"] * 6])):
            with pytest.raises(InputError):
                client.predict(x)
        assert client._talk._holder is None
        with pytest.raises(QueryFailed, match="cannot connect to server_a"):
            client.predict(np.zeros((1, 6)))


def test_values_out_of_range_saturate_with_a_warning(running: Deployment) -> None:
    with running.client() as client, pytest.warns(SaturationWarning):
        assert same(client.predict(np.full((1, 6), 99.0)), affine_model(), np.full((1, 6), 99.0))


def test_answers_beyond_63_bits_are_python_integers(tmp_path: Path) -> None:
    model = deep_model()
    assert model.bits > 64
    with deployment(tmp_path, model) as made, made.client() as client:
        answer = client.predict(inputs(7))
    assert answer.integers.dtype == object
    assert same(answer, model, inputs(7))


def test_an_approximate_protocol_gives_values_and_a_bound_and_no_integers(tmp_path: Path) -> None:
    model = affine_model()
    with deployment(tmp_path, protocol="rough") as made, made.client() as client:
        answer = client.predict(inputs(40))
        nothing = client.predict(inputs(0))
        assert client.program.exact is False
    assert answer.integers is nothing.integers is None
    assert answer.error_bound == 0.5 * model.output_scale
    assert nothing.values.shape == (0, 3)
    assert np.abs(answer.values - model.predict(inputs(40))).max() <= answer.error_bound
    assert answer.ledger.own is not None and answer.ledger.own.noise_left == 7.0


def test_keys_of_many_frames_arrive_whole(tmp_path: Path) -> None:
    size = 2 * words.KEY_CHUNK + 5
    with deployment(tmp_path, key_bytes=size) as made, made.client() as client:
        answer = client.predict(inputs(2))
    assert answer.ledger.own is not None and answer.ledger.own.key_bytes == size
    assert same(answer, affine_model(), inputs(2))


def test_a_server_that_comes_back_is_given_the_same_keys_again(tmp_path: Path) -> None:
    model, bounds = affine_model(), options()
    keyedkit.make_deployment(tmp_path)
    with Client(tmp_path / "client" / "client.toml") as client:
        with KeyedServer(load_server(tmp_path / "server_a"), options=bounds):
            client.predict(inputs(1))
            keys = client._talk._evaluation_keys
        with pytest.raises(QueryFailed, match="server_a"):
            client.predict(inputs(1))
        with KeyedServer(load_server(tmp_path / "server_a"), options=bounds):
            assert same(client.predict(inputs(1)), model, inputs(1))
        assert client._talk._evaluation_keys == keys


def test_a_long_computation_gives_signs_of_life_and_outlasts_the_client_s_patience(tmp_path: Path) -> None:
    with deployment(tmp_path, delay=0.8) as made:
        config = made.directory / "client" / "client.toml"
        config.write_text(config.read_text().replace("timeout = 8.0", "timeout = 0.7"))
        with made.client() as client:
            assert same(client.predict(inputs(8)), affine_model(), inputs(8))


def test_one_client_s_many_parts_do_not_keep_another_waiting_for_all_of_them(tmp_path: Path) -> None:
    with deployment(tmp_path, delay=0.25, group=1) as made, made.client() as busy, made.client() as quick:
        busy.predict(inputs(1))
        quick.predict(inputs(1))
        ends: dict[str, float] = {}

        def ask(name: str, client: Client, n: int) -> None:
            client.predict(inputs(n))
            ends[name] = time.monotonic()

        threads = [threading.Thread(target=ask, args=("busy", busy, 12))]
        threads[0].start()
        time.sleep(0.5)
        threads.append(threading.Thread(target=ask, args=("quick", quick, 1)))
        threads[1].start()
        for thread in threads:
            thread.join(30)
        assert ends["quick"] < ends["busy"]


def test_workers_end_with_their_server(tmp_path: Path) -> None:
    with deployment(tmp_path, bounds=options(workers=2)) as made:
        pids = made.server.workers.pids
        assert len(set(pids) | {os.getpid()}) == 3
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_the_public_names_are_those_of_every_protocol(running: Deployment) -> None:
    with pqi.Client(running.directory / "client" / "client.toml") as client:
        assert isinstance(client.predict(inputs(1)), pqi.Answer)
