"""A deployment, asked by its client: do lengths, counts or times depend on what is asked?

Two kinds of inputs take turns: all zeros, and values far apart drawn anew for every question. What the ledgers count
(bytes to and from every party, exchanges, step by step) must be the same for all questions, to the byte. Times are
compared by the Mann-Whitney test (1947), which asks whether those of one kind tend to be longer. A machine's load comes
and goes: kinds take turns, in random order within each pair, so that it meets both alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pqi.audit.attack import Progress
from pqi.audit.errors import AuditError
from pqi.audit.transcripts import Check
from pqi.session.client import Client
from pqi.session.ledger import Ledger

KINDS = ("zeros", "far apart")
TIMING_ALARM = 1e-3  # times are noisy; what looks odd is worth a second, longer look
_TIMES = ("seconds", "online_seconds", "offline_seconds", "offline_wait_seconds", "overhead_bytes", "peak_rss_bytes")
_LEAST = 8  # questions of each kind


@dataclass(frozen=True)
class Comparison:
    """What was seen. questions: of each kind. medians: seconds by kind. p: of the Mann-Whitney test."""

    protocol: str
    questions: int
    checks: tuple[Check, ...]
    medians: Mapping[str, float]

    @property
    def passed(self) -> bool:
        """Whether nothing differed."""
        return all(check.passed for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        checks = [dict(check.__dict__) for check in self.checks]
        head = {"protocol": self.protocol, "questions": self.questions, "passed": self.passed}
        return {**head, "median seconds": dict(self.medians), "checks": checks}


def compare(
    config: str | Path, questions: int = 40, batch: int = 1, seed: int = 0, progress: Progress | None = None
) -> Comparison:
    """Ask a running deployment ``questions`` times with each kind of ``batch`` inputs, after one of each unseen."""
    if questions < _LEAST:
        raise AuditError(f"{questions} questions of each kind: times need at least {_LEAST}")
    generator = np.random.default_rng(seed)
    ledgers: dict[str, list[Ledger]] = {kind: [] for kind in KINDS}
    with Client(config) as client:
        shape = client.program.input_shape
        for turn in range(questions + 1):
            for kind in generator.permutation(KINDS).tolist():
                x = _inputs(kind, (batch, *shape), generator)
                answer = client.predict(x, on_saturation="silent")
                if turn:  # the first question of each kind makes connections and keys
                    ledgers[kind].append(answer.ledger)
            if progress is not None:
                progress(turn + 1, questions + 1)
        protocol = client.program.protocol
    return judged(protocol, ledgers)


def _inputs(kind: str, shape: tuple[int, ...], generator: np.random.Generator) -> NDArray[np.float64]:
    """All zeros, or numbers so large that every code is at one end of its range or the other."""
    if kind == KINDS[0]:
        return np.zeros(shape)
    return generator.choice([-1e6, 1e6], size=shape)


def judged(protocol: str, ledgers: Mapping[str, Sequence[Ledger]]) -> Comparison:
    """Checks on what two kinds of questions cost."""
    shapes = {kind: {counts(ledger) for ledger in found} for kind, found in ledgers.items()}
    every = set().union(*shapes.values())
    sizes = f"{len(every)} pattern of bytes and exchanges over all questions" + (
        "" if len(every) == 1 else ": they differ"
    )
    times = [np.array([ledger.online_seconds for ledger in found]) for found in ledgers.values()]
    p = mann_whitney(*times)
    medians = {kind: float(np.median(seconds)) for kind, seconds in zip(ledgers, times, strict=True)}
    words = ", ".join(f"{kind}: {1000 * seconds:.2f} ms" for kind, seconds in medians.items())
    checks = (
        Check("lengths and counts", "all", len(every) == 1, sizes),
        Check("online time", "servers", p > TIMING_ALARM, f"medians {words}", p),
    )
    return Comparison(protocol, min(map(len, ledgers.values())), checks, medians)


def counts(ledger: Ledger) -> tuple[Any, ...]:
    """All that a ledger counts and that is neither time nor memory, in a form that can be compared."""
    found: list[Any] = [ledger.samples, ledger.queries]
    for role, party in sorted(ledger.parties.items()):
        plain = {key: value for key, value in party.to_json().items() if key not in _TIMES and "seconds" not in key}
        steps = plain.pop("steps")
        found.append((role, tuple(sorted((key, value) for key, value in plain.items() if key != "role"))))
        for label, step in sorted(steps.items()):
            found.append((role, label, *(step[name] for name in ("exchanges", "sent", "received"))))
    return tuple(found)


def mann_whitney(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Two-sided p-value that neither of two samples tends to be larger; normal, with ties and continuity."""
    m, n = len(first), len(second)
    if not (m and n):
        raise AuditError(f"{m} and {n} times: both kinds are needed")
    values = np.concatenate([first, second])
    _, inverse, ties = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(ties)
    ranks = (ends - (ties - 1) / 2)[inverse]
    u = float(ranks[:m].sum() - m * (m + 1) / 2)
    total = m + n
    spread = m * n / 12 * (total + 1 - float((ties**3 - ties).sum()) / (total * (total - 1)))
    if spread <= 0:
        return 1.0
    z = max(0.0, abs(u - m * n / 2) - 0.5) / math.sqrt(spread)
    return math.erfc(z / math.sqrt(2))
