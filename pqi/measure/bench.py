"""All of it: the network without privacy, then under every protocol that serves it; why others do not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pqi.demo.measure import machine, versions
from pqi.measure.errors import MeasureError
from pqi.measure.facts import Facts, facts
from pqi.measure.plain import Accuracies, Plain, measure_accuracy, measure_plain
from pqi.measure.points import Point, points
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
    """What was found. plain: one per batch size. runs: one per protocol and batch size. refused: protocol -> why.

    size: of the integer network, None where there is none. points: bytes against accuracy.
    """

    subject: str
    note: str
    inputs: int
    accuracies: Accuracies
    plain: Sequence[Plain]
    runs: Sequence[Run]
    refused: Mapping[str, str]
    versions: Mapping[str, str]
    machine: Mapping[str, Any]
    size: Facts | None = None
    points: Sequence[Point] = ()

    @property
    def held(self) -> bool:
        """Whether every answer was right and every byte declared, of every protocol that ran."""
        return all(each.truth.held and all(layer.as_declared for layer in each.layers) for each in self.runs)

    def beside(self, one: Run) -> Plain:
        """Without privacy, in batches of the same size: taken between the private ones, where it was."""
        return one.plain or next(plain for plain in self.plain if plain.batch == one.asked.batch)

    def to_json(self) -> dict[str, Any]:
        """Every figure, as plain JSON: each run carries all that is needed to read it alone."""
        return {
            "network": self.subject,
            "note": self.note,
            "inputs": self.inputs,
            "size": None if self.size is None else self.size.to_json(),
            "accuracies": self.accuracies.to_json(),
            "plain": [each.to_json() for each in self.plain],
            "runs": [self._run_json(each) for each in self.runs],
            "points": [each.to_json() for each in self.points],
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
            "weights": one.asked.weights if isinstance(one.asked.weights, str) else dict(one.asked.weights),
            "link": one.asked.link or "none",
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
            "float32_two_threads_seconds": None
            if plain.float32_two_threads is None
            else plain.float32_two_threads.median,
            "integer_seconds": plain.integer_seconds[one.model].median,
            "online_to_float32": ratio(one, plain),
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
            "layers": [each.to_json() for each in one.layers],
            "offline_alone": None if one.offline is None else dict(one.offline.__dict__),
            "facts": dict(one.facts),
            "security": {"adversary": one.security.adversary, "learns": dict(one.security.learns)},
            "versions": dict(self.versions),
            "machine": dict(self.machine),
        }


def ratio(one: Run, plain: Plain) -> float | None:
    """The slower server's online seconds by those of float32 on one thread, medians of batches in turn."""
    if plain.float32_seconds is None:
        return None
    return one.figures.seconds["server"].median / plain.float32_seconds.median


@dataclass(frozen=True)
class Wish:
    """What to measure. samples: inputs to ask of each, rounded up to whole batches (None: ten batches).

    network, link, weights: see :class:`pqi.measure.private.Asked`. recipes: (weight bits, activation bits) of further
    points of bytes against accuracy.
    """

    protocols: Sequence[str] = PRIVATE
    batches: Sequence[int] = (1,)
    samples: int | None = None
    network: str = "lan"
    link: str | None = None
    weights: str | Mapping[str, str] = "shared"
    recipes: Sequence[tuple[int, int]] = ()

    def asked(self, batch: int) -> Asked:
        """Of one protocol in batches of this size; where the time goes offline is looked at once."""
        queries = _QUERIES if self.samples is None else -(-self.samples // batch)
        return Asked(batch, queries, self.network, self.link, self.weights, profile=batch == self.batches[0])


def measure(subject: Subject, wish: Wish, say: Say = lambda _: None) -> Bench:
    """Measure a subject in batches of each size under each protocol, after one batch to warm up.

    A protocol that cannot serve the network is listed with its reason; any other failure is raised.
    """
    say("without privacy")
    accuracies = measure_accuracy(subject)
    runs: list[Run] = []
    refused: dict[str, str] = {}
    for protocol in wish.protocols:
        for batch in wish.batches:
            asked = wish.asked(batch)
            say(f"{protocol}, {asked.queries} batches of {batch}")
            try:
                runs.append(run(subject, protocol, asked))
            except (ProgramError, MeasureError) as error:
                refused[protocol] = str(error)
                break
    plain = [_beside(subject, batch, [one.plain for one in runs if one.asked.batch == batch]) for batch in wish.batches]
    on_shares = [one.protocol for one in runs if one.protocol in PRIVATE and one.protocol in CATALOGUE]
    found = points(subject, wish.recipes, on_shares[0], wish.network, say) if on_shares else ()
    size = None if subject.integer is None else facts(subject.integer)
    return Bench(
        subject.name, subject.note, len(subject.x), accuracies, plain, runs, refused, versions(), machine(), size, found
    )


def _beside(subject: Subject, batch: int, found: Sequence[Plain | None]) -> Plain:
    """Without privacy in batches of one size: as it was between the private ones of the first protocol."""
    known = [plain for plain in found if plain is not None]
    if not known:
        return measure_plain(subject, batch)
    integer = {kind: spread for plain in reversed(known) for kind, spread in plain.integer_seconds.items()}
    return replace(known[0], integer_seconds=integer)
