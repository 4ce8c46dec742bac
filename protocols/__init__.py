"""The cryptography. Knows tensors of integers; has never heard of a neural network.

Reading order: ``ring`` (integers mod 2^k), ``linmap`` (linear maps of them), ``api`` (the primitives), ``protocol``
(what every protocol is), ``rounds`` (how parties talk), ``cost``, ``prg`` (secret randomness), ``simulate``; then
``clear`` (the meaning of each primitive) and ``additive2`` (the same, without showing anything).

With a key instead of a second server: ``circuit`` (affine maps and polynomials over the integers), ``keyed`` (what
every such protocol is), and the protocols ``paillier``, ``bfv`` and ``ckks``.

With many data owners: ``aggregation`` (sums of which nobody learns a summand), and the protocols ``pairwise``,
``shares``, ``paillier`` and ``bfv``.

``CATALOGUE`` names the protocols that compute on shares, ``KEYED`` those that compute under a client's key, ``SUMS``
those that sum; a protocol is a folder and one line here, imported when it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from protocols.errors import BadParameters

if TYPE_CHECKING:
    from protocols.aggregation import SumProtocol
    from protocols.keyed import KeyedProtocol
    from protocols.protocol import Protocol

CATALOGUE = {
    "clear": "protocols.clear.protocol:Clear",
    "additive2": "protocols.additive2.protocol:Additive2",
}

KEYED = {
    "paillier": "protocols.paillier.protocol:Paillier",
    "bfv": "protocols.bfv.protocol:Bfv",
    "ckks": "protocols.ckks.protocol:Ckks",
}

SUMS = {
    "clear": "protocols.clear.sum:InsecureClearSum",
    "pairwise": "protocols.pairwise.protocol:PairwiseSum",
    "shares": "protocols.shares.protocol:SharesSum",
    "paillier": "protocols.paillier.sum:PaillierSum",
    "bfv": "protocols.bfv.sum:BfvSum",
}


def get(name: str) -> Protocol:
    """The protocol on shares of that name; raises :class:`BadParameters` that lists the names there are."""
    found: Protocol = _made(name, CATALOGUE)
    return found


def get_keyed(name: str) -> KeyedProtocol:
    """The keyed protocol of that name.

    Raises :class:`BadParameters` that lists the names there are, or names the extra that installs what it needs.
    """
    found: KeyedProtocol = _made(name, KEYED)
    return found


def get_sum(name: str) -> SumProtocol:
    """The protocol for sums of that name; raises as :func:`get_keyed`."""
    found: SumProtocol = _made(name, SUMS)
    return found


def _made(name: str, catalogue: dict[str, str]) -> Any:
    if name not in catalogue:
        raise BadParameters(f"there is no protocol {name!r} here; there are: {', '.join(sorted(catalogue))}")
    module, _, cls = catalogue[name].partition(":")
    try:
        return getattr(import_module(module), cls)()
    except ModuleNotFoundError as error:
        if (error.name or "").startswith(("protocols", "pqi")):
            raise
        raise BadParameters(
            f"protocol {name!r} needs {error.name}, which is not installed: "
            "pip install 'private-quantized-inference[homomorphic]'"
        ) from error
