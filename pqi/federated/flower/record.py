"""What may be told of a round, kept by the strategy: public facts and the sum's own numbers, no secret."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from pqi.federated.flower.plan import RoundPlan
from pqi.federated.flower.round import Traffic
from protocols.aggregation import Party


@dataclass(frozen=True)
class RoundRecord:
    """One round. invited, included: clients. lost: node id -> stage and reason, of clients and helpers left out.

    total_weight: of the clients included, None if all count alike. resolution: of one code in the mean. clipped,
    shortened: shares of values beyond their bound and of updates beyond clip, where they are told. noise: deviation of
    each value of the mean. epsilon, delta: spent up to and with this round, None without a mechanism; privacy: what
    that counts on. Bytes are means over the clients included: of the protocol alone (payload), and of whole messages,
    the global model on the way down among them. codec: the proof's numbers. failure: why there was no sum, else None.
    """

    round: int
    aggregator: str
    secure: bool
    invited: int
    included: int
    lost: Mapping[int, str]
    threshold: int
    parameters: int
    bits: int
    stages: tuple[str, ...]
    payload_up: float
    payload_down: float
    message_up: float
    message_down: float
    codec: Mapping[str, Any] = field(repr=False)
    total_weight: int | None = None
    resolution: float | None = None
    clipped: float | None = None
    shortened: float | None = None
    noise: float | None = None
    epsilon: float | None = None
    delta: float | None = None
    privacy: Mapping[str, Any] | None = field(default=None, repr=False)
    failure: str | None = None

    def __str__(self) -> str:
        head = f"round {self.round}: {self.aggregator}{'' if self.secure else ' (INSECURE)'}, "
        head += f"{self.included} of {self.invited} clients"
        if self.failure is not None:
            return f"{head}; no sum: {self.failure}"
        told = [f"{self.parameters} parameters at {self.bits} bits", f"{self.payload_up:.0f} B up a client"]
        told += [f"{self.payload_down:.0f} B down beside the model"]
        if self.epsilon is not None:
            told.append(f"epsilon {self.epsilon:.3g} at delta {self.delta:.3g}")
        return f"{head}, {', '.join(told)}"


def traffic_of(traffic: Traffic, clients: frozenset[int]) -> dict[str, float]:
    """The fields of a record about bytes, of these clients."""

    def each(table: Mapping[Party, int]) -> float:
        return float(mean(table.get(client, 0) for client in clients)) if clients else 0.0

    return {
        "payload_up": each(traffic.payload_up),
        "payload_down": each(traffic.payload_down),
        "message_up": each(traffic.records_up),
        "message_down": each(traffic.records_down),
    }


def facts_of(plan: RoundPlan, traffic: Traffic) -> dict[str, Any]:
    """The fields of a record that follow from the plan."""
    return {
        "aggregator": plan.aggregator,
        "secure": plan.secure,
        "invited": plan.sum.clients,
        "threshold": plan.sum.threshold,
        "parameters": plan.parameters,
        "bits": plan.sum.bits,
        "stages": tuple(traffic.stages),
        "codec": plan.codec.record(),
    }
