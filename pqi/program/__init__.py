"""From an integer model to what each party does: instructions, their cost, and the roles that run them.

Reading order: ``instructions`` (what a program is), ``interface`` (what a client needs of it), ``compiler`` (integer
graph to program), ``plan`` and ``network`` (which primitives serve a layer on which network), ``schedule`` (what talks
at the same time), ``roles`` (owner, dealer, party and client ends), ``serial`` (JSON).
"""

from __future__ import annotations

from pqi.program.compiler import compile, explain  # noqa: A004 (the field's word)
from pqi.program.instructions import Instruction, Program
from pqi.program.interface import Interface
from pqi.program.network import Profile
from pqi.program.roles import Dealer, PartyRunner, Prepared, decode_output, encode_input, split_weights

__all__ = [
    "Dealer",
    "Instruction",
    "Interface",
    "PartyRunner",
    "Prepared",
    "Profile",
    "Program",
    "compile",
    "decode_output",
    "encode_input",
    "explain",
    "split_weights",
]
