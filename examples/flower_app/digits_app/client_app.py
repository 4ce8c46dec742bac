"""A client: an ordinary Flower app, made private by one line."""

from __future__ import annotations

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

import pqi.federated
from digits_app.task import digits, fit, network

app = ClientApp(mods=[pqi.federated.private_updates()])  # <- the line


@app.train()
def train(message: Message, context: Context) -> Message:
    net = network()
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    clients = context.node_config.get("num-partitions", context.run_config["clients"])  # a simulation says how many
    x, y = digits(int(context.node_config["partition-id"]), int(clients))
    loss = fit(net, x, y)
    metrics = MetricRecord({"num-examples": len(x), "train-loss": loss})
    return Message(RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics}), reply_to=message)
