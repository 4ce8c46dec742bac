"""What a client agrees to, whatever the server asks: checked against every plan before a key is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pqi.federated.errors import PrivacyError
from pqi.federated.flower.plan import RoundPlan
from pqi.federated.privacy.mechanism import Mechanism
from protocols import SUMS
from protocols.errors import BadParameters, ProtocolError
from protocols.identity import OPTION as HELPER_KEYS

SECURE = ("pairwise", "shares", "paillier", "bfv")
INSECURE = "InsecureClear"


class PlanRefused(ProtocolError):
    """The server's plan is not one that this client takes part in; the message names the field and the bound."""


@dataclass(frozen=True)
class Policy:
    """What a node agrees to.

    min_clients: the fewest clients of which a sum may be told, 2 or more. aggregators: protocols it takes part in;
    ``"InsecureClear"`` in it allows ``clear``, which shows every update to the server. metrics: names of metrics that
    may be summed beside the model. require_noise: a mechanism; a plan has to add noise of at least its multiplier,
    calibrated with at least its number of colluding clients. helper_keys: public keys of helpers, by name; a plan that
    uses a helper named here has to pin it by this key. max_rounds: how many vectors this node sends in one run of
    Flower, noisy or not; None: as many as are asked for.
    """

    min_clients: int = 3
    aggregators: tuple[str, ...] = SECURE
    metrics: tuple[str, ...] = ()
    require_noise: Mechanism | None = None
    helper_keys: Mapping[str, str] = field(default_factory=dict)
    max_rounds: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.min_clients, bool) or not isinstance(self.min_clients, int) or self.min_clients < 2:
            raise BadParameters(
                f"min_clients is {self.min_clients!r}: an integer from 2 on; a sum of one is its summand"
            )
        known = (set(SUMS) - {"clear"}) | {INSECURE}
        unknown = [name for name in self.aggregators if name not in known]
        if isinstance(self.aggregators, str) or unknown or not self.aggregators:
            raise BadParameters(
                f"aggregators is {self.aggregators!r}: a tuple of {', '.join(sorted(known))}; the protocol 'clear' "
                f"hides nothing, and is allowed by the name {INSECURE!r}"
            )
        if self.max_rounds is not None and (type(self.max_rounds) is not int or self.max_rounds < 0):
            raise BadParameters(f"max_rounds is {self.max_rounds!r}: an integer from 0 on, or None")
        if self.require_noise is not None and not isinstance(self.require_noise, Mechanism):
            raise PrivacyError(f"require_noise is {self.require_noise!r}: a mechanism, as the server's, or None")

    def check_rounds(self, sent: int) -> None:
        """Raise :class:`PlanRefused` if this node has sent as many vectors as it gives."""
        if self.max_rounds is not None and sent >= self.max_rounds:
            raise PlanRefused(f"this client has taken part in max_rounds = {self.max_rounds} rounds and gives no more")

    def check(self, plan: RoundPlan) -> None:
        """Raise :class:`PlanRefused` for a plan beyond this policy."""
        name = plan.aggregator if plan.aggregator != "clear" else INSECURE
        if name not in self.aggregators:
            raise PlanRefused(f"aggregator is {plan.aggregator!r}; this client allows {', '.join(self.aggregators)}")
        if plan.sum.threshold < self.min_clients:
            raise PlanRefused(
                f"threshold is {plan.sum.threshold}: a sum of so few could be told; this client wants sums of at least "
                f"min_clients = {self.min_clients}"
            )
        beyond = [name for name in plan.metrics if name not in self.metrics]
        if beyond:
            raise PlanRefused(f"metric {beyond[0]!r} is asked for; this client gives {list(self.metrics) or 'none'}")
        self._check_noise(plan)
        self._check_helpers(plan)

    def _check_noise(self, plan: RoundPlan) -> None:
        wanted, given = self.require_noise, plan.encoding.mechanism
        if wanted is None:
            return
        if given is None:
            raise PlanRefused("mechanism is none: this client adds noise to every update (require_noise)")
        for name in ("noise_multiplier", "colluding"):
            if getattr(given, name) < getattr(wanted, name):
                raise PlanRefused(
                    f"{name} is {getattr(given, name)}; this client wants at least {getattr(wanted, name)}"
                )

    def _check_helpers(self, plan: RoundPlan) -> None:
        pins = plan.sum.options.get(HELPER_KEYS) or {}
        for name, key in self.helper_keys.items():
            if name in plan_helpers(plan) and pins.get(name) != key:
                raise PlanRefused(
                    f"helper {name!r} is not pinned by the key that this client knows (option helper_keys)"
                )


def plan_helpers(plan: RoundPlan) -> tuple[str, ...]:
    """The helpers of a plan's protocol."""
    from protocols import get_sum

    return tuple(get_sum(plan.aggregator).helpers(plan.sum))
