"""The public plan of one round: what the server proposes, and what every client reads before it agrees.

It travels as text, the same text to every party, and the run's session is a hash of the text. Keys and masks are bound
to the session, so parties that were told different plans cannot be summed together. Whoever reads the text makes the
checked objects from it anew: lengths, scales and noise are computed, not believed.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from pqi.federated.codec import Codec
from pqi.federated.encoding import Encoding
from pqi.federated.errors import EncodingError, FederatedError
from pqi.federated.flower.wire import SESSION_BYTES
from protocols import get_sum
from protocols.aggregation import SumPlan
from protocols.errors import BadParameters, PeerMisbehaved, ProtocolError

MAX_TEXT = 1 << 20
MAX_METRICS = 64
_FIELDS = {
    "aggregator",
    "clients",
    "threshold",
    "parameters",
    "encoding",
    "seed",
    "weighted_by",
    "metrics",
    "options",
    "task",
}
_NONCE = "nonce"


@dataclass(frozen=True)
class RoundPlan:
    """aggregator: the protocol. sum: its plan. codec: of the model's update. parameters: how many numbers that is.

    weighted_by: the client's metric that weighs its update (unused where the encoding takes no weights). metrics: names
    of metrics that are summed as well, each with the bound that it is clipped to. task: the fingerprint of the global
    arrays and the training configuration: a server that shows one client others than the rest is refused. text: all
    of this, as it is sent.
    """

    aggregator: str
    sum: SumPlan
    codec: Codec
    parameters: int
    weighted_by: str
    metrics: Mapping[str, float]
    task: str
    text: str

    @property
    def encoding(self) -> Encoding:
        """How updates become integers."""
        return self.codec.encoding

    @property
    def weighted(self) -> bool:
        """Whether a client counts by its weight, rather than once."""
        return self.encoding.max_weight > 1

    @cached_property
    def metrics_codec(self) -> Codec | None:
        """The codec of the metrics, each divided by its bound; None where there are none."""
        return _metrics_codec(self.encoding, len(self.metrics), self.sum.clients, self.sum.threshold)

    @property
    def secure(self) -> bool:
        """Whether the protocol hides the summands."""
        return bool(get_sum(self.aggregator).secure)


def propose(
    aggregator: str,
    encoding: Encoding,
    parameters: int,
    clients: int,
    threshold: int,
    weighted_by: str,
    metrics: Mapping[str, float],
    options: Mapping[str, Any],
    task: str,
) -> RoundPlan:
    """The server's plan of a new round; raises what the protocol and the encoding refuse."""
    codec = encoding.codec(parameters, clients, threshold)
    facts = {
        "aggregator": aggregator,
        "clients": clients,
        "threshold": threshold,
        "parameters": parameters,
        "encoding": encoding.facts(),
        "seed": codec.seed.hex(),
        "weighted_by": weighted_by,
        "metrics": dict(metrics),
        "options": dict(options),
        "task": task,
        _NONCE: secrets.token_hex(16),
    }
    return _checked(facts, json.dumps(facts, sort_keys=True))


def read_plan(text: str) -> RoundPlan:
    """The plan that a text says; raises :class:`PeerMisbehaved` where it says none."""
    if len(text) > MAX_TEXT:
        raise PeerMisbehaved(f"the plan has {len(text)} characters; {MAX_TEXT} are allowed")
    try:
        facts = json.loads(text, parse_constant=_no_constant)
        if not isinstance(facts, dict) or set(facts) != _FIELDS | {_NONCE}:
            raise BadParameters(f"it has to have the fields {sorted(_FIELDS | {_NONCE})}")
        return _checked(facts, text)
    except (ProtocolError, FederatedError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise PeerMisbehaved(f"the server's plan cannot be: {error}") from error


def _checked(facts: dict[str, Any], text: str) -> RoundPlan:
    for name in ("clients", "threshold", "parameters"):
        if type(facts[name]) is not int:
            raise BadParameters(f"{name} has to be an integer")
    for name in ("aggregator", "weighted_by", "seed", "task"):
        if type(facts[name]) is not str:
            raise BadParameters(f"{name} has to be a string")
    if type(facts["options"]) is not dict:
        raise BadParameters("options has to be a table of the protocol's options")
    metrics = _checked_metrics(facts["metrics"])
    encoding = Encoding.from_facts(facts["encoding"])
    clients, threshold, parameters = facts["clients"], facts["threshold"], facts["parameters"]
    codec = encoding.codec(parameters, clients, threshold, bytes.fromhex(facts["seed"]))
    length = codec.vector_length + _metric_elements(encoding, len(metrics), clients, threshold)
    made = get_sum(facts["aggregator"]).plan(clients, length, encoding.modulus_bits, threshold, facts["options"])
    session = hashlib.sha256(text.encode()).digest()[:SESSION_BYTES]
    named = facts["aggregator"], replace(made, session=session), codec, parameters, facts["weighted_by"]
    return RoundPlan(*named, metrics, facts["task"], text)


def _checked_metrics(metrics: Any) -> dict[str, float]:
    if not isinstance(metrics, dict) or len(metrics) > MAX_METRICS:
        raise BadParameters(f"metrics has to be up to {MAX_METRICS} names with a bound each")
    for name, bound in metrics.items():
        if isinstance(bound, bool) or not isinstance(bound, (int, float)) or not 0 < bound < 1e30:
            raise BadParameters(f"the bound of metric {name!r} is {bound!r}: it has to be a positive number")
    return {name: float(bound) for name, bound in metrics.items()}


def _metrics_codec(encoding: Encoding, count: int, clients: int, threshold: int) -> Codec | None:
    if not count:
        return None
    if encoding.mechanism is not None:
        raise EncodingError("metrics are summed without noise, so they cannot be asked for beside a mechanism")
    plain = replace(encoding, clip=None, value_clip=1.0, steps=None)
    return plain.codec(count, clients, threshold, bytes(SESSION_BYTES))


def _metric_elements(encoding: Encoding, count: int, clients: int, threshold: int) -> int:
    codec = _metrics_codec(encoding, count, clients, threshold)
    return 0 if codec is None else codec.vector_length


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def scaled_metrics(plan: RoundPlan, values: Mapping[str, float]) -> np.ndarray:
    """Each metric divided by its bound, float64 ``(metrics,)``; the codec clips what is beyond 1."""
    return np.array([values[name] / bound for name, bound in plan.metrics.items()])
