"""Rounds of Flower strategies whose clients' updates nobody sees, over a grid in one thread."""

from __future__ import annotations

from unittest.mock import Mock

import numpy as np
import pytest

pytest.importorskip("flwr", reason="Flower needs Python 3.11 and the extra 'federated'")

from flowerkit import MemoryGrid, array, moving_app, start_arrays, wait_for_nobody
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg, Krum

from pqi.federated import EncodingError, Private
from pqi.federated.flower.nodes import ClientsOnly
from pqi.federated.flower.wire import HEAD
from protocols.errors import BadParameters

HELPED = {"shares": "aggregator-1", "paillier": "key-holder", "bfv": "key-holder"}
HIDING = ("pairwise", *HELPED)


def fedavg(**named: object) -> FedAvg:
    return FedAvg(**{"fraction_evaluate": 0.0, **named})


def federation(aggregator: str, clients: int = 4, **policy: object) -> MemoryGrid:
    """Clients that move every weight by 0.1, 0.2, ... with 100, 200, ... examples; the last node helps, if need be."""
    helper = HELPED.get(aggregator)
    grid = MemoryGrid(moving_app(**policy), clients + (helper is not None))
    if helper is not None:
        grid.nodes[101 + clients].config["pqi-role"] = helper
    return grid


def weighted(values: list[float], weights: list[float]) -> float:
    return float(np.average(values, weights=weights))


@pytest.mark.parametrize("aggregator", [*HIDING, "clear"])
def test_every_aggregator_gives_the_weighted_mean_that_plain_averaging_gives(aggregator: str) -> None:
    grid = federation(aggregator, aggregators=("InsecureClear", *HIDING))
    strategy = wait_for_nobody(Private(fedavg(), aggregator=aggregator))
    result = strategy.start(grid, start_arrays(), num_rounds=2, timeout=0.0)
    mean = 2 * weighted([0.1, 0.2, 0.3, 0.4], [100, 200, 300, 400])
    for name, old in start_arrays().items():
        off = result.arrays[name].numpy() - old.numpy() - mean
        assert np.abs(off).max() < 8 * sum(record.resolution or 1 for record in strategy.rounds)
    assert [record.total_weight for record in strategy.rounds] == [1000, 1000]
    assert [record.included for record in strategy.rounds] == [4, 4]
    assert [record.secure for record in strategy.rounds] == [aggregator != "clear"] * 2
    assert grid.errors == []
    assert all("pqi.run" not in node.state for node in grid.nodes.values())  # nobody keeps a key after the round


@pytest.mark.parametrize("aggregator", ["pairwise", "shares"])
def test_a_helper_is_found_once_and_is_never_sent_a_model(aggregator: str) -> None:
    grid = federation(aggregator)
    wait_for_nobody(Private(fedavg(), aggregator=aggregator)).start(grid, start_arrays(), num_rounds=2, timeout=0.0)
    roll_calls = [node for _, node, stage in grid.seen if stage == ""]
    assert roll_calls == ([101, 102, 103, 104, 105] if aggregator in HELPED else [])
    assert 105 not in grid.trained


def test_a_helper_named_by_its_node_is_not_looked_for() -> None:
    grid = federation("shares")
    strategy = wait_for_nobody(Private(fedavg(), aggregator="shares", helpers={"aggregator-1": 105}))
    strategy.start(grid, start_arrays(), num_rounds=1, timeout=0.0)
    assert strategy.rounds[0].included == 4 and all(stage for _, _, stage in grid.seen)


def test_a_missing_helper_is_asked_for_by_name() -> None:
    strategy = wait_for_nobody(Private(fedavg(), aggregator="shares"))
    with pytest.raises(BadParameters, match=r"no connected node plays the helper 'aggregator-1'.*pqi-role"):
        strategy.start(federation("pairwise"), start_arrays(), num_rounds=1, timeout=0.0)


def test_two_nodes_that_claim_to_be_one_helper_are_refused() -> None:
    grid = federation("shares")
    grid.nodes[103].config["pqi-role"] = "aggregator-1"
    strategy = wait_for_nobody(Private(fedavg(), aggregator="shares"))
    with pytest.raises(BadParameters, match=r"two nodes say that they are the helper 'aggregator-1': 103 and 105"):
        strategy.start(grid, start_arrays(), num_rounds=1, timeout=0.0)


