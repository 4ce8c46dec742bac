"""Transcripts of a protocol, tested for leakage. Two inputs as far apart as there are, many runs of each.

==============  ====================================================================================================
uniform         every message that a server sees is uniform: bytes of each message, every bit, every pair of bits
shape           number, order and lengths of messages are the same for every input, and for other weights
known keys      a corrupted server's keys, share of the input and part of the model are the same in every run: all else
                that reaches it is still uniform. So a simulator that knows no input and no weight draws uniform bytes
                and gives that server what it would have seen
twins           a program so small that all views can be listed: for every view that a server has of one input there is
                an epoch in which another input gives it the very same view, while the answers are each right
==============  ====================================================================================================

A test that cannot fail proves nothing: ``clear``, which claims nothing, is held to the same and has to fail "uniform".
What is tested is code and its distribution, on the programs named, against servers that keep to the protocol. It is no
proof; the proof is in the protocol's own pages. AES's output is taken for random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import protocols
from pqi.audit.attack import Progress
from pqi.audit.defences.outputs import harden
from pqi.audit.errors import AuditError
from pqi.audit.views import ROLES, Inference, Theatre, View, by_bit, by_message, by_pair
from pqi.graph.graph import IntegerGraph, Node
from pqi.graph.model import IntegerModel
from pqi.graph.ops import Dense, Input, MaxPool2d, Op, Requantize, Reshape
from pqi.graph.ranges import prove, proven_accumulators
from pqi.program import compile as compiled
from pqi.quant.quantizer import Quantizer
from protocols.api import VISIBILITIES
from protocols.rounds import PartyId

ALARM = 1e-6  # of one check, after Bonferroni: a sound protocol fails a hundred checks once in ten thousand audits
_LEAST = 48  # runs: below, not even a constant bit is beyond chance among a hundred thousand
_CATCHING = ("uniform", "two inputs")  # checks that what claims nothing has to fail
_TWIN_RUNS = 24  # for each view there is: one of 16 stays unseen with a chance of 16 e^-24


@dataclass(frozen=True)
class Check:
    """One test of one role. p: the least p-value, corrected for all looks; None where the test is exact."""

    name: str
    role: str
    passed: bool
    seen: str
    p: float | None = None


@dataclass(frozen=True)
class Verdict:
    """All checks of one protocol. claims: whether it says that it hides anything."""

    protocol: str
    claims: bool
    adversary: str
    runs: int
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """All that it claims held; or it claims nothing, and was caught at it."""
        held = all(check.passed for check in self.checks)
        return held if self.claims else not all(check.passed for check in self.checks if check.name in _CATCHING)

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        checks = [dict(check.__dict__) for check in self.checks]
        head = {"protocol": self.protocol, "claims secrecy": self.claims, "adversary": self.adversary}
        return {**head, "runs": self.runs, "passed": self.passed, "checks": checks}


def audit(protocol: str, runs: int = 100, progress: Progress | None = None) -> Verdict:
    """Every check of one protocol of ``protocols.CATALOGUE``. runs: of each experiment, at least 48."""
    if runs < _LEAST:
        raise AuditError(f"{runs} runs: at least {_LEAST} are needed, or not even a constant bit would stand out")
    backend = protocols.get(protocol)
    claims = len(backend.parties) > 1
    jobs: list[Callable[[], Iterable[Check]]] = [lambda: _uniform(protocol, runs), lambda: _shape(protocol)]
    if claims:
        jobs += [lambda party=party: _known_keys(protocol, party, runs) for party in backend.parties]  # type: ignore[misc]
        jobs += [lambda party=party: [_twins(protocol, party)] for party in backend.parties]  # type: ignore[misc]
    checks: list[Check] = []
    for done, job in enumerate(jobs):
        checks += job()
        if progress is not None:
            progress(done + 1, len(jobs))
    return Verdict(protocol, claims, backend.security.adversary, runs, tuple(checks))


# --- the programs -------------------------------------------------------------------------------------------------


def subject(sign: int = 1) -> IntegerModel:
    """A network with every kind of step but noise: products, clamps, a maximum, comparisons, tables of a private label.

    All sizes are multiples of 8 values, so no message has padding, which would be constant. sign: -1 for other weights.
    """
    first, second = (weights_of(rows, columns) * sign for rows, columns in ((16, 16), (16, 8)))
    row: list[tuple[str, Op]] = [
        ("first", Dense(first, torch.arange(16) * 5 - 40)),
        ("relu", Requantize(2, 8)),
        ("square", Reshape((8, 1, 2))),
        ("maximum", MaxPool2d((1, 2), (1, 2))),
        ("flat", Reshape((8,))),
        ("scores", Dense(second, torch.arange(16) - 8)),
    ]
    return harden(model_of((16,), -128, 127, row), "label")


def tiny() -> IntegerModel:
    """One bit in, times 1, in a ring of two bits: its views can be listed."""
    return model_of(
        (1,), 0, 1, [("only", Dense(torch.ones((1, 1), dtype=torch.int64), torch.zeros(1, dtype=torch.int64)))]
    )


def weights_of(rows: int, columns: int) -> Tensor:
    """Small weights of both signs, int64 (rows, columns): always the same."""
    return (torch.arange(rows * columns).reshape(rows, columns) * 37 + 11) % 15 - 7


def model_of(shape: tuple[int, ...], low: int, high: int, row: Sequence[tuple[str, Op]]) -> IntegerModel:
    """Operators in a row, behind codes from low to high."""
    nodes = [Node("codes", Input(shape, low, high))]
    for name, op in row:
        nodes.append(Node(name, op, (nodes[-1].name,)))
    graph = IntegerGraph(tuple(nodes), nodes[-1].name)
    signed = low < 0
    quantizer = Quantizer(scale=1.0, offset=0.5, modulus=high - low + 1, signed=signed)
    proof = prove(graph)
    return IntegerModel(graph, proven_accumulators(graph, proof), quantizer, 1.0, "proven", proof)


def extremes(model: IntegerModel) -> dict[str, Tensor]:
    """The lowest and the highest codes."""
    node = model.graph.input
    return {name: torch.full((1, *node.shape), value) for name, value in (("lowest", node.lo), ("highest", node.hi))}


# --- checks -------------------------------------------------------------------------------------------------------


def _tested(name: str, role: str, views: Sequence[View], about: str) -> Check:
    size = len(views[0].whole)
    found = {"a message's bytes": by_message(views), "a bit": by_bit(views), "a pair of bits": by_pair(views)}
    where, p = min(found.items(), key=lambda each: each[1])
    words = f"{size} bytes in {len(views[0].messages)} messages, {about}; strangest: {where}"
    return Check(name, role, p > ALARM, words, p)


def _uniform(protocol: str, runs: int) -> list[Check]:
    model = subject()
    theatre = Theatre(model, compiled(model, protocol, "wan"))
    checks = []
    for name, codes in extremes(model).items():
        seen = [theatre.run(codes) for _ in range(runs)]
        checks += [
            _tested("uniform", role, [one.views[role] for one in seen], f"{name} input")
            for role in seen[0].views
            if seen[0].views[role].messages
        ]
    return checks


def _known_keys(protocol: str, party: PartyId, runs: int) -> list[Check]:
    """Of shared weights with both inputs; of owned and public ones, which this server may know, with the highest."""
    model, checks = subject(), []
    for weights in VISIBILITIES:
        theatre, inputs = Theatre(model, compiled(model, protocol, weights=weights)), extremes(model)
        known = theatre.knowledge(party, inputs["lowest"])
        for name, codes in inputs.items():
            if weights == "shared" or name == "highest":
                views = [theatre.run(codes, known).views[ROLES[party]] for _ in range(runs)]
                checks.append(_tested("known keys", ROLES[party], views, f"{name} input, {weights} weights"))
    return checks


def _shape(protocol: str) -> list[Check]:
    """Also for both networks that a program is planned for."""
    shapes: dict[tuple[str, str], set[Any]] = {}
    for network in ("lan", "wan"):
        for sign in (1, -1):
            model = subject(sign)
            theatre = Theatre(model, compiled(model, protocol, network))
            middle = torch.zeros((1, *model.graph.input.shape), dtype=torch.int64)
            for codes in (*extremes(model).values(), middle):
                for role, view in theatre.run(codes).views.items():
                    shapes.setdefault((network, role), set()).add(view.shape)
    checks = []
    for (network, role), found in shapes.items():
        words = f"planned for {network}: 3 inputs, 2 sets of weights, {len(found)} order of messages and lengths"
        checks.append(Check("shape", role, len(found) == 1, words))
    return checks


def _twins(protocol: str, party: PartyId) -> Check:
    model = tiny()
    theatre = Theatre(model, compiled(model, protocol))
    inputs = extremes(model)
    known = theatre.knowledge(party, inputs["lowest"])
    first = theatre.run(inputs["lowest"], known).views[ROLES[party]]
    bits = len(first.messages) * theatre.program.output_ring  # each message is one value of the ring
    found: dict[str, dict[bytes, Inference]] = {name: {} for name in inputs}
    for name, codes in inputs.items():
        for _ in range(_TWIN_RUNS << bits):
            one = theatre.run(codes, known)
            found[name].setdefault(one.views[ROLES[party]].whole, one)
            if len(found[name]) == 1 << bits:
                break
    same = found["lowest"].keys() == found["highest"].keys()
    right = all(
        torch.equal(one.answer, model.integers(inputs[name])) for name, seen in found.items() for one in seen.values()
    )
    words = f"{len(found['lowest'])} and {len(found['highest'])} views of two inputs, of {1 << bits} there can be"
    return Check("twins", ROLES[party], same and right, f"{words}; {'the same' if same else 'not the same'}")
