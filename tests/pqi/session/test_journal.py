from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from pqi.session.errors import JournalError, MaterialReused
from pqi.session.journal import Journal, Use, audit, compare

EPOCH = "e" * 32

WRITER = """
import sys
from pathlib import Path
from pqi.session.journal import Journal
journal = Journal(Path(sys.argv[1]), block=16)
epoch = sys.argv[2]
journal.begin_epoch(epoch)
for query in range(100_000):
    journal.use(epoch, 3 * query, 3, "session", query)
    print(query, flush=True)
"""


@pytest.mark.parametrize(("first", "n"), [(0, 1), (9, 1), (0, 10), (3, 2), (5, 100)])
def test_no_item_is_used_twice_whatever_the_overlap(tmp_path: Path, first: int, n: int) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.begin_epoch(EPOCH)
        journal.use(EPOCH, 0, 10, "s", 0)
        with pytest.raises(MaterialReused, match=r"overlap items that were used before; query refused"):
            journal.use(EPOCH, first, n, "s", 1)
    assert audit(tmp_path / "j").items == 10


def test_ranges_may_come_out_of_order_and_the_audit_counts_them(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", block=4) as journal:
        journal.begin_epoch(EPOCH)
        for query, (first, n) in enumerate([(10, 5), (0, 10), (15, 1), (100, 70)]):
            journal.use(EPOCH, first, n, "s", query)
    report = audit(tmp_path / "j")
    assert (report.items, report.epochs, report.runs) == (86, 1, 1)
    assert report.uses[0] == Use(EPOCH, 0, 10, "s", 1)


def test_an_epoch_begins_once_in_the_life_of_a_journal(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.begin_epoch(EPOCH)
        with pytest.raises(MaterialReused, match="was begun before"):
            journal.begin_epoch(EPOCH)
    with Journal(tmp_path / "j") as journal, pytest.raises(MaterialReused, match=r"was begun before \(run 1\)"):
        journal.begin_epoch(EPOCH)


def test_what_an_earlier_run_had_reserved_is_burnt(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.begin_epoch(EPOCH)
        journal.use(EPOCH, 0, 1, "s", 0)
    with Journal(tmp_path / "j") as journal, pytest.raises(MaterialReused, match="not begun by this run"):
        journal.use(EPOCH, 50, 1, "s", 1)


@pytest.mark.parametrize(("first", "n"), [(-1, 5), (0, 0), (3, -3), (1 << 62, 1)])
def test_a_range_that_is_none_is_refused(tmp_path: Path, first: int, n: int) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.begin_epoch(EPOCH)
        with pytest.raises(JournalError, match="not a range"):
            journal.use(EPOCH, first, n, "s", 0)


def test_every_use_reported_before_a_kill_is_in_the_journal_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "j"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path), EPOCH], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    with writer.stdout:
        for _ in range(200):
            last = int(writer.stdout.readline())
        os.kill(writer.pid, signal.SIGKILL)
        rest = writer.stdout.read().split(b"\n")
    writer.wait()
    last = max([last, *(int(line) for line in rest[:-1] if line)])
    report = audit(path)
    assert {use.query for use in report.uses} >= set(range(last + 1))
    with Journal(path) as journal, pytest.raises(MaterialReused):
        journal.use(EPOCH, 3 * last, 3, "another", 0)


def test_an_audit_finds_an_overlap_that_was_written_behind_its_back(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.begin_epoch(EPOCH)
        journal.use(EPOCH, 0, 10, "s", 0)
    db = sqlite3.connect(tmp_path / "j")
    db.execute("INSERT INTO uses VALUES (?, 5, 1, 's', 1, 0)", (EPOCH,))
    db.commit()
    db.close()
    with pytest.raises(MaterialReused, match="share items"):
        audit(tmp_path / "j")


def test_an_audit_finds_a_use_outside_every_reserved_range(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.begin_epoch(EPOCH)
    db = sqlite3.connect(tmp_path / "j")
    db.execute("INSERT INTO uses VALUES (?, 5, 1, 's', 1, 0)", (EPOCH,))
    db.commit()
    db.close()
    with pytest.raises(JournalError, match="outside the range reserved"):
        audit(tmp_path / "j")


def test_two_journals_that_used_an_item_for_different_queries_contradict_each_other(tmp_path: Path) -> None:
    for name, queries in (("a", [(0, 2, 0), (2, 2, 1)]), ("b", [(0, 2, 0)]), ("c", [(0, 2, 0), (2, 2, 7)])):
        with Journal(tmp_path / name) as journal:
            journal.begin_epoch(EPOCH)
            for first, n, query in queries:
                journal.use(EPOCH, first, n, "s", query)
    a, b, c = (audit(tmp_path / name) for name in "abc")
    compare(a, b)
    with pytest.raises(MaterialReused, match="contradict"):
        compare(a, c)


def test_a_file_that_is_no_journal_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no journal, but long enough to be looked at as a database of some kind")
    db = sqlite3.connect(tmp_path / "other")
    db.execute("CREATE TABLE t (x)")
    db.commit()
    db.close()
    for name in ("text", "other"):
        with pytest.raises(JournalError, match=name):
            Journal(tmp_path / name)
        with pytest.raises(JournalError, match=name):
            audit(tmp_path / name)
    with pytest.raises(JournalError, match="does not exist"):
        audit(tmp_path / "nowhere")
    with pytest.raises(JournalError, match="missing"):
        Journal(tmp_path / "missing" / "j")


def test_a_closed_journal_refuses_uses(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.begin_epoch(EPOCH)
    journal.close()
    with pytest.raises(JournalError):
        journal.use(EPOCH, 0, 1, "s", 0)


def test_two_processes_on_one_journal_cannot_use_one_epoch_both(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as one, Journal(tmp_path / "j") as two:
        one.begin_epoch(EPOCH)
        with pytest.raises(MaterialReused):
            two.begin_epoch(EPOCH)
        with pytest.raises(MaterialReused):
            two.use(EPOCH, 0, 1, "s", 0)
