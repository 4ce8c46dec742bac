"""How many answers a client may have: set by the model's owner at the split, kept by every server on its own.

A client is the certificate it shows (its SHA-256), so whoever can have certificates made can have budgets: the
deployment's authority decides. What is spent is written with a full sync before the material of a query is touched and
is never given back, for a client may have had its answer although the server saw the query fail.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pqi.session.errors import BudgetSpent, JournalError

FORMAT_ID = 0x50514231  # "PQB1"
BUDGET_FILE = "answers.sqlite"
MOST = 1 << 40

_SCHEMA = """
CREATE TABLE IF NOT EXISTS spent (client TEXT PRIMARY KEY, answers INTEGER NOT NULL CHECK (answers > 0)) WITHOUT ROWID;
"""
_SPEND = """
INSERT INTO spent (client, answers) SELECT :client, :n WHERE :n <= :limit
ON CONFLICT (client) DO UPDATE SET answers = answers + :n WHERE answers + :n <= :limit
"""


class Budget:
    """Answers of each client against one limit. Any number of threads; close it.

    path: the file that keeps it over restarts. limit: inputs that one client may have answered, in all; None: any
    number, and no file. Raises JournalError if the file is none of this kind.
    """

    def __init__(self, path: Path, limit: int | None) -> None:
        self.limit, self._path, self._lock = limit, path, threading.Lock()
        self._db: sqlite3.Connection | None = None
        if limit is None:
            return
        with _explained(path):
            db = sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)
        try:
            with _explained(path):
                found = int(db.execute("PRAGMA application_id").fetchone()[0])
                tables = int(db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0])
                if found != FORMAT_ID and (tables or found):
                    raise JournalError(f"{path} is an SQLite file of another kind: move it away")
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = FULL")
                db.executescript(_SCHEMA)
                db.execute(f"PRAGMA application_id = {FORMAT_ID}")
        except BaseException:
            db.close()
            raise
        self._db = db

    def close(self) -> None:
        """Close the file; with a limit, nothing can be spent any more."""
        with self._lock:
            if self._db is not None:
                self._db.close()

    def left(self, client: str) -> int | None:
        """How many answers this client can still have; None: any number."""
        if self._db is None or self.limit is None:
            return None
        with self._lock, _explained(self._path):
            row = self._db.execute("SELECT answers FROM spent WHERE client = ?", (client,)).fetchone()
        return max(0, self.limit - (int(row[0]) if row else 0))

    def check(self, client: str, n: int) -> None:
        """Raise BudgetSpent if n answers are more than the client can have; nothing is spent."""
        left = self.left(client)
        if left is not None and n > left:
            raise self._over(n, left)

    def spend(self, client: str, n: int) -> None:
        """Take n answers off, on disk when this returns. Raises BudgetSpent if there are fewer; then none is taken."""
        if self._db is None or self.limit is None:
            return
        with self._lock, _explained(self._path):
            row = {"client": client, "n": n, "limit": self.limit}
            if self._db.execute(_SPEND, row).rowcount == 1:
                return
        raise self._over(n, self.left(client) or 0)

    def _over(self, n: int, left: int) -> BudgetSpent:
        return BudgetSpent(
            f"{n} answers are asked for; of the {self.limit} that the model's owner allows a client, {left} are left"
        )


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise JournalError(f"the record of answers {path} cannot be used: {error}") from None
