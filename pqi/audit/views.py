"""What each role of a protocol sees of one inference, run after run, and how uniform that is.

A *view* is everything that reaches a role: its part of the model, the client's message, dealt records, the other
server's messages; of the client, one server's share of the answer. Views come from the very code that serves: owner,
dealer, parties and client of :mod:`pqi.program`, in one thread.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pqi.audit.errors import AuditError
from pqi.graph.model import IntegerModel
from pqi.program import Dealer, PartyRunner, Program, encode_input, split_weights
from pqi.program.roles import decode_output
from protocols import ring
from protocols.rounds import PartyId
from protocols.simulate import simulate

Bytes = NDArray[np.uint8]
ROLES = {PartyId.P0: "server A", PartyId.P1: "server B"}
Shape = tuple[tuple[str, int], ...]
_PAIRS_AT_ONCE = 2048
_PAIRED = 6000  # bits
_CELLS = {8: 1280, 4: 80}  # at least so many samples, five a cell, for histograms of bytes and of half bytes


@dataclass(frozen=True, eq=False)
class View:
    """What one role received in one run: (where from, bytes), in order."""

    messages: tuple[tuple[str, bytes], ...]

    @property
    def shape(self) -> Shape:
        """Where from and how long: what may not depend on anything secret."""
        return tuple((source, len(message)) for source, message in self.messages)

    @property
    def whole(self) -> bytes:
        """All of it in a row."""
        return b"".join(message for _, message in self.messages)


@dataclass(frozen=True, eq=False)
class Inference:
    """One run: every role's view, and the answer int64 (n, *output shape)."""

    views: dict[str, View]
    answer: Tensor


@dataclass(frozen=True, eq=False)
class Known:
    """What a corrupted server holds before the run, to be the same in every run: its number, its keys, its share of
    the input, and both servers' parts of the model (more than it has: the test is only harder for it)."""

    party: PartyId
    keys: bytes
    message: bytes
    stored: dict[PartyId, dict[str, Tensor]]


class Theatre:
    """Runs a program again and again, with all randomness drawn afresh but for what a corrupted server knows."""

    def __init__(self, model: IntegerModel, program: Program) -> None:
        self.model, self.program = model, program

    def knowledge(self, party: PartyId, codes: Tensor) -> Known:
        """Of a run that is not shown: keys, a share of the input, parts of the model."""
        stored = split_weights(self.model, self.program)
        keys = self._dealer(stored).new_epoch()[party]
        return Known(party, keys, encode_input(self.program, codes)[party], stored)

    def run(self, codes: Tensor, known: Known | None = None) -> Inference:
        """One inference on codes int64 (n, *input shape)."""
        p, n = self.program, len(codes)
        stored = split_weights(self.model, p) if known is None else known.stored
        messages = encode_input(p, codes) if known is None else self._shared(codes, known)
        keys, record = self._dealt(stored, n, known)
        parties = {}
        for party in p.parties:
            runner = PartyRunner(p, party, stored[party])
            prepared = runner.prepare(keys.get(party, b""), 0, n, record if party is PartyId.P1 else b"")
            parties[party] = runner.run(prepared, messages[party])
        log = simulate(parties)
        views = {}
        for party in p.parties:
            seen = [] if known is not None else [("owner", _raw(value)) for value in stored[party].values()]
            seen += [] if known is not None and known.party is party else [("client", messages[party])]
            seen += [("dealer", bytes(record))] if party is PartyId.P1 else []
            views[ROLES[party]] = View((*seen, *((ROLES[q], bytes(m)) for q, m in log.received[party])))
        views["client"] = View(((ROLES[p.parties[0]], log.results[p.parties[0]]),))
        return Inference(views, decode_output(p, n, log.results))

    def _shared(self, codes: Tensor, known: Known) -> dict[PartyId, bytes]:
        """The share that is known, and the other so that both make these codes."""
        p, other = self.program, next(q for q in self.program.parties if q is not known.party)
        mine = ring.unpack(known.message, p.input_ring, codes.numel())
        rest = ring.to_word(codes.reshape(-1), p.input_ring) - mine
        return {known.party: known.message, other: ring.pack(rest, p.input_ring).tobytes()}

    def _dealer(self, stored: dict[PartyId, dict[str, Tensor]]) -> Dealer:
        return Dealer(self.program, stored[PartyId.DEALER])

    def _dealt(
        self, stored: dict[PartyId, dict[str, Tensor]], n: int, known: Known | None
    ) -> tuple[dict[PartyId, bytes], bytes | memoryview]:
        """Keys and P1's record of a fresh epoch, in which a corrupted server's keys are those it has."""
        if not self.program.needs_dealer:
            return {}, b""
        dealer = self._dealer(stored)
        keys = dict(zip((PartyId.P0, PartyId.P1), dealer.new_epoch(), strict=True))
        if known is not None:
            secret = dealer.expose_epoch()
            if secret.count(keys[known.party]) != 1:
                raise AuditError(f"the epoch's secret does not hold the keys of {known.party} as they are sent")
            again = dealer.new_epoch(secret.replace(keys[known.party], known.keys))
            keys = dict(zip((PartyId.P0, PartyId.P1), again, strict=True))
            if keys[known.party] != known.keys:
                raise AuditError(f"an epoch cannot be dealt in which {known.party} has given keys")
        return keys, dealer.deal(0, n)


