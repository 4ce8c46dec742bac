"""Which items of one-time material a server has used: on disk before the first byte that depends on them.

Two levels. *Ranges* of items are reserved ahead with a full sync to the disk, so that no answer waits for one. Each
*use* is one row, committed (write-ahead log, no sync) before the work on it begins: that survives the death of the
process at any instant. After a power cut the last rows may be missing; the ranges are not, and an epoch of an earlier
run is never used again: what was reserved and not finished is burnt.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from pqi.session.errors import JournalError, MaterialReused

FORMAT_ID = 0x50514A31  # "PQJ1"
DEFAULT_BLOCK = 64
MAX_ITEM = (1 << 62) - 1

_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (run INTEGER PRIMARY KEY AUTOINCREMENT, started REAL NOT NULL);
CREATE TABLE IF NOT EXISTS epochs (
    epoch TEXT PRIMARY KEY, run INTEGER NOT NULL, reserved INTEGER NOT NULL, began REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS uses (
    epoch TEXT NOT NULL, first INTEGER NOT NULL CHECK (first >= 0), n INTEGER NOT NULL CHECK (n > 0),
    session TEXT NOT NULL, query INTEGER NOT NULL, time REAL NOT NULL, PRIMARY KEY (epoch, first)) WITHOUT ROWID;
"""

_FREE = """
INSERT INTO uses (epoch, first, n, session, query, time) SELECT :epoch, :first, :n, :session, :query, :time
WHERE NOT EXISTS (SELECT 1 FROM uses WHERE epoch = :epoch AND first < :first + :n AND first + n > :first)
"""


@dataclass(frozen=True, order=True)
class Use:
    """Items [first, first + n) of an epoch went into one query of one session."""

    epoch: str
    first: int
    n: int
    session: str
    query: int

    def overlaps(self, other: Use) -> bool:
        """True if some item is in both."""
        return self.epoch == other.epoch and self.first < other.first + other.n and other.first < self.first + self.n


class Journal:
    """The journal of one server process. Any number of threads; close it, or use it as a context manager.

    block: items reserved ahead of use by one synced write. Raises JournalError if the file is not a journal.
    """

    def __init__(self, path: Path, block: int = DEFAULT_BLOCK) -> None:
        self._path, self._block = path, block
        self._lock = threading.Lock()
        self._reserved: dict[str, int] = {}
        with _explained(path):
            self._db = sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)
        try:
            with _explained(path):
                _check_format(self._db, path, empty_is_fine=True)
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = FULL")
                self._db.executescript(_SCHEMA)
                self._db.execute(f"PRAGMA application_id = {FORMAT_ID}")
                self._run = self._db.execute("INSERT INTO runs (started) VALUES (?)", (time.time(),)).lastrowid
        except BaseException:
            self._db.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; later uses are refused."""
        with self._lock:
            self._db.close()

    def begin_epoch(self, epoch: str) -> None:
        """Admit a new epoch, synced to the disk. Raises MaterialReused if it was ever seen, in this run or another."""
        with self._lock, _explained(self._path):
            known = self._db.execute("SELECT run FROM epochs WHERE epoch = ?", (epoch,)).fetchone()
            if known is not None:
                raise MaterialReused(f"epoch {epoch} was begun before (run {known[0]}); its material is burnt")
            self._synced("INSERT INTO epochs VALUES (?, ?, 0, ?)", (epoch, self._run, time.time()))
            self._reserved[epoch] = 0

    def use(self, epoch: str, first: int, n: int, session: str, query: int) -> None:
        """Record, before anything depends on it, that items [first, first + n) go into one query.

        Raises MaterialReused if any of the items was used before or the epoch is not of this run; then the query must
        not go on. Raises JournalError if the record cannot be written: likewise.
        """
        if first < 0 or n < 1 or first + n > MAX_ITEM:
            raise JournalError(f"items [{first}, {first + n}) are not a range of material")
        with self._lock, _explained(self._path):
            if epoch not in self._reserved:
                raise MaterialReused(f"epoch {epoch} was not begun by this run of the server; its material is burnt")
            if first + n > self._reserved[epoch]:
                reserved = max(first + n, self._reserved[epoch] + self._block)
                self._synced("UPDATE epochs SET reserved = ? WHERE epoch = ?", (reserved, epoch))
                self._reserved[epoch] = reserved
            row = {"epoch": epoch, "first": first, "n": n, "session": session, "query": query, "time": time.time()}
            if self._db.execute(_FREE, row).rowcount != 1:
                raise MaterialReused(
                    f"items [{first}, {first + n}) of epoch {epoch} overlap items that were used before; query refused"
                )

    def _synced(self, statement: str, values: tuple[object, ...]) -> None:
        self._db.execute("PRAGMA synchronous = FULL")
        try:
            self._db.execute(statement, values)
        finally:
            self._db.execute("PRAGMA synchronous = NORMAL")


@dataclass(frozen=True)
class Audit:
    """What a journal says: every use, epochs begun, items used, runs of the server."""

    uses: tuple[Use, ...]
    epochs: int
    items: int
    runs: int


def audit(path: Path) -> Audit:
    """Read a journal and prove that no item was used twice and none outside a reserved range.

    Raises MaterialReused with the two uses that overlap; JournalError if the file is no journal.
    """
    if not path.is_file():
        raise JournalError(f"journal {path} does not exist")
    with _explained(path):
        db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=5.0)
        try:
            _check_format(db, path, empty_is_fine=False)
            rows = db.execute("SELECT epoch, first, n, session, query FROM uses ORDER BY epoch, first").fetchall()
            reserved = dict(db.execute("SELECT epoch, reserved FROM epochs").fetchall())
            runs = int(db.execute("SELECT COUNT(*) FROM runs").fetchone()[0])
        finally:
            db.close()
    uses = tuple(Use(*row) for row in rows)
    for before, after in pairwise(uses):
        if before.overlaps(after):
            raise MaterialReused(f"journal {path}: {before} and {after} share items")
    for use in uses:
        if use.first + use.n > reserved.get(use.epoch, 0):
            raise JournalError(f"journal {path}: {use} lies outside the range reserved for its epoch")
    return Audit(uses, len(reserved), sum(use.n for use in uses), runs)


def compare(mine: Audit, theirs: Audit) -> None:
    """Prove that two servers used the same items for the same queries, as far as both used them.

    A server that died may lack the last uses of the other; what both used must be the same query.
    Raises MaterialReused with the first pair that contradict each other.
    """
    merged = sorted({*mine.uses, *theirs.uses})
    for before, after in pairwise(merged):
        if before.overlaps(after):
            raise MaterialReused(f"the journals contradict each other: {before} and {after} share items")


def _check_format(db: sqlite3.Connection, path: Path, *, empty_is_fine: bool) -> None:
    found = int(db.execute("PRAGMA application_id").fetchone()[0])
    tables = int(db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0])
    if found != FORMAT_ID and not (empty_is_fine and tables == 0 and found == 0):
        raise JournalError(f"{path} is an SQLite file but not a journal of this version; name another path")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise JournalError(f"journal {path} cannot be used: {error}") from None
