"""One round in Flower's simulation engine, in a process of its own: nodes are Ray's actors there."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="Flower needs Python 3.11 and the extra 'federated'")
pytest.importorskip("ray", reason="the simulation engine needs ray")

ROOT = Path(__file__).resolve().parents[3]

PROGRAM = """
import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from pqi.federated import Private, private_updates

app = ClientApp(mods=[private_updates(simulated_helpers={"aggregator-1": 3})])

@app.train()
def train(message, context):
    step = 1 + int(context.node_config["partition-id"])
    arrays = {n: Array(a.numpy() + np.float32(0.1 * step)) for n, a in message.content["arrays"].items()}
    content = {"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 100})}
    return Message(RecordDict(content), reply_to=message)

server = ServerApp()

@server.main()
def main(grid, context):
    inner = FedAvg(fraction_evaluate=0.0, min_train_nodes=3, min_available_nodes=3)
    strategy = Private(inner, aggregator="shares", threshold=3)
    arrays = ArrayRecord({"w": Array(np.zeros(50, np.float32))})
    result = strategy.start(grid, arrays, num_rounds=1, timeout=120)
    off = float(np.abs(result.arrays["w"].numpy() - 0.2).max())
    print("ROUND", strategy.rounds[0].included, strategy.rounds[0].failure, off < 4 * strategy.rounds[0].resolution)

one = {"client_resources": {"num_cpus": 1, "num_gpus": 0}, "init_args": {"num_cpus": 1, "include_dashboard": False}}
run_simulation(server, app, num_supernodes=4, backend_config=one)
"""


@pytest.mark.slow
def test_the_simulation_engine_runs_a_secure_round_with_a_helper_among_its_nodes() -> None:
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(prefix="r") as folder:  # short: Ray puts Unix sockets in it
        place = {"PYTHONPATH": str(ROOT), "FLWR_HOME": folder, "TMPDIR": folder}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
            env={**os.environ, **quiet, **place},
        )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "ROUND 3 None True" in done.stdout, done.stdout[-2000:] + done.stderr[-4000:]
