"""A Flower node in secure sums: one mod, in front of the app's own functions.

On a node with data it answers the stages of the protocol and calls the app's train function in the one stage that asks
for a vector; what that function returns stays here, and only the protected vector leaves. On a helper's node it plays
the helper, and no function of the app is called. A message to train without a secure sum around it is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from logging import ERROR, WARNING
from pathlib import Path
from typing import Any, TypeAlias, cast

from flwr.app import Context, Message, MessageType
from flwr.clientapp import ClientApp
from flwr.common.logger import log

from pqi.federated.errors import FederatedError
from pqi.federated.flower import memory
from pqi.federated.flower.claims import claim
from pqi.federated.flower.plan import RoundPlan, read_plan
from pqi.federated.flower.policy import SECURE, Policy
from pqi.federated.flower.vector import global_arrays, vector_of
from pqi.federated.flower.wire import (
    ROLL_CALL,
    STAGE,
    Answer,
    Question,
    answer_content,
    here,
    kind_of,
    refusal,
    take_question,
)
from pqi.federated.privacy.mechanism import Mechanism
from protocols import get_sum
from protocols.aggregation import SumClient, SumHelper
from protocols.errors import BadParameters, PeerMisbehaved, ProtocolError
from protocols.identity import OPTION as HELPER_KEYS
from protocols.uploads import SteppingHelper

Next: TypeAlias = Callable[[Message, Context], Message]
ROLE, SECRET_FILE = "pqi-role", "pqi-secret-file"


def private_updates(
    *,
    min_clients: int = 3,
    aggregators: tuple[str, ...] = SECURE,
    metrics: tuple[str, ...] = (),
    require_noise: Mechanism | None = None,
    helper_keys: Mapping[str, str] | None = None,
    max_rounds: int | None = None,
    simulated_helpers: Mapping[str, int] | None = None,
    claims: str | Path | None = None,
) -> PrivateUpdates:
    """The mod that makes a Flower client private: ``ClientApp(mods=[private_updates()])``, first in the list.

    The app's train function stays as it is: it returns one ``ArrayRecord`` with the whole model, and metrics with
    ``num-examples`` among them. Of all that, what leaves the node is the client's part of a sum: clipped, rounded to
    integers, noised if the plan says so, and protected by the aggregator's protocol. Metrics are withheld, but for the
    weight, which is summed like the model, and those named in ``metrics`` if the server asks for them. Messages of type
    ``evaluate`` and ``query`` pass unchanged: what those functions return is not protected.

    min_clients, aggregators, metrics, require_noise, helper_keys, max_rounds: what it agrees to, :class:`Policy`.
    simulated_helpers: helper's name -> partition id of the node that plays it, for the simulation engine, where nodes
    have no configuration of their own. claims: a folder of this node's, where answered stages are noted.

    A helper's node says ``pqi-role="aggregator-1"`` in its node config, and ``pqi-secret-file="..."`` if plans
    pin its key.
    """
    keys = dict(helper_keys or {})
    policy = Policy(min_clients, tuple(aggregators), tuple(metrics), require_noise, keys, max_rounds)
    return PrivateUpdates(policy, dict(simulated_helpers or {}), None if claims is None else Path(claims))


def helper_app(**policy: Any) -> ClientApp:
    """An app for nodes that are helpers and nothing else; takes what :func:`private_updates` takes."""
    app = ClientApp(mods=[private_updates(**policy)])
    app.train()(_no_data)
    return app


def _no_data(message: Message, context: Context) -> Message:
    raise BadParameters(f"this node has no data; say which helper it is: --node-config '{ROLE}=\"aggregator-1\"'")


class PrivateUpdates:
    """See :func:`private_updates`."""

    def __init__(self, policy: Policy, simulated_helpers: Mapping[str, int], claims: Path | None) -> None:
        self.policy = policy
        self._simulated = {partition: name for name, partition in simulated_helpers.items()}
        if len(self._simulated) != len(simulated_helpers):
            raise BadParameters(f"simulated_helpers is {dict(simulated_helpers)}: a node plays one helper")
        self._claims = claims

    def __call__(self, message: Message, context: Context, call_next: Next) -> Message:
        """Flower's mod: a message in, a reply out."""
        role = self._role(context)
        try:
            kind = kind_of(message)
            if kind == ROLL_CALL:
                return Message(here(role or ""), reply_to=message)
            if kind == STAGE:
                return self._stage(message, context, call_next, role)
            memory.forget(context)  # a message of another kind: whatever run there was is over
            if kind is not None:
                raise PeerMisbehaved("a message of a kind that is not known here")
            if role is not None:
                raise PeerMisbehaved(f"this node is the helper {role!r}; it has no data")
            if message.metadata.message_type.split(".")[0] == MessageType.TRAIN:
                raise PeerMisbehaved(
                    "training without a secure sum is refused: the server's strategy has to be wrapped in "
                    "pqi.federated.Private(...)"
                )
        except (ProtocolError, FederatedError) as error:
            log(WARNING, "pqi: refused: %s", error)
            return refusal(message, str(error))
        return call_next(message, context)

    def _role(self, context: Context) -> str | None:
        named = context.node_config.get(ROLE)
        if named is None and self._simulated:
            named = self._simulated.get(cast(int, context.node_config.get("partition-id")))
        return None if named is None else str(named)

    def _stage(self, message: Message, context: Context, call_next: Next, role: str | None) -> Message:
        question = take_question(message.content)
        kept = memory.recall(context)
        if question.plan:
            plan = self._agreed(question, role)
            kept = None
        elif kept is None or (kept.session, kept.party) != (question.session, question.party):
            raise PeerMisbehaved("this node is in no run of that session; it may have been restarted, or left out")
        else:
            plan = read_plan(kept.plan)
        claim(self._claims, context.node_id, question.session, question.stage)
        if isinstance(question.party, str):
            answer, left = self._help(plan, question, kept, context)
        else:
            answer, left = self._take_part(plan, question, kept, message, context, call_next)
        memory.forget(context)
        if left is not None:
            memory.keep(context, left)
        return Message(answer_content(Answer(question.session, question.stage, answer)), reply_to=message)

    def _agreed(self, question: Question, role: str | None) -> RoundPlan:
        """The plan of a new run, if this node takes part in it as what it is asked to be."""
        plan = read_plan(question.plan)
        if plan.sum.session != question.session:
            raise PeerMisbehaved("the session is not the plan's")
        wanted = question.party if isinstance(question.party, str) else None
        if wanted != role:
            raise PeerMisbehaved(f"this node is {role or 'a client'}; it was asked to be {wanted or 'a client'}")
        self.policy.check(plan)
        return plan

    def _take_part(
        self,
        plan: RoundPlan,
        question: Question,
        kept: memory.Kept | None,
        message: Message,
        context: Context,
        call_next: Next,
    ) -> tuple[bytes, memory.Kept | None]:
        protocol, number = get_sum(plan.aggregator), cast(int, question.party)
        client: SumClient = (
            protocol.client(plan.sum, number) if kept is None else protocol.restore_client(plan.sum, number, kept.state)
        )
        if question.upload:
            self.policy.check_rounds(memory.vectors_sent(context))
            old = global_arrays(plan, message)
            values = vector_of(plan, old, _trained(message, context, call_next))
            answer = client.upload(question.stage, question.payload, values)
            memory.count_vector(context)
        else:
            answer = client.answer(question.stage, question.payload)
        answered = 1 + (0 if kept is None else kept.answered)
        # With helpers a client speaks once; without, it is in every stage.
        over = question.upload if protocol.helpers(plan.sum) else answered >= protocol.cost(plan.sum).stages
        if over:
            return answer, None
        return answer, memory.Kept(question.session, plan.text, number, client.expose_state(), answered)

    def _help(
        self, plan: RoundPlan, question: Question, kept: memory.Kept | None, context: Context
    ) -> tuple[bytes, memory.Kept | None]:
        protocol = get_sum(plan.aggregator)
        name = cast(str, question.party)
        if question.upload:
            raise PeerMisbehaved(f"helper {name!r} was asked for a vector; it has none")
        if kept is not None:
            helper: SumHelper = protocol.restore_helper(plan.sum, name, kept.state)
        else:
            helper = protocol.helper(plan.sum, name, _secret(context) if HELPER_KEYS in plan.sum.options else None)
        answer = helper.answer(question.stage, question.payload)
        if isinstance(helper, SteppingHelper) and question.stage == helper.order[-1]:
            return answer, None
        answered = 1 + (0 if kept is None else kept.answered)
        return answer, memory.Kept(question.session, plan.text, name, helper.expose_state(), answered)


def _trained(message: Message, context: Context, call_next: Next) -> Message:
    """What the app's own function returns. Its errors stay in this node's log: their words may come from its data."""
    try:
        reply = call_next(message, context)
    except Exception:
        log(ERROR, "pqi: the app's train function failed", exc_info=True)
        raise PeerMisbehaved("the train function of this node failed; its log says why") from None
    if reply.has_error():
        log(ERROR, "pqi: the app's train function returned an error: %s", reply.error.reason)
        raise PeerMisbehaved("the train function of this node returned an error; its log says which")
    return reply


def _secret(context: Context) -> bytes:
    path = context.node_config.get(SECRET_FILE)
    if path is None:
        raise BadParameters(
            f"the plan pins this helper's key; say where its secret is: {SECRET_FILE} in the node config"
        )
    return Path(str(path)).read_bytes()
