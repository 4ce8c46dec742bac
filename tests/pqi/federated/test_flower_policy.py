"""What a Flower client agrees to, whatever the server asks of it."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

pytest.importorskip("flwr", reason="Flower needs Python 3.11 and the extra 'federated'")

from flowerkit import MemoryGrid, array, message_to, moving_app, start_arrays, wait_for_nobody
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp.strategy import FedAvg

from pqi.federated import DistributedDiscreteGaussian, Encoding, PrivacyError, Private, helper_app, private_updates
from pqi.federated.flower.plan import propose, read_plan
from pqi.federated.flower.policy import PlanRefused, Policy
from pqi.federated.flower.wire import Question, add_question
from protocols.errors import BadParameters, PeerMisbehaved
from protocols.identity import new_identity

NOISE = DistributedDiscreteGaussian(noise_multiplier=1.0)


def one_round(strategy: Private, **policy: object) -> tuple[str, MemoryGrid]:
    """What the record of a round of four clients says of the first, and the grid."""
    grid = MemoryGrid(moving_app(**policy), 4)
    wait_for_nobody(strategy).start(grid, start_arrays(), num_rounds=1, timeout=0.0)
    return strategy.rounds[0].lost.get(101, ""), grid


def fedavg() -> FedAvg:
    return FedAvg(fraction_evaluate=0.0)


@pytest.mark.parametrize(
    ("strategy", "policy", "reason"),
    [
        ({"threshold": 3}, {"min_clients": 4}, "threshold is 3: a sum of so few could be told.*min_clients = 4"),
        ({"aggregator": "clear"}, {}, "aggregator is 'clear'; this client allows pairwise, shares, paillier, bfv"),
        (
            {"aggregator": "pairwise"},
            {"aggregators": ("shares",)},
            "aggregator is 'pairwise'; this client allows",
        ),
        ({"metrics": {"loss": 1.0}}, {}, "metric 'loss' is asked for; this client gives none"),
        ({"metrics": {"secret": 1.0}}, {"metrics": ("loss",)}, r"metric 'secret' is asked for.*\['loss'\]"),
        ({}, {"require_noise": NOISE}, "mechanism is none: this client adds noise"),
        (
            {"mechanism": DistributedDiscreteGaussian(0.5), "clip": 1.0, "modulus_bits": 20},
            {"require_noise": NOISE},
            "noise_multiplier is 0.5; this client wants at least 1.0",
        ),
        (
            {"mechanism": NOISE, "clip": 1.0, "modulus_bits": 20},
            {"require_noise": DistributedDiscreteGaussian(1.0, colluding=1)},
            "colluding is 0; this client wants at least 1",
        ),
        ({}, {"max_rounds": 0}, "taken part in max_rounds = 0 rounds and gives no more"),
    ],
)
def test_a_plan_beyond_the_clients_policy_is_refused_in_words(
    strategy: dict[str, object], policy: dict[str, object], reason: str
) -> None:
    private = Private(fedavg(), **strategy)
    _, grid = one_round(private, **policy)
    (record,) = private.rounds
    assert record.included == 0 and record.failure is not None and len(grid.errors) == 4
    assert re.search(reason, grid.errors[0])
    assert all(re.search(reason, why) for why in record.lost.values())


@pytest.mark.parametrize("min_clients", [2, 3])
def test_a_sum_of_two_is_told_only_to_those_who_allow_it(min_clients: int) -> None:
    private = wait_for_nobody(Private(fedavg(), aggregator="shares", threshold=2))
    grid = MemoryGrid(moving_app(min_clients=min_clients, simulated_helpers={"aggregator-1": 0}), 5)
    private.start(grid, start_arrays(), num_rounds=1, timeout=0.0)
    assert private.rounds[0].included == (4 if min_clients == 2 else 0)
    assert ["a sum of so few" in error for error in grid.errors] == [True] * (min_clients - 2)  # by the helper


def test_enough_noise_is_taken_part_in_and_counted() -> None:
    private = Private(fedavg(), mechanism=NOISE, clip=1.0, modulus_bits=20)
    lost, _ = one_round(private, require_noise=DistributedDiscreteGaussian(0.9))
    (record,) = private.rounds
    assert lost == "" and record.included == 4 and record.failure is None
    assert record.epsilon is not None and 1 < record.epsilon < 20 and record.delta == 1e-5
    assert record.privacy is not None and record.privacy["rounds"] == 1
    assert record.total_weight is None and record.clipped is None  # nothing about single clients but noise is told
    assert "epsilon" in str(record)


def test_epsilon_of_more_rounds_is_more_and_is_told_in_the_metrics() -> None:
    private = Private(fedavg(), mechanism=NOISE, clip=1.0, modulus_bits=20)
    result = wait_for_nobody(private).start(MemoryGrid(moving_app(), 4), start_arrays(), num_rounds=2, timeout=0.0)
    first, second = (result.train_metrics_clientapp[i]["epsilon"] for i in (1, 2))
    assert first < second == private.rounds[1].epsilon
    assert private.encoding.clip == 1.0  # with noise, nothing is told by which it could follow


def test_a_mechanism_needs_a_clip_and_allows_no_metrics() -> None:
    with pytest.raises(BadParameters, match="mechanism is given without clip"):
        Private(fedavg(), mechanism=NOISE)
    private = Private(fedavg(), mechanism=NOISE, clip=1.0, modulus_bits=20, metrics={"loss": 1.0})
    with pytest.raises(ValueError, match="metrics are summed without noise"):
        one_round(private)


def test_a_node_gives_no_more_vectors_than_it_said() -> None:
    private = wait_for_nobody(Private(fedavg()))
    grid = MemoryGrid(moving_app(max_rounds=2), 4)
    private.start(grid, start_arrays(), num_rounds=3, timeout=0.0)
    assert [record.included for record in private.rounds] == [4, 4, 0]


def test_training_without_a_secure_sum_is_refused() -> None:
    grid = MemoryGrid(moving_app(), 3)
    FedAvg(fraction_evaluate=0.0).start(grid, start_arrays(), num_rounds=1, timeout=0.0)
    assert len(grid.errors) == 3
    assert all("training without a secure sum is refused" in error for error in grid.errors)


def test_a_helper_signs_with_the_key_that_clients_know(tmp_path: object) -> None:
    secret, public = new_identity()
    path = str(tmp_path) + "/secret"
    with open(path, "wb") as file:
        file.write(secret)
    keys = {"aggregator-1": public}

    def run(pinned: dict[str, str] | None, known: dict[str, str]) -> Private:
        options = {} if pinned is None else {"helper_keys": pinned}
        private = wait_for_nobody(Private(fedavg(), aggregator="shares", options=options))
        grid = MemoryGrid(moving_app(helper_keys=known), 5)
        grid.nodes[105].config |= {"pqi-role": "aggregator-1", "pqi-secret-file": path}
        private.start(grid, start_arrays(), num_rounds=1, timeout=0.0)
        return private

    assert run(keys, keys).rounds[0].included == 4
    assert "not pinned by the key" in run(None, keys).rounds[0].lost[105]
    other = {"aggregator-1": new_identity()[1]}
    assert "is not that of the key pinned" in run(other, {}).rounds[0].lost[105]


def test_a_helper_node_has_no_data_and_a_helper_app_no_function() -> None:
    grid = MemoryGrid(helper_app(), 2)
    grid.nodes[101].config["pqi-role"] = "key-holder"
    for node in grid.nodes:
        grid.ask(node, message_to(node, RecordDict({"arrays": start_arrays()})))
    assert "this node is the helper 'key-holder'; it has no data" in grid.errors[0]
    assert "training without a secure sum is refused" in grid.errors[1]


def test_a_simulated_helper_is_the_node_of_that_partition() -> None:
    private = wait_for_nobody(Private(fedavg(), aggregator="shares"))
    grid = MemoryGrid(moving_app(simulated_helpers={"aggregator-1": 0}), 5)
    private.start(grid, start_arrays(), num_rounds=1, timeout=0.0)
    assert private.rounds[0].included == 4 and 101 not in grid.trained
    with pytest.raises(BadParameters, match="a node plays one helper"):
        private_updates(simulated_helpers={"aggregator-1": 0, "aggregator-2": 0})


@pytest.mark.parametrize(
    ("named", "reason"),
    [
        ({"min_clients": 1}, "min_clients is 1: an integer from 2 on"),
        ({"min_clients": True}, "min_clients is True"),
        ({"aggregators": ("clear",)}, "hides nothing, and is allowed by the name 'InsecureClear'"),
        ({"aggregators": "pairwise"}, "a tuple of"),
        ({"aggregators": ()}, "a tuple of"),
        ({"max_rounds": -1}, "max_rounds is -1"),
    ],
)
def test_a_policy_that_cannot_be_meant_is_refused(named: dict[str, object], reason: str) -> None:
    with pytest.raises(BadParameters, match=reason):
        Policy(**named)
    with pytest.raises(PrivacyError, match="require_noise is"):
        Policy(require_noise=1.0)


def plan_text(**changes: object) -> str:
    plan = propose("pairwise", Encoding(), 15, 4, 3, "num-examples", {}, {}, "0" * 64)
    return json.dumps(json.loads(plan.text) | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"clients": 1},
        {"clients": 4.0},
        {"clients": True},
        {"threshold": 1},
        {"threshold": 5},
        {"parameters": 0},
        {"parameters": 1 << 40},
        {"aggregator": "plain"},
        {"aggregator": 7},
        {"encoding": {}},
        {"encoding": None},
        {"seed": "00"},
        {"seed": "zz" * 16},
        {"options": []},
        {"options": {"neighbours": -2}},
        {"metrics": {"loss": 0}},
        {"metrics": {"loss": True}},
        {"metrics": [1]},
        {"extra": 1},
    ],
)
def test_a_plan_that_cannot_be_is_refused_as_the_servers_fault(changes: dict[str, object]) -> None:
    assert read_plan(plan_text()).sum.clients == 4
    with pytest.raises(PeerMisbehaved, match="the server's plan cannot be"):
        read_plan(plan_text(**changes))


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "[" * 100_000, '{"clients": NaN}', "x" * (1 << 21)])
def test_a_text_that_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(PeerMisbehaved):
        read_plan(text)


def test_every_number_of_a_plan_follows_from_its_text_and_the_session_is_its_hash() -> None:
    text = plan_text()
    one, other = read_plan(text), read_plan(plan_text())
    assert one == read_plan(text) and one.sum.session != other.sum.session
    assert one.sum.length == one.codec.vector_length and one.sum.bits == 16
    tampered = read_plan(text.replace('"threshold": 3', '"threshold": 4'))
    assert tampered.sum.threshold == 4 and tampered.sum.session != one.sum.session


def test_a_session_that_is_not_the_plans_is_refused() -> None:
    grid, text = MemoryGrid(moving_app(), 1), plan_text()
    content = RecordDict()
    add_question(content, Question(bytes(16), "keys", 0, b"", plan=text))
    grid.ask(101, message_to(101, content))
    assert "the session is not the plan's" in grid.errors[0]


@pytest.mark.parametrize("what", ["arrays", "config"])
def test_a_client_that_is_shown_another_model_or_configuration_does_not_train(what: str) -> None:
    grid = MemoryGrid(moving_app(), 4)
    other = {
        "arrays": ArrayRecord({**start_arrays(), "bias": array(np.ones(5, np.float32))}),
        "config": ConfigRecord({"server-round": 1, "learning-rate": 0.0}),
    }

    def swap(node: int, stage: str, message: Message) -> Message:
        if stage == "vectors" and node == 103:
            message.content[what] = other[what]
        return message

    grid.going = swap
    private = wait_for_nobody(Private(fedavg()))
    private.start(grid, start_arrays(), num_rounds=1, timeout=0.0)
    assert private.rounds[0].included == 3
    assert "all clients get the same" in private.rounds[0].lost[103]


def test_refused_plans_are_errors_of_the_protocol() -> None:
    with pytest.raises(PlanRefused, match="threshold is 3"):
        Policy(min_clients=4).check(read_plan(plan_text()))
