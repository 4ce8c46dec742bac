"""``clear`` as a sum: every vector as it is, to a server that sees it. The definition; no secrecy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NoReturn

import numpy as np

from protocols.aggregation import Server, Sum, SumCost, SumPlan
from protocols.api import SecurityStatement
from protocols.bitpack import pack_words, packed_bytes, unpack_words
from protocols.errors import BadParameters, PeerMisbehaved
from protocols.uploads import (
    VECTORS,
    UploadingClient,
    collected,
    declared,
    empty_total,
    known_options,
    new_plan,
    opened,
    question,
)


class InsecureClearClient(UploadingClient):
    """Sends its vector to be read by the server."""

    protocol = "clear"

    def protected(self, message: bytes, values: np.ndarray) -> Sequence[bytes | memoryview]:
        """The values, packed."""
        if message:
            raise PeerMisbehaved(f"the question for vectors has {len(message)} bytes; it has none")
        return [pack_words(values, self._plan.bits)]


class InsecureClearSum:
    """``sum_i x_i mod 2^bits`` in the open: what every sum means, and what none may deviate from."""

    name: ClassVar[str] = "clear"
    secure: ClassVar[bool] = False

    def plan(
        self, clients: int, length: int, bits: int, threshold: int, options: Mapping[str, Any] | None = None
    ) -> SumPlan:
        """A plan; there are no options."""
        plan = new_plan(clients, length, bits, threshold, options)
        known_options(self.name, plan, ())
        return plan

    def helpers(self, plan: SumPlan) -> tuple[str, ...]:
        """None."""
        return ()

    def client(self, plan: SumPlan, number: int) -> InsecureClearClient:
        """A client."""
        return InsecureClearClient(plan, number)

    def restore_client(self, plan: SumPlan, number: int, state: bytes) -> InsecureClearClient:
        """The client that the state is of."""
        return InsecureClearClient(plan, number, state)

    def helper(self, plan: SumPlan, name: str, secret: bytes | None = None) -> NoReturn:
        """There is none."""
        raise BadParameters(f"sum protocol 'clear' has no helper {name!r}")

    def restore_helper(self, plan: SumPlan, name: str, state: bytes) -> NoReturn:
        """There is none."""
        self.helper(plan, name)

    def server(self, plan: SumPlan) -> Server:
        """Adds what comes."""
        answers = yield question(plan, VECTORS, dict.fromkeys(range(plan.clients), b""))
        total = empty_total(plan)

        def take(_: int, message: memoryview) -> None:
            np.add(total, unpack_words(message, plan.length, plan.bits), out=total)

        included = collected(plan, answers, take)
        return Sum(opened(plan, total), included)

    def cost(self, plan: SumPlan) -> SumCost:
        """The packed vector."""
        return declared(0, packed_bytes(plan.length, plan.bits))

    def statement(self, plan: SumPlan) -> SecurityStatement:
        """Who learns what: the server everything."""
        return SecurityStatement(
            adversary="nobody: vectors travel in the open, for reference and debugging only",
            learns={"server": "every client's vector", "client": "nothing"},
        )
