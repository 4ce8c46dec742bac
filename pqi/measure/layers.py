"""Where the time and the bytes of a private answer go, layer by layer, beside what was declared of each.

Online figures are of the servers' own ledgers: work is booked on the instruction that does it, waiting and bytes on
the one that exchanges. Offline figures are of this process: a dealer and two parties of the layer's steps alone.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pqi.demo.measure import threads
from pqi.graph.model import IntegerModel
from pqi.net.driver import FINISH
from pqi.program import Dealer, PartyRunner, Program, split_weights
from pqi.session.ledger import Ledger, PartyLedger
from pqi.session.roles import SERVERS
from protocols import api
from protocols.cost import Cost
from protocols.protocol import NamedStep
from protocols.rounds import PartyId

REST = "(rest)"
_LINEAR, _OTHER = "linear", "other"
_RUNS, _LONG = 3, 2.0  # times that something is timed; seconds after which it is enough
Prepare = Callable[[bytes, int, int, bytes | memoryview], Any]


@dataclass(frozen=True)
class Offline:
    """Seconds to deal the material of a batch, and to prepare it (the slower party)."""

    deal: float
    prepare: float


@dataclass(frozen=True)
class Layer:
    """One layer of the network, for one batch.

    linear, other: seconds of work online in products and in everything else (the slower server; medians over all
    batches). network: seconds of exchanges, waiting for the other server included; an exchange that several layers
    share is booked on the first. sent: bytes of the busier server. declared: beforehand; its exchanges are those of the
    layer alone. offline: None where it was not measured.
    """

    name: str
    linear: float
    other: float
    network: float
    exchanges: float
    sent: float
    declared: Cost
    offline: Offline | None = None

    @property
    def online(self) -> float:
        """Seconds in all."""
        return self.linear + self.other + self.network

    @property
    def as_declared(self) -> bool:
        """Whether the bytes that were sent are those that were declared."""
        return self.sent == self.declared.online_bytes

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "name": self.name,
            "linear_seconds": self.linear,
            "nonlinear_seconds": self.other,
            "network_seconds": self.network,
            "exchanges": self.exchanges,
            "sent_bytes": self.sent,
            "declared_exchanges": self.declared.exchanges,
            "declared_bytes": self.declared.online_bytes,
            "dealt_bytes": self.declared.dealt_bytes,
            "deal_seconds": None if self.offline is None else self.offline.deal,
            "prepare_seconds": None if self.offline is None else self.offline.prepare,
        }


def layers(
    program: Program, batch: int, ledgers: Sequence[Ledger], offline: Mapping[str, Offline] | None = None
) -> tuple[Layer, ...]:
    """From the ledgers of batches that went as one query each. Labels that no instruction has are in one last row."""
    where, declared = _places(program), program.cost_by_layer(batch)
    slower = [max(ledger.parties.values(), key=lambda party: party.online_seconds) for ledger in ledgers]
    sums = [_by_layer(party, where) for party in slower]
    last = ledgers[-1].parties.values()
    busiest = _by_layer(max(last, key=lambda party: party.online_sent), where)

    def middle(name: str, field: str) -> float:
        return statistics.median(each.get(name, {}).get(field, 0.0) for each in sums)

    made = []
    for name in [*declared, *([REST] if any(REST in each for each in sums) else [])]:
        counted = busiest.get(name, {})
        made.append(
            Layer(
                name,
                middle(name, _LINEAR),
                middle(name, _OTHER),
                middle(name, "network"),
                counted.get("exchanges", 0),
                counted.get("sent", 0),
                declared.get(name, Cost()),
                (offline or {}).get(name),
            )
        )
    return tuple(made)


def _places(program: Program) -> dict[str, tuple[str, str]]:
    """Instruction -> (layer, kind of work). Local operations belong to the layer of the step before them."""
    steps = [i.layer for i in program.instructions if isinstance(i.action, api.Step)]
    known, layer = set(steps), steps[0] if steps else REST
    where = {}
    for i in program.instructions:
        layer = i.layer if i.layer in known else layer
        nonlinear = isinstance(i.action, api.Step) and not isinstance(i.action, (api.Open, api.Linear))
        where[i.name] = (layer, _OTHER if nonlinear else _LINEAR)
    return {**where, FINISH: (layer, _OTHER)}


def _by_layer(party: PartyLedger, where: Mapping[str, tuple[str, str]]) -> dict[str, dict[str, float]]:
    sums: dict[str, dict[str, float]] = {}
    for label, step in party.steps.items():
        layer, kind = where.get(_instruction(label, where), (REST, _OTHER))
        row = sums.setdefault(layer, {})
        fields = {kind: "compute_seconds", "network": "network_seconds", "exchanges": "exchanges", "sent": "sent"}
        for name, field in fields.items():
            row[name] = row.get(name, 0.0) + step[field]
    return sums


def _instruction(label: str, known: Mapping[str, object]) -> str:
    """A step's rounds are labelled with its name, or with more behind it: ``conv1.digits``, ``pool/0.sign``."""
    while label not in known and (cut := max(label.rfind("."), label.rfind("/"))) > 0:
        label = label[:cut]
    return label


