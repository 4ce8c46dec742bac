"""``pairwise`` as a protocol of sums: plans, the two ends, costs, and its statement."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, ClassVar

from protocols.aggregation import Server, SumClient, SumCost, SumHelper, SumPlan
from protocols.api import SecurityStatement
from protocols.errors import BadParameters, Misuse
from protocols.pairwise import graph, wire
from protocols.pairwise.client import PairwiseClient
from protocols.pairwise.server import PairwiseServer
from protocols.pairwise.state import read_state

_ASKED = ("neighbours", "colluding")


class PairwiseSum:
    """Masks that cancel in pairs, with recovery from dropouts, and no helper.

    Bonawitz et al. 2017, "Practical secure aggregation for privacy-preserving machine learning" (CCS), semi-honest
    variant with double masking: client i sends ``x_i + PRG(b_i) + sum_{j > i} PRG(s_ij) - sum_{j < i} PRG(s_ij)``.
    Option ``neighbours``: ``"all"``, or an even number of neighbours to mask with (Bell et al. 2020; see ``graph``),
    or None: all below 100 clients, from there on the fewest for which failure is proven unlikely. Option
    ``colluding``: against how many clients that work with the server few neighbours are chosen; a tenth if not given.
    """

    name: ClassVar[str] = "pairwise"
    secure: ClassVar[bool] = True

    def plan(
        self, clients: int, length: int, bits: int, threshold: int, options: Mapping[str, Any] | None = None
    ) -> SumPlan:
        """A checked plan. Its own options say what was chosen: ``neighbours``, ``needed``, ``colluding``."""
        given = dict(options or {})
        if unknown := sorted(set(given) - set(_ASKED)):
            raise BadParameters(f"protocol 'pairwise' has no option {unknown[0]!r}; it has {', '.join(_ASKED)}")
        bare = SumPlan(clients, length, bits, threshold, secrets.token_bytes(16))
        degree = _chosen(bare, given.get("neighbours"), given.get("colluding"))
        chosen = {"neighbours": degree.neighbours, "needed": degree.needed, "colluding": degree.colluding}
        plan = SumPlan(clients, length, bits, threshold, bare.session, chosen)
        _degree(plan)
        return plan

    def helpers(self, plan: SumPlan) -> tuple[str, ...]:
        """None."""
        return ()

    def client(self, plan: SumPlan, number: int) -> SumClient:
        """Client ``number``, with fresh secrets."""
        return PairwiseClient(plan, _degree(plan), number)

    def restore_client(self, plan: SumPlan, number: int, state: bytes) -> SumClient:
        """The client that was put away; raises :class:`Misuse` for a state of another client or run."""
        return PairwiseClient(plan, _degree(plan), number, read_state(plan, number, state))

    def helper(self, plan: SumPlan, name: str, secret: bytes | None = None) -> SumHelper:
        """There is none: raises :class:`Misuse`."""
        raise Misuse(f"protocol 'pairwise' has no helper {name!r}; it has none at all")

    def restore_helper(self, plan: SumPlan, name: str, state: bytes) -> SumHelper:
        """There is none: raises :class:`Misuse`."""
        return self.helper(plan, name)

    def server(self, plan: SumPlan) -> Server:
        """Four stages; see ``wire``."""
        return PairwiseServer(plan, _degree(plan)).run()

    def cost(self, plan: SumPlan) -> SumCost:
        """With k neighbours: the packed vector, and about ``217 k`` bytes sent or forwarded a client and direction."""
        sizes = wire.sizes(plan, _degree(plan).neighbours).values()
        return SumCost(sum(back for _, back in sizes), sum(to for to, _ in sizes), 0, 0, len(wire.STAGES))

    def statement(self, plan: SumPlan) -> SecurityStatement:
        """Against whom, and who learns what, in this run."""
        degree = _degree(plan)
        c, least = degree.colluding, plan.threshold
        if degree.neighbours == plan.clients - 1:
            split = min(c, 2 * least - plan.clients - 1)
            chance = (
                f". Clients that are told different lists of dropouts do not give up both secrets of one of them while "
                f"at most {split} collude; no more is claimed against a server that deviates, or forges public keys"
            )
        else:
            chance = (
                f", chosen independently of the {degree.neighbours} neighbours that each client masks with; a vector "
                f"shows with probability at most 2^-40 a run, and with up to {plan.clients - least} dropouts a run "
                "is lost with probability at most 2^-20. The threshold is kept by the server"
            )
        return SecurityStatement(
            adversary=f"semi-honest server that pools what it sees with up to {c} clients{chance}. X25519, "
            "HKDF-SHA256, AES-128 in counter and Galois mode: 128-bit security",
            learns={
                "server": f"who took part until when, and the sum mod 2^{plan.bits} of at least {least} vectors: with "
                f"c of their clients it knows the sum of the others, at least {least} - c of them",
                "client": "the public keys of its neighbours and which of them stayed; nothing about vectors or sum",
            },
        )


def _chosen(plan: SumPlan, neighbours: object, colluding: object) -> graph.Degree:
    """What the options ask for; ``graph.check`` says whether it will do."""
    few = -(-plan.clients // graph.COLLUDING_DEFAULT)
    c = _whole("colluding", colluding, min(few, plan.threshold - 2))
    if neighbours is None and plan.clients >= graph.SPARSE_FROM and 0 <= c <= plan.threshold - 2:
        return graph.choose(plan.clients, plan.threshold, c) or graph.complete(plan)
    if neighbours in (None, "all", plan.clients - 1):
        full = graph.complete(plan)
        if colluding is not None and c > full.colluding:
            raise BadParameters(f"colluding = {c}: with threshold = {plan.threshold} at most {full.colluding} may")
        return full
    k = _whole("neighbours", neighbours, 0)
    return graph.with_neighbours(plan.clients, plan.threshold, c, k) or graph.Degree(k, 0, c)


def _whole(name: str, value: object, default: int) -> int:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise BadParameters(f"{name} = {value!r} is not a number of clients")
    return value


def _degree(plan: SumPlan) -> graph.Degree:
    """The degree that the plan names, checked by each party for itself."""
    named = {name: plan.options.get(name) for name in ("neighbours", "needed", "colluding")}
    for name, value in named.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise BadParameters(f"a plan of protocol 'pairwise' names {name}, a whole number, not {value!r}")
    degree = graph.Degree(**{name: int(value) for name, value in named.items() if value is not None})
    graph.check(plan, degree)
    return degree