def _raw(value: Tensor) -> bytes:
    return value.contiguous().numpy().tobytes()


# --- tests --------------------------------------------------------------------------------------------------------
# Each gives one p-value, corrected for how many looks it took (Bonferroni): the chance that uniform, independent bytes
# look at least so strange somewhere.


def table(views: Sequence[View]) -> Bytes:
    """Views of one shape as rows, uint8 (runs, bytes)."""
    if len({view.shape for view in views}) != 1:
        raise AuditError("these views differ in number, order or lengths of messages")
    return np.stack([np.frombuffer(view.whole, np.uint8) for view in views])


def by_message(views: Sequence[View]) -> float:
    """Chi-square of the histogram of each message's bytes (of half bytes, where there are few), over all runs."""
    worst, looks = 1.0, 0
    rows, at = table(views), 0
    for _, length in views[0].shape:
        part, at = rows[:, at : at + length].reshape(-1), at + length
        if part.size >= _CELLS[8]:
            counts = np.bincount(part, minlength=256)
        elif 2 * part.size >= _CELLS[4]:
            counts = np.bincount(np.concatenate([part & 15, part >> 4]), minlength=16)
        else:
            continue
        expected = counts.sum() / len(counts)
        worst = min(worst, chi_square(float(((counts - expected) ** 2 / expected).sum()), len(counts) - 1))
        looks += 1
    return min(1.0, worst * looks) if looks else 1.0


def by_bit(views: Sequence[View]) -> float:
    """Each single bit is 1 in half of the runs: the exact binomial tail of the least balanced one."""
    bits = np.unpackbits(table(views), axis=1)
    if not bits.size:
        return 1.0
    ones = bits.sum(axis=0, dtype=np.int64)
    extreme = int(np.maximum(ones, len(bits) - ones).max())
    return min(1.0, two_sided(extreme, len(bits)) * int(bits.shape[1]))


def by_pair(views: Sequence[View]) -> float:
    """Any two bits of a view agree in half of the runs. A mask used twice, of whichever messages, fails here.

    All bits of what the other server sends, and of all else as many as 6000 allow, drawn from a fixed seed.
    """
    signs = np.unpackbits(table(views)[:, _looked_at(views[0])], axis=1).astype(np.float32) * 2 - 1
    runs, bits = signs.shape
    if bits < 2:
        return 1.0
    extreme = 0.0
    for start in range(0, bits, _PAIRS_AT_ONCE):
        products = np.abs(signs[:, start : start + _PAIRS_AT_ONCE].T @ signs[:, start:])
        np.fill_diagonal(products, 0)
        extreme = max(extreme, float(products.max()))
    agree = (runs + round(extreme)) // 2
    return min(1.0, two_sided(agree, int(runs)) * float(bits * (bits - 1) / 2))


def _looked_at(view: View) -> NDArray[np.int64]:
    """Positions of bytes for pairs: the servers' first."""
    order, at = [], 0
    generator = np.random.default_rng(0)
    for source, length in view.shape:
        first = source not in ("owner", "client", "dealer")
        order.append(np.stack([np.where(first, -1.0, generator.random(length)), np.arange(at, at + length)]))
        at += length
    ranked = np.concatenate(order, axis=1) if order else np.empty((2, 0))
    return np.sort(ranked[1][np.argsort(ranked[0], kind="stable")][: _PAIRED // 8]).astype(np.int64)


def chi_square(statistic: float, freedom: int) -> float:
    """P(a chi-square variable of that many degrees of freedom is no smaller)."""
    half = torch.tensor([freedom / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def two_sided(count: int, n: int) -> float:
    """P(of n fair coins, one side comes up at least ``count`` times), count >= n / 2."""
    log = [
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2) for i in range(count, n + 1)
    ]
    return min(1.0, 2 * sum(map(math.exp, log)))
