"""The bfv protocol: plans and ends."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, ClassVar

from protocols.api import SecurityStatement
from protocols.bfv.plan import BfvPlan, make, read
from protocols.bfv.server import BfvEvaluator
from protocols.bfv.weights import Prepared
from protocols.circuit import MAX_DEGREE, Circuit, Owned
from protocols.errors import Misuse
from protocols.keyed import Evaluator, KeyedProtocol, KeyHolder, Plan
from protocols.lattice.weights import digest


class Bfv(KeyedProtocol):
    """Exact integers, polynomials up to degree 4, batches of one sample per slot.

    The only state is what was prepared of the last weights, so that a second client does not wait for it again.
    """

    name: ClassVar[str] = "bfv"
    exact: ClassVar[bool] = True
    max_degree: ClassVar[int] = MAX_DEGREE
    security: ClassVar[SecurityStatement] = SecurityStatement(
        adversary="semi-honest, static, corrupts the server or the client; 128 bits by ring learning with errors "
        "(homomorphic encryption standard); a server that alters answers is not detected",
        learns={
            "server": "sizes of questions and when they come; nothing about inputs or answers",
            "client": "its answer, the sizes and depth of the network, and how wide its values can be; nothing else "
            "about weights (answers are re-randomised and flooded by 40 bits)",
        },
    )

    def __init__(self) -> None:
        self._lock, self._kept = threading.Lock(), list[Prepared]()

    def plan(self, circuit: Circuit, options: Mapping[str, Any] | None = None) -> BfvPlan:
        """Parameters of least time. options: ``packing`` "both" (default), "single" or "batch"; ``security`` 128."""
        return make(circuit, options or {})

    def read(self, data: Mapping[str, Any]) -> BfvPlan:
        """A plan from plain data, believed nothing."""
        return read(data)

    def key_holder(self, plan: Plan) -> KeyHolder:
        """The client's end, with fresh keys."""
        from protocols.bfv.client import BfvKeys  # a server must not load what makes keys

        return BfvKeys(_own(plan))

    def evaluator(self, plan: Plan, weights: Owned, keys: bytes) -> Evaluator:
        """The server's end for one client; weights are prepared once for all."""
        return BfvEvaluator(self._prepared(_own(plan), weights), keys)

    def _prepared(self, plan: BfvPlan, weights: Owned) -> Prepared:
        name = digest(weights)
        with self._lock:
            for found in self._kept:
                if found.plan is plan and found.digest == name:
                    return found
            self._kept = [Prepared(plan, weights)]
            return self._kept[0]


def _own(plan: Plan) -> BfvPlan:
    if not isinstance(plan, BfvPlan):
        raise Misuse(f"bfv cannot work by a {type(plan).__name__}")
    return plan
