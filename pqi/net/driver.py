"""Runs a party's rounds over channels: the only place that counts exchanges and bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pqi.net.channel import Channel, exchange
from pqi.net.frames import HEADER_BYTES, FrameType
from protocols.errors import Misuse
from protocols.rounds import PartyId, Round, Steps

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

    def step(self, label: str) -> StepCount:
        """The counters of one label, made on first use."""
        return self.steps.setdefault(label, StepCount())

    def count(self, round_: Round, received: Mapping[PartyId, bytes], compute: float, network: float) -> None:
        """Book one finished round."""
        step = self.step(round_.label)
        if round_.send or round_.expect:
            self.exchanges += 1
            step.exchanges += 1
        for messages, totals in ((round_.send, self.sent), (received, self.received)):
            for party, message in messages.items():
                totals[party] = totals.get(party, 0) + len(message)
                self.overhead += HEADER_BYTES
        step.sent += sum(map(len, round_.send.values()))
        step.received += sum(map(len, received.values()))
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
        clock = time.perf_counter()
        round_ = next(steps)
        while True:
            if progress is not None:
                progress(round_.label)
            ready = time.perf_counter()
            received = _one_round(round_, channels, timeout)
            done = time.perf_counter()
            meter.count(round_, received, ready - clock, done - ready)
            clock = done
            round_ = steps.send(received)
    except StopIteration as end:
        meter.step(FINISH).compute_seconds += time.perf_counter() - clock
        value: T = end.value
        return value
    finally:
        steps.close()


def _one_round(round_: Round, channels: Mapping[PartyId, Channel], timeout: float) -> dict[PartyId, bytes]:
    strangers = sorted((set(round_.send) | set(round_.expect)) - set(channels))
    if strangers:
        raise Misuse(f"step {round_.label!r} talks to {', '.join(map(str, strangers))}, to whom no channel is open")
    sends = [(channels[party], FrameType.BINARY, message) for party, message in round_.send.items()]
    expects = [channels[party] for party in round_.expect]
    during = f"step {round_.label!r}"
    frames = exchange(sends, expects, timeout, during)
    return {party: channels[party].as_binary(frame, during) for party, frame in zip(round_.expect, frames, strict=True)}
