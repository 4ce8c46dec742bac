"""What a program is: a list of steps and local operations over named values. Public; holds no weight and no table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from pqi.graph import ops
from pqi.graph.ops import Op
from pqi.program.errors import ProgramError
from pqi.program.interface import Interface, Spoken, canonical_digest
from pqi.program.windows import Windows
from protocols.api import VISIBILITIES, Linear, Noise, SecurityStatement, Step
from protocols.cost import Cost
from protocols.protocol import NamedStep

Local = Op | Windows
INPUT = "input"


@dataclass(frozen=True)
class Instruction:
    """``name = action(inputs)``. A Step is a primitive of the protocol; anything else acts on shares as they are."""

    name: str
    action: Step | Local
    inputs: tuple[str, ...]
    layer: str = ""  # the layer of the network that it belongs to, for ledgers and reports


@dataclass(frozen=True, eq=False)
class Program(Spoken):
    """A compiled model, the same for every role; ``digest`` identifies it.

    instructions: in order; the value named "input" is there from the start. output: name of the answer's value.
    exact: whether private answers equal the integer reference bit for bit; never, where they have noise.
    """

    protocol: str
    instructions: tuple[Instruction, ...]
    output: str
    input_shape: tuple[int, ...]
    input_ring: int
    output_shape: tuple[int, ...]
    output_ring: int
    exact: bool

    def __post_init__(self) -> None:
        known = {INPUT}
        for i in self.instructions:
            missing = [x for x in i.inputs if x not in known]
            if missing or i.name in known or not i.inputs:
                raise ProgramError(
                    f"instruction {i.name!r} reads {missing or i.inputs} or repeats a name: not a program"
                )
            known.add(i.name)
        if self.output not in known:
            raise ProgramError(f"the program's output {self.output!r} is computed nowhere")
        self._check_noise()

    def _check_noise(self) -> None:
        """Noise is a step of the protocol, on the answer alone, and what has it does not call itself exact."""
        for i in self.instructions:
            if isinstance(i.action, ops.Noise):
                raise ProgramError(f"instruction {i.name!r} is noise without a protocol: nobody would draw it")
            if isinstance(i.action, Noise) and i.name != self.output:
                raise ProgramError(f"instruction {i.name!r} is noise, but not the answer")
            if any(x == self.output for x in i.inputs) and self.noise:
                raise ProgramError(f"instruction {i.name!r} reads an answer with noise")
        if self.noise and self.exact:
            raise ProgramError("the program calls itself exact, but its answers have noise: compile the model again")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Program) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @cached_property
    def steps(self) -> tuple[NamedStep, ...]:
        """The protocol's part of the instructions."""
        return tuple((i.name, i.action, i.inputs) for i in self.instructions if isinstance(i.action, Step))

    @cached_property
    def visibilities(self) -> tuple[str, ...]:
        """Of the weights: each that occurs, once, in the order of ``protocols.api.VISIBILITIES``."""
        found = {step.visibility for _, step, _ in self.steps if isinstance(step, Linear)}
        return tuple(v for v in VISIBILITIES if v in found)

    @cached_property
    def noise(self) -> int:
        """The most by which noise moves an integer of the answer, either way; 0 where there is none."""
        last = [i.action for i in self.instructions if i.name == self.output]
        return last[0].bound if last and isinstance(last[0], Noise) else 0

    @property
    def security(self) -> SecurityStatement:
        """Against whom, and who learns what."""
        return self.backend.statement(self.visibilities, self.noise)

    @cached_property
    def record_bytes(self) -> int:
        """Dealt bytes per item for P1."""
        return self.backend.record_bytes(self.steps)

    @cached_property
    def exchanges(self) -> tuple[tuple[str, ...], ...]:
        """Who talks in each exchange: names of instructions. Independent ones talk at the same time."""
        from pqi.program import schedule

        return schedule.exchanges(self.instructions, lambda step: self.backend.cost(step, 1).exchanges)

    def cost(self, n: int = 1) -> Cost:
        """Declared cost of a batch of n: exchanges, online bits per party, dealt bits."""
        total = sum((self.backend.cost(step, n) for _, step, _ in self.steps), Cost())
        return replace(total, exchanges=len(self.exchanges))

    def cost_by_layer(self, n: int = 1) -> dict[str, Cost]:
        """The same, for each layer of the network; an exchange of several layers is the first one's."""
        out: dict[str, Cost] = {}
        layer = {i.name: i.layer for i in self.instructions}
        for name, step, _ in self.steps:
            cost = replace(self.backend.cost(step, n), exchanges=0)
            out[layer[name]] = out.get(layer[name], Cost()) + cost
        for first, *_ in self.exchanges:
            out[layer[first]] += Cost(exchanges=1)
        return out

    def online_cost(self, n: int) -> Cost:
        """Only what happens while the client waits."""
        return replace(self.cost(n), dealt_bits=0)

    def offline_cost(self, n: int) -> Cost:
        """Only what the dealer sends."""
        return Cost(0, 0, self.cost(n).dealt_bits)

    @cached_property
    def interface(self) -> Interface:
        """What a client needs of it."""
        plain = self.to_json()
        return Interface(
            protocol=self.protocol,
            input_shape=self.input_shape,
            input_ring=self.input_ring,
            output_shape=self.output_shape,
            output_ring=self.output_ring,
            exact=self.exact,
            visibilities=self.visibilities,
            noise=self.noise,
            instructions_digest=canonical_digest([plain["format"], plain["answer"], plain["instructions"]]),
        )

    @property
    def digest(self) -> str:
        """Identifies the program (see :mod:`pqi.program.interface`); equal at every role of a deployment."""
        return self.interface.digest

    def to_json(self) -> dict[str, Any]:
        """Plain data without any secret."""
        from pqi.program import serial

        return serial.encode(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Program:
        """A program from plain data; raises :class:`ProgramError` on anything that is not one."""
        from pqi.program import serial

        return serial.decode(data)
