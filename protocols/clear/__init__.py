"""No secrecy at all: the living definition of every primitive, and the reference in every test.

One party computes on the values themselves. Every protocol that calls itself exact returns these integers, bit for bit.
"""

from protocols.clear.define import define

__all__ = ["define"]
