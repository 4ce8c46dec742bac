"""From what the app's train function returned to the vector that enters the sum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from logging import INFO

import numpy as np
from flwr.app import ArrayRecord, Message
from flwr.common.logger import log

from pqi.federated.flower.plan import RoundPlan, scaled_metrics
from pqi.federated.flower.update import difference, fingerprint, parameters
from protocols.errors import Misuse, PeerMisbehaved


def global_arrays(plan: RoundPlan, asked: Message) -> ArrayRecord:
    """The model in the server's message; raises :class:`PeerMisbehaved` if it is not the one that the plan names."""
    old = _only_arrays(asked, "the server's message")
    if fingerprint(asked.content) != plan.task:
        raise PeerMisbehaved("the server's model or training configuration is not the plan's: all clients get the same")
    if parameters(old) != plan.parameters:
        raise PeerMisbehaved(f"the server's model has {parameters(old)} parameters, its plan {plan.parameters}")
    return ArrayRecord(dict(old.items()))


def vector_of(plan: RoundPlan, old: ArrayRecord, reply: Message) -> np.ndarray:
    """The encoded update, unsigned integers ``(plan.sum.length,)``; coins are fresh each time.

    old: the global arrays. reply: what the app's train function returned, the trained arrays and metrics.
    """
    change = difference(old, _only_arrays(reply, "what the train function returned"))
    told = {name: value for record in reply.content.metric_records.values() for name, value in record.items()}
    weight = _weight(plan, told)
    codes = plan.codec.encode(change, weight).values
    if plan.metrics_codec is None:
        return codes
    values = scaled_metrics(plan, {name: _number(told, name) for name in plan.metrics})
    return np.concatenate([codes, plan.metrics_codec.encode(values, weight).values])


def _only_arrays(message: Message, what: str) -> ArrayRecord:
    records = list(message.content.array_records.values())
    if len(records) != 1:
        raise Misuse(f"{what} has {len(records)} ArrayRecords; it has to be one, the model")
    return records[0]


def _weight(plan: RoundPlan, told: Mapping[str, object]) -> int:
    """How much this client counts: its weight in the nearest integer, up to the most that the plan lets count."""
    if not plan.weighted:
        return 1
    weight = _number(told, plan.weighted_by)
    if weight < 0:
        raise Misuse(f"metric {plan.weighted_by!r} is the weight of this client and cannot be negative")
    most = plan.encoding.max_weight
    if weight > most:
        log(INFO, "pqi: this client has a weight above max_weight = %d and counts as %d", most, most)
    return min(round(weight), most)


def _number(told: Mapping[str, object], name: str) -> float:
    if name not in told:
        raise Misuse(f"the train function returned no metric {name!r}; it has {sorted(told)[:8]}")
    value = told[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise Misuse(f"metric {name!r} has to be a finite number")
    return float(value)
