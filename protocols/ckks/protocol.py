"""The ckks protocol: plans and ends."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, ClassVar

from protocols.api import SecurityStatement
from protocols.circuit import MAX_DEGREE, Circuit, Owned
from protocols.ckks.bound import declared
from protocols.ckks.plan import CkksPlan, make, read
from protocols.ckks.server import CkksEvaluator
from protocols.ckks.weights import Prepared
from protocols.errors import Misuse
from protocols.keyed import Evaluator, KeyedProtocol, KeyHolder, Plan
from protocols.lattice.weights import digest


class Ckks(KeyedProtocol):
    """Approximate values with a computed error bound, polynomials up to degree 4, batches of one sample per slot.

    The only state is what was prepared of the last weights, so that a second client does not wait for it again.
    """

    name: ClassVar[str] = "ckks"
    exact: ClassVar[bool] = False
    max_degree: ClassVar[int] = MAX_DEGREE
    security: ClassVar[SecurityStatement] = SecurityStatement(
        adversary="semi-honest, static, corrupts the server or the client; 128 bits by ring learning with errors "
        "(homomorphic encryption standard); a server that alters answers is not detected; decrypted answers must not "
        "reach the server (Li and Micciancio, 2021)",
        learns={
            "server": "sizes of questions and when they come; nothing about inputs or answers",
            "client": "its answer, the sizes and depth of the network, how wide its values can be and how large the "
            "norms of its weights are (three bits each); the answer's error depends on weights and is covered by noise "
            "of a quarter of the error bound, without proof",
        },
    )

    def __init__(self) -> None:
        self._lock, self._kept = threading.Lock(), list[Prepared]()

    def declare(self, circuit: Circuit, weights: Owned) -> dict[str, Any]:
        """Options for :meth:`plan` that make the error bound tight, and all that they publish about weights.

        ``norms``: the operator norm of every affine stage, rounded up to three leading bits.
        """
        return {"norms": declared(circuit, weights)}

    def plan(self, circuit: Circuit, options: Mapping[str, Any] | None = None) -> CkksPlan:
        """The smallest ring that reaches the precision.

        options: ``packing`` "both" (default), "single" or "batch"; ``precision``, the error asked for in the unit of
        the integers; ``norms``, bounds of operator norms by affine stage (:meth:`declare`); ``security`` 128.
        """
        return make(circuit, options or {})

    def read(self, data: Mapping[str, Any]) -> CkksPlan:
        """A plan from plain data, believed nothing."""
        return read(data)

    def key_holder(self, plan: Plan) -> KeyHolder:
        """The client's end, with fresh keys."""
        from protocols.ckks.client import CkksKeys  # a server must not load what makes keys

        return CkksKeys(_own(plan))

    def evaluator(self, plan: Plan, weights: Owned, keys: bytes) -> Evaluator:
        """The server's end for one client; weights are prepared once for all."""
        return CkksEvaluator(self._prepared(_own(plan), weights), keys)

    def _prepared(self, plan: CkksPlan, weights: Owned) -> Prepared:
        name = digest(weights)
        with self._lock:
            for found in self._kept:
                if found.plan is plan and found.digest == name:
                    return found
            self._kept = [Prepared(plan, weights)]
            return self._kept[0]


def _own(plan: Plan) -> CkksPlan:
    if not isinstance(plan, CkksPlan):
        raise Misuse(f"ckks cannot work by a {type(plan).__name__}")
    return plan
