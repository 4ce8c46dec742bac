"""What can go wrong in a role apart from the network; no message holds a secret."""

from __future__ import annotations


class SessionError(Exception):
    """Root of the errors of this package."""


class BundleError(SessionError):
    """A bundle, configuration or key folder is missing, altered, of another role, or of another version."""


class JournalError(SessionError):
    """The journal of used material cannot be read or written; without it nothing may be used."""


class MaterialReused(JournalError):
    """An item of one-time material was asked for a second time. Refused: this is what must never happen."""


class MaterialMissing(SessionError):
    """The dealer has not delivered what a query needs; nothing was consumed."""


class SpillFailed(SessionError):
    """Items cannot wait on disk, or cannot be read back from it."""


class MemoryAltered(SessionError):
    """Bits of a server's weights were turned beyond repair; it answers nothing until it is started again."""


class QueryRefused(SessionError):
    """The request breaks a limit or the order of the conversation."""


class BudgetSpent(QueryRefused):
    """The client has had the answers that the model's owner allows it."""


class AnswersDisagree(SessionError):
    """The servers did not work on the same query with the same material; the result is dropped."""


class ServiceFailed(SessionError):
    """A process of a local deployment did not start, or ended."""


class WorkerFailed(SessionError):
    """A worker process of a server died, or had to be ended; another takes its place."""


class QueryFailed(SessionError):
    """A private query brought no answer. ``causes``: what this side saw and what the servers reported, first one first.

    Every cause names the party and the step. Nothing of the query's material will be used again; asking anew is safe.
    """

    def __init__(self, what: str, causes: tuple[Exception, ...]) -> None:
        super().__init__(f"{what}: " + "; ".join(str(cause) for cause in causes))
        self.causes = causes
