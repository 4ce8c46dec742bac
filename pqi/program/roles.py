"""The ends of a program: the owner splits weights, the dealer deals, parties run, the client encodes and decodes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from pqi.graph.model import IntegerModel
from pqi.program.compiler import operands
from pqi.program.errors import ProgramError
from pqi.program.instructions import Instruction, Program
from pqi.program.interface import Interface
from pqi.program.schedule import Schedule
from pqi.program.windows import Windows
from protocols import ring
from protocols.api import Step
from protocols.devices import CPU
from protocols.errors import Misuse
from protocols.prg import Random, Secret
from protocols.protocol import DealerRole
from protocols.rounds import Message, PartyId, Steps


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
    """The dealer of one program. ``new_epoch`` forgets everything about the one before. device: where it deals."""

    def __init__(self, program: Program, tensors: Mapping[str, Tensor], device: torch.device = CPU) -> None:
        self._program, self._tensors, self._device = program, dict(tensors), device
        self._epoch: DealerRole | None = None

    def new_epoch(self, secret: bytes | None = None) -> tuple[bytes, bytes]:
        """Keys for P0 and P1; items count from 0 again. secret: of an epoch that another dealer of this program began
        (:meth:`expose_epoch`); without one the epoch is fresh.
        """
        self._epoch = self._made(secret)
        return self._epoch.keys_for(PartyId.P0), self._epoch.keys_for(PartyId.P1)

    def expose_epoch(self) -> bytes:
        """All that is secret of this epoch, for a worker of this dealer. Who deals which items is the caller's duty:
        each of them once.
        """
        if self._epoch is None:
            raise Misuse("expose_epoch was called before new_epoch")
        return self._epoch.expose_epoch()

    def deal(self, first_item: int, n: int) -> bytes | memoryview:
        """P1's ``n * record_bytes`` bytes for items ``first_item .. first_item+n-1`` of this epoch, each dealt once."""
        if self._epoch is None:
            raise Misuse("deal was called before new_epoch")
        return self._epoch.deal(first_item, n)

    def rehearse(self) -> None:
        """Deal one item of an epoch that nobody will use: what is compiled or tabulated once is ready afterwards."""
        self._made().deal(0, 1)

    def _made(self, secret: bytes | None = None) -> DealerRole:
        return self._program.backend.dealer(self._program.steps, self._tensors, secret, self._device)


@dataclass(frozen=True, repr=False, eq=False)
class Prepared(Secret):
    """Material expanded for n items of one party; good for one run."""

    n: int
    ready: Any


class PartyRunner:
    """A compute party: its part of the model, ready to serve batches. device: where it computes."""

    def __init__(
        self, program: Program, party: PartyId, tensors: Mapping[str, Tensor], device: torch.device = CPU
    ) -> None:
        self.program, self.party, self._device = program, party, device
        self._role = program.backend.party(program.steps, party, tensors, device)
        self._schedule = Schedule(program.instructions, program.output)

    @property
    def operands(self) -> Mapping[str, Any]:
        """What this party computes with, as it was prepared: its part of the weights, in whatever forms."""
        return self._role.operands

    def prepare(self, keys: bytes, first_item: int, n: int, corrections: bytes | bytearray | memoryview) -> Prepared:
        """Offline work for items ``first_item .. first_item+n-1``, which the caller has durably marked as used."""
        return Prepared(n, self._role.prepare(keys, first_item, n, corrections))

    def rehearse(self) -> None:
        """Run once on zeros, with keys that nobody else has and nobody to talk to: what is compiled or tabulated once
        is ready afterwards."""
        p = self.program
        takes = p.record_bytes if p.needs_dealer and self.party is PartyId.P1 else 0
        prepared = self.prepare(self._role.unused_keys(), 0, 1, bytearray(takes))
        steps = self.run(prepared, bytes(ring.packed_bytes(prod(p.input_shape), p.input_ring)))
        answer: dict[PartyId, Message] | None = None
        with contextlib.suppress(StopIteration):
            while True:
                awaited = steps.send(answer)  # type: ignore[arg-type]  # None starts a generator
                answer = {q: bytearray(awaited.awaited(q) or 0) for q in awaited.expect}

    def run(
        self, prepared: Prepared, message_from_client: bytes, on_step: Callable[[str], None] | None = None
    ) -> Steps[bytes]:
        """Online: the client's message in, rounds with the other party, the message for the client out.

        on_step: hears an instruction's name when work on it has been done, for ledgers.
        """
        p = self.program
        flat = ring.unpack(message_from_client, p.input_ring, prepared.n * prod(p.input_shape), self._device)

        def start(code: Instruction, inputs: list[Tensor]) -> Steps[Tensor]:
            if isinstance(code.action, Step):
                return (yield from self._role.run_step(prepared.ready, code.name, code.action, inputs[0]))
            if isinstance(code.action, Windows):
                return code.action.apply(inputs[0], self.party is PartyId.P0)
            return code.action.evaluate(_one_word(inputs))

        given = flat.reshape(prepared.n, *p.input_shape)
        answer = yield from self._schedule.run(given, start, on_step)
        return ring.pack(answer.reshape(-1), p.output_ring).tobytes()


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
