"""The cryptography. Knows tensors of integers; has never heard of a neural network.

Reading order: ``ring`` (integers mod 2^k), ``linmap`` (linear maps of them), ``api`` (the primitives), ``protocol``
(what every protocol is), ``rounds`` (how parties talk), ``cost``, ``prg`` (secret randomness), ``simulate``; then
``clear`` (the meaning of each primitive) and ``additive2`` (the same, without showing anything).

``CATALOGUE`` names the protocols; a protocol is a folder and one line here, imported when it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from protocols.errors import BadParameters

if TYPE_CHECKING:
    from protocols.protocol import Protocol

CATALOGUE = {
    "clear": "protocols.clear.protocol:Clear",
    "additive2": "protocols.additive2.protocol:Additive2",
}


def get(name: str) -> Protocol:
    """The protocol of that name; raises :class:`BadParameters` that lists the names there are."""
    if name not in CATALOGUE:
        raise BadParameters(f"there is no protocol {name!r}; there are: {', '.join(sorted(CATALOGUE))}")
    module, _, cls = CATALOGUE[name].partition(":")
    found: Protocol = getattr(import_module(module), cls)()
    return found
