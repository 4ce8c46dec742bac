"""All of it: the network without privacy, then under every protocol that serves it; why others do not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pqi.demo.measure import machine, versions
from pqi.measure.errors import MeasureError
from pqi.measure.plain import Accuracies, Plain, measure_accuracy, measure_plain
from pqi.measure.private import Asked, Run, run
from pqi.measure.subject import Subject
from pqi.program.errors import ProgramError
from protocols import CATALOGUE, KEYED

Say = Callable[[str], None]
_QUERIES = 10
PRIVATE = tuple(name for name in (*CATALOGUE, *KEYED) if name != "clear")
"""The protocols that hide something, in the order in which they are measured."""


@dataclass(frozen=True)
class Bench:
    """What was found. plain: one per batch size. runs: one per protocol and batch size. refused: protocol -> why."""

    subject: str
    note: str
    inputs: int
    accuracies: Accuracies
    plain: Sequence[Plain]
    runs: Sequence[Run]
    refused: Mapping[str, str]
    versions: Mapping[str, str]
    machine: Mapping[str, Any]

    @property
    def held(self) -> bool:
        """Whether every answer was right and every byte declared, of every protocol that ran."""
        return all(each.truth.held for each in self.runs)

    def beside(self, one: Run) -> Plain:
        """Without privacy, in batches of the same size."""
        return next(plain for plain in self.plain if plain.batch == one.asked.batch)

    def to_json(self) -> dict[str, Any]:
        """Every figure, as plain JSON: each run carries all that is needed to read it alone."""
        return {
            "network": self.subject,
            "note": self.note,
            "inputs": self.inputs,
            "accuracies": self.accuracies.to_json(),
            "plain": [each.to_json() for each in self.plain],
            "runs": [self._run_json(each) for each in self.runs],
            "refused": dict(self.refused),
            "held": self.held,
            "versions": dict(self.versions),
            "machine": dict(self.machine),
        }

    def _run_json(self, one: Run) -> dict[str, Any]:
        figures, truth, plain = one.figures, one.truth, self.beside(one)
        seconds = {name: spread.to_json() for name, spread in figures.seconds.items()}
        return {
            "network": self.subject,
            "protocol": one.protocol,
            "model": one.model,
            "planned_for": one.asked.network,
            "topology": f"{', '.join(one.roles)}: one process each, one machine, TLS 1.3 over loopback",
            "batch": one.asked.batch,
            "samples": one.asked.samples,
            "float_accuracy": self.accuracies.floating,
            "integer_accuracy": self.accuracies.integer[one.model],
            "private_accuracy": truth.accuracy,
            "private_equals_integer": truth.equal,
            "same_decisions": truth.same_decisions,
            "largest_error": truth.largest_error,
            "error_bound": truth.error_bound,
            "noise_left_bits": truth.noise_left,
            "offline_seconds": figures.seconds["offline"].median,
            "online_seconds": figures.seconds["server"].median,
            "float32_seconds": None if plain.float32_seconds is None else plain.float32_seconds.median,
            "integer_seconds": plain.integer_seconds[one.model].median,
            "seconds": seconds,
            "keys_seconds": figures.keys_seconds,
            "keys_bytes": figures.keys_bytes,
            "question_bytes": figures.question_bytes,
            "answer_bytes": figures.answer_bytes,
            "offline_bytes": dict(figures.offline_bytes),
            "online_bytes": dict(figures.online_bytes),
            "exchanges": figures.exchanges,
            "queries": figures.queries,
            "as_declared": truth.as_declared,
            "peak_rss_mb": dict(one.peak_rss_mb),
            "facts": dict(one.facts),
            "security": {"adversary": one.security.adversary, "learns": dict(one.security.learns)},
            "versions": dict(self.versions),
            "machine": dict(self.machine),
        }


def measure(
    subject: Subject,
    protocols: Sequence[str] = PRIVATE,
    batches: Sequence[int] = (1,),
    samples: int | None = None,
    *,
    network: str = "lan",
    say: Say = lambda _: None,
) -> Bench:
    """Measure a subject in batches of each size under each protocol, after one batch to warm up.

    samples: inputs to ask of each, rounded up to whole batches (None: ten batches).
    A protocol that cannot serve the network is listed with its reason; any other failure is raised.
    """
    say("without privacy")
    accuracies = measure_accuracy(subject)
    plain = [measure_plain(subject, batch) for batch in batches]
    runs: list[Run] = []
    refused: dict[str, str] = {}
    for protocol in protocols:
        for batch in batches:
            queries = _QUERIES if samples is None else -(-samples // batch)
            say(f"{protocol}, {queries} batches of {batch}")
            try:
                runs.append(run(subject, protocol, Asked(batch, queries, network)))
            except (ProgramError, MeasureError) as error:
                refused[protocol] = str(error)
                break
    return Bench(subject.name, subject.note, len(subject.x), accuracies, plain, runs, refused, versions(), machine())