def measure_offline(model: IntegerModel, program: Program, batch: int) -> tuple[Offline, dict[str, Offline]]:
    """Dealing and preparing a batch in this process on one thread: in all, and with the steps of one layer alone.

    The fastest of three, of fewer where they take long. A layer that reads what another layer has opened is given that
    opening, too, so that the layers together cost a little more than the whole.
    """
    stored = split_weights(model, program)
    steps = {name: (name, step, inputs) for name, step, inputs in program.steps}
    layer_of = {i.name: i.layer for i in program.instructions}
    groups: dict[str, dict[str, NamedStep]] = {}
    for name, step, inputs in program.steps:
        group = groups.setdefault(layer_of[name], {})
        group |= {x: steps[x] for x in inputs if x in steps and isinstance(step, api.Linear)}
        group[name] = steps[name]
    with threads(1):
        whole = _whole(program, stored, batch)
        return whole, {name: _of_steps(program, list(group.values()), stored, batch) for name, group in groups.items()}


def _whole(program: Program, stored: Mapping[PartyId, Mapping[str, Any]], batch: int) -> Offline:
    dealer = Dealer(program, stored[PartyId.DEALER])
    parties = {party: PartyRunner(program, party, stored[party]).prepare for party in program.parties}
    keys = dealer.new_epoch()
    return _timed(dealer.deal, parties, {party: keys[party] for party in parties}, batch)


def _of_steps(
    program: Program, steps: list[NamedStep], stored: Mapping[PartyId, Mapping[str, Any]], batch: int
) -> Offline:
    names = {name for name, _, _ in steps}
    own = {role: {k: t for k, t in held.items() if k.rpartition(".")[0] in names} for role, held in stored.items()}
    dealer = program.backend.dealer(steps, own[PartyId.DEALER])
    parties = {party: program.backend.party(steps, party, own[party]).prepare for party in program.parties}
    return _timed(dealer.deal, parties, {party: dealer.keys_for(party) for party in parties}, batch)


def _timed(
    deal: Callable[[int, int], bytes | memoryview],
    parties: Mapping[PartyId, Prepare],
    keys: Mapping[PartyId, bytes],
    batch: int,
) -> Offline:
    """The fastest of some runs, each on items of its own."""
    dealing: list[float] = []
    preparing: dict[PartyId, list[float]] = {party: [] for party in parties}
    for first in range(0, _RUNS * batch, batch):
        if sum(dealing) > _LONG:
            break
        started = time.perf_counter()
        dealt = deal(first, batch)
        dealing.append(time.perf_counter() - started)
        for party, prepare in parties.items():
            started = time.perf_counter()
            prepare(keys[party], first, batch, dealt if party is PartyId.P1 else b"")
            preparing[party].append(time.perf_counter() - started)
    return Offline(min(dealing), max(min(seconds) for seconds in preparing.values()))


def declared_bytes(program: Program, batch: int) -> dict[str, int]:
    """What each server will send to the other for one batch, by role."""
    cost = program.cost(batch)
    return {SERVERS[party]: cost.sent_bytes(party) for party in program.parties}
