"""A small real model, a deployment inside one process (real TLS over loopback), and its parts one by one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pqi.graph.graph import IntegerGraph, Node
from pqi.graph.model import IntegerModel
from pqi.graph.ops import Dense, Input, Requantize
from pqi.graph.ranges import prove
from pqi.net.ports import free_ports
from pqi.quant.quantizer import Quantizer
from pqi.session.bundle import load_dealer, load_server
from pqi.session.client import Client
from pqi.session.dealer import DealerService
from pqi.session.owner import make_keys, split
from pqi.session.server import ComputeServer, ServerOptions
from pqi.session.serving import Patience

FEATURES = 6
QUICK = Patience(step=3.0, pool=1.0, idle=30.0, beat=0.2)


def small_model(seed: int = 1) -> IntegerModel:
    """Two dense layers with a ReLU between them: 6 -> 8 -> 3."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(-20, 20, (8, FEATURES), generator=generator)
    second = torch.randint(-20, 20, (3, 8), generator=generator)
    graph = IntegerGraph(
        (
            Node("x", Input((FEATURES,), -128, 127)),
            Node("dense1", Dense(first, torch.arange(8)), ("x",)),
            Node("relu", Requantize(5, 4), ("dense1",)),
            Node("dense2", Dense(second, torch.arange(3)), ("relu",)),
        ),
        "dense2",
    )
    bits = prove(graph).bits
    rings = {consumer: bits[value] for consumer, value in graph.readers().items()}
    return IntegerModel(graph, rings, Quantizer(10.0, 0.5, 256), output_scale=0.05)


def inputs(n: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).uniform(-12, 12, (n, FEATURES))


def make_deployment(
    directory: Path,
    model: IntegerModel | None = None,
    protocol: str = "additive2",
    weights: str = "shared",
    answers: int | None = None,
) -> Path:
    a, b = free_ports(2)
    where = {"server_a": f"127.0.0.1:{a}", "server_b": f"127.0.0.1:{b}"}
    made = model or small_model()
    split(made, directory, protocol=protocol, addresses=where, weights=weights, answers_per_client=answers)
    return make_keys(directory)


@dataclass
class Deployment:
    """Servers and dealer as threads of this process."""

    directory: Path
    options: ServerOptions
    servers: dict[str, ComputeServer] = field(default_factory=dict)
    stop_dealer: threading.Event = field(default_factory=threading.Event)
    dealer: threading.Thread | None = None
    epochs: list[str] = field(default_factory=list)
    _epoch: threading.Condition = field(default_factory=threading.Condition)

    def start_server(self, role: str) -> ComputeServer:
        server = ComputeServer(load_server(self.directory / role), options=self.options)
        server.start()
        self.servers[role] = server
        return server

    def stop_server(self, role: str) -> None:
        self.servers.pop(role).stop()

    def start_dealer(self, service: DealerService | None = None) -> None:
        service = service or DealerService(load_dealer(self.directory / "dealer"), QUICK)
        self.stop_dealer = threading.Event()
        self.dealer = threading.Thread(target=service.run, args=(self.stop_dealer, self._note))
        self.dealer.start()

    def _note(self, epoch: str) -> None:
        with self._epoch:
            self.epochs.append(epoch)
            self._epoch.notify_all()

    def await_epoch(self, count: int) -> str:
        with self._epoch:
            assert self._epoch.wait_for(lambda: len(self.epochs) >= count, 20)
            return self.epochs[-1]

    def end_dealer(self) -> None:
        self.stop_dealer.set()
        if self.dealer is not None:
            self.dealer.join(20)
            assert not self.dealer.is_alive()
            self.dealer = None

    def client(self) -> Client:
        return Client(self.directory / "client" / "client.toml")

    def close(self) -> None:
        self.end_dealer()
        for role in list(self.servers):
            self.stop_server(role)


@contextmanager
def deployment(
    directory: Path,
    protocol: str = "additive2",
    options: ServerOptions | None = None,
    dealer: bool = True,
    answers: int | None = None,
) -> Iterator[Deployment]:
    """Every role but the client is running."""
    where = make_deployment(directory, protocol=protocol, answers=answers)
    made = Deployment(where, options or ServerOptions(patience=QUICK))
    with ExitStack() as stack:
        stack.callback(made.close)
        for role in ("server_b", "server_a"):
            if (directory / role).is_dir():
                made.start_server(role)
        if dealer and (directory / "dealer").is_dir():
            made.start_dealer()
            made.await_epoch(1)
        yield made
