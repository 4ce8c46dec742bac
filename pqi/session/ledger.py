"""What an answer cost: bytes, exchanges and seconds per party, phase and step. Lengths and times, nothing secret."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pqi.net.errors import BadFrame, printable

_MAX_STEPS = 100_000
_STEP_FIELDS = ("exchanges", "sent", "received", "compute_seconds", "network_seconds")


def peak_rss_of(pid: int | str) -> int | None:
    """The most memory that a process ever held, in bytes; None where the system does not tell."""
    with suppress(OSError, ValueError, IndexError):
        state = Path(f"/proc/{pid}/status").read_bytes()
        return int(state[state.index(b"VmHWM:") :].split(None, 2)[1]) * 1024
    return None


def peak_rss_bytes() -> int:
    """The most memory this process ever held, in bytes."""
    # The peak that getrusage reports starts, on Linux, with the parent's memory at the time of the fork.
    if (own := peak_rss_of("self")) is not None:
        return own
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024


@dataclass(frozen=True)
class PartyLedger:
    """One compute server's part.

    offline_*: dealt corrections received and the work on them, and the wait for the dealer. online_*: payload bytes to
    and from the other server, exchanges, seconds from the input's arrival to the result. client_*: payload bytes from
    and to the client. overhead_bytes: frame headers between the servers. steps: per step, the same counters.
    """

    role: str
    queries: int
    offline_seconds: float
    offline_wait_seconds: float
    offline_received: int
    online_seconds: float
    online_sent: int
    online_received: int
    exchanges: int
    overhead_bytes: int
    client_received: int
    client_sent: int
    peak_rss_bytes: int
    steps: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return {**self.__dict__, "steps": {label: dict(step) for label, step in self.steps.items()}}

    @classmethod
    def from_message(cls, data: Any, peer: str) -> PartyLedger:
        """From what a server sent; every number checked. Raises BadFrame."""
        if not isinstance(data, dict):
            raise BadFrame(peer, "a result without a ledger")
        numbers: dict[str, Any] = {}
        for name, kind in cls.__annotations__.items():
            if kind in ("int", "float"):
                numbers[name] = _number(data.get(name), whole=kind == "int", where=name, peer=peer)
        steps = data.get("steps")
        if (
            not isinstance(steps, dict)
            or len(steps) > _MAX_STEPS
            or not all(isinstance(s, dict) for s in steps.values())
        ):
            raise BadFrame(peer, "a ledger whose field 'steps' is not a table of steps")
        checked = {
            printable(label, 200): {
                name: _number(step.get(name), whole=False, where=f"steps.{name}", peer=peer) for name in _STEP_FIELDS
            }
            for label, step in steps.items()
        }
        return cls(role=peer, steps=checked, **numbers)

    def __add__(self, other: PartyLedger) -> PartyLedger:
        """Two queries of one server in one: everything adds up, except the memory peak."""
        sums = {
            name: getattr(self, name) + getattr(other, name)
            for name, kind in PartyLedger.__annotations__.items()
            if kind in ("int", "float")
        }
        sums["peak_rss_bytes"] = max(self.peak_rss_bytes, other.peak_rss_bytes)
        steps = {label: dict(step) for label, step in self.steps.items()}
        for label, step in other.steps.items():
            mine = steps.setdefault(label, dict.fromkeys(_STEP_FIELDS, 0))
            for name in _STEP_FIELDS:
                mine[name] += step[name]
        return PartyLedger(role=self.role, steps=steps, **sums)


@dataclass(frozen=True)
class OwnLedger:
    """What a client under a key did itself; its questions and answers are in the server's ledger.

    key_bytes: of evaluation keys sent, 0 where the server had them. *_seconds: making keys, encrypting, decrypting.
    noise_left: bits of the noise budget that the worst answer had left; None where there is no such budget.
    """

    key_bytes: int = 0
    key_seconds: float = 0.0
    encrypt_seconds: float = 0.0
    decrypt_seconds: float = 0.0
    noise_left: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return dict(self.__dict__)

    def __add__(self, other: OwnLedger) -> OwnLedger:
        """Two queries in one: everything adds up, except the noise."""
        left = [each for each in (self.noise_left, other.noise_left) if each is not None]
        return OwnLedger(
            self.key_bytes + other.key_bytes,
            self.key_seconds + other.key_seconds,
            self.encrypt_seconds + other.encrypt_seconds,
            self.decrypt_seconds + other.decrypt_seconds,
            min(left) if left else None,
        )


@dataclass(frozen=True)
class Ledger:
    """What one prediction cost in all: one PartyLedger per server, the queries it was cut into, the client's clock.

    own: under a keyed protocol, what the client did with its keys; else None.
    """

    parties: Mapping[str, PartyLedger]
    samples: int
    queries: int
    seconds: float
    own: OwnLedger | None = None

    @property
    def offline_seconds(self) -> float:
        """Work before the input is needed: the slower server's."""
        return max((party.offline_seconds for party in self.parties.values()), default=0.0)

    @property
    def online_seconds(self) -> float:
        """Work that depends on the input: the slower server's, network included."""
        return max((party.online_seconds for party in self.parties.values()), default=0.0)

    @property
    def exchanges(self) -> int:
        """Exchanges between the servers, over all queries."""
        return max((party.exchanges for party in self.parties.values()), default=0)

    @property
    def online_bytes(self) -> dict[str, int]:
        """Payload bytes that each server sent to the other."""
        return {role: party.online_sent for role, party in self.parties.items()}

    @property
    def offline_bytes(self) -> dict[str, int]:
        """Dealt bytes that each server consumed."""
        return {role: party.offline_received for role, party in self.parties.items()}

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "samples": self.samples,
            "queries": self.queries,
            "seconds": self.seconds,
            "offline_seconds": self.offline_seconds,
            "online_seconds": self.online_seconds,
            "exchanges": self.exchanges,
            "online_bytes": self.online_bytes,
            "offline_bytes": self.offline_bytes,
            "parties": {role: party.to_json() for role, party in self.parties.items()},
            **({} if self.own is None else {"client": self.own.to_json()}),
        }


def total(parts: Iterable[PartyLedger]) -> dict[str, PartyLedger]:
    """Sum per role."""
    sums: dict[str, PartyLedger] = {}
    for part in parts:
        sums[part.role] = sums[part.role] + part if part.role in sums else part
    return sums


def _number(value: Any, *, whole: bool, where: str, peer: str) -> Any:
    right = type(value) is int or (type(value) is float and not whole)
    if not right or not 0 <= value < 1 << 62:
        raise BadFrame(peer, f"a ledger whose field {where!r} is not a number of at least 0")
    return value
