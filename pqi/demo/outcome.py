"""What the demonstration found: measured figures beside declared ones, and whether the claim held."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pqi.session.ledger import Ledger
from protocols.api import SecurityStatement
from protocols.cost import Cost


@dataclass(frozen=True)
class Plain:
    """The same images without privacy: accuracy and seconds of the float network and of the integer model."""

    float_accuracy: float
    integer_accuracy: float
    float32_seconds: float
    integer_seconds: float


@dataclass(frozen=True)
class Outcome:
    """One run. equal: answers whose every output integer equals the reference's. declared: of the very batches asked.

    peak_rss_mb: role -> MB; the client is this process, which also trained. batch: inputs in a full query.
    """

    protocol: str
    planned_for: str
    roles: tuple[str, ...]
    samples: int
    batch: int
    plain: Plain
    equal: int
    private_accuracy: float
    declared: Cost
    ledger: Ledger
    peak_rss_mb: Mapping[str, float]
    security: SecurityStatement
    versions: Mapping[str, str]
    machine: Mapping[str, Any]

    @property
    def private_equals_integer(self) -> float:
        """Share of answers that equal the plaintext integer reference in every output integer."""
        return self.equal / self.samples

    @property
    def as_declared(self) -> bool:
        """Whether exchanges and bytes are, to the byte, what the program declared before anything ran."""
        sent, dealt = set(self.ledger.online_bytes.values()), sum(self.ledger.offline_bytes.values())
        return (
            self.ledger.exchanges == self.declared.exchanges
            and sent == {self.declared.online_bytes}
            and dealt == self.declared.dealt_bytes
        )

    @property
    def held(self) -> bool:
        """Whether every answer was exact and every cost as declared: what the demonstration claims."""
        return self.equal == self.samples and self.as_declared

    @property
    def client_bytes(self) -> dict[str, dict[str, int]]:
        """Per server: payload bytes that it got from the client, and sent to it."""
        return {
            role: {"received": party.client_received, "sent": party.client_sent}
            for role, party in self.ledger.parties.items()
        }

    def to_json(self) -> dict[str, Any]:
        """Every figure, as plain JSON."""
        waits = [party.offline_wait_seconds for party in self.ledger.parties.values()]
        return {
            "network": "digits-cnn",
            "protocol": self.protocol,
            "planned_for": self.planned_for,
            "topology": f"{', '.join(self.roles)}: one process each, one machine, TLS 1.3 over loopback",
            "batch": self.batch,
            "samples": self.samples,
            "float_accuracy": self.plain.float_accuracy,
            "integer_accuracy": self.plain.integer_accuracy,
            "private_accuracy": self.private_accuracy,
            "private_equals_integer": self.private_equals_integer,
            "offline_seconds": self.ledger.offline_seconds,
            "offline_wait_seconds": max(waits, default=0.0),
            "online_seconds": self.ledger.online_seconds,
            "total_seconds": self.ledger.seconds,
            "float32_seconds": self.plain.float32_seconds,
            "integer_seconds": self.plain.integer_seconds,
            "offline_bytes": self.ledger.offline_bytes,
            "online_bytes": self.ledger.online_bytes,
            "client_bytes": self.client_bytes,
            "exchanges": self.ledger.exchanges,
            "queries": self.ledger.queries,
            "declared": {
                "exchanges": self.declared.exchanges,
                "online_bytes_per_party": self.declared.online_bytes,
                "dealt_bytes": self.declared.dealt_bytes,
            },
            "as_declared": self.as_declared,
            "peak_rss_mb": dict(self.peak_rss_mb),
            "security": {"adversary": self.security.adversary, "learns": dict(self.security.learns)},
            "versions": dict(self.versions),
            "machine": dict(self.machine),
        }
