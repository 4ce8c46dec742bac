"""One secure sum over Flower's grid: the server's generator on one side, messages to nodes on the other.

Who does not answer a stage in time, answers with an error, or answers something else is left out of the answers; what
that means is the protocol's business. A reply counts once, for the stage and the node it was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from logging import INFO

from flwr.app import Message, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid

from pqi.federated.flower.plan import RoundPlan
from pqi.federated.flower.wire import Question, add_question, size_of, take_answer
from protocols import get_sum
from protocols.aggregation import Ask, Party, Server, Sum
from protocols.errors import PeerMisbehaved


@dataclass
class Traffic:
    """Bytes of one run by party. payload: the protocol's; records: whole messages, the app's model in it as well."""

    payload_down: dict[Party, int] = field(default_factory=dict)
    payload_up: dict[Party, int] = field(default_factory=dict)
    records_down: dict[Party, int] = field(default_factory=dict)
    records_up: dict[Party, int] = field(default_factory=dict)
    stages: list[str] = field(default_factory=list)


@dataclass
class SecureSum:
    """One run. invitations: the wrapped strategy's message for each client number. helpers: their nodes.

    wait: seconds for a stage; wait_upload: seconds for the stage in which clients train. lost: who was left out of a
    stage, and why, in words that may be shown.
    """

    grid: Grid
    plan: RoundPlan
    invitations: Mapping[int, Message]
    helpers: Mapping[str, int]
    wait: float
    wait_upload: float
    traffic: Traffic = field(default_factory=Traffic)
    lost: dict[Party, str] = field(default_factory=dict)

    def run(self) -> Sum:
        """The sum; raises what the protocol's server raises, :class:`BelowThreshold` when too few were left."""
        server = get_sum(self.plan.aggregator).server(self.plan.sum)
        told: set[Party] = set()
        answers: dict[Party, bytes] | None = None
        while True:
            ask = _next(server, answers)
            if isinstance(ask, Sum):
                return ask
            self.traffic.stages.append(ask.stage)
            answers = self._asked(ask, told)

    def node(self, party: Party) -> int:
        """The node that plays a party."""
        return self.helpers[party] if isinstance(party, str) else int(self.invitations[party].metadata.dst_node_id)

    def _asked(self, ask: Ask, told: set[Party]) -> dict[Party, bytes]:
        parties = {self.node(party): party for party in ask.messages}
        messages = [self._message(ask, party, party not in told) for party in ask.messages]
        told.update(ask.messages)
        answers: dict[Party, bytes] = {}
        heard: set[Party] = set()
        timeout = self.wait_upload if ask.upload else self.wait
        for reply in self.grid.send_and_receive(messages, timeout=timeout):
            party = parties.get(reply.metadata.src_node_id)
            if party is None or party in heard:
                continue
            heard.add(party)
            try:
                answers[party] = self._answer(ask, party, reply)
            except PeerMisbehaved as wrong:
                self._lose(party, ask.stage, str(wrong))
        for party in ask.messages:
            if party not in heard:
                self._lose(party, ask.stage, f"no answer within {timeout:g} s")
        return answers

    def _message(self, ask: Ask, party: Party, first: bool) -> Message:
        content = RecordDict()
        if ask.upload and isinstance(party, int):
            content = RecordDict(dict(self.invitations[party].content.items()))
        payload = ask.messages[party]
        plan = self.plan.text if first else ""
        upload = ask.upload and isinstance(party, int)
        add_question(content, Question(self.plan.sum.session, ask.stage, party, payload, upload, plan))
        _book(self.traffic.payload_down, party, len(payload))
        _book(self.traffic.records_down, party, size_of(content))
        like = next(iter(self.invitations.values())).metadata
        return Message(content, self.node(party), like.message_type, ttl=like.ttl, group_id=like.group_id)

    def _answer(self, ask: Ask, party: Party, reply: Message) -> bytes:
        if reply.has_error():
            raise PeerMisbehaved(str(reply.error.reason or "an error without words")[:300])
        size = size_of(reply.content)
        answer = take_answer(reply.content)
        if (answer.session, answer.stage) != (self.plan.sum.session, ask.stage):
            raise PeerMisbehaved("answered another run or another stage")
        _book(self.traffic.payload_up, party, len(answer.payload))
        _book(self.traffic.records_up, party, size)
        return answer.payload

    def _lose(self, party: Party, stage: str, why: str) -> None:
        if party not in self.lost:
            self.lost[party] = f"{stage}: {why}"
            log(INFO, "secure sum: node %s is left out in stage %s: %s", self.node(party), stage, why)


def _book(table: dict[Party, int], party: Party, size: int) -> None:
    table[party] = table.get(party, 0) + size


def _next(server: Server, answers: dict[Party, bytes] | None) -> Ask | Sum:
    try:
        return next(server) if answers is None else server.send(answers)
    except StopIteration as end:
        result: Sum = end.value
        return result
