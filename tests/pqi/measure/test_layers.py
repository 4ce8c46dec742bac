"""Where time and bytes go: every label of a ledger finds its layer, and nothing is lost on the way."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from measurekit import bench_of, run_of
from torch import nn

import pqi
from pqi.measure.bench import Bench
from pqi.measure.html import page
from pqi.measure.layers import REST, Layer, Offline, layers, measure_offline
from pqi.measure.plain import Plain
from pqi.measure.points import Point
from pqi.measure.rows import LAYER_COLUMNS, layer_cells, layers_line, slowest
from pqi.measure.spread import Spread
from pqi.measure.supply import Reins
from pqi.net.driver import FINISH, Meter, drive
from pqi.program import PartyRunner, encode_input, split_weights
from pqi.session.ledger import Ledger, PartyLedger
from pqi.session.roles import DEALER
from protocols.cost import Cost
from protocols.rounds import PartyId


@pytest.fixture(scope="module")
def program() -> Any:
    return pqi.compile(model())


def model() -> pqi.IntegerModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)
        )
        return pqi.quantize(net, torch.rand(20, 1, 6, 6), 8, 4)


def step(compute: float, network: float = 0.0, sent: float = 0, exchanges: float = 0) -> dict[str, float]:
    counted = {"exchanges": exchanges, "sent": sent, "received": sent}
    return {**counted, "compute_seconds": compute, "network_seconds": network}


def ledger(steps: dict[str, dict[str, float]], online: float = 1.0) -> Ledger:
    party = PartyLedger("server_a", 1, 0.0, 0.0, 0, online, 5, 5, 1, 0, 0, 0, 1, steps)
    return Ledger({"server_a": party, "server_b": replace(party, online_seconds=0.1, steps={})}, 1, 1, 1.0)


def by_name(found: tuple[Layer, ...]) -> dict[str, Layer]:
    return {layer.name: layer for layer in found}


def test_work_waiting_and_bytes_go_to_the_layer_whose_step_they_are_of(program: Any) -> None:
    first, relu = program.steps[0][0], "1"
    steps = {
        first: step(1.0, 0.5, 100, 1),
        "0": step(2.0),
        f"{relu}.digits": step(0.25, 0.125, 7, 1),
        f"{relu}/more.facts": step(0.25, 0.125, 8, 1),
        "3": step(0.0625),
        "finish": step(0.03125),
        "nobody's": step(4.0, 4.0, 1, 1),
    }
    found = by_name(layers(program, 1, [ledger(steps)]))
    assert (found["0"].linear, found["0"].other, found["0"].network) == (3.0, 0.0, 0.5)
    assert (found["0"].sent, found["0"].exchanges) == (100, 1)
    assert (found[relu].other, found[relu].network, found[relu].sent) == (0.5, 0.25, 15)
    assert (found[REST].other, found[REST].network, found[REST].sent) == (4.0, 4.0, 1)
    assert sum(layer.linear + layer.other for layer in found.values()) == 7.59375
    assert found["6"].other == 0.03125  # what is left after the last step belongs to it
    assert found["2"].linear == 0.0625  # flattening is done with what the pooling has left


def test_seconds_are_medians_over_the_batches_of_the_slower_server(program: Any) -> None:
    found = by_name(layers(program, 1, [ledger({"0": step(seconds)}) for seconds in (1.0, 9.0, 2.0)]))
    assert found["0"].linear == 2.0 and REST not in found


def test_declared_costs_of_the_layers_are_those_of_the_program(program: Any) -> None:
    found = layers(program, 3, [ledger({})])
    assert sum(layer.declared.online_bits for layer in found) == program.cost(3).online_bits
    assert sum(layer.declared.dealt_bits for layer in found) == program.cost(3).dealt_bits
    assert not found[0].as_declared  # nothing was sent, and something was declared


def test_every_layer_is_dealt_and_prepared_alone(program: Any) -> None:
    whole, parts = measure_offline(model(), program, 2)
    assert set(parts) == set(program.cost_by_layer(1))
    assert whole.deal > 0 and whole.prepare > 0
    assert all(part.deal > 0 and part.prepare > 0 for part in parts.values())


def test_work_is_booked_on_the_instruction_that_did_it() -> None:
    compiled = pqi.compile(model(), "clear")
    meter = Meter()
    runner = PartyRunner(compiled, PartyId.P0, split_weights(model(), compiled)[PartyId.P0])
    message = encode_input(compiled, torch.zeros((1, 1, 6, 6), dtype=torch.int64))[PartyId.P0]
    drive(runner.run(runner.prepare(b"", 0, 1, b""), message, meter.lap), {}, meter, 5.0)
    assert set(meter.steps) == {*(i.name for i in compiled.instructions), FINISH}
    assert all(count.compute_seconds > 0 for count in meter.steps.values())
    assert meter.exchanges == 0 and sum(count.network_seconds for count in meter.steps.values()) == 0


MADE = (
    Layer("conv", 1e-3, 0.0, 2e-3, 1, 100, Cost(1, 800, 80), Offline(1e-3, 2e-3)),
    Layer("relu", 0.0, 5e-3, 1e-3, 3, 50, Cost(3, 480, 8000)),
    Layer("small", 0.0, 1e-6, 0.0, 0, 0, Cost()),
)


def test_a_layer_whose_bytes_are_not_the_declared_ones_says_so_wherever_it_is_shown() -> None:
    assert [layer.as_declared for layer in MADE] == [True, False, True]
    rows = [layer_cells(layer) for layer in MADE]
    assert {len(row) for row in rows} == {len(LAYER_COLUMNS)}
    assert rows[0] == ["conv", "3.00 ms", "1.00 ms", "", "2.00 ms", "1.00 ms", "2.00 ms", "100 B", "10 B"]
    assert rows[1][-2:] == ["50 B, NOT 60 B", "1.00 kB"]
    run = replace(run_of("additive2"), layers=MADE, offline=Offline(1.0, 2.0))
    assert "bytes NOT as declared" in layers_line(run) and "dealing 1.00 s, preparing 2.00 s" in layers_line(run)
    assert not bench_of(run).held and bench_of(replace(run, layers=MADE[:1])).held


def test_the_slowest_layers_stay_in_the_network_s_order() -> None:
    assert [layer.name for layer in slowest(MADE, 2)] == ["conv", "relu"]
    assert slowest(MADE, 5) == list(MADE)


def test_the_page_shows_layers_batches_and_points() -> None:
    pytest.importorskip("matplotlib")
    run = replace(run_of("additive2"), layers=MADE)
    found = [Point("", "proven", 1000, 9000, 5, 0.9, None), Point("4/4", "proven", 500, 4000, 5, 0.8, None)]
    made: Bench = replace(bench_of(run, run_of("additive2", batch=8)), points=found)
    text = page(made)
    assert text.count("<svg") == 2 + 2 + 2  # in all: seconds, bytes; of layers, twice; by batch; by bits
    for words in ("By batch size", "Bytes against accuracy", "4/4 proven", "additive2 x1, layer by layer", "NOT 60 B"):
        assert words in text
    single = replace(made, runs=[run], plain=made.plain[:1], points=())
    assert "By batch size" not in page(single) and "Bytes against" not in page(single)


def test_a_run_brings_the_figures_without_privacy_that_were_taken_beside_it() -> None:
    own = Plain(1, Spread(2e-5, 2e-5, 2e-5, 3), {"integer": Spread(1e-3, 1e-3, 1e-3, 3)})
    made = bench_of(replace(run_of("additive2"), plain=own))
    assert made.beside(made.runs[0]) is own
    assert made.to_json()["runs"][0]["online_to_float32"] == pytest.approx(3e-3 / 2e-5)


DEALING = """
import os, pathlib, sys, time
level, draft = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[1] + ".draft")
for k in range(10**6):
    draft.write_text(str(k))
    os.replace(draft, level)
    time.sleep(0.005)
