"""What a program is: a list of steps and local operations over named values. Public; holds no weight and no table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pqi.graph.ops import Op
from pqi.program.errors import ProgramError
from pqi.program.interface import Interface, Spoken, canonical_digest
from pqi.program.windows import Windows
from protocols.api import Step
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
    exact: whether private answers equal the integer reference bit for bit.
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

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Program) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @cached_property
    def steps(self) -> tuple[NamedStep, ...]:
        """The protocol's part of the instructions."""
        return tuple((i.name, i.action, i.inputs) for i in self.instructions if isinstance(i.action, Step))

    @cached_property
    def record_bytes(self) -> int:
        """Dealt bytes per item for P1."""
        return self.backend.record_bytes(self.steps)

    def cost(self, n: int = 1) -> Cost:
        """Declared cost of a batch of n: exchanges, online bits per party, dealt bits."""
        return sum((self.backend.cost(step, n) for _, step, _ in self.steps), Cost())

    def cost_by_layer(self, n: int = 1) -> dict[str, Cost]:
        """The same, for each layer of the network."""
        out: dict[str, Cost] = {}
        for i in self.instructions:
            if isinstance(i.action, Step):
                out[i.layer] = out.get(i.layer, Cost()) + self.backend.cost(i.action, n)
        return out

    def online_cost(self, n: int) -> Cost:
        """Only what happens while the client waits."""
        c = self.cost(n)
        return Cost(c.exchanges, c.online_bits, 0)

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
