"""What a node keeps between the messages of one run, in Flower's ``context.state``: secret, and never sent.

One run at a time: a newer one replaces it, and what is left of the older is gone. When the run is over, or a message of
another kind shows that it is, the state is removed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from flwr.app import ConfigRecord, Context

_KEY, _COUNT = "pqi.run", "pqi.sent"


@dataclass(frozen=True, repr=False)
class Kept:
    """A node's part of a run. plan: the public plan's text. party: its number, or its name. state: secret.

    answered: stages so far.
    """

    session: bytes
    plan: str
    party: int | str
    state: bytes
    answered: int

    def __repr__(self) -> str:
        return f"Kept(party {self.party!r}, hidden)"


def keep(context: Context, kept: Kept) -> None:
    """Puts a run away; replaces whatever was there."""
    record = ConfigRecord({"session": kept.session, "plan": kept.plan, "state": kept.state})
    record["answered"] = kept.answered
    record["helper" if isinstance(kept.party, str) else "number"] = kept.party
    context.state[_KEY] = record


def recall(context: Context) -> Kept | None:
    """The run that this node is in, if any."""
    record = context.state.config_records.get(_KEY)
    if record is None:
        return None
    party = cast("int | str", record["number"] if "number" in record else record["helper"])
    session, plan, state = cast(bytes, record["session"]), cast(str, record["plan"]), cast(bytes, record["state"])
    return Kept(session, plan, party, state, cast(int, record["answered"]))


def forget(context: Context) -> None:
    """Removes the run with its secrets."""
    if _KEY in context.state:
        del context.state[_KEY]


def vectors_sent(context: Context) -> int:
    """How many vectors this node has sent in this run of Flower."""
    record = context.state.config_records.get(_COUNT)
    return 0 if record is None else cast(int, record["vectors"])


def count_vector(context: Context) -> None:
    """One more."""
    context.state[_COUNT] = ConfigRecord({"vectors": vectors_sent(context) + 1})