@pytest.mark.parametrize("stage", ["keys", "shares", "vectors", "unmask"])
@pytest.mark.parametrize("way", ["question", "answer"])
def test_a_client_that_is_lost_in_any_stage_is_left_out_or_recovered(stage: str, way: str) -> None:
    grid = federation("pairwise", clients=6)
    fault = lambda node, at, message: None if (node, at) == (102, stage) else message  # noqa: E731
    setattr(grid, "going" if way == "question" else "coming", fault)
    strategy = wait_for_nobody(Private(fedavg(), aggregator="pairwise"))
    result = strategy.start(grid, start_arrays(), num_rounds=1, timeout=0.0)
    (record,) = strategy.rounds
    there = [1, 3, 4, 5, 6] if stage != "unmask" else [1, 2, 3, 4, 5, 6]  # whose vector arrived is in the sum
    assert record.included == len(there) and record.total_weight == 100 * sum(there)
    assert list(record.lost) == [102] and record.lost[102].startswith(f"{stage}: no answer")
    change = float((result.arrays["bias"].numpy()).mean())
    assert abs(change - weighted([0.1 * i for i in there], there)) < 4 * (record.resolution or 0)


@pytest.mark.parametrize("aggregator", HIDING)
def test_below_the_threshold_there_is_no_sum_and_the_model_stays(aggregator: str) -> None:
    grid = federation(aggregator)
    grid.coming = lambda node, stage, message: None if node in (101, 102) and stage == "vectors" else message
    strategy = wait_for_nobody(Private(fedavg(), aggregator=aggregator))
    result = strategy.start(grid, start_arrays(), num_rounds=1, timeout=0.0)
    (record,) = strategy.rounds
    assert record.failure is not None and "BelowThreshold" in record.failure and record.included == 0
    assert record.total_weight is None and record.resolution is None
    assert len(result.arrays) == 0 and result.train_metrics_clientapp == {}
    assert "no sum" in str(record)


@pytest.mark.parametrize("aggregator", ["shares", "bfv"])
def test_a_helper_that_is_gone_ends_the_round_and_not_the_run(aggregator: str) -> None:
    grid = federation(aggregator)
    asked = []

    def gone_at_first(node: int, stage: str, message: Message) -> Message | None:
        asked.append(stage)
        return None if node == 105 and stage and stage != "keys" and asked.count("vectors") == 4 else message

    grid.going = gone_at_first
    strategy = wait_for_nobody(Private(fedavg(), aggregator=aggregator))
    strategy.start(grid, start_arrays(), num_rounds=2, timeout=0.0)
    first, second = strategy.rounds
    assert first.failure is not None and HELPED[aggregator] in first.failure
    assert second.failure is None and second.included == 4


def test_a_fraction_of_the_nodes_takes_part_in_each_round() -> None:
    grid = federation("pairwise", clients=8)
    strategy = wait_for_nobody(Private(fedavg(fraction_train=0.5, min_train_nodes=3), aggregator="pairwise"))
    strategy.start(grid, start_arrays(), num_rounds=3, timeout=0.0)
    assert [(record.invited, record.included) for record in strategy.rounds] == [(4, 4)] * 3
    assert len(grid.trained) == 12


def test_a_client_whose_training_fails_is_left_out_and_its_words_stay_at_home() -> None:
    grid = federation("pairwise")
    grid.nodes[103].config["fails"] = "patient 4711 has no age"
    strategy = wait_for_nobody(Private(fedavg(), aggregator="pairwise"))
    strategy.start(grid, start_arrays(), num_rounds=1, timeout=0.0)
    (record,) = strategy.rounds
    assert record.included == 3 and "train function of this node failed" in record.lost[103]
    assert "4711" not in repr(record) + "".join(grid.errors)


