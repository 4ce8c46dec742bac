"""The ends of a program: the owner splits weights, the dealer deals, parties run, the client encodes and decodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from pqi.graph.model import IntegerModel
from pqi.program.compiler import operands
from pqi.program.errors import ProgramError
from pqi.program.instructions import INPUT, Program
from pqi.program.interface import Interface
from pqi.program.windows import Windows
from protocols import ring
from protocols.api import Step
from protocols.errors import Misuse
from protocols.prg import Random, Secret
from protocols.protocol import DealerRole
from protocols.rounds import PartyId, Steps


def split_weights(model: IntegerModel, program: Program) -> dict[PartyId, dict[str, Tensor]]:
    """Model owner: what each role stores, drawn afresh at every call; shares of two calls do not go together."""
    roles = (*program.parties, PartyId.DEALER) if program.needs_dealer else program.parties
    out: dict[PartyId, dict[str, Tensor]] = {p: {} for p in roles}
    rng, secret = Random(), operands(model, program)
    for name, step, _ in program.steps:
        if name in secret:
            for party, stored in program.backend.share_operands(name, step, secret[name], rng).items():
                out[party] |= {key: value.contiguous() for key, value in stored.items()}
    return out


class Dealer(Secret):
    """The dealer of one program. ``new_epoch`` forgets everything about the one before."""

    def __init__(self, program: Program, tensors: Mapping[str, Tensor]) -> None:
        self._program, self._tensors = program, dict(tensors)
        self._epoch: DealerRole | None = None

    def new_epoch(self) -> tuple[bytes, bytes]:
        """Fresh keys for P0 and P1; items count from 0 again."""
        self._epoch = self._program.backend.dealer(self._program.steps, self._tensors)
        return self._epoch.keys_for(PartyId.P0), self._epoch.keys_for(PartyId.P1)

    def deal(self, first_item: int, n: int) -> bytes:
        """P1's ``n * record_bytes`` bytes for items ``first_item .. first_item+n-1`` of this epoch, each dealt once."""
        if self._epoch is None:
            raise Misuse("deal was called before new_epoch")
        return self._epoch.deal(first_item, n)


@dataclass(frozen=True, repr=False, eq=False)
class Prepared(Secret):
    """Material expanded for n items of one party; good for one run."""

    n: int
    ready: Any


class PartyRunner:
    """A compute party: its part of the model, ready to serve batches."""

    def __init__(self, program: Program, party: PartyId, tensors: Mapping[str, Tensor]) -> None:
        self.program, self.party = program, party
        self._role = program.backend.party(program.steps, party, tensors)
        self._last_use = {x: i for i, code in enumerate(program.instructions) for x in code.inputs}

    def prepare(self, keys: bytes, first_item: int, n: int, corrections: bytes) -> Prepared:
        """Offline work for items ``first_item .. first_item+n-1``, which the caller has durably marked as used."""
        return Prepared(n, self._role.prepare(keys, first_item, n, corrections))

    def run(self, prepared: Prepared, message_from_client: bytes) -> Steps[bytes]:
        """Online: the client's message in, rounds with the other party, the message for the client out."""
        p = self.program
        flat = ring.unpack(message_from_client, p.input_ring, prepared.n * prod(p.input_shape))
        values = {INPUT: flat.reshape(prepared.n, *p.input_shape)}
        for at, code in enumerate(p.instructions):
            inputs = [values[x] for x in code.inputs]
            for x in set(code.inputs):
                if self._last_use[x] == at and x != p.output:
                    del values[x]
            if isinstance(code.action, Step):
                values[code.name] = yield from self._role.run_step(prepared.ready, code.name, code.action, inputs[0])
            elif isinstance(code.action, Windows):
                values[code.name] = code.action.apply(inputs[0], self.party is PartyId.P0)
            else:
                values[code.name] = code.action.evaluate(_one_word(inputs))
        return ring.pack(values[p.output].reshape(-1), p.output_ring).tobytes()


def _one_word(inputs: list[Tensor]) -> list[Tensor]:
    """Local operators act on equal words; a share in a wider word is one in a narrower ring, too."""
    widest = max((x.dtype for x in inputs), key=lambda t: t.itemsize)
    return [x.to(widest) for x in inputs]


def encode_input(program: Program | Interface, codes: Tensor) -> dict[PartyId, bytes]:
    """Client: codes int64 ``(N, *input_shape)`` -> the message for each compute party."""
    if tuple(codes.shape[1:]) != program.input_shape or codes.dtype is not torch.int64:
        raise ProgramError(f"codes are {codes.dtype} {tuple(codes.shape)}; int64 (N, {program.input_shape}) is needed")
    shares = program.backend.share_input(codes, program.input_ring)
    return {p: ring.pack(x.reshape(-1), program.input_ring).tobytes() for p, x in shares.items()}


def decode_output(program: Program | Interface, n: int, messages: Mapping[PartyId, bytes]) -> Tensor:
    """Client: the parties' messages -> int64 ``(n, *output_shape)``. Raises ``PeerMisbehaved`` on a wrong length."""
    count = n * prod(program.output_shape)
    shares = {p: ring.unpack(m, program.output_ring, count) for p, m in messages.items()}
    return program.backend.reconstruct(shares, program.output_ring).reshape(n, *program.output_shape)
