"""Kill any process at random points of a run: does the client hear the cause, does a restart help, is nothing reused?

::

    python benchmarks/kill_anywhere.py --points 50

Each point: a private prediction of many queries starts; after a random part of the time that an undisturbed run takes,
one process (server A, server B, the dealer, or a second client) is killed with SIGKILL. Then: either the answer is
exact, or an error that names the cause came within ten seconds; the killed role is started again and the next answer is
exact. At the end the journals of both servers must show no item used twice and must not contradict each other.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pqi.graph.graph import IntegerGraph, Node
from pqi.graph.model import IntegerModel
from pqi.graph.ops import Dense, Input, Requantize
from pqi.graph.ranges import prove
from pqi.quant.quantizer import Quantizer
from pqi.session.errors import QueryFailed
from pqi.session.journal import audit, compare
from pqi.session.local import LocalService, local

LIMIT_SECONDS = 10.0
VICTIMS = ("server_a", "server_b", "dealer", "client")
OPTIONS = {"max_batch": 4, "pool_items": 8}
FEATURES = 64

SECOND_CLIENT = """
import sys
import numpy as np
from pqi.session.client import Client
with Client(sys.argv[1]) as client:
    print("ready", flush=True)
    while True:
        client.predict(np.zeros((4, int(sys.argv[2]))))
"""


@dataclass(frozen=True)
class Outcome:
    """One point: who was killed after how many seconds, what the client saw, and how long after the kill."""

    victim: str
    after_seconds: float
    error: str
    error_seconds: float
    named: bool
    exact: bool
    exact_after_restart: bool

    @property
    def good(self) -> bool:
        """An exact answer or a named cause in time, and exact answers after the restart."""
        served = self.exact or (bool(self.error) and self.named and self.error_seconds <= LIMIT_SECONDS)
        return served and self.exact_after_restart


def model() -> IntegerModel:
    """A dense network with a ReLU, 64 -> 48 -> 10; the kill is the point here, not the network."""
    generator = torch.Generator().manual_seed(3)
    first = torch.randint(-16, 16, (48, FEATURES), generator=generator)
    second = torch.randint(-16, 16, (10, 48), generator=generator)
    graph = IntegerGraph(
        (
            Node("x", Input((FEATURES,), -128, 127)),
            Node("dense1", Dense(first, torch.zeros(48, dtype=torch.int64)), ("x",)),
            Node("relu", Requantize(8, 4), ("dense1",)),
            Node("dense2", Dense(second, torch.zeros(10, dtype=torch.int64)), ("relu",)),
        ),
        "dense2",
    )
    bits = prove(graph).bits
    rings = {consumer: bits[value] for consumer, value in graph.readers().items()}
    return IntegerModel(graph, rings, Quantizer(10.0, 0.5, 256), output_scale=0.01)


class Campaign:
    """Kills against one local deployment in ``directory``, which keeps logs and journals."""

    def __init__(self, directory: Path, samples: int = 40, seed: int = 0) -> None:
        self._model, self._directory, self._rng = model(), directory, random.Random(seed)
        self._x = np.random.default_rng(seed).uniform(-12, 12, (samples, FEATURES))
        self._truth = self._model.integers(self._model.encode(self._x))

    def run(self, points: int) -> list[Outcome]:
        """Kill ``points`` times; every victim has its turn. Raises MaterialReused if the journals show a reuse."""
        outcomes = []
        with local(self._model, directory=self._directory, server_options=OPTIONS) as service:
            self._exact(service)
            started = time.monotonic()
            self._exact(service)
            usual = time.monotonic() - started
            for point in range(points):
                victim = VICTIMS[point % len(VICTIMS)]
                outcomes.append(self._kill(service, victim, self._rng.uniform(0, usual)))
        a, b = (audit(self._directory / role / "journal.sqlite") for role in ("server_a", "server_b"))
        compare(a, b)
        return outcomes

    def _kill(self, service: LocalService, victim: str, after: float) -> Outcome:
        service.client.close()  # a fresh session: connecting is a part of the run that can be hit, too
        other = self._second_client() if victim == "client" else None
        process = other or service.processes[victim]
        killed: list[float] = []

        def strike() -> None:
            process.kill()
            killed.append(time.monotonic())

        timer = threading.Timer(after, strike)
        timer.start()
        error, exact = "", False
        try:
            exact = self._exact(service)
        except QueryFailed as failure:
            error = str(failure)
        ended = time.monotonic()
        timer.join()
        process.wait()
        if other is None:
            service.restart(victim)
        elif other.stdout is not None:
            other.stdout.close()
        named = victim in error or (victim == "dealer" and "epoch" in error)
        return Outcome(victim, after, error, ended - killed[0], named, exact, self._exact(service))

    def _second_client(self) -> subprocess.Popen[bytes]:
        config = self._directory / "client" / "client.toml"
        command = [sys.executable, "-c", SECOND_CLIENT, str(config), str(FEATURES)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        if process.stdout is not None:
            process.stdout.readline()
        return process

    def _exact(self, service: LocalService) -> bool:
        answer: Any = service.predict(self._x)
        return bool(torch.equal(answer.integers, self._truth))


def main() -> int:
    """Run a campaign and print what came of it; exit status 1 if a point was not good."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pqi-kill-") as directory:
        outcomes = Campaign(Path(directory) / "deployment", seed=options.seed).run(options.points)
    for number, outcome in enumerate(outcomes):
        seen = "exact answer" if outcome.exact else f"{outcome.error_seconds:.2f} s: {outcome.error}"
        print(f"{number:3d} {outcome.victim:9s} after {outcome.after_seconds:.3f} s  {seen}")
    good = sum(outcome.good for outcome in outcomes)
    slowest = max((outcome.error_seconds for outcome in outcomes if outcome.error), default=0.0)
    print(f"{good} of {len(outcomes)} points good; slowest error {slowest:.2f} s after the kill; no item used twice")
    if options.json is not None:
        options.json.write_text(
            json.dumps([asdict(outcome) | {"good": outcome.good} for outcome in outcomes], indent=1)
        )
    return 0 if good == len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