def test_metrics_are_averaged_securely_if_both_sides_name_them_and_withheld_if_not() -> None:
    grid = federation("pairwise", metrics=("loss",))
    strategy = wait_for_nobody(Private(fedavg(), metrics={"loss": 10.0}))
    result = strategy.start(grid, start_arrays(), num_rounds=1, timeout=0.0)
    told = result.train_metrics_clientapp[1]
    assert set(told) == {
        "loss",
        "clients-included",
        "clients-invited",
    }  # "secret" is withheld
    assert abs(float(told["loss"]) - weighted([1, 2, 3, 4], [100, 200, 300, 400])) < 0.02


def test_a_metric_beyond_its_bound_counts_as_the_bound() -> None:
    grid = federation("pairwise", metrics=("loss",))
    result = wait_for_nobody(Private(fedavg(), metrics={"loss": 2.0})).start(grid, start_arrays(), 1, 0.0)
    assert abs(float(result.train_metrics_clientapp[1]["loss"]) - weighted([1, 2, 2, 2], [100, 200, 300, 400])) < 0.01


def test_clients_may_all_count_alike_and_a_weight_is_cut_at_the_most_that_counts() -> None:
    alike = wait_for_nobody(Private(fedavg(), max_weight=1))
    result = alike.start(federation("pairwise"), start_arrays(), num_rounds=1, timeout=0.0)
    assert abs(float(result.arrays["bias"].numpy().mean()) - 0.25) < 0.01
    assert alike.rounds[0].total_weight is None
    cut = wait_for_nobody(Private(fedavg(), max_weight=200))
    cut.start(federation("pairwise"), start_arrays(), num_rounds=1, timeout=0.0)
    assert cut.rounds[0].total_weight == 100 + 200 + 200 + 200


def test_integer_arrays_stay_what_they_are_on_the_server() -> None:
    start = ArrayRecord({**start_arrays(), "batches": array(np.array(7, np.int64))})
    result = wait_for_nobody(Private(fedavg())).start(federation("pairwise"), start, num_rounds=2, timeout=0.0)
    assert result.arrays["batches"].numpy().dtype == np.int64 and int(result.arrays["batches"].numpy()) == 7
    assert list(result.arrays) == ["weight", "bias", "batches"]


def test_a_strategy_with_an_optimizer_of_its_own_moves_by_the_mean_update() -> None:
    plain, private = (FedAdam(fraction_evaluate=0.0, eta=0.1) for _ in range(2))
    arrays = start_arrays()
    plain.current_arrays = {name: old.numpy() for name, old in arrays.items()}
    moved = {name: array(old.numpy() + np.float32(0.3)) for name, old in arrays.items()}
    content = RecordDict({"arrays": ArrayRecord(moved), "metrics": MetricRecord({"num-examples": 1})})
    grid = federation("pairwise")
    expected, _ = plain.aggregate_train(1, [Message(content, dst_node_id=1, message_type="train")])
    result = wait_for_nobody(Private(private)).start(grid, arrays, num_rounds=1, timeout=0.0)
    assert expected is not None
    for name, want in expected.items():
        assert np.abs(result.arrays[name].numpy() - want.numpy()).max() < 0.01


def test_a_strategy_that_compares_clients_cannot_be_wrapped() -> None:
    with pytest.raises(BadParameters, match="Krum cannot be wrapped: it works on single clients' updates"):
        Private(Krum())
    with pytest.raises(BadParameters, match="Private cannot be wrapped"):
        Private(Private(fedavg()))


def test_evaluation_is_flowers_own_and_leaves_helpers_alone() -> None:
    grid = federation("shares")
    strategy = wait_for_nobody(Private(fedavg(fraction_evaluate=1.0), aggregator="shares"))
    result = strategy.start(grid, start_arrays(), num_rounds=1, timeout=0.0)
    evaluated = [node for kind, node, _ in grid.seen if kind == "evaluate"]
    assert sorted(evaluated) == [101, 102, 103, 104]
    assert result.evaluate_metrics_clientapp[1]["accuracy"] == 0.5


