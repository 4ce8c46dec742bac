"""What sums with helpers have in common: plans and their checks, clients that upload once, helpers that step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from protocols import identity
from protocols.aggregation import Server, SumCost, SumPlan
from protocols.api import SecurityStatement
from protocols.errors import BadParameters
from protocols.uploads import SteppingHelper, UploadingClient, known_options, new_plan


class HelpedSum(ABC):
    """A :class:`protocols.aggregation.SumProtocol` with helpers; every one of them can be pinned (``helper_keys``).

    A subclass says its name, the options that are its own, its client, and which helper is made of which class.
    """

    name: ClassVar[str]
    secure: ClassVar[bool] = True
    own_options: ClassVar[tuple[str, ...]] = ()
    client_class: ClassVar[type[UploadingClient]]

    @abstractmethod
    def named(self, plan: SumPlan) -> tuple[str, ...]:
        """The helpers' names; raises BadParameters on what this protocol cannot do."""

    @abstractmethod
    def helper_class(self) -> type[SteppingHelper]:
        """Loaded when it is asked for: a server must not load what makes keys."""

    @abstractmethod
    def serve(self, plan: SumPlan) -> Server:
        """The server's side of a checked plan."""

    @abstractmethod
    def cost(self, plan: SumPlan) -> SumCost:
        """Bytes of a run without dropouts."""

    @abstractmethod
    def statement(self, plan: SumPlan) -> SecurityStatement:
        """The adversary, and who learns what."""

    def plan(
        self, clients: int, length: int, bits: int, threshold: int, options: Mapping[str, Any] | None = None
    ) -> SumPlan:
        """A checked plan with a fresh session."""
        plan = new_plan(clients, length, bits, threshold, options)
        self.helpers(plan)
        return plan

    def helpers(self, plan: SumPlan) -> tuple[str, ...]:
        """The helpers' names; raises BadParameters on options and rings that are not served."""
        known_options(self.name, plan, (*self.own_options, identity.OPTION))
        names = self.named(plan)
        identity.check_pins(plan, names)
        return names

    def client(self, plan: SumPlan, number: int) -> UploadingClient:
        """A client at the start of a run."""
        self.helpers(plan)
        return self.client_class(plan, number)

    def restore_client(self, plan: SumPlan, number: int, state: bytes) -> UploadingClient:
        """The client that the state is of."""
        return self.client_class(plan, number, state)

    def helper(self, plan: SumPlan, name: str, secret: bytes | None = None) -> SteppingHelper:
        """A helper, with fresh keys. secret: of :func:`protocols.identity.new_identity`, where the plan pins it."""
        self._check(plan, name)
        return self.helper_class()(plan, name, secret=secret)

    def restore_helper(self, plan: SumPlan, name: str, state: bytes) -> SteppingHelper:
        """The helper that the state is of."""
        self._check(plan, name)
        return self.helper_class()(plan, name, state)

    def server(self, plan: SumPlan) -> Server:
        """The server's side."""
        self.helpers(plan)
        return self.serve(plan)

    def _check(self, plan: SumPlan, name: str) -> None:
        if name not in self.helpers(plan):
            raise BadParameters(f"there is no helper {name!r}; there are: {', '.join(self.helpers(plan))}")
