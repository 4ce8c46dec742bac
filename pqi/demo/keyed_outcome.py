"""What the demonstration found under a client's key: measured figures beside declared ones, and whether it held."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pqi.demo.outcome import Plain
from pqi.session.ledger import Ledger, OwnLedger
from protocols.api import SecurityStatement
from protocols.keyed import KeyedCost


@dataclass(frozen=True)
class Compared:
    """Private answers beside the integer model's.

    equal: answers whose every integer is the reference's; None under an approximate protocol. largest_error: of a
    value; error_bound: what none may exceed (0 where exact). same_decisions: of the samples.
    """

    equal: int | None
    largest_error: float
    error_bound: float
    same_decisions: int


@dataclass(frozen=True)
class KeyedOutcome:
    """One run. declared: of each query asked, in order; keys go once. batch: inputs in the largest query.

    peak_rss_mb: role -> MB, the server's with its workers; the client is this process, which also trained.
    """

    network: str
    protocol: str
    roles: tuple[str, ...]
    samples: int
    batch: int
    plain: Plain
    compared: Compared
    private_accuracy: float
    declared: tuple[KeyedCost, ...]
    ledger: Ledger
    facts: Mapping[str, str]
    peak_rss_mb: Mapping[str, float]
    security: SecurityStatement
    versions: Mapping[str, str]
    machine: Mapping[str, Any]

    @property
    def own(self) -> OwnLedger:
        """What the client did with its keys."""
        return self.ledger.own or OwnLedger()

    @property
    def declared_bytes(self) -> dict[str, int]:
        """Of keys, questions and answers, over all queries."""
        return {
            "keys": self.declared[0].keys,
            "questions": sum(cost.question for cost in self.declared),
            "answers": sum(cost.answer for cost in self.declared),
        }

    @property
    def measured_bytes(self) -> dict[str, int]:
        """The same, as counted where they passed."""
        parties = self.ledger.parties.values()
        return {
            "keys": self.own.key_bytes,
            "questions": sum(party.client_received for party in parties),
            "answers": sum(party.client_sent for party in parties),
        }

    @property
    def as_declared(self) -> bool:
        """Whether every byte was declared before anything ran."""
        return self.measured_bytes == self.declared_bytes

    @property
    def held(self) -> bool:
        """What the demonstration claims: exact where that is promised, else within the bound with equal decisions."""
        found = self.compared
        exact = found.equal == self.samples
        close = found.largest_error <= found.error_bound and found.same_decisions == self.samples
        return (close if found.equal is None else exact) and self.as_declared

    def to_json(self) -> dict[str, Any]:
        """Every figure, as plain JSON; the names that other protocols use mean the same here."""
        found = self.compared
        return {
            "network": self.network,
            "protocol": self.protocol,
            "topology": f"{', '.join(self.roles)}: one process each (the server with workers), one machine, TLS 1.3 "
            "over loopback",
            "batch": self.batch,
            "samples": self.samples,
            "float_accuracy": self.plain.float_accuracy,
            "integer_accuracy": self.plain.integer_accuracy,
            "private_accuracy": self.private_accuracy,
            "private_equals_integer": None if found.equal is None else found.equal / self.samples,
            "same_decisions": found.same_decisions / self.samples,
            "largest_error": found.largest_error,
            "error_bound": found.error_bound,
            "offline_seconds": self.ledger.offline_seconds,
            "online_seconds": self.ledger.online_seconds,
            "total_seconds": self.ledger.seconds,
            "float32_seconds": self.plain.float32_seconds,
            "integer_seconds": self.plain.integer_seconds,
            "offline_bytes": self.ledger.offline_bytes,
            "online_bytes": self.ledger.online_bytes,
            "client_bytes": {
                role: {"received": party.client_received, "sent": party.client_sent}
                for role, party in self.ledger.parties.items()
            },
            "client": self.own.to_json(),
            "exchanges": self.ledger.exchanges,
            "queries": self.ledger.queries,
            "declared": self.declared_bytes,
            "as_declared": self.as_declared,
            "parameters": dict(self.facts),
            "peak_rss_mb": dict(self.peak_rss_mb),
            "security": {"adversary": self.security.adversary, "learns": dict(self.security.learns)},
            "versions": dict(self.versions),
            "machine": dict(self.machine),
        }
