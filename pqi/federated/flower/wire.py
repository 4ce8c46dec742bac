"""What travels inside Flower's messages: one question of the server, one answer of a node.

A question rides in the message that Flower would send anyway (type ``train``), as two records beside the app's own: a
``ConfigRecord`` with names and numbers, and an ``ArrayRecord`` with the protocol's bytes (Flower cuts large arrays into
chunks). Both are taken out before the app's own function sees the message. An answer is the same two records and
nothing of the app's. Everything that is read here was sent by somebody else, so every field is checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.app.error import Error
from flwr.common.constant import ErrorCode

from protocols.errors import PeerMisbehaved

HEAD = "pqi.head"
BODY = "pqi.body"
_PAYLOAD, _RAW = "payload", "pqi.bytes"

ROLL_CALL, STAGE, ANSWER, HERE = "roll-call", "stage", "answer", "here"
SESSION_BYTES = 16
MAX_STAGE_NAME = 64


@dataclass(frozen=True, repr=False)
class Question:
    """One stage, as the server asks it of one node.

    plan: the public plan as text, in the first question of a run. party: which client number or helper the node is.
    """

    session: bytes
    stage: str
    party: int | str
    payload: bytes
    upload: bool = False
    plan: str = ""

    def __repr__(self) -> str:
        return f"Question({self.stage!r}, party {self.party!r}, {len(self.payload)} bytes)"


@dataclass(frozen=True, repr=False)
class Answer:
    """One node's answer in one stage."""

    session: bytes
    stage: str
    payload: bytes

    def __repr__(self) -> str:
        return f"Answer({self.stage!r}, {len(self.payload)} bytes)"


def add_question(content: RecordDict, question: Question) -> None:
    """Puts a question's two records into the content of a message."""
    head: dict[str, Any] = {"kind": STAGE, "session": question.session, "stage": question.stage}
    head |= {"upload": question.upload, "plan": question.plan}
    if isinstance(question.party, str):
        head["helper"] = question.party
    else:
        head["number"] = int(question.party)  # a protocol may count in numpy's integers, Flower does not
    content[HEAD] = ConfigRecord(head)
    content[BODY] = _body(question.payload)


def take_question(content: RecordDict) -> Question:
    """Removes the two records of a question from a content; raises :class:`PeerMisbehaved` if they make none."""
    head, payload = _take(content, STAGE)
    party = _field(head, "number", int) if "number" in head else _field(head, "helper", str)
    upload, plan = _field(head, "upload", bool), _field(head, "plan", str)
    return Question(_session(head), _stage(head), party, payload, upload, plan)


def answer_content(answer: Answer) -> RecordDict:
    """The content of a reply: the answer, and nothing else."""
    head = ConfigRecord({"kind": ANSWER, "session": answer.session, "stage": answer.stage})
    return RecordDict({HEAD: head, BODY: _body(answer.payload)})


def take_answer(content: RecordDict) -> Answer:
    """Reads a reply's content; raises :class:`PeerMisbehaved` if it is no answer."""
    head, payload = _take(content, ANSWER)
    return Answer(_session(head), _stage(head), payload)


def kind_of(message: Message) -> str | None:
    """The kind of a message's record of ours, or None: the message is Flower's own business."""
    if not message.has_content() or HEAD not in message.content.config_records:
        return None
    return str(message.content.config_records[HEAD].get("kind", ""))


def roll_call() -> RecordDict:
    """The question who a node is."""
    return RecordDict({HEAD: ConfigRecord({"kind": ROLL_CALL})})


def here(role: str) -> RecordDict:
    """Its answer; role is empty for a client."""
    return RecordDict({HEAD: ConfigRecord({"kind": HERE, "role": role})})


def role_in(message: Message) -> str | None:
    """The role in a reply to a roll call, empty for a client; None if it is no such reply."""
    if kind_of(message) != HERE:
        return None
    role: str = _field(message.content.config_records[HEAD], "role", str)
    return role


def refusal(message: Message, reason: str) -> Message:
    """A reply that says no. The reason goes to the server: public facts only."""
    return Message(Error(ErrorCode.MOD_FAILED_PRECONDITION, f"pqi: {reason}"), reply_to=message)


def size_of(content: RecordDict) -> int:
    """Bytes of a message's records: names and values, as Flower counts them (where it can: not empty strings)."""
    arrays = sum(int(record.count_bytes()) for record in content.array_records.values())
    tables = [*content.config_records.values(), *content.metric_records.values()]
    return arrays + sum(len(name) + _bytes_of(value) for table in tables for name, value in table.items())


def _bytes_of(value: Any) -> int:
    if isinstance(value, list):
        return sum(_bytes_of(one) for one in value)
    if isinstance(value, (str, bytes)):
        return len(value)
    return 1 if isinstance(value, bool) else 8


def _body(payload: bytes) -> ArrayRecord:
    return ArrayRecord({_PAYLOAD: Array("uint8", (len(payload),), _RAW, payload)})


def _take(content: RecordDict, kind: str) -> tuple[ConfigRecord, bytes]:
    head, body = content.config_records.get(HEAD), content.array_records.get(BODY)
    if head is None or body is None:
        raise PeerMisbehaved(f"a message for a secure sum has the records {HEAD!r} and {BODY!r}; one is missing")
    if _field(head, "kind", str) != kind:
        raise PeerMisbehaved(f"a message of kind {kind!r} was due, but {str(head['kind'])[:MAX_STAGE_NAME]!r} came")
    if list(body) != [_PAYLOAD] or body[_PAYLOAD].stype != _RAW:
        raise PeerMisbehaved(f"the record {BODY!r} has to hold the one array {_PAYLOAD!r} of raw bytes")
    del content[HEAD], content[BODY]
    return head, bytes(body[_PAYLOAD].data)


def _field(head: ConfigRecord, name: str, kind: type[Any]) -> Any:
    value = head.get(name)
    if type(value) is not kind:  # bool is an int to isinstance
        raise PeerMisbehaved(f"{name} in {HEAD!r} has to be of type {kind.__name__}, not {type(value).__name__}")
    return value


def _session(head: ConfigRecord) -> bytes:
    session: bytes = _field(head, "session", bytes)
    if len(session) != SESSION_BYTES:
        raise PeerMisbehaved(f"a session has {SESSION_BYTES} bytes, not {len(session)}")
    return session


def _stage(head: ConfigRecord) -> str:
    stage: str = _field(head, "stage", str)
    if not 0 < len(stage) <= MAX_STAGE_NAME:
        raise PeerMisbehaved(f"a stage's name has 1 to {MAX_STAGE_NAME} characters, not {len(stage)}")
    return stage
