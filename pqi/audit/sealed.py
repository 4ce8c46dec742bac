"""Transcripts that need not be uniform, tested for leakage: ciphertexts under a client's key, and secure sums.

Two inputs as far apart as there are, many runs of each, with one key; what the server receives of both must be alike:

===========  =======================================================================================================
shape        number and lengths of messages are the same for every input
fresh        no client's message comes twice, of whichever input
two inputs   the bytes of each message have one distribution (chi-square of homogeneity), and so has every single bit
             (Hoeffding's bound on the difference of two counts)
===========  =======================================================================================================

A sum tells its server the sum. So the two inputs of a sum are the same vectors in other hands: what is told is equal,
and who gave which must not show. ``clear`` claims nothing, is held to the same and has to fail "two inputs".

This tests the code's randomness and its lengths. That ciphertexts hide what they hold rests on assumptions about
lattices and factoring, which no transcript can test.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

import protocols
from pqi.audit import transcripts
from pqi.audit.attack import Progress
from pqi.audit.errors import AuditError
from pqi.audit.transcripts import ALARM, Check, Verdict, extremes, model_of, weights_of
from pqi.audit.views import View, chi_square
from pqi.graph.ops import Dense
from pqi.program.keyed import compile_keyed
from protocols.aggregation_local import sum_here

SERVER = "server"
SUM = "sum:"
_HELPER = "helper"
LEAST = 64  # runs of each input, for one bit among millions to stand out
_EXPECTED = 10  # samples of a byte's value, in both inputs' messages together, to be looked at
_CLIENTS, _LENGTH, _BITS, _THRESHOLD = 4, 64, 16, 3


SLOW = ("sum:paillier",)  # makes keys of 3072 bits in every run: minutes, so it is made when it is named


def names() -> tuple[str, ...]:
    """Everything whose transcripts are tested: protocols on shares, under a key, and sums as "sum:NAME"."""
    return (
        *sorted(protocols.CATALOGUE),
        *sorted(protocols.KEYED),
        *(f"{SUM}{name}" for name in sorted(protocols.SUMS)),
    )


def audited(name: str, runs: int = 100, progress: Progress | None = None) -> Verdict:
    """Every check of the protocol of that name, of :func:`names`; raises AuditError that lists them.

    runs: of each experiment, at least 48; ciphertexts and sums are given at least 64. Raises BadParameters where what a
    protocol needs is not installed.
    """
    if name not in names():
        raise AuditError(f"there is no protocol {name!r} to test; there are: {', '.join(names())}")
    if name.startswith(SUM):
        return audit_sum(name.removeprefix(SUM), max(runs, LEAST), progress)
    if name in protocols.KEYED:
        return audit_keyed(name, max(runs, LEAST), progress)
    return transcripts.audit(name, runs, progress)


def audit_keyed(protocol: str, runs: int = 100, progress: Progress | None = None) -> Verdict:
    """Every check of one protocol of ``protocols.KEYED``: what its server is sent. runs: of each input, at least 64.

    Raises BadParameters where what it needs is not installed.
    """
    backend = protocols.get_keyed(protocol)
    model = model_of((16,), -128, 127, [("scores", Dense(weights_of(8, 16), torch.arange(8)))])
    program = compile_keyed(model, protocol)
    holder = backend.key_holder(program.plan)

    def question(codes: torch.Tensor) -> View:
        parts = holder.encrypt(codes.reshape(1, -1).numpy())
        return View(tuple((f"question {i}", part) for i, part in enumerate(parts)))

    made = [lambda codes=codes: question(codes) for codes in extremes(model).values()]
    return _verdict(protocol, True, backend.security.adversary, made, runs, progress)


def audit_sum(protocol: str, runs: int = 100, progress: Progress | None = None) -> Verdict:
    """Every check of one protocol of ``protocols.SUMS``: what its server is answered by clients and helpers."""
    backend = protocols.get_sum(protocol)
    plan = backend.plan(_CLIENTS, _LENGTH, _BITS, _THRESHOLD)
    ends = np.array([0, (1 << _BITS) // _CLIENTS - 1], np.uint64)

    def view(turn: int) -> View:
        """Every other client holds the largest values: those of even numbers, or those of odd ones."""
        received: list[tuple[str, bytes]] = []

        def watch(stage: str, party: int | str, direction: str, message: bytes) -> bytes:
            if direction == "answer":
                who = f"client {party}" if isinstance(party, int) else f"{_HELPER} {party}"
                received.append((f"{who}, {stage}", message))
            return message

        rows = [np.full(_LENGTH, ends[(number + turn) % 2]) for number in range(_CLIENTS)]
        sum_here(backend, plan, rows, tamper=watch)
        return View(tuple(received))

    made = [lambda turn=turn: view(turn) for turn in (0, 1)]
    adversary = backend.statement(plan).adversary
    return _verdict(f"{SUM}{protocol}", backend.secure, adversary, made, runs, progress)


class Tally:
    """What is counted of many views of one input: constant memory, however many there are."""

    def __init__(self) -> None:
        self.runs, self.shapes = 0, set[tuple[tuple[str, int], ...]]()
        self.digests: list[bytes] = []
        self.ones = np.zeros(0, np.int64)
        self.bytes: list[NDArray[np.int64]] = []

    def add(self, view: View) -> None:
        """One more; views of another shape than the first one's are only told to be so."""
        self.runs += 1
        self.shapes.add(view.shape)
        # What a helper opens is the sum, and the same sum is the same message.
        told = [message for source, message in view.messages if not source.startswith(_HELPER)]
        self.digests += [hashlib.sha256(message).digest() for message in told]
        if len(self.shapes) > 1:
            return
        parts = [np.frombuffer(message, np.uint8) for _, message in view.messages]
        counts = [np.bincount(part, minlength=256) for part in parts]
        ones = np.unpackbits(np.concatenate(parts)) if parts else np.zeros(0, np.uint8)
        if self.runs == 1:
            self.bytes, self.ones = counts, ones.astype(np.int64)
        else:
            self.bytes = [known + more for known, more in zip(self.bytes, counts, strict=True)]
            self.ones += ones