def test_the_clip_follows_what_the_sums_tell_about_it() -> None:
    strategy = wait_for_nobody(Private(fedavg(), clip=0.5))
    strategy.start(federation("pairwise"), start_arrays(), num_rounds=1, timeout=0.0)
    assert strategy.rounds[0].shortened == 0.75  # of 15 weights moved by 0.1 the norm is 0.39, all others are longer
    assert strategy.encoding.clip == pytest.approx(1.5)


def test_the_bytes_in_the_record_are_those_that_the_protocol_declares() -> None:
    from protocols import get_sum

    for aggregator in HIDING:
        strategy = wait_for_nobody(Private(fedavg(), aggregator=aggregator))
        strategy.start(federation(aggregator), start_arrays(), num_rounds=1, timeout=0.0)
        (record,) = strategy.rounds
        length = record.codec["modulus_bits"] and strategy.encoding.codec(15, 4, record.threshold).vector_length
        protocol = get_sum(aggregator)
        cost = protocol.cost(protocol.plan(4, length, 16, record.threshold))
        assert (record.payload_up, record.payload_down) == (cost.client_sends, cost.client_receives)
        assert record.message_up > record.payload_up and record.message_down > record.payload_down
        assert len(record.stages) == cost.stages


def test_what_cannot_work_is_refused_before_anybody_is_asked() -> None:
    with pytest.raises(BadParameters, match="encoding is given beside clip"):
        Private(fedavg(), clip=1.0, encoding=Private(fedavg()).encoding)
    with pytest.raises(EncodingError, match="modulus_bits is 64"):
        Private(fedavg(), modulus_bits=64)
    with pytest.raises(BadParameters, match="pairwise"):
        Private(fedavg(), aggregator="pairwisely")
    lonely = wait_for_nobody(Private(fedavg(min_train_nodes=1, min_available_nodes=1, fraction_train=0.01)))
    with pytest.raises(BadParameters, match="1 client is invited; a sum needs at least two"):
        lonely.start(federation("pairwise"), start_arrays(), num_rounds=1, timeout=0.0)


def test_a_strategy_that_shows_clients_different_models_is_refused() -> None:
    class Personal(FedAvg):
        def configure_train(self, *args: object, **named: object) -> list[Message]:
            messages = list(super().configure_train(*args, **named))
            arrays = {name: array(old.numpy() + 1) for name, old in start_arrays().items()}
            other = RecordDict({"arrays": ArrayRecord(arrays), "config": messages[0].content["config"]})
            return [Message(other, messages[0].metadata.dst_node_id, "train"), *messages[1:]]

    with pytest.raises(BadParameters, match="sends different models or configurations"):
        wait_for_nobody(Private(Personal(fraction_evaluate=0.0))).start(federation("pairwise"), start_arrays(), 1, 0.0)


def test_only_the_protocols_records_leave_a_client() -> None:
    grid = federation("pairwise")
    told: list[tuple[set[str], set[str]]] = []

    def listen(node: int, stage: str, message: Message) -> Message:
        told.append((set(message.content), set(message.content[HEAD])))
        return message

    grid.coming = listen
    wait_for_nobody(Private(fedavg())).start(grid, start_arrays(), num_rounds=1, timeout=0.0)
    assert len(told) == 16
    assert all(each == ({HEAD, "pqi.body"}, {"kind", "session", "stage"}) for each in told)


def test_what_the_wrapped_strategy_sees_of_the_grid_is_all_but_the_helpers() -> None:
    grid = Mock()
    grid.get_node_ids.return_value = [5, 7]
    grid.get_nodes.return_value = [Mock(node_id=5), Mock(node_id=7)]
    grid.push_messages.return_value, grid.pull_messages.return_value = iter(["m1"]), iter(["reply"])
    seen = ClientsOnly(grid, [7])
    assert seen.get_node_ids() == [5] and [node.node_id for node in seen.get_nodes()] == [5]
    assert list(seen.push_messages(["question"])) == ["m1"] and list(seen.pull_messages(["m1"])) == ["reply"]
    seen.set_run("run")
    grid.set_run.assert_called_once_with("run")
    assert seen.run is grid.run and seen.create_message(1, ttl=2) is grid.create_message.return_value
    grid.create_message.assert_called_once_with(1, ttl=2)
