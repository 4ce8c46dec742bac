"""Runs a party's rounds over channels: the only place that counts exchanges and bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pqi.net.channel import Channel, exchange
from pqi.net.frames import HEADER_BYTES, FrameType
from protocols.errors import Misuse
from protocols.rounds import PartyId, Received, Round, Steps

T = TypeVar("T")
FINISH = "finish"


@dataclass
class StepCount:
    """What one step (all rounds of one label) cost: payload bytes, exchanges, seconds of work and of waiting."""

    exchanges: int = 0
    sent: int = 0
    received: int = 0
    compute_seconds: float = 0.0
    network_seconds: float = 0.0


@dataclass
class Meter:
    """Counters of one run. Payload bytes per peer as the protocol declares them; frame headers apart."""

    exchanges: int = 0
    sent: dict[PartyId, int] = field(default_factory=dict)
    received: dict[PartyId, int] = field(default_factory=dict)
    overhead: int = 0
    steps: dict[str, StepCount] = field(default_factory=dict)
    clock: float = field(default_factory=time.perf_counter)

    def lap(self, label: str) -> None:
        """Book the seconds since the last lap or round as work on ``label``."""
        now = time.perf_counter()
        self.step(label).compute_seconds += now - self.clock
        self.clock = now

    def step(self, label: str) -> StepCount:
        """The counters of one label, made on first use."""
        step = self.steps.get(label)
        if step is None:
            step = self.steps[label] = StepCount()
        return step

    def count(self, round_: Round, received: Received, compute: float, network: float) -> None:
        """Book one finished round: bytes on each step that talked, the exchange and its seconds on the first."""
        step = self.step(round_.parts[0].label if round_.parts else round_.label)
        if round_.send or round_.expect:
            self.exchanges += 1
            step.exchanges += 1
        for party, message in round_.send.items():
            self.sent[party] = self.sent.get(party, 0) + len(message)
        for party, message in received.items():
            self.received[party] = self.received.get(party, 0) + len(message)
        for part in round_.parts:
            self.step(part.label).sent += sum(map(len, part.send.values()))
            self.step(part.label).received += sum(part.awaited(party) or 0 for party in part.expect)
        if not round_.parts:
            step.sent += sum(map(len, round_.send.values()))
            step.received += sum(map(len, received.values()))
        self.overhead += HEADER_BYTES * (len(round_.send) + len(received))
        step.compute_seconds += compute
        step.network_seconds += network

    def to_json(self) -> dict[str, Any]:
        """Counters as plain JSON; nothing secret: lengths and times only."""
        return {
            "exchanges": self.exchanges,
            "sent": {str(party): count for party, count in self.sent.items()},
            "received": {str(party): count for party, count in self.received.items()},
            "overhead": self.overhead,
            "steps": {
                label: {
                    "exchanges": step.exchanges,
                    "sent": step.sent,
                    "received": step.received,
                    "compute_seconds": step.compute_seconds,
                    "network_seconds": step.network_seconds,
                }
                for label, step in self.steps.items()
            },
        }


def drive(
    steps: Steps[T],
    channels: Mapping[PartyId, Channel],
    meter: Meter,
    timeout: float,
    progress: Callable[[str], None] | None = None,
) -> T:
    """Run a party to its end and return its value.

    Each round's messages are sent while the awaited ones are received. ``timeout`` bounds every single round, and
    ``progress`` hears the label of each before it starts.
    Raises Misuse (a round names a party without a channel), and all of :func:`pqi.net.channel.exchange`.
    """
    try:
        meter.clock = time.perf_counter()
        round_ = next(steps)
        while True:
            if progress is not None:
                progress(round_.label)
            ready = time.perf_counter()
            received = _one_round(round_, channels, timeout)
            done = time.perf_counter()
            meter.count(round_, received, ready - meter.clock, done - ready)
            meter.clock = done
            round_ = steps.send(received)
    except StopIteration as end:
        meter.lap(FINISH)
        value: T = end.value
        return value
    finally:
        steps.close()


def _one_round(round_: Round, channels: Mapping[PartyId, Channel], timeout: float) -> Received:
    if strangers := sorted({party for party in (*round_.send, *round_.expect) if party not in channels}):
        raise Misuse(f"step {round_.label!r} talks to {', '.join(map(str, strangers))}, to whom no channel is open")
    sends = [(channels[party], FrameType.BINARY, message) for party, message in round_.send.items()]
    expects = [channels[party] for party in round_.expect]
    during = f"step {round_.label!r}"
    frames = exchange(sends, expects, timeout, during)
    return {party: channels[party].as_view(frame, during) for party, frame in zip(round_.expect, frames, strict=True)}
