"""The server: an ordinary Flower app, made private by one line."""

from __future__ import annotations

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

import pqi.federated
from digits_app.task import network, test_accuracy

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    clients = int(context.run_config["clients"])
    strategy = FedAvg(min_available_nodes=clients, min_train_nodes=clients, fraction_evaluate=0.0)
    strategy = pqi.federated.Private(strategy, aggregator=str(context.run_config["aggregator"]))  # <- the line
    rounds = int(context.run_config["num-server-rounds"])
    start = ArrayRecord(network().state_dict())
    strategy.start(grid=grid, initial_arrays=start, num_rounds=rounds, evaluate_fn=evaluate)
    for record in strategy.rounds:
        print(record)


def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    net = network()
    net.load_state_dict(arrays.to_torch_state_dict())
    accuracy = test_accuracy(net)
    print(f"round {server_round}: accuracy {accuracy:.4f}")
    return MetricRecord({"accuracy": accuracy})