def alike(first: Tally, second: Tally) -> float:
    """p-value that both inputs are told of alike, for all looks together. Both have one shape, and as many runs."""
    if first.shapes != second.shapes or len(first.shapes) != 1 or first.runs != second.runs:
        raise AuditError("these views differ in number, order or lengths of messages, or in how many there are")
    worst, looks = 1.0, 0
    for one, other in zip(first.bytes, second.bytes, strict=True):
        kept = one + other >= _EXPECTED
        if kept.sum() < 2:
            continue
        table = np.stack([one[kept], other[kept]]).astype(np.float64)
        expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
        worst = min(worst, chi_square(float(((table - expected) ** 2 / expected).sum()), int(kept.sum()) - 1))
        looks += 1
    apart = int(np.abs(first.ones - second.ones).max()) if first.ones.size else 0
    by_bit = min(1.0, 2 * len(first.ones) * math.exp(-(apart**2) / (2 * first.runs)))
    return min(1.0, 2 * min(worst * max(looks, 1), by_bit))


def _verdict(
    name: str,
    claims: bool,
    adversary: str,
    made: Sequence[Callable[[], View]],
    runs: int,
    progress: Progress | None,
) -> Verdict:
    if runs < LEAST:
        raise AuditError(f"{runs} runs: at least {LEAST} of each input are needed to tell two inputs apart")
    tallies = [Tally() for _ in made]
    for run in range(runs):
        for tally, view in zip(tallies, made, strict=True):
            tally.add(view())
        if progress is not None:
            progress(run + 1, runs)
    return Verdict(name, claims, adversary, runs, judged(*tallies))


def judged(first: Tally, second: Tally) -> tuple[Check, ...]:
    """The three checks."""
    shapes, digests = first.shapes | second.shapes, first.digests + second.digests
    fresh = len(digests) - len(set(digests))
    checks = [
        Check("shape", SERVER, len(shapes) == 1, f"2 inputs, {len(shapes)} order of messages and lengths"),
        Check("fresh", SERVER, not fresh, f"{len(digests)} messages, of which {fresh} came before"),
    ]
    if len(shapes) == 1:
        p, size = alike(first, second), sum(length for _, length in next(iter(shapes)))
        words = f"{size:,} bytes in {len(next(iter(shapes)))} messages, {first.runs} runs of each of 2 inputs"
        checks.append(Check("two inputs", SERVER, p > ALARM, words, p))
    else:
        checks.append(Check("two inputs", SERVER, False, "messages of different lengths need no other look"))
    return tuple(checks)
