"""Run a whole program with every role in one thread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

import pqi.program as program
from pqi.graph.model import IntegerModel
from protocols.devices import CPU
from protocols.rounds import PartyId
from protocols.simulate import Transcript, simulate


@dataclass
class Run:
    """The decoded answer, what crossed the wire, and how many bytes were dealt."""

    answer: Tensor
    log: Transcript[bytes]
    dealt: int


def run(
    model: IntegerModel,
    compiled: program.Program,
    codes: Tensor,
    places: Mapping[PartyId, torch.device] | None = None,
) -> Run:
    """Split, deal, prepare, run, decode. places: the devices of those that are not on the processor."""
    stored = program.split_weights(model, compiled)
    n, dealt, keys = codes.shape[0], b"", (b"", b"")
    where = dict.fromkeys(PartyId, CPU) | dict(places or {})
    if compiled.needs_dealer:
        dealer = program.Dealer(compiled, stored[PartyId.DEALER], where[PartyId.DEALER])
        keys = dealer.new_epoch()
        dealt = dealer.deal(0, n)
    messages = program.encode_input(compiled, codes)
    parties = {}
    for p in compiled.parties:
        runner = program.PartyRunner(compiled, p, stored[p], where[p])
        prepared = runner.prepare(keys[p], 0, n, dealt if p is PartyId.P1 else b"")
        parties[p] = runner.run(prepared, messages[p])
    log = simulate(parties)
    return Run(program.decode_output(compiled, n, log.results), log, len(dealt))
