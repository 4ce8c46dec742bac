"""What a defence costs: clean accuracy, by a paired test, and what the private protocol then sends."""

from __future__ import annotations

from dataclasses import dataclass

from pqi.audit.case import Case
from pqi.audit.statistics import Estimate, mcnemar, paired_difference, share
from pqi.audit.subjects import INTEGERS
from pqi.graph.model import IntegerModel


@dataclass(frozen=True)
class Private:
    """One private answer on ``additive2``: exchanges, bytes a server sends online, bytes that are dealt; declared."""

    exchanges: int
    online: int
    dealt: int


@dataclass(frozen=True)
class Price:
    """Without and with the defence. change: of accuracy, paired; p: McNemar's exact p that there is none."""

    accuracy: Estimate
    defended: Estimate
    change: Estimate
    p: float
    private: Private
    private_defended: Private


def private(model: IntegerModel) -> Private:
    """The declared cost of one input, planned for a LAN."""
    # Programs know of compiled protocols; only who asks for a price pays for importing them.
    from pqi import program

    cost = program.compile(model).cost(1)
    return Private(cost.exchanges, cost.online_bytes, cost.dealt_bytes)


def price(case: Case, defended: IntegerModel) -> Price:
    """Of ``defended`` against ``case.model``, on all test examples."""
    x, y = case.on_grid(case.test.x), case.test.y
    right = case.subjects[INTEGERS].labels(x) == y
    other = case.with_model(defended)
    still = other.subjects[INTEGERS].labels(other.on_grid(case.test.x)) == y
    return Price(
        share(right),
        share(still),
        paired_difference(right, still),
        mcnemar(right, still),
        private(case.model),
        private(defended),
    )
