"""A linear network, its model, and benches that were never run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

import pqi
from pqi.measure.bench import Bench
from pqi.measure.plain import Accuracies, Plain
from pqi.measure.private import Asked, Figures, Run, Truth
from pqi.measure.spread import Spread
from pqi.measure.subject import Subject
from protocols.api import SecurityStatement

FEATURES = 6


def linear() -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    net = nn.Linear(FEATURES, 2)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return net.eval()


def rows(n: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (n, FEATURES)).astype(np.float32)


def subject() -> Subject:
    x = rows(20)
    model = pqi.quantize(linear(), rows(100), input_range=(-1.0, 1.0))
    return Subject("linear", model, None, linear(), x, model.predict(x).argmax(1), "twenty rows")


TRUTH = Truth(1.0, 0.0, 0.0, 1.0, 0.9, True, None)
SHARED = Figures(
    {
        "whole": Spread(0.01, 0.009, 0.02, 3),
        "offline": Spread(1e-4, 9e-5, 2e-4, 3),
        "server": Spread(3e-3, 2e-3, 4e-3, 3),
    },
    0.0, 0, 272, 40, {"server_a": 0, "server_b": 1430}, {"server_a": 320, "server_b": 320}, 5, 1,
)  # fmt: skip
KEYED = replace(
    SHARED,
    seconds={**SHARED.seconds, "offline": Spread(0.0, 0.0, 0.0, 3), "encrypt": Spread(1e-3, 1e-3, 1e-3, 3),
             "decrypt": Spread(2e-3, 2e-3, 2e-3, 3)},
    keys_seconds=0.1, keys_bytes=7_340_000, offline_bytes={"server_a": 0}, online_bytes={"server_a": 0}, exchanges=0,
)  # fmt: skip


def bench_of(*runs: Run, refused: dict[str, str] | None = None) -> Bench:
    plain = [Plain(b, Spread(1e-5, 1e-5, 2e-5, 3), {"integer": Spread(1e-3, 1e-3, 1e-3, 3)}) for b in (1, 8)]
    found = Accuracies(0.95, {"integer": 0.94})
    return Bench("some <net>", "a note", 20, found, plain, runs, refused or {}, {"pqi": "1"}, {"processor": "one"})


def run_of(protocol: str, figures: Figures = SHARED, truth: Truth = TRUTH, batch: int = 1) -> Run:
    statement = SecurityStatement("semi-honest", {"server": "nothing", "client": "its answer"})
    memory = {"server_a": 260.0, "client": 300.0}
    return Run(protocol, "integer", Asked(batch, 3), figures, truth, tuple(memory), memory, statement, {"key": "big"})