"""


class Deployment:
    """A pool that holds what a process in the place of the dealer has delivered; it delivers unless it is held."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.processes = {DEALER: subprocess.Popen([sys.executable, "-c", DEALING, str(path)])}
        self.taken = 0

    @property
    def delivered(self) -> int:
        return int(self._path.read_text()) if self._path.exists() else 0

    def status(self) -> dict[str, dict[str, int]]:
        return {"server_b": {"level": min(4, max(0, self.delivered - self.taken)), "capacity": 4}}

    def take(self) -> int:
        """Everything there is; waits for four more than that."""
        self.taken = self.delivered
        while self.delivered < self.taken + 4:
            time.sleep(0.002)
        return self.delivered


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    made = Deployment(tmp_path / "level")
    yield made
    made.processes[DEALER].kill()
    made.processes[DEALER].wait()


def test_the_dealer_is_held_when_a_batch_is_there_and_goes_on_when_all_is_over(deployment: Deployment) -> None:
    with Reins(deployment, 4) as dealer:  # type: ignore[arg-type]
        assert dealer.refill() is None  # he was at work before anybody looked
        held = deployment.delivered
        time.sleep(0.05)
        assert deployment.delivered <= held + 1
        deployment.taken = held
        seconds = dealer.refill()
        assert seconds is not None and seconds > 0
    held = deployment.delivered
    assert deployment.take() >= held


def test_where_there_is_no_dealer_nothing_is_waited_for(deployment: Deployment) -> None:
    process = deployment.processes.pop(DEALER)
    with Reins(deployment, 4) as dealer:  # type: ignore[arg-type]
        assert dealer.refill() is None
    process.kill()
    process.wait()
    deployment.processes[DEALER] = process
